"""CIFAR on disk: small data in the real format, download from a local archive, hostile files."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kdbench.api import DataError
from kdbench_datasets import cifar_files
from kdbench_datasets.cifar import Cifar10, Cifar100
from kdbench_datasets.cifar_files import CifarFiles, fetch, read_split, safe_load


def md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def batch(n: int, seed: int, **changes: object) -> bytes:
    """A batch as the python version has it: bytes keys, uint8 (N, 3072), a list of labels."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n, 3072), np.uint8)
    content = {
        b"batch_label": b"a batch",
        b"labels": rng.integers(0, 10, n).tolist(),
        b"data": data,
        b"filenames": [b"x.png"] * n,
    }
    content.update({k.encode(): v for k, v in changes.items()})
    return pickle.dumps(content, protocol=2)


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


@pytest.fixture
def batches():
    return {"data_batch_1": batch(4, 1), "data_batch_2": batch(3, 2), "test_batch": batch(5, 3)}


@pytest.fixture
def source(tmp_path, batches) -> CifarFiles:
    return publish(tmp_path, batches)


def publish(tmp_path: Path, batches: dict[str, bytes], extra: dict[str, bytes] | None = None) -> CifarFiles:
    folder = "cifar-10-batches-py"
    raw = archive({f"{folder}/{name}": b for name, b in batches.items()} | (extra or {}))
    web = tmp_path / "web"
    web.mkdir(exist_ok=True)
    (web / "small.tar.gz").write_bytes(raw)
    sums = [(name, md5(b)) for name, b in batches.items()]
    return CifarFiles(
        url=(web / "small.tar.gz").as_uri(),
        archive_md5=md5(raw),
        folder=folder,
        train=tuple(s for s in sums if s[0].startswith("data")),
        test=tuple(s for s in sums if s[0].startswith("test")),
        label_key=b"labels",
        num_classes=10,
        n_train=7,
        n_test=5,
    )


def dataset(files: CifarFiles, root: Path) -> Cifar10:
    class Small(Cifar10):
        pass

    Small.files = files
    Small.info = dataclasses.replace(Cifar10.info, n_train=files.n_train, n_test=files.n_test)
    return Small(Small.Params(root=root))


def test_prepare_downloads_unpacks_and_reads(source, tmp_path, batches):
    root = tmp_path / "data"
    data = dataset(source, root)
    with pytest.raises(DataError, match=r"data_batch_1 not found under .*cifar-10-batches-py; run `kdbench"):
        data.describe()
    data.prepare()
    assert data.describe().n_train == 7
    assert sorted(p.name for p in (root / source.folder).iterdir()) == sorted(batches)
    assert sorted(p.name for p in root.iterdir()) == [source.folder, "small.tar.gz"]

    first = pickle.loads(batches["data_batch_1"], encoding="bytes")
    x = data.arrays("train", np.array([1, 6]))
    assert x.shape == (2, 32, 32, 3)
    assert x.dtype == np.uint8
    # pixel (row 2, column 5): red plane, then green, then blue, row-major
    assert x[0, 2, 5].tolist() == [first[b"data"][1, c * 1024 + 2 * 32 + 5] for c in range(3)]
    assert data.labels("train")[:4].tolist() == first[b"labels"]
    assert data.labels("train").dtype == np.int64
    assert len(data.labels("test")) == 5
    assert np.array_equal(np.asarray(data.image("train", 6)), x[1])
    with pytest.raises(DataError, match="no split 'val'"):
        data.labels("val")


def test_prepare_does_nothing_when_all_is_there(source, tmp_path):
    data = dataset(source, tmp_path / "data")
    data.prepare()
    Path(tmp_path / "web" / "small.tar.gz").unlink()
    (tmp_path / "data" / "small.tar.gz").unlink()
    data.prepare()


def test_a_lost_file_is_restored_from_the_archive_at_hand(source, tmp_path):
    data = dataset(source, tmp_path / "data")
    data.prepare()
    (tmp_path / "web" / "small.tar.gz").unlink()
    (tmp_path / "data" / source.folder / "test_batch").unlink()
    data.prepare()
    assert len(data.labels("test")) == 5


def test_wrong_checksum_of_the_download(source, tmp_path):
    bad = dataclasses.replace(source, archive_md5="0" * 32)
    with pytest.raises(DataError, match=r"md5 .* of the download, expected 0000"):
        fetch(bad, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_checksum_of_an_archive_at_hand(source, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.tar.gz").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"small\.tar\.gz: md5 .* delete it to download again"):
        fetch(source, tmp_path / "data")


def test_wrong_checksum_of_a_member(source, tmp_path):
    bad = dataclasses.replace(source, test=(("test_batch", "0" * 32),))
    with pytest.raises(DataError, match="of test_batch, expected 0000"):
        fetch(bad, tmp_path / "data")
    assert not (tmp_path / "data" / source.folder / "test_batch").exists()
    assert not list((tmp_path / "data" / source.folder).glob(".*"))


def test_no_connection(source, tmp_path):
    bad = dataclasses.replace(source, url=(tmp_path / "web" / "other.tar.gz").as_uri())
    with pytest.raises(DataError, match=r"other\.tar\.gz: download failed") as e:
        fetch(bad, tmp_path / "data")
    assert "\n" not in str(e.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        fetch(source, tmp_path / "file" / "data")


def test_an_archive_without_a_batch(source, tmp_path):
    bad = dataclasses.replace(source, test=(*source.test, ("third", "0" * 32)))
    with pytest.raises(DataError, match="lacks cifar-10-batches-py/third"):
        fetch(bad, tmp_path / "data")


@pytest.mark.parametrize("name", ["../evil", "cifar-10-batches-py/../../evil"])
def test_a_member_that_escapes_is_refused(tmp_path, batches, name):
    files = publish(tmp_path, batches, {name: b"evil"})
    with pytest.raises(DataError, match="not a usable archive"):
        fetch(files, tmp_path / "data")
    assert not list(tmp_path.rglob("evil"))


def test_a_link_in_place_of_a_batch_is_not_followed(tmp_path, batches):
    files = publish(tmp_path, batches)
    secret = tmp_path / "secret"
    secret.write_bytes(batches["test_batch"])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    (tmp_path / "web" / "small.tar.gz").write_bytes(out.getvalue())
    with pytest.raises(DataError, match="not a usable archive"):
        fetch(dataclasses.replace(files, archive_md5=md5(out.getvalue())), tmp_path / "data")


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [exec, eval, getattr, __import__, open, print], ids=lambda c: c.__name__)
def test_pickles_that_call_anything_are_refused(call):
    with pytest.raises(pickle.UnpicklingError, match=f"refused: the pickle asks for .*{call.__name__}"):
        safe_load(pickle.dumps({b"data": Evil(call, "raise SystemExit")}, protocol=2))


def test_a_malicious_batch_does_nothing(tmp_path, batches):
    import os

    marker = tmp_path / "marker"
    batches["test_batch"] = pickle.dumps(Evil(os.mkdir, str(marker)), protocol=2)
    files = publish(tmp_path, batches)
    data = dataset(files, tmp_path / "data")
    data.prepare()
    with pytest.raises(DataError, match=r"test_batch: not a CIFAR batch: UnpicklingError: refused"):
        data.labels("test")
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()], dtype=object),
        np.zeros(3, dtype=[("a", "i4")]),
        Evil(np.ndarray.__reduce__(np.zeros(1))[0], np.ndarray, (1 << 40,), b"b"),
    ],
    ids=["objects", "records", "huge"],
)
def test_only_plain_number_arrays_come_out(value):
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        safe_load(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_survive_in_every_protocol(protocol):
    value = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        b"labels": [1, 2, 3],
        b"name": b"\xe9t\xe9",
    }
    loaded = safe_load(pickle.dumps(value, protocol=protocol))
    assert np.array_equal(loaded[b"data"], value[b"data"])
    assert loaded[b"labels"] == [1, 2, 3]
    assert loaded[b"name"] == value[b"name"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": np.zeros((5, 3072), np.float32)}, "expected uint8"),
        ({"data": np.zeros((5, 3071), np.uint8)}, "expected uint8"),
        ({"labels": [0, 1, 2, 3]}, "one label"),
        ({"labels": [0, 1, 2, 3, 10]}, "one label"),
        ({"labels": [0, 1, 2, 3, -1]}, "one label"),
        ({"labels": ["a"] * 5}, "not a CIFAR batch"),
    ],
)
def test_batches_of_another_shape(tmp_path, batches, changes, words):
    batches["test_batch"] = batch(5, 3, **changes)
    files = publish(tmp_path, batches)
    fetch(files, tmp_path / "data")
    with pytest.raises(DataError, match=f"test_batch: .*{words}"):
        read_split(files, tmp_path / "data", "test")


def test_a_changed_file_is_noticed(source, tmp_path):
    fetch(source, tmp_path / "data")
    path = tmp_path / "data" / source.folder / "data_batch_2"
    path.write_bytes(batch(3, 99))
    with pytest.raises(DataError, match="data_batch_2: md5"):
        read_split(source, tmp_path / "data", "train")


def test_too_few_images(source, tmp_path):
    fetch(source, tmp_path / "data")
    with pytest.raises(DataError, match="7 images in train, expected 50000"):
        read_split(dataclasses.replace(source, n_train=50_000), tmp_path / "data", "train")


def test_the_cache_is_the_default_root(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    assert Cifar10().root == tmp_path / "cifar10"
    assert Cifar100().root == tmp_path / "cifar100"
    for cls, file in ((Cifar10, "data_batch_1"), (Cifar100, "train")):
        with pytest.raises(DataError, match=f"{file} not found under .*or unpack cifar-10*-python.tar.gz in"):
            cls().describe()


def test_facts_agree_with_torchvisions_reader():
    # a process of its own: torchvision imports torch
    program = """
import torchvision.datasets as tv
from kdbench_datasets.cifar import Cifar10, Cifar100
for ours, theirs in ((Cifar10, tv.CIFAR10), (Cifar100, tv.CIFAR100)):
    f = ours.files
    assert (f.url, f.archive_md5, f.folder) == (theirs.url, theirs.tgz_md5, theirs.base_folder)
    assert [list(x) for x in f.train] == theirs.train_list and [list(x) for x in f.test] == theirs.test_list
    assert len(set(ours.info.class_names)) == ours.info.num_classes == f.num_classes
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_cifar100_labels_are_the_fine_ones():
    assert Cifar100.files.label_key == b"fine_labels"
    assert cifar_files.CifarFiles.archive.fget(Cifar100.files) == "cifar-100-python.tar.gz"
