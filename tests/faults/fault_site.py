"""A plug-in of faults: a method that does harm when it is told to, and kills of its own process at a named moment.

What it does comes from the environment and not from the matrix, so cells with a fault and without are the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from gang_world import install

#: Acts of the saboteur by its name, as JSON; without it, it does nothing.
ACTS = "KDBENCH_TEST_ACTS"
#: Number of the file operation at which a process is killed, by cell id, as a JSON file; and a log of the kills.
MOMENTS = "KDBENCH_TEST_MOMENTS"

PLUGIN = """
import fault_moments
from kdbench.hooks import MethodEntry, Needs, hookimpl

fault_moments.arm()


@hookimpl
def kdbench_methods():
    return [
        MethodEntry(name="saboteur", target="fault_code:Saboteur", version="1", needs=Needs()),
        MethodEntry(name="importer", target="fault_import:Importer", version="1", needs=Needs()),
    ]
"""

MOMENTS_CODE = '''
"""Kills this process just before a file operation that is counted from its start."""

import json
import os
import re
import signal
import sys
import time

NAMES = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


def hold(path):
    """Wait for a file before the lease of a run folder is taken."""

    def hook(event, arguments):
        if event == "open" and re.search(r"runs/[^/]+/[.]lease[.][0-9a-f]+[.]tmp$", str(arguments[0])):
            open(path + ".held", "w").close()
            while not os.path.exists(path):
                time.sleep(0.01)

    sys.addaudithook(hook)


def arm():
    if "KDBENCH_TEST_HOLD" in os.environ:
        hold(os.environ["KDBENCH_TEST_HOLD"])
    path = os.environ.get("KDBENCH_TEST_MOMENTS")
    if path is None:
        return
    plan = json.load(open(path))
    role = plan["role"]
    # workers come from the fork server
    worker = any("forkserver" in word for word in sys.orig_argv)
    if (role == "worker") != worker:
        return
    count = 0
    cell = re.compile(r"/cells/([0-9a-f]{64})/([^/]+)$")

    def hook(event, arguments):
        nonlocal count
        if event not in NAMES or not arguments or not isinstance(arguments[0], str):
            return
        found = cell.search(arguments[0])
        if found is None or found[2] == "log.txt" or found[2].startswith(".lease"):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        count += 1
        at = plan["at"].get(found[1]) if role == "worker" else plan["at"].get("parent")
        if at != count:
            return
        line = {"fault": plan["fault"], "cell": found[1], "moment": f"{event} {found[2]}", "number": count}
        fd = os.open(path + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, (json.dumps(line) + "\\\\n").encode())
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
'''.replace("\\\\n", "\\n")

CODE = '''
import json
import os
import random
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from pydantic import Field
from torch import nn

from kdbench.api import Method, MethodParams


class Saboteur(Method):
    """Plain distillation with a bank and a generator; what harm it does, the environment says by its name."""

    class Params(MethodParams):
        name: str = Field("good")

    @property
    def act(self):
        return json.loads(os.environ.get("KDBENCH_TEST_ACTS", "{}")).get(self.hp.name)

    def setup(self, run):
        self.register_buffer("bank", torch.zeros(4))
        if self.act == "setup" and os.environ.get("KDBENCH_TEST_ACTS"):
            raise RuntimeError("sabotage in setup")

    def loss(self, S, T, batch, run):
        if run.global_step == 5 and self.act is not None:
            getattr(self, "do_" + self.act)(run)
        self.bank += torch.rand(4) * random.random() * np.random.rand()
        kd = (S.logits - T[0].logits).square().mean()
        return {"task": run.task.loss(S, batch), "kd": kd * (1 + 0.1 * self.bank.mean())}

    def do_setup(self, run):
        pass

    def do_raise(self, run):
        raise ValueError("sabotage in the loss")

    def do_exit(self, run):
        os._exit(7)

    def do_hang(self, run):
        # a child in the worker's group, and one that leaves it
        for session in (False, True):
            subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(3600)", os.environ["KDBENCH_TEST_BADGE"]],
                start_new_session=session,
            )
        time.sleep(3600)

    def do_deaf(self, run):
        """Hold the interpreter's lock for ever."""
        import ctypes

        ctypes.PyDLL(None).sleep(3600)

    def do_child(self, run):
        """Leave a child behind and end without a word."""
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)", os.environ["KDBENCH_TEST_BADGE"]]
        )
        os._exit(9)

    def do_tensors(self, run):
        self._limit()
        self.hoard = []
        while True:
            self.hoard.append(torch.ones(1_000_000))

    def do_cuda(self, run):
        self.hoard = []
        while True:
            self.hoard.append(torch.ones(1 << 28, device="cuda"))

    def do_objects(self, run):
        self._limit()
        self.hoard = []
        while True:
            self.hoard.append(bytearray(1000))

    def _limit(self):
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))

    def do_print(self, run):
        line = "x" * (1 << 20)
        for number in range(1 << 10):
            print(number, line)

    def do_shout(self, run):
        """Print from outside of Python."""
        for _ in range(1 << 5):
            os.write(2, b"y" * (1 << 20))

    def do_random(self, run):
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)

    def do_dtype(self, run):
        torch.set_default_dtype(torch.float64)

    def do_threads(self, run):
        torch.set_num_threads(2)

    def do_folder(self, run):
        os.chdir("/")

    def do_environment(self, run):
        os.environ["OMP_NUM_THREADS"] = "2"
        os.environ["HOME"] = "/nowhere"
        os.umask(0o777)

    def do_warn(self, run):
        import signal
        import warnings

        warnings.simplefilter("error")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout = sys.stderr = None

    def do_full(self, run):
        raise OSError(28, "No space left on device", "/somewhere/else")
'''

IMPORT = """
import os

acts = os.environ.get("KDBENCH_TEST_ACTS", "")
if "import hang" in acts:
    import time

    open(os.environ["KDBENCH_TEST_BADGE"] + ".new", "w").write(str(os.getpid()))
    os.rename(os.environ["KDBENCH_TEST_BADGE"] + ".new", os.environ["KDBENCH_TEST_BADGE"])
    time.sleep(3600)
if "import" in acts:
    raise ImportError("sabotage at import")

from fault_code import Saboteur


class Importer(Saboteur):
    pass
"""


def make(folder: Path) -> dict[str, str]:
    """Write the plug-in into `folder`; return the environment in which kdbench has it."""
    made = install(folder)
    for name, text in (("fault_moments", MOMENTS_CODE), ("fault_code", CODE), ("fault_import", IMPORT)):
        (folder / f"{name}.py").write_text(text)
    made.add("faults", PLUGIN)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
