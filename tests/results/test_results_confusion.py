"""The answers by class on disk."""

import pytest

from kdbench.errors import RecordError
from kdbench.results.confusion import CONFUSION, by_class, read_confusion, write_confusion


def test_what_was_written_is_read_whatever_the_names(tmp_path):
    names = ["cat", 'a "dog", wet', "line\nbreak"]
    counts = [[3, 1, 0], [0, 0, 2], [0, 0, 0]]
    write_confusion(tmp_path, names, counts)
    assert read_confusion(tmp_path) == (names, counts)
    cat, dog, line = by_class(names, counts)
    assert (cat.images, cat.answered, cat.correct, cat.top1, cat.precision) == (4, 3, 3, 75.0, 100.0)
    assert (dog.top1, dog.precision) == (0.0, 0.0)
    assert (line.images, line.top1, line.answered, line.precision) == (0, None, 2, 0.0)


def test_classes_are_numbered_where_names_are_missing(tmp_path):
    write_confusion(tmp_path, ["only one"], [[1, 0], [0, 1]])
    assert read_confusion(tmp_path) == (["0", "1"], [[1, 0], [0, 1]])


def test_no_file_and_broken_ones(tmp_path):
    assert read_confusion(tmp_path) is None
    for text in ("", "true,a,b\na,1,2\n", "true,a,b\na,1\nb,1,2\n", "true,a\na,x\n", "true,a\nb,1\n"):
        (tmp_path / CONFUSION).write_text(text)
        with pytest.raises(RecordError, match=CONFUSION):
            read_confusion(tmp_path)
