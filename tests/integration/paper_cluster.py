"""A Slurm of any size on paper: a real controller, with real accounting, of nodes that nobody started.

Nothing runs there, but all that is asked of Slurm before a job starts is answered by Slurm itself: what partitions
offer, what limits accounting sets, whether a job is accepted, when it was cancelled. Listens on 127.0.0.1 alone.
Needs root and scripts/setup-slurm.
"""

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from private_slurm import PrivateSlurm, lacking


def missing() -> list[str]:
    """What this machine lacks for it."""
    return lacking(("slurmctld", "slurmdbd", "sbatch", "sacctmgr", "munged", "mariadbd", "mariadb-install-db"))


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
class PaperCluster(PrivateSlurm):
    nodes_and_partitions: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.run_folder = self.directory / "run"
        self.environment["MYSQL_UNIX_PORT"] = str(self.run_folder / "mysql.sock")

    def start(self) -> None:
        for name in ("state", "run", "log", "data"):
            (self.directory / name).mkdir()
        self._write_configuration()
        self.start_munge()
        self._start_database()
        self.start_daemon("slurmdbd", "slurmdbd", "-D")
        self.wait_for(lambda: self._answers("sacctmgr", "--noheader", "show", "cluster"), 60, "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "paper")
        self.run("sacctmgr", "-i", "add", "account", "lab")
        self.run("sacctmgr", "-i", "add", "user", "root", "account=lab")
        self.start_daemon("slurmctld", "slurmctld", "-D")
        self.wait_for(self._controls, 60, "slurmctld")

    def stop(self) -> None:
        for name in reversed(list(self.daemons)):
            self.kill(name)

    def _answers(self, *argv: str) -> bool:
        return subprocess.run(argv, env=self.environment, capture_output=True, timeout=60).returncode == 0

    def _controls(self) -> bool:
        return self._answers("scontrol", "ping") and "UP" in self.run("scontrol", "ping")

    def _start_database(self) -> None:
        """MariaDB without a network, in which root needs no password."""
        data = self.directory / "data"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        self.run(*install, "--auth-root-authentication-method=normal")
        small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0"]
        server = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-networking", *small]
        places = [f"--socket={self.run_folder}/mysql.sock", f"--pid-file={self.run_folder}/mysql.pid"]
        self.start_daemon("mariadbd", *server, *places)
        self.wait_for((self.run_folder / "mysql.sock").exists, 60, "database")

    def _write_configuration(self) -> None:
        controller, nodes, database = _free_ports(3)
        ours = _SLURM.format(d=self.directory, dbd_port=database)
        self.write_configuration(
            address="127.0.0.1", ports=(controller, nodes), more=f"{ours}{self.nodes_and_partitions}\n"
        )
        (self.directory / "gres.conf").write_text("AutoDetect=off\n")
        file = self.directory / "slurmdbd.conf"
        file.touch(mode=0o600)
        file.write_text(_SLURMDBD.format(d=self.directory, host=socket.gethostname(), dbd_port=database))


def _free_ports(count: int) -> Sequence[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


_SLURM = """\
ClusterName=paper
MinJobAge=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={d}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
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
