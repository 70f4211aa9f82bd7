"""The audit of packages: what counts as a finding, and that no network is no failure."""

import json
import subprocess

import pytest

from . import advisories

HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
BAD, GOOD = {"name": "a", "version": "1.0", "vulns": [HOLE]}, {"name": "b", "version": "1", "vulns": []}


@pytest.mark.parametrize(
    ("stdout", "code", "told"),
    [
        (json.dumps({"dependencies": [BAD, GOOD]}), 1, "a 1.0: PYSEC-1, mended in 2.0"),
        (json.dumps({"dependencies": [GOOD]}), 0, "none for 1 packages"),
        (json.dumps({"dependencies": [{"name": "c", "skip_reason": "not found"}]}), 0, "nobody answered"),
        ("", 0, "nobody answered"),
    ],
)
def test_what_the_audit_says(monkeypatch, capsys, stdout, code, told):
    done = subprocess.CompletedProcess([], 1, stdout, "ConnectionError")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert advisories.main() == code
    assert told in capsys.readouterr().out


def test_ignored_advisories(monkeypatch):
    monkeypatch.setitem(advisories.IGNORED, "CVE-1", "not called by kdbench")
    assert advisories.found({"dependencies": [BAD, GOOD]}) == []
