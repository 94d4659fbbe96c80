"""What each private Slurm of the tests has: daemons that end with it, a Munge, and most lines of slurm.conf."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from skyrl_stack.node import end_with_parent

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def lacking(programs: Iterable[str]) -> list[str]:
    """What this machine lacks for a private Slurm that is made of these programs."""
    absent = [program for program in programs if shutil.which(program, path=PATH) is None]
    return absent if os.geteuid() == 0 else [*absent, "root"]


@dataclass
class PrivateSlurm:
    """Everything lies in `directory`; nothing below /etc, /var or /run is touched."""

    directory: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.conf = self.directory / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def run(self, *argv: str) -> str:
        """Run a client on this cluster and return what it printed."""
        done = subprocess.run(argv, env=self.environment, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_for(self, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s; logs in {self.directory}/log"
            time.sleep(0.1)

    def start_daemon(self, name: str, *argv: str) -> None:
        """Start a daemon that the kernel ends with the thread of this process that started it."""
        with (self.directory / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGKILL),
            )

    def start_munge(self) -> None:
        key, run, log = self.directory / "munge.key", self.directory / "run", self.directory / "log"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        places = [f"--key-file={key}", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"]
        places += [f"--log-file={log}/munged.log", f"--seed-file={run}/munged.seed"]
        self.start_daemon("munged", "munged", "--force", "--foreground", "--num-threads=2", *places)
        self.wait_for((run / "munge.sock").exists, 10, "munge socket")

    def kill(self, name: str) -> None:
        """SIGKILL the daemon `name`. Jobs live on."""
        daemon = self.daemons.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)  # the controller has a helper
        daemon.wait()

    def write_configuration(self, *, address: str, ports: Sequence[int], more: str) -> None:
        """Write slurm.conf: the controller's address, its port and that of the nodes, and lines of its own."""
        controller = f"{socket.gethostname()}({address})"
        common = _COMMON.format(d=self.directory, controller=controller, port=ports[0], slurmd_port=ports[1])
        self.conf.write_text(common + more)


_COMMON = """\
SlurmctldHost={controller}
SlurmctldPort={port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={d}/state
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmctldLogFile={d}/log/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
MailProg=/bin/true
GresTypes=gpu
"""
