import errno
import json
import os

import pytest
from factories import make_record, write_run

from kdbench.errors import RecordError
from kdbench.results import store
from kdbench.results.schema import Record


def _names(folder):
    return sorted(os.listdir(folder))


def test_write_replaces_whole_file_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "a.json"
    store.atomic_write_json(path, {"x": 1})
    store.atomic_write_json(path, {"x": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": "é"}
    assert _names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.bin"
    store.atomic_write_bytes(path, b"old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, step, fail)
    with pytest.raises(OSError, match="No space"):
        store.atomic_write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert _names(tmp_path) == ["a.bin"]


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    store.atomic_write_json(path, {"x": 1})
    with pytest.raises(ValueError, match=r"[Oo]ut of range"):
        store.atomic_write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}
    assert _names(tmp_path) == ["a.json"]


def test_lone_surrogate_survives(tmp_path):
    path = tmp_path / "a.json"
    store.atomic_write_json(path, {"x": "\udc80"})
    assert json.loads(path.read_bytes()) == {"x": "\udc80"}


def test_record_round_trip(tmp_path):
    record = Record.model_validate(make_record())
    store.write_record(tmp_path / "cell", record)
    found = store.read_record(tmp_path / "cell" / "result.json")
    assert found == record
    assert store.read_record_dict(tmp_path / "cell" / "result.json") == record.model_dump(mode="json")


def test_new_record_replaces_none(tmp_path, monkeypatch):
    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    first, second = (Record.model_validate(make_record(status=status)) for status in ("oom", "crashed"))
    store.write_record(tmp_path, first, new=True)
    before = (tmp_path / "result.json").read_bytes()
    for links in (True, False):  # with and without hard links
        with pytest.raises(RecordError, match="holds a record already"):
            store.write_record(tmp_path, second, new=True)
        assert (tmp_path / "result.json").read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1
        if links:
            monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "result.json").unlink()
    store.write_record(tmp_path, first, new=True)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_records_put_aside_never_replace_each_other(tmp_path):
    for text in "abc":
        (tmp_path / "result.json").write_text(text)
        store.put_record_aside(tmp_path)
        if text == "b":  # by hand, so that a count is not the next number
            (tmp_path / "previous" / "result-1.json").unlink()
    assert sorted(p.read_text() for p in (tmp_path / "previous").iterdir()) == ["b", "c"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "route").mkdir()
    stays = [tmp_path / n for n in ("result.json", ".lock", ".notes.tmp", "route/epoch-0001.safetensors")]
    goes = [
        tmp_path / n
        for n in (".result.json.0123456789ab.tmp", "route/.epoch-0001.safetensors.ffffffffffff.tmp")
    ]
    for path in stays + goes:
        path.touch()
    store.remove_unfinished(tmp_path)
    assert [p for p in stays + goes if p.exists()] == stays


def test_finished_result_is_not_overwritten_unless_asked(tmp_path):
    done = Record.model_validate(make_record(top1=72.0))
    better = Record.model_validate(make_record(top1=99.0))
    store.write_record(tmp_path, done)
    with pytest.raises(RecordError, match="finished result"):
        store.write_record(tmp_path, better)
    assert store.read_record(tmp_path / "result.json").deployables == done.deployables
    store.write_record(tmp_path, better, overwrite=True)
    assert store.read_record(tmp_path / "result.json").deployables == better.deployables


@pytest.mark.parametrize("content", ["{", json.dumps(make_record(status="oom"))])
def test_failed_or_broken_result_is_replaced(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    store.write_record(tmp_path, Record.model_validate(make_record()))
    assert store.read_record(tmp_path / "result.json").status == "done"


def test_a_result_that_the_file_system_does_not_give_stays(tmp_path, monkeypatch):
    store.write_record(tmp_path, Record.model_validate(make_record()))
    path, real = tmp_path / "result.json", open

    def stall(name, *more, **how):
        if name == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, *more, **how)

    monkeypatch.setattr("builtins.open", stall)
    with pytest.raises(RecordError, match="Input/output error"):
        store.write_record(tmp_path, Record.model_validate(make_record(status="failed")))
    monkeypatch.undo()
    assert store.read_record(path).status == "done"


def _broken():
    yield "{", "JSON"
    yield "[]", "an object"
    yield json.dumps(make_record() | {"status": "fine"}), "status"
    yield json.dumps(make_record() | {"surprise": 1}), "surprise"
    yield json.dumps(make_record() | {"cell_id": "../../etc"}), "cell_id"
    yield json.dumps(make_record(deployables={"student": {"last": {"top1": float("nan")}}})), "top1"
    yield json.dumps(make_record(environment={"load": float("inf")})), "environment"
    yield json.dumps(make_record()).replace('"lr": 0.05', '"lr": 1e999'), "identity"
    yield "[" * 100_000, "JSON"


@pytest.mark.parametrize(("content", "names"), list(_broken()))
def test_broken_record_is_one_line_with_file_and_problem(tmp_path, content, names):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RecordError) as caught:
        store.read_record(path)
    message = str(caught.value)
    assert str(path) in message
    assert names in message
    assert "\n" not in message


def test_large_file_is_refused_before_parsing(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(" " * (store.MAX_RECORD_BYTES + 1))
    for read in (store.read_record, store.read_record_dict):
        with pytest.raises(RecordError, match="4096 KiB"):
            read(path)


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"cell_id": "A" * 64}, {"status": 3}, {"cell_id": "0" * 64 + "\n"}]
)
def test_light_check(tmp_path, change):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_record() | change))
    with pytest.raises(RecordError, match=next(iter(change))):
        store.read_record_dict(path)


def test_missing_record(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        store.read_record(tmp_path / "result.json")


def test_curves_tolerate_a_cut_last_line_only(tmp_path):
    path = tmp_path / "curves.jsonl"
    assert store.read_curves(tmp_path) == []
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert store.read_curves(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(RecordError, match=r"curves\.jsonl:2"):
        store.read_curves(tmp_path)


def test_run_folder(tmp_path):
    records = [make_record(seed=s) for s in range(3)] + [make_record(method="dkd", status="diverged")]
    run = store.RunFolder(write_run(tmp_path / "quickstart", records))
    found = list(run.records())
    assert [r["cell_id"] for _, r in found] == sorted(r["cell_id"] for r in records)
    assert all(folder == run.cell(record["cell_id"]) for folder, record in found)
    assert [r["status"] for _, r in run.failures()] == ["diverged"]
    assert run.matrix()["title"] == "Test matrix"


def test_run_folder_reports_broken_and_misplaced_records(tmp_path):
    good, moved = make_record(seed=0), make_record(seed=1)
    run = store.RunFolder(write_run(tmp_path / "q", [good, moved]))
    run.cell(moved["cell_id"]).rename(run.cell("0" * 64))
    broken = run.cell("1" * 64)
    broken.mkdir()
    (broken / "result.json").write_text("{")
    errors = []
    assert [r["cell_id"] for _, r in run.records(errors.append)] == [good["cell_id"]]
    assert len(errors) == 2
    with pytest.raises(RecordError):
        list(run.records())


def test_run_folder_without_files(tmp_path):
    run = store.RunFolder(tmp_path / "absent")
    assert list(run.records()) == []
    assert run.matrix() == {"name": "absent"}
    run.write_matrix({"name": "absent", "title": "T", "protocol": 1})
    assert run.matrix()["protocol"] == 1
    with pytest.raises(RecordError, match="cell id"):
        run.cell("../x")
