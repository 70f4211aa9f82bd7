"""A real Ray cluster on this machine: a head without cores, and nodes, each with processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from commands import alive, descendants

#: A dead node is noticed in a second, where Ray's own defaults take half a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "3",
}


class Node:
    """The processes of one node."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def processes(self, name: str = "") -> list[int]:
        """Return the node's processes, or those whose command line has `name`."""
        found = []
        for pid in descendants(self._process.pid):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if name in line:
                found.append(pid)
        return found

    def kill(self) -> None:
        """End Ray's part of the node at once, without a word to anybody."""
        for pid in [self._process.pid, *self.processes("/ray/"), *self.processes("ray::")]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()


class RayCluster:
    """Start it with `start`, end it with `close`; `environment` is what a command needs to join it."""

    def __init__(self, **environment: str) -> None:
        # not in a folder of the test: a socket's path has room for a hundred characters
        self._folder = Path(tempfile.mkdtemp(prefix="kdbench-ray-"))
        with socket.create_server(("127.0.0.1", 0)) as s:
            self.address = f"127.0.0.1:{s.getsockname()[1]}"
        self._environment = {**QUICK, "RAY_AUTH_MODE": "disabled", **environment}
        self.environment = {**environment, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}
        self.nodes: list[Node] = []

    def start(self) -> None:
        """Start the head, on which no cell runs."""
        port = self.address.rpartition(":")[2]
        options = ["--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false", "--no-monitor"]
        self._start(*options, f"--temp-dir={self._folder}", "--disable-usage-stats")

    def add(self) -> Node:
        """Add a node with one core."""
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def close(self) -> None:
        """End every process and remove what Ray wrote."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *options: str) -> Node:
        ours = ["--block", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000"]
        ours += ["--include-log-monitor=false"]
        out = (self._folder / f"node-{len(self.nodes)}.out").open("wb")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *ours, *options]
        environment = {**os.environ, **self._environment}
        # a group of their own: Ctrl-C before the tests leaves them to `close`
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        self.nodes.append(Node(process))
        self._wait(process, out.name)
        return self.nodes[-1]

    def _wait(self, process: subprocess.Popen[bytes], log: str) -> None:
        end = time.monotonic() + 60
        while b"Ray runtime started" not in Path(log).read_bytes():
            if process.poll() is not None or time.monotonic() > end or not alive(process.pid):
                raise RuntimeError(f"Ray did not start:\n{Path(log).read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
