"""The digest that a record carries of its content."""

import json

import pytest
from factories import make_record, signed

from kdbench.errors import RecordError
from kdbench.results.content import content_sha256
from kdbench.results.digest import record_sha256
from kdbench.results.schema import Record
from kdbench.results.store import parse_record, read_record, validate_record, write_record


def test_every_written_record_carries_its_digest(tmp_path):
    record = Record.model_validate(make_record(top1=-0.0, message="\udcff"))
    write_record(tmp_path, record)
    found = json.loads((tmp_path / "result.json").read_bytes())
    assert found["content_sha256"] == content_sha256(found)
    assert read_record(tmp_path / "result.json") == record


@pytest.mark.parametrize(
    "edit",
    [
        {"deployables": {"student": {"last": {"top1": 99.0}, "params": 1}}},
        {"weights_sha256": "0" * 64},
        {"finished_at": "2026-01-02T03:05:06+00:00"},
        {"content_sha256": "0" * 64},
    ],
)
def test_an_edited_record_is_refused(edit):
    edited = {**signed(make_record()), **edit}
    with pytest.raises(RecordError, match="content_sha256 is not the digest"):
        parse_record(json.dumps(edited).encode(), "x.json")
    with pytest.raises(RecordError, match="edited after it was written"):
        validate_record(edited, "x.json")


def test_layout_and_order_are_no_content():
    record = signed(make_record())
    shuffled = json.dumps(dict(reversed(record.items())), indent=7)
    assert parse_record(shuffled.encode(), "x").content_sha256 == record["content_sha256"]


def test_fields_of_later_versions_leave_old_digests_valid():
    old = make_record()
    assert "warnings" not in old  # a field that has a default, as those of later versions will
    assert parse_record(json.dumps(signed(old)).encode(), "x").warnings == []


def test_records_without_a_digest_stay_readable():
    assert parse_record(json.dumps(make_record()).encode(), "x").content_sha256 is None


def test_sinks_see_the_same_record_with_and_without_digest():
    record = make_record()
    assert record_sha256(record) == record_sha256(signed(record))
