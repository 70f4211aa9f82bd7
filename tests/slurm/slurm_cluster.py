"""A real Slurm of one node, as Debian packages it, in a folder of its own: munged, slurmctld and slurmd."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

#: What it takes, and the Debian packages that have it.
PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}

#: Short waits, for tests: no credential outlives 5 s, so a requeued job starts again after as many.
CONFIG = """
ClusterName=kdbench
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
MinJobAge=300
KillWait=30
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Start it with `start`, end it with `close`; `environment` is what its clients need."""

    def __init__(self, folder: Path, cpus: int = 3) -> None:
        self.folder, self._processes = folder, list[subprocess.Popen[bytes]]()
        for name in ("state", "spool"):
            (folder / name).mkdir()
        self._key = folder / "munge.key"
        self._key.write_bytes(os.urandom(128))
        self._key.chmod(0o400)
        folder.chmod(0o755)
        port, node_port = _free_ports(2)
        host = socket.gethostname().split(".")[0]
        self._config = folder / "slurm.conf"
        facts = {"host": host, "user": getpass.getuser(), "folder": folder, "cpus": cpus}
        self._config.write_text(CONFIG.format(port=port, node_port=node_port, **facts))
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self.environment = {"SLURM_CONF": str(self._config)}

    def start(self) -> None:
        """Start the daemons and wait for the node. Raises RuntimeError with their logs."""
        missing = [package for name, package in PROGRAMS.items() if _program(name) is None]
        if missing:
            raise RuntimeError(f"no Slurm here: apt-get install {' '.join(missing)}")
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        paths = [f"--{option}={self.folder / name}" for option, name in files.items()]
        seed = f"--seed-file={self.folder / 'munge.seed'}"
        self._run("munged", "--foreground", "--force", f"--key-file={self._key}", seed, *paths)
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._run("slurmctld", "-D", "-f", str(self._config))
        self._run("slurmd", "-D", "-f", str(self._config))
        self._wait(lambda: self.ask("sinfo", "-h", "-o", "%T").strip() == "idle", "slurmd")

    def ask(self, *command: str) -> str:
        """Return what a Slurm client prints, with its complaints."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    def close(self) -> None:
        """Cancel what runs and end the daemons."""
        self.ask("scancel", "--user", getpass.getuser())
        self._settle(lambda: not self.ask("squeue", "-h").strip(), 15)
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _run(self, name: str, *arguments: str) -> None:
        out = (self.folder / f"{name}.out").open("wb")
        program = _program(name)
        assert program is not None
        environment = os.environ | self.environment
        # a group of their own: Ctrl-C before the tests leaves them to `close`
        self._processes.append(
            subprocess.Popen(
                [program, *arguments], stdout=out, stderr=out, env=environment, start_new_session=True
            )
        )

    def _wait(self, ready, what: str) -> None:
        if not self._settle(ready, 30):
            logs = [p.read_text(errors="replace")[-2000:] for p in self.folder.glob("*.[lo][ou][gt]")]
            raise RuntimeError(f"{what} did not start:\n" + "\n".join(logs))

    def _settle(self, ready, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end or any(p.poll() is not None for p in self._processes):
                return False
            time.sleep(0.05)
        return True


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
