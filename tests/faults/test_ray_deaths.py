"""What may die beyond what dies in tests/ray: the command, Ray's worker again and again, the head."""

import os
import signal
import sys
from pathlib import Path

import pytest
from commands import Command, alive, done_files, records, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "ray"))

from held_cells import COMMAND, Held, held_cluster
from held_methods import results

pytestmark = [pytest.mark.e2e, pytest.mark.faults]


def test_the_command_the_head_and_rays_workers(kdbench, tmp_path):
    held = Held(tmp_path, "master", "pupil")
    matrix, run = held.matrix("pupil", max_retries=2), held.run
    with held_cluster(tmp_path) as cluster:
        node = cluster.add()

        # the command: Ray ends its tasks, and they their cells
        first = kdbench.start(matrix, *COMMAND, env=cluster.environment)
        cell = held.wait("master", first)
        first.process.kill()
        first.wait()
        wait_until(lambda: not alive(cell), "the end of the cell", limit_s=30)

        # Ray's worker, more often than it is tried again
        second = kdbench.start(matrix, *COMMAND, env=cluster.environment)
        for _ in range(3):
            cell = held.wait("master", second)
            worker = int(Path(f"/proc/{cell}/stat").read_text().rpartition(")")[2].split()[1])
            assert worker in node.processes("ray::")
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda pid=cell: not alive(pid), "the end of the cell", limit_s=30)
        assert second.wait() in (1, 130), second.stderr
        assert second.stderr.count("goes on elsewhere") == 2
        assert {r["status"] for r in records(run).values()} == {"interrupted"}

        # leaving at once
        third = kdbench.start(matrix, *COMMAND, env=cluster.environment)
        cell = held.wait("master", third)
        third.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping" in third.stderr, "the parent to take notice")
        third.process.send_signal(signal.SIGINT)
        assert third.wait() == 130, third.stderr
        wait_until(lambda: not alive(cell), "the end of the cell", limit_s=30)
        held.let_go("master")

        # the head: nothing is left to run on
        fourth = kdbench.start(matrix, *COMMAND, env=cluster.environment)
        cell = held.wait("pupil", fourth)
        kept = done_files(run)
        assert len(kept) == 1
        cluster.nodes[0].kill()
        assert fourth.wait() == 2
        assert fourth.stderr.splitlines()[-1].startswith("kdbench: error: Ray's head at ")
        wait_until(lambda: not alive(cell), "the end of the cell")
        held.let_go("pupil")
        env = dict(cluster.environment)

    env["RAY_ADDRESS"] = "local"
    last = kdbench.run(matrix, *COMMAND, env=env)
    assert last.returncode == 0, last.stdout + last.stderr
    after = done_files(run)
    assert {name: after[name] for name in kept} == kept
    there = tmp_path / "there"
    there.mkdir()
    done = Command(there).run(matrix, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(run) == results(there / "runs" / "held")
