"""Real services for tests, started as anybody would start them, in folders of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

#: Seconds within which a service has to answer.
START_S = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_bin() -> Path:
    """Return the folder of PostgreSQL's programs; Debian keeps them out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    assert found[-1].name == "initdb", "PostgreSQL is missing: apt-get install postgresql"
    return found[-1].parent


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server as a user that is not root; yields the URI of an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="kdbench-pg-"))
    port, programs = free_port(), postgres_bin()
    who: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        user = next(u for u in ("postgres", "nobody") if _exists(u))
        shutil.chown(folder, user)
        who = ["runuser", "-u", user, "--"]
    data = folder / "data"

    def go(*line: object) -> None:
        done = subprocess.run(
            [*who, *map(str, line)], cwd=folder, capture_output=True, text=True, timeout=START_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        go(programs / "initdb", "-D", data, "-U", "kdbench", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off -c max_connections=200"
        go(programs / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
        try:
            go(programs / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "kdbench", "mlflow")
            yield f"postgresql+psycopg2://kdbench@127.0.0.1:{port}/mlflow"
        finally:
            go(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        pwd.getpwnam(user)
        return True
    return False


@contextlib.contextmanager
def mlflow_server(store: str, folder: Path) -> Iterator[str]:
    """Run an MLflow server over a store; yields its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    line += [
        "--backend-store-uri",
        store,
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--workers",
        "1",
    ]
    with (folder / "server.log").open("w") as log:
        # its job runner is seven more processes that import MLflow, for what no test asks for
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(line, stdout=log, stderr=log, cwd=folder, env=env, start_new_session=True)
    try:
        until = time.monotonic() + START_S
        while not _answers(f"{url}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < until, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
