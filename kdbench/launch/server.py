"""The fork server that workers and probes come from."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def context() -> ForkServerContext:
    """Return a multiprocessing context whose processes have torch and timm already imported.

    The server itself never runs a torch operation, so forking it is safe, also before CUDA is used.
    """
    # a thread pool per worker would oversubscribe the cores; a worker sets its own number of threads
    for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(pool, "1")
    # and a pool of compilers per worker as well, which would outlive it
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["kdbench.launch.preload"])
    return ctx


def warm_up() -> None:
    """Start the server, without waiting until it has imported everything."""
    context()
    forkserver.ensure_running()
