"""Installed distributions made of plain folders, for tests of the plug-in host."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
_numbers = itertools.count()


def unique_module(stem: str = "fake_plugin") -> str:
    """Return a module name that no other test of this process uses."""
    return f"{stem}_{os.getpid()}_{next(_numbers)}"


def method_plugin(*names: str, module: str = "nowhere", extra: str = "") -> str:
    """Return the source of a plug-in that provides methods."""
    entries = ", ".join(
        f'MethodEntry(name="{n}", target="{module}:Target", summary="summary of {n}", version="7")'
        for n in names
    )
    return (
        "from kdbench.hooks import MethodEntry, hookimpl\n\n\n"
        f"@hookimpl\ndef kdbench_methods():\n    return [{entries}]\n\n\n" + textwrap.dedent(extra)
    )


class Distributions:
    """A folder for ``sys.path`` with distributions in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        source: str | Mapping[str, str],
        *,
        version: str = "1.0",
        entry_point: str = "",
        direct_url: str | None = None,
    ) -> str:
        """Add a distribution with one entry point; return the name of its plug-in module.

        `source` is the text of that module, or a mapping of file names below the package to texts.
        """
        module = unique_module()
        files = {f"{module}.py": source} if isinstance(source, str) else source
        for file, text in files.items():
            path = self.path / file if isinstance(source, str) else self.path / module / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        self.add_metadata(name, {entry_point or f"{name}-ep": module}, version=version, direct_url=direct_url)
        return module

    def add_metadata(
        self,
        name: str,
        entry_points: Mapping[str, str],
        *,
        version: str = "1.0",
        direct_url: str | None = None,
        suffix: str = "dist-info",
    ) -> Path:
        """Write the metadata folder of a distribution only."""
        folder = self.path / f"{name.replace('-', '_')}-{version}.{suffix}"
        folder.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / ("METADATA" if suffix == "dist-info" else "PKG-INFO")).write_text(head)
        lines = "".join(f"{key} = {value}\n" for key, value in entry_points.items())
        (folder / "entry_points.txt").write_text(f"[kdbench]\n{lines}")
        if direct_url is not None:
            (folder / "direct_url.json").write_text(direct_url)
        return folder

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m kdbench`` with these distributions on the path."""
        return self.python("-m", "kdbench", *arguments, **environment)

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run python with these distributions on the path."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("KDBENCH_")}
        env["PYTHONPATH"] = os.pathsep.join([str(self.path), str(REPOSITORY)])
        return subprocess.run(
            [sys.executable, *arguments],
            env={**env, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
