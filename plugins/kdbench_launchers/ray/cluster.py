"""Ray as the launcher uses it: joining or starting it, tasks and how they end. The only module that imports it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.api import KdbenchError
from kdbench_launchers.node import Cell
from kdbench_launchers.ray.options import Options, Resources
from kdbench_launchers.ray.task import run_cell

#: Bytes of a local Ray's object store: nothing is kept there, and this is about the least that Ray takes.
_STORE = 80 << 20
#: How a client of gRPC, and so of a Ray head, begins, and the kind of frame with which it is answered.
_SETTINGS = b"\x04"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
#: Seconds for an answer of a head, between two looks at it, and for which it may be away. Ray gives it 60.
_ANSWER_S, _LOOK_S, _AWAY_S = 20.0, 5.0, 30.0


def need_ray() -> None:
    """Raise KdbenchError where Ray is not installed; it is not imported, which takes half a second."""
    if importlib.util.find_spec("ray") is None:
        raise KdbenchError("the launcher 'ray' needs Ray, which is not installed: pip install 'kdbench[ray]'")


@dataclass(frozen=True)
class Ended:
    """How a task ended.

    Attributes:
        event: what the task returned, None where it did not return.
        lost: why Ray lost the task, where the cell may go on elsewhere.
        cancelled: whether it was cancelled before it began, or killed at our wish.
        error: why no cell can run there, in a line.
    """

    event: dict[str, Any] | None = None
    lost: str | None = None
    cancelled: bool = False
    error: str | None = None


class Cluster:
    """A Ray cluster that this process is connected to."""

    def __init__(self, local: bool, head: _Head) -> None:
        import ray

        self._ray, self._run, self._head = ray, ray.remote(run_cell), head
        self.local = local

    def submit(self, name: str, cell: Cell, events: Path, cwd: Path, resources: Resources) -> Any:
        """Hand a cell over. Ray tries it once: who takes it back is the launcher."""
        options = {**resources.task(), "max_retries": 0, "name": name[:100]}
        return self._run.options(**options).remote(cell, events, cwd)

    def ended(self, tasks: Collection[Any], timeout_s: float) -> list[Any]:
        """Return the tasks that are over, waiting for the first of them. Raises KdbenchError without a head."""
        self._head.check()
        everything = list(tasks)
        over, _ = self._ray.wait(everything, num_returns=1, timeout=timeout_s)
        if over and len(everything) > 1:
            over, _ = self._ray.wait(everything, num_returns=len(everything), timeout=0)
        return list(over)

    def how(self, task: Any) -> Ended:
        """Return how a task that is over ended."""
        errors = self._ray.exceptions
        try:
            return Ended(event=self._ray.get(task))
        except errors.TaskCancelledError:
            return Ended(cancelled=True)
        except errors.NodeDiedError:
            return Ended(lost="its node died")
        except errors.OutOfMemoryError:
            return Ended(lost="Ray ended its worker because its node had no memory left")
        except (errors.WorkerCrashedError, errors.ObjectLostError):
            return Ended(lost="its Ray worker died")
        except errors.RayTaskError as e:
            return Ended(error=f"a node cannot run cells: {_last_line(e)}")
        except errors.RayError as e:
            return Ended(error=f"Ray: {type(e).__name__}: {_last_line(e)}")

    def cancel(self, task: Any, force: bool) -> None:
        """Ask a task to save its cell and end, or kill it."""
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(task, force=force)

    def nodes(self) -> list[dict[str, float]]:
        """Return the resources of each node that is alive."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


@contextmanager
def connected(options: Options) -> Iterator[Cluster]:
    """Be connected to the cluster of the options for the length of the block.

    Raises KdbenchError, in one line, where there is none or it does not take this process.
    """
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    more: dict[str, Any] = {}
    if local:
        # cells of a machine that has nothing else to do are timed: they give way to nobody
        os.environ.setdefault("RAY_worker_niceness", "0")
        more = {"include_dashboard": False, "object_store_memory": _STORE}
    if options.runtime_env is not None:
        more["runtime_env"] = options.runtime_env
    import ray

    quiet = logging.getLogger("ray")
    before, handlers = quiet.level, _handlers()
    quiet.setLevel(logging.CRITICAL)
    try:
        if address == "auto":
            _reach(_found())
        with _silent(ray):
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, **more)
            except Exception as e:
                what = "Ray does not start here" if local else f"no Ray cluster at {address}"
                raise KdbenchError(f"{what}: {_last_line(e)}") from e
            finally:
                _set(handlers)  # Ray takes SIGTERM, with which people ask a run to save and leave
            yield Cluster(local, _Head(ray.get_runtime_context().gcs_address))
    finally:
        ray.shutdown()
        quiet.setLevel(before)


class _Head:
    """The head of the cluster. Without it Ray ends this process, which then could not say why."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._seen = self._looked = time.monotonic()

    def check(self) -> None:
        """Look whether it is there, now and then. Raises KdbenchError when it has been away for long."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            socket.create_connection(_host_and_port(self._address), timeout=_LOOK_S).close()
            self._seen = now
        except OSError as e:
            if now - self._seen > _AWAY_S:
                gone = f"Ray's head at {self._address} is gone ({_last_line(e)}), and the cells end with it"
                raise KdbenchError(f"{gone}; once Ray is there again the same command goes on") from e


def _reach(address: str) -> None:
    """Raise KdbenchError where no Ray listens; Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        with socket.create_connection(_host_and_port(address), timeout=_ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except (OSError, OverflowError) as e:
        raise KdbenchError(f"no Ray cluster at {address}: {_last_line(e)}") from e
    if answer[3:4] != _SETTINGS:
        raise KdbenchError(f"no Ray cluster at {address}: what answers there is something else")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _found() -> str:
    """Return where ``auto`` leads, or ``auto`` where Ray finds nothing, which it tells itself."""
    services = sys.modules.get("ray._private.services")
    find = getattr(services, "get_ray_address_from_environment", None)
    try:
        return str(find("auto", None)) if find is not None else "auto"
    except Exception:
        return "auto"


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _set(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def _silent(ray: Any) -> Iterator[None]:
    """Keep what Ray tells of dead workers off the standard output; the launcher tells it with the cell's name."""
    module = sys.modules.get("ray._private.worker")
    name = "print_to_stdstream"
    shown = getattr(module, name, None)
    if shown is None:  # another version, which prints
        yield
        return
    setattr(module, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(module, name, shown)


def _last_line(error: BaseException) -> str:
    """Return an error in a line; of one from a task, what the task raised."""
    cause = getattr(error, "cause", None)
    lines = str(cause if isinstance(cause, BaseException) else error).strip().splitlines()
    return lines[-1][:500] if lines else type(error).__name__
