"""Where a plug-in's code comes from: the commit it was installed from, and a digest of its source files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

_HASH_CHARS = 12


def git_revision(direct_url: str | None) -> str | None:
    """Return the commit of an installed distribution, or None where it has none.

    `direct_url` is the text of ``direct_url.json`` (PEP 610). For an editable install inside a git checkout
    the answer is the short hash of HEAD, with ``-dirty`` where tracked files differ from it; for an install
    from a version-control URL it is the commit that the installer recorded. git runs only where a checkout is
    found.
    """
    try:
        info = json.loads(direct_url or "null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(info, dict):
        return None
    vcs = info.get("vcs_info")
    if isinstance(vcs, dict) and isinstance(vcs.get("commit_id"), str):
        return str(vcs["commit_id"])[:_HASH_CHARS]
    try:
        dir_info, url = info.get("dir_info"), urlsplit(str(info.get("url", "")))
    except ValueError:
        return None
    if not isinstance(dir_info, dict) or not dir_info.get("editable") or url.scheme != "file":
        return None
    folder = Path(url2pathname(unquote(url.path)))
    try:
        checkout = any((parent / ".git").exists() for parent in (folder, *folder.parents))
    except OSError:  # a name that is longer than any file's
        return None
    return _describe_head(folder) if folder.is_absolute() and checkout else None


def _describe_head(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", f"--abbrev={_HASH_CHARS}"]
    # Variables such as GIT_DIR, set inside git's own hooks, would point git at another repository.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], env=env, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def code_digest(target: str) -> str | None:
    """Return 16 hexadecimal digits of the sha256 over the source of the package that `target` lies in.

    `target` is ``"package.module:attribute"``. The digest covers path and content of every ``.py`` file of
    its top-level package or module, which is found but not imported. Returns None where there is no source.
    Cached for the life of the process.
    """
    return _digest(target.partition(":")[0].partition(".")[0])


@cache
def _digest(top: str) -> str | None:
    spec = top_level_spec(top)
    if spec is None:
        return None
    digest, count = hashlib.sha256(), 0
    try:
        for name, path in sorted(_source_files(spec)):
            data = path.read_bytes()
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
            count += 1
    except OSError:
        return None
    return digest.hexdigest()[:16] if count else None


def top_level_spec(name: str) -> ModuleSpec | None:
    """Return the spec of a top-level module without importing it, or None."""
    try:
        return find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError, AttributeError):
        return None


def _source_files(spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    """Yield (posix path relative to the package, file)."""
    if spec.submodule_search_locations is None:
        if spec.has_location and spec.origin and spec.origin.endswith(".py"):
            yield Path(spec.origin).name, Path(spec.origin)
        return
    for location in spec.submodule_search_locations:
        for folder, subfolders, files in os.walk(location):
            subfolders[:] = [s for s in subfolders if s != "__pycache__"]
            for file in files:
                if file.endswith(".py"):
                    path = Path(folder, file)
                    yield path.relative_to(location).as_posix(), path
