"""Methods whose cells wait where a test wants them to, for launchers that start processes of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from commands import records
from fake_distributions import Distributions

ENTRIES = """
from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    alone = Needs(teachers=0)
    return [
        MethodEntry(name="master", target="held_code:Master", version="1", needs=alone),
        MethodEntry(name="pupil", target="held_code:Pupil", version="1"),
        MethodEntry(name="crasher", target="held_code:Crasher", version="1"),
    ]
"""
#: In the second epoch a cell waits while there is a file `hold-NAME` in $GATE, and says so with `held-NAME-PID`.
#: When it is asked to save it says so with `asked-NAME`.
METHODS = """
import os
import signal
import time
from pathlib import Path

from kdbench.api import Method, MethodParams, Needs

gate = Path(os.environ["GATE"])


class Master(Method):
    needs = Needs(teachers=0)
    name = "master"

    def loss(self, S, T, batch, run):
        while run.epoch and (gate / f"hold-{self.name}").exists():
            held = gate / f"held-{self.name}-{os.getpid()}"
            if not held.exists():
                self.tell_when_asked()
                held.touch()
            time.sleep(0.02)
        return {"task": run.task.loss(S, batch)}

    def tell_when_asked(self):
        save = signal.getsignal(signal.SIGTERM)

        def asked(*arguments):
            (gate / f"asked-{self.name}").touch()
            save(*arguments)

        signal.signal(signal.SIGTERM, asked)


class Pupil(Master):
    needs = Needs()
    name = "pupil"


class Crasher(Master):
    needs = Needs()
    name = "crasher"

    def loss(self, S, T, batch, run):
        print("last words", flush=True)
        os._exit(7)
"""


def install(folder: Path) -> dict[str, str]:
    """Write the methods into `folder` as a distribution; return the environment that has them on the path."""
    site = Distributions(folder)
    (site.path / "held_code.py").write_text(METHODS)
    site.add("held", ENTRIES)
    # in front of the packages that the tests themselves run with
    paths = [str(site.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def results(run: Path) -> dict[str, Any]:
    """Return what must not depend on what went wrong."""
    done = {cell: r for cell, r in records(run).items() if r["status"] == "done"}
    return {c: (r["weights_sha256"], r["deployables"], r["cost"]["steps"]) for c, r in done.items()}
