"""A Slurm of any size on paper: a real controller, with real accounting, of nodes that nobody started.

Nothing runs there, but all that is asked of Slurm before a job starts is answered by Slurm itself: what partitions
offer, what limits accounting sets, whether a job is accepted, when it was cancelled. Listens on 127.0.0.1 alone.
Needs root and scripts/setup-slurm.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmdbd", "sbatch", "sacctmgr", "munged", "mariadbd", "mariadb-install-db")
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> list[str]:
    """What this machine lacks for it."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


@contextlib.contextmanager
def paper_cluster(nodes_and_partitions: str) -> Iterator["PaperCluster"]:
    """Start one with these lines of slurm.conf, and stop it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="paper-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        cluster = PaperCluster(Path(directory), nodes_and_partitions)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@dataclass
class PaperCluster:
    directory: Path
    nodes_and_partitions: str
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run_folder = self.directory / "run"
        self.environment = os.environ | {
            "SLURM_CONF": str(self.directory / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(self.run_folder / "mysql.sock"),
            "PATH": _PATH,
        }

    def start(self) -> None:
        for name in ("state", "run", "log", "data"):
            (self.directory / name).mkdir()
        self._write_configuration()
        self._start_munge()
        self._start_database()
        self._start("slurmdbd", "-D")
        self.wait_for(lambda: self._answers("sacctmgr", "--noheader", "show", "cluster"), "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "paper")
        self.run("sacctmgr", "-i", "add", "account", "lab")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=lab")
        self._start("slurmctld", "-D")
        self.wait_for(lambda: self._answers("scontrol", "ping") and "UP" in self.run("scontrol", "ping"), "slurmctld")

    def run(self, *argv: str) -> str:
        """Run a Slurm client on this cluster and return what it printed."""
        done = subprocess.run(argv, env=self.environment, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what} within {timeout_s} s; logs in {self.directory}/log"
            time.sleep(0.1)

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()

    def _answers(self, *argv: str) -> bool:
        return subprocess.run(argv, env=self.environment, capture_output=True, timeout=60).returncode == 0

    def _start(self, *argv: str) -> None:
        with (self.directory / "log" / f"{argv[0]}.out").open("ab") as log:
            daemon = subprocess.Popen(
                argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons.append(daemon)

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        run = self.run_folder
        places = [f"--key-file={key}", f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"]
        places += [f"--log-file={self.directory}/log/munged.log", f"--seed-file={run}/munged.seed"]
        self._start("munged", "--force", "--foreground", "--num-threads=2", *places)
        self.wait_for((run / "munge.sock").exists, "munge socket")

    def _start_database(self) -> None:
        """MariaDB without a network, in which root needs no password."""
        data = self.directory / "data"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        self.run(*install, "--auth-root-authentication-method=normal")
        small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0"]
        server = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-networking", *small]
        self._start(*server, f"--socket={self.run_folder}/mysql.sock", f"--pid-file={self.run_folder}/mysql.pid")
        self.wait_for((self.run_folder / "mysql.sock").exists, "database")

    def _write_configuration(self) -> None:
        ports = _free_ports(3)
        places = {"d": self.directory, "host": socket.gethostname(), "nodes": self.nodes_and_partitions}
        (self.directory / "slurm.conf").write_text(
            _SLURM.format(**places, port=ports[0], slurmd_port=ports[1], dbd_port=ports[2])
        )
        (self.directory / "gres.conf").write_text("AutoDetect=off\n")
        database = self.directory / "slurmdbd.conf"
        database.touch(mode=0o600)
        database.write_text(_SLURMDBD.format(**places, dbd_port=ports[2]))


def _free_ports(count: int) -> Sequence[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


_SLURM = """\
ClusterName=paper
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.sock
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
SchedulerParameters=sched_interval=1,bf_interval=1
MinJobAge=2
MailProg=/bin/true
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={d}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
{nodes}
"""
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={d}/log/slurmdbd.log
PidFile={d}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""
