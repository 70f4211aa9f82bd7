"""How busy the machine is while a matrix runs: samples in ``system.jsonl``, none while a speed is measured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from kdbench.launch.locks import FileLock
from kdbench.results.system import SYSTEM

#: Seconds between two samples; after the first hour, in which most runs end, a long run needs fewer.
EVERY_S, LATER_S, FIRST_S = 10.0, 60.0, 3600.0


class SystemSampler:
    """Samples the machine from a thread, if psutil is installed; GPUs too, if pynvml is.

    Names are those of MLflow's own monitor, without its ``system/``.

    Attributes:
        samples: those taken so far: ``at``, milliseconds since 1970, and what :meth:`read` gives.
    """

    def __init__(self, folder: Path) -> None:
        self.samples: list[dict[str, float]] = []
        self._folder = folder
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._gpus: list[Any] = []

    def start(self) -> None:
        """Begin, in a thread of its own: the imports take a moment."""
        self._thread = threading.Thread(target=self._run, name="kdbench-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take a last sample and end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def sample(self) -> dict[str, float] | None:
        """Take one sample; None while a process of the run measures. Raises OSError."""
        with _nobody_measures(self._folder) as free:
            if not free:
                return None
            row = {"at": float(time.time_ns() // 1_000_000), **self.read()}
        self.samples.append(row)
        with (self._folder / SYSTEM).open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def read(self) -> dict[str, float]:
        """Return the load of processors and memory, in percent and megabytes (10^6), and of each GPU."""
        import psutil

        memory = psutil.virtual_memory()
        out = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
            "system_memory_usage_percentage": memory.percent,
        }
        for number, gpu in enumerate(self._gpus):
            with suppress(Exception):  # a driver need not tell everything (MIG, containers)
                out |= {f"gpu_{number}_{name}": value for name, value in _gpu(gpu).items()}
        return out

    def _run(self) -> None:
        try:
            import psutil
        except ImportError:
            return
        psutil.cpu_percent()  # the load since the last call: the first has none to tell
        self._gpus = _gpus()
        began = time.monotonic()
        with suppress(Exception):  # no cell is worth less for what is not known of the machine
            while not self._stop.wait(EVERY_S if time.monotonic() - began < FIRST_S else LATER_S):
                self.sample()
            self.sample()


@contextmanager
def _nobody_measures(folder: Path) -> Iterator[bool]:
    """Hold off those who want to measure for the length of the block; false where one measures already."""
    with ExitStack() as held:
        for path in sorted(folder.glob(".intent-*.lock")):
            lock = FileLock(path)
            held.callback(lock.close)
            if not lock.try_shared():
                yield False
                return
        yield True


def _gpus() -> list[Any]:
    with suppress(Exception):  # pynvml is missing, or there is no driver
        import pynvml  # type: ignore[import-not-found, unused-ignore]

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return []


def _gpu(handle: Any) -> dict[str, float]:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    out = {
        "memory_usage_megabytes": round(memory.used / 1e6, 1),
        "memory_usage_percentage": round(100 * memory.used / memory.total, 1),
    }
    with suppress(pynvml.NVMLError):
        out["utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    with suppress(pynvml.NVMLError):
        out["power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return out


def has_gpu_driver() -> bool:
    """Return whether it is worth a process with torch, which takes seconds, to ask for GPUs."""
    return any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "kfd", "dxg"))
