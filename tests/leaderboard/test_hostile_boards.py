"""Boards from strangers: links, numbers that overflow, identities that hold anything."""

import json
import os

import pytest
from factories import make_record, signed, write_run

from kdbench.errors import KdbenchError, RecordError
from kdbench.leaderboard import folder
from kdbench.leaderboard.curves import copy_curve, extract, parse
from kdbench.leaderboard.site.load import build_site
from kdbench.matrix.identity import cell_id
from kdbench.results.schema import Record
from kdbench.results.store import parse_record, read_curves
from kdbench.results.system import read_samples


def board(path, *records):
    (path / "records").mkdir(parents=True)
    for record in records or (make_record(),):
        (path / "records" / f"{record['cell_id']}.json").write_text(json.dumps(signed(record)))
    return path


@pytest.fixture
def away(tmp_path):
    made = tmp_path / "outside"
    made.mkdir()
    (made / "kept.svg").write_text("theirs")
    yield made
    assert [p.name for p in made.iterdir()] == ["kept.svg"]


def test_linked_folders_are_refused(tmp_path, away):
    one = board(tmp_path / "boards" / "b")
    (one / "plots").symlink_to(away)
    with pytest.raises(RecordError, match="plots: is a link"):
        folder.build_folder(one)
    (one / "plots").unlink()
    (one / "curves").symlink_to(away)
    with pytest.raises(RecordError, match="curves: is a link"):
        build_site([folder.load_folder(one)], tmp_path / "site")
    run = write_run(tmp_path / "run", [make_record(seed=5)])
    with pytest.raises(RecordError, match="curves: is a link"):
        copy_curve(run, Record.model_validate(make_record()), one)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "records").symlink_to(away)
    with pytest.raises(RecordError, match="records: is a link"):
        folder.copy_records(run, linked)
    assert "records: is a link" in folder.check_folder(linked)[0]
    (tmp_path / "boards" / "z").symlink_to(one)
    with pytest.raises(RecordError, match="z: is a link"):
        folder.board_folders(tmp_path / "boards")


def test_linked_files_are_replaced_or_refused(tmp_path):
    target = tmp_path / "theirs"
    target.write_text("theirs")
    one = board(tmp_path / "b")
    (one / "README.md").symlink_to(target)
    assert any("README.md: is a link" in line for line in folder.check_folder(one))
    folder.build_folder(one)
    assert not (one / "README.md").is_symlink()
    (one / "board.yaml").symlink_to(target)
    with pytest.raises(RecordError, match=r"board\.yaml: is a link"):
        folder.read_info(one)
    assert target.read_text() == "theirs"


def test_the_site_stays_in_its_folder(tmp_path, away):
    target = tmp_path / "theirs"
    target.write_text("theirs")
    loaded = folder.load_folder(board(tmp_path / "boards" / "b"))
    site = tmp_path / "site"
    site.mkdir()
    for name in ("index.html", ".kdbench-site"):
        (site / name).symlink_to(target)
    build_site([loaded], site)
    assert target.read_text() == "theirs"
    assert not (site / "index.html").is_symlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "boards").symlink_to(away)
    with pytest.raises(KdbenchError, match="link out of the site's folder"):
        build_site([loaded], tmp_path / "other")
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "sub").symlink_to(away)
    (gone / ".kdbench-site").write_text('["sub/kept.svg"]')
    with pytest.raises(KdbenchError, match="link out of the site's folder"):
        build_site([loaded], gone)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("deployables", "student", "macs"), 10**400),
        (("deployables", "student", "params"), 2**63),
        (("deployables", "student", "last", "top1"), 1e308),
        (("cost", "step_ms"), 1e200),
        (("protocol",), 10**30),
        (("environment", "threads"), 10**400),
    ],
)
def test_numbers_that_would_overflow_are_refused(path, value):
    record = make_record()
    part = record
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(RecordError, match=path[-1]):
        parse_record(json.dumps(record).encode(), "r.json")


def test_numbers_in_free_parts_are_finite():
    tuning = {
        "track": "t", "budget": 1, "trials": 1, "failed": 0, "dataset": "d", "pair": "p", "seeds": [0],
        "epochs": 1, "select": "last", "sampler": "tpe", "sampler_seed": 0, "batch": 1, "space": {"a": 1.5},
    }  # fmt: skip
    text = json.dumps(signed({**make_record(), "tuning": tuning}))
    assert parse_record(text.encode(), "r.json").tuning.space == {"a": 1.5}
    with pytest.raises(RecordError, match="must be finite"):
        parse_record(text.replace('{"a": 1.5}', '{"a": NaN}').encode(), "r.json")


def test_an_identity_may_hold_anything(tmp_path):
    record, deep = make_record(), "x"
    for _ in range(100):
        deep = [deep]
    record["identity"] |= {
        "dataset": {"name": ["a"], "args": deep},
        "student": deep,
        "teachers": [deep],
        "tuning": 3,
    }
    record["cell_id"] = cell_id(record["identity"])
    assert folder.build_folder(board(tmp_path / "b", record)) == 1


@pytest.mark.parametrize("line", ["1,1e308,,", f"{10**20},1,1,1", "-1,1,1,1", "1,inf,1,1"])
def test_curves_that_would_overflow_are_refused(line):
    with pytest.raises(RecordError, match="line 2"):
        parse(f"epoch,train_loss,val_top1,test_top1\n{line}\n".encode(), "c.csv")


def test_whole_numbers_beyond_every_float(tmp_path):
    rows = [{"epoch": 1, "train": {"loss": 10**400}}, {"epoch": 10**400, "train": {"loss": 1.0}}]
    assert extract(rows, None) is None
    (tmp_path / "system.jsonl").write_text(f'{{"at": 1.0, "cpu": {10**400}}}\n')
    assert read_samples(tmp_path) == [{"at": 1.0}]


def test_curves_of_a_run_are_read_from_plain_files_only(tmp_path):
    os.mkfifo(tmp_path / "curves.jsonl")
    with pytest.raises(RecordError, match="not a regular file"):
        read_curves(tmp_path)


@pytest.mark.parametrize(
    "text", ["title: " + "[" * 2000, "notes: [!!timestamp 2024-99-99]", "title: !!int ''"]
)
def test_board_yaml_that_trips_parsers(tmp_path, text):
    (tmp_path / "board.yaml").write_text(text)
    with pytest.raises(KdbenchError) as caught:
        folder.read_info(tmp_path)
    assert str(caught.value).isprintable()
