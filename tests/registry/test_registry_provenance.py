"""Digests of source and commits of installs."""

import json
import os
import subprocess
import sys

import pytest
from fake_distributions import method_plugin, unique_module

from kdbench.registry import Registry, code_digest
from kdbench.registry.provenance import git_revision


def test_digest_covers_every_source_file_and_its_place(dists):
    digests = []
    for files in (
        {"__init__.py": "", "sub/a.py": "x = 1\n"},
        {"__init__.py": "", "sub/a.py": "x = 2\n"},
        {"__init__.py": "", "sub/b.py": "x = 1\n"},
        {"__init__.py": "", "sub/a.py": "x = 1\n", "notes.txt": "not code", "__pycache__/c.py": "y"},
    ):
        module = dists.add(f"fake-{len(digests)}", files)
        digests.append(code_digest(f"{module}.sub.a:Thing"))
        assert module not in sys.modules
        assert code_digest(f"{module}:Other") == digests[-1]
    assert len(set(digests[:3])) == 3
    assert digests[3] == digests[0]
    assert all(len(d) == 16 and int(d, 16) >= 0 for d in digests)


def test_digest_of_a_module_that_fails_to_import(dists):
    module = dists.add("fake-one", "raise RuntimeError\n")
    assert len(code_digest(f"{module}:x")) == 16


def test_digest_does_not_depend_on_the_folder(dists, tmp_path, monkeypatch):
    module = unique_module("moved")
    digests = []
    for place in ("here", "there"):
        (tmp_path / place / module).mkdir(parents=True)
        (tmp_path / place / module / "__init__.py").write_text("x = 1\n")
        code = f"from kdbench.registry import code_digest; print(code_digest('{module}:x'))"
        run = dists.python("-c", f"import sys; sys.path.insert(0, {str(tmp_path / place)!r}); {code}")
        digests.append(run.stdout.strip())
    assert digests[0] == digests[1] != "None"


@pytest.mark.parametrize("target", ["no_such_module_anywhere:x", "", ":", "sys:x", "not a name:x", "../up:x"])
def test_no_digest_without_source(target):
    assert code_digest(target) is None


def git(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), "-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
    done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_of_an_editable_install(dists, tmp_path):
    checkout = tmp_path / "check out"
    package = checkout / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "first")
    git(checkout, "tag", "-a", "v1", "-m", "v1")
    url = json.dumps({"url": package.as_uri(), "dir_info": {"editable": True}})
    dists.add("fake-one", method_plugin("a"), direct_url=url)
    head = git(checkout, "rev-parse", "HEAD")
    assert find("fake-one").git == head[:12]
    (package / "a.py").write_text("x = 2\n")
    assert find("fake-one").git == f"{head[:12]}-dirty"


@pytest.mark.parametrize(
    ("direct_url", "expected"),
    [
        (None, None),
        ("not json", None),
        ("[]", None),
        ('{"url": "file:///", "dir_info": {"editable": true}}', None),
        ('{"url": "https://example.org/a.whl", "archive_info": {}}', None),
        (
            '{"url": "https://example.org/a", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef0"}}',
            "0123456789ab",
        ),
    ],
)
def test_commit_from_the_installers_note(dists, direct_url, expected):
    dists.add("fake-one", method_plugin("a"), direct_url=direct_url)
    assert find("fake-one").git == expected


def find(distribution):
    return next(p for p in Registry.load().plugins() if p.distribution == distribution)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        '{"url": "http://[", "dir_info": {"editable": true}}',
        '{"url": "file:+/relative", "dir_info": {"editable": true}}',
        '{"url": "file:///a\\u0000b", "dir_info": {"editable": true}}',
        '{"url": 3, "dir_info": []}',
        '{"url": "file:///' + "n" * 5000 + '", "dir_info": {"editable": true}}',
    ],
)
def test_a_strange_direct_url_has_no_commit(text, monkeypatch):
    asked = []
    monkeypatch.setattr("subprocess.run", lambda *a, **k: asked.append(a))
    assert git_revision(text) is None
    assert asked == []
