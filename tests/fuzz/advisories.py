"""Known holes of the packages that are installed here, as far as the network lets one ask.

``python -m tests.fuzz.advisories`` exits with 1 where a package has one, with 0 and a line where nobody answered.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_LIMIT_S = 300
#: Advisories that do not touch kdbench, each with the reason; to be looked at when a new version comes.
IGNORED: dict[str, str] = {}


def found(report: Any) -> list[str]:
    """Return a line for each advisory in pip-audit's JSON that is not among the ignored ones."""
    lines = []
    for package in report["dependencies"]:
        for hole in package.get("vulns", ()):
            if hole["id"] not in IGNORED and not set(hole.get("aliases", ())) & set(IGNORED):
                mended = ", ".join(hole.get("fix_versions", ())) or "no version yet"
                lines.append(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    return lines


def main() -> int:
    """Ask, print, and return the exit code."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--skip-editable",
    ]
    try:
        got = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        report = json.loads(got.stdout)
        lines, asked = found(report), sum("skip_reason" not in one for one in report["dependencies"])
        if not asked:
            raise ValueError("no package was looked up")
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        print("advisories: nobody answered; nothing was looked up")
        return 0
    for line in lines:
        print(line)
    print(f"advisories: {len(lines) or 'none'} for {asked} packages")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
