"""A document, followed by a test to the letter."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path


class Walk:
    """A document, followed in a folder: its files are saved, its commands are run."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.folder, self.site = folder, folder.parent / "site"
        self.text = page.read_text()
        self.ran: list[str] = []
        path = os.pathsep.join([str(self.site), str(folder), os.environ.get("PYTHONPATH", "")])
        self.env = {
            **os.environ,
            "PYTHONPATH": path.rstrip(os.pathsep),
            "KDBENCH_CACHE": str(folder.parent / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def save_files(self) -> list[str]:
        """Save every block whose paragraph before it names a file; their names."""
        found = re.findall(
            r"((?:[^\n]+\n)+)\n```(?:python|yaml|toml)\n(.*?)^```$", self.text, flags=re.M | re.S
        )
        names = []
        for before, code in found:
            named = re.findall(r"`([\w./-]+\.(?:py|yaml|toml))`", before)
            if named:
                path = self.folder / named[0]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(code)
                names.append(named[0])
        return names

    def commands(self) -> list[str]:
        """Lines of the blocks without a language, in order."""
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, flags=re.M | re.S)
        return [line for language, code in blocks if not language for line in code.splitlines()]

    def run(self, line: str, *further: str) -> str:
        """Run a command; what it prints. Fails the test with all of it unless the exit code is 0."""
        program, *arguments = shlex.split(line)
        module = {"kdbench": ["-m", "kdbench"], "pip": ["-m", "pip"], "python": []}[program]
        done = subprocess.run(
            [sys.executable, *module, *arguments, *further],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.ran.append(line)
        return done.stdout
