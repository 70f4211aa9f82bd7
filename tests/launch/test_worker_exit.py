"""A worker that ends leaves nothing to clean up for those who started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, sys
from multiprocessing import resource_tracker
from pathlib import Path
from kdbench.launch.worker import serve

def run(report, stop, seat):
    multiprocessing.set_start_method("spawn", force=True)  # as in a child of the fork server
    from tqdm import tqdm
    return sum(tqdm(range(3)))

resource_tracker.ensure_running()  # as the fork server has it: one for all workers
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
worker = context.Process(target=serve, args=(Path(sys.argv[1]), theirs, {}, run))
worker.start()
worker.join()
print(worker.exitcode)
"""


def test_progress_bars_leave_no_semaphore(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "3\n"
    assert "3/3" in (tmp_path / "log.txt").read_text()
    assert done.stderr == ""
