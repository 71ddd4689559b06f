"""A Slurm of two nodes on this machine: slurmctld, two slurmd and munged in a folder of their own, without systemd and cgroups."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "runuser")
CONF = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmdSpoolDir={root}/spool.%n
StateSaveLocation={root}/state
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 OverSubscribe=NO PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why this machine can't have one; empty where it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"Slurm is not installed (no {', '.join(absent)}): apt-get install slurm-wlm slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "a mini Slurm is started by root alone"


class Mini:
    """Started by ``with``; inside, ``SLURM_CONF`` names it to all Slurm commands. Partition ``high`` preempts ``low``."""

    def __enter__(self) -> Mini:
        self.root = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))  # short: a socket's path has at most 108 characters
        self.root.chmod(0o755)
        for name in ("state", "spool.n1", "spool.n2", "munge"):
            (self.root / name).mkdir()
        (self.root / "key").write_bytes(os.urandom(1024))
        (self.root / "key").chmod(0o400)
        for name in ("munge", "key"):
            shutil.chown(self.root / name, "munge")
        (self.root / "slurm.conf").write_text(CONF.format(root=self.root, host=socket.gethostname().split(".")[0], ports=free_ports(3)))
        self._before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(self.root / "slurm.conf")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        places = [
            f"--{option}={self.root}/munge/{name}" for option, name in (("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))
        ]
        call("runuser", "-u", "munge", "--", str(shutil.which("munged")), "--force", f"--key-file={self.root}/key", *places)
        call("slurmctld", "-c")
        for name in ("n1", "n2"):
            call("slurmd", "-N", name)
        wait_for(lambda: call("sinfo", "-h", "-N", "-p", "low", "-o", "%T", check=False).split() == ["idle"] * 2, 30, "both nodes are idle")

    def __exit__(self, *_: object) -> None:
        if (self.root / "slurmctld.pid").exists():  # a test that failed leaves its jobs
            call("scancel", f"--user={os.getuid()}", check=False)
            wait_for(lambda: not call("squeue", "--noheader", check=False), 30, "no job is left")
        for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munge/pid"):
            if (self.root / name).exists():
                os.kill(int((self.root / name).read_text()), signal.SIGTERM)
        os.environ.pop("SLURM_CONF")
        if self._before is not None:
            os.environ["SLURM_CONF"] = self._before
        wait_for(lambda: not (self.root / "munge" / "pid").exists() and not (self.root / "slurmctld.pid").exists(), 20, "the daemons end")
        shutil.rmtree(self.root, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def call(*words: str, check: bool = True, **environment: str) -> str:
    """The output of a command; a failure shows what it said."""
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60)
    assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout.strip()


def wait_for(condition, seconds: float, what: str, note=lambda: "") -> None:  # noqa: ANN001
    """Look every 0.2 seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s it is still not so that {what}\n{note()}"
        time.sleep(0.2)


def state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED ...; empty for a job that Slurm has forgotten."""
    return call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False)
