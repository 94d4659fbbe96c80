"""A real Slurm, private and short-lived: a controller and a few nodes, each with a host name and an address of its own.

    cpu1         partition test       shares the network of the machine, so that it can make tasks from a package index
    cpu2         partition test       in a network namespace, with an empty cache of its own
    gpu1, gpu2   partition gpu_test   each in a network namespace: reaches the others over a bridge and nothing else
                 partition gpu_urgent preempts gpu_test

Nothing below /etc, /var or /run is touched. The nodes share processes and files with the machine. The GPU is a
device node without a driver: Slurm hands it out, nobody can compute on it. Needs root and scripts/setup-slurm.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from private_slurm import PATH, PrivateSlurm, lacking

from skyrl_stack.sandbox.storage import cache_dir


def missing() -> list[str]:
    """What this machine lacks for it."""
    return lacking(("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "mknod"))


@contextlib.contextmanager
def running_cluster(*, max_time: str = "6:00:00", gpu_nodes: int = 1, cpu_nodes: int = 1) -> Iterator["Cluster"]:
    """Start a cluster and stop it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        cluster = Cluster(Path(directory), max_time, _claim_network(), gpu_nodes, cpu_nodes)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # tests that are told to end clean up, too
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            signal.signal(signal.SIGTERM, before)


def _claim_network() -> int:
    """Make a bridge of a free number, which claims that number: clusters of several test runs live side by side."""
    for number in range(20, 220):
        argv = ["ip", "link", "add", f"sl{number}", "type", "bridge"]
        if subprocess.run(argv, env={"PATH": PATH}, capture_output=True, timeout=30).returncode == 0:
            return number
    raise AssertionError("no free network; `ip link` shows bridges sl* that earlier tests have left")


@dataclass
class Cluster(PrivateSlurm):
    max_time: str
    number: int
    "Of the subnet, the ports and the bridge, which exists."
    gpu_nodes: int = 1
    cpu_nodes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.bridge = f"sl{self.number}"
        apart = [f"gpu{i}" for i in range(1, self.gpu_nodes + 1)] + [f"cpu{i}" for i in range(2, self.cpu_nodes + 1)]
        self.networks = {node: f"sl{self.number}-{node}" for node in apart}
        self.addresses = {"cpu1": f"10.213.{self.number}.1"}
        self.addresses |= {node: f"10.213.{self.number}.{10 + i}" for i, node in enumerate(self.networks, start=1)}

    def start(self) -> None:
        for name in ("state", "log", "run", *(f"spool/{node}" for node in self.addresses)):
            (self.directory / name).mkdir(parents=True)
        self.directory.chmod(0o755)
        self._start_network()
        self._write_configuration()
        self.start_munge()
        self.start_daemon("slurmctld", "slurmctld", "-D")
        for node in self.addresses:
            self.start_node(node)
        self.wait_for(lambda: self._idle_nodes() == len(self.addresses), 30, "nodes that are idle")

    def start_node(self, node: str) -> None:
        hosts = str(self.directory / "hosts")
        mounts = 'mount --bind "$2" /etc/hosts; mount --bind "$3" "$4"'
        script = f'hostname "$1"; {mounts}; exec slurmd -D -N "$1"'
        inside = ["sh", "-c", script, "_", node, hosts, str(self.cache(node)), str(cache_dir())]
        argv = ["unshare", "--uts", "--mount", "--propagation", "slave", *inside]
        if node in self.networks:
            argv = ["nsenter", f"--net=/run/netns/{self.networks[node]}", *argv]
        self.start_daemon(node, *argv)

    def cache(self, node: str) -> Path:
        """The cache of a node, which it sees where others see theirs."""
        if node[:3] != "cpu" or node == "cpu1":
            return cache_dir()
        place = self.directory / f"cache-{node}"
        place.mkdir(exist_ok=True)
        return place

    def show(self, node: str, directory: Path, *, at: Path) -> None:
        """Let a node see `directory` where others see what is there."""
        self.run("nsenter", "--mount", f"--target={self.daemons[node].pid}", "mount", "--bind", str(directory), str(at))

    def state_of(self, job_id: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}").strip()

    def cancel_all(self) -> None:
        """End all jobs."""
        self.run("scancel", "--user=root")
        self.wait_for(lambda: not self.run("squeue", "--noheader"), 45, "empty queue")

    def lose_gpu_node(self, node: str = "gpu1") -> None:
        """SIGKILL everything on it, as a power cut would."""
        self.kill(node)
        while processes := self.processes_of(node):  # again, for what was started meanwhile
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def processes_of(self, node: str) -> list[int]:
        """What runs on a GPU node."""
        return [int(process) for process in self.run("ip", "netns", "pids", self.networks[node]).split()]

    def wait_until_saved(self, text: str) -> None:
        """Until the controller has written its jobs, and `text` among them: one that is killed before forgets them."""
        state = self.directory / "state" / "job_state"
        self.wait_for(lambda: state.is_file() and text.encode() in state.read_bytes(), 30, "saved state")

    def start_controller(self) -> None:
        self.start_daemon("slurmctld", "slurmctld", "-D")

    def stop(self) -> None:
        """End all jobs and daemons, and remove the network. Bounded in time."""
        if "slurmctld" in self.daemons:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.cancel_all()
        for name in [name for name in self.daemons if name != "munged"]:
            self.kill(name)
        for process in self._strays():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if "munged" in self.daemons:
            self.kill("munged")
        networks = [["ip", "netns", "del", network] for network in self.networks.values()]
        for argv in (*networks, ["ip", "link", "del", self.bridge]):
            subprocess.run(argv, env=self.environment, capture_output=True, timeout=30)

    def _idle_nodes(self) -> int:
        argv = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        done = subprocess.run(argv, env=self.environment, text=True, capture_output=True, timeout=30)
        return len(set(done.stdout.split()))  # a node has a line for each of its partitions

    def _start_network(self) -> None:
        cpu = self.addresses["cpu1"]
        self._ip(f"addr add {cpu}/24 dev {self.bridge}", f"link set {self.bridge} up")
        for i, (node, network) in enumerate(self.networks.items(), start=1):
            link = f"sv{self.number}-{i}"
            self._ip(
                f"netns add {network}",
                f"link add {link} type veth peer name eth0 netns {network}",
                f"link set {link} master {self.bridge} up",
                f"-n {network} addr add {self.addresses[node]}/24 dev eth0",
                f"-n {network} link set lo up",
                f"-n {network} link set eth0 up",
            )
        names = [f"{address} {node}" for node, address in self.addresses.items()]
        lines = ["127.0.0.1 localhost", f"{cpu} {socket.gethostname()}", *names]
        (self.directory / "hosts").write_text("\n".join(lines) + "\n")

    def _ip(self, *commands: str) -> None:
        for command in commands:
            subprocess.run(["ip", *command.split()], env=self.environment, check=True, timeout=30)

    def _write_configuration(self) -> None:
        device = self.directory / "nvidia0"  # Slurm accepts character devices only; no driver needs to be behind it
        subprocess.run(["mknod", "-m", "666", str(device), "c", "195", "0"], check=True, timeout=30)
        cpus, gpus = (",".join(node for node in self.addresses if node.startswith(kind)) for kind in ("cpu", "gpu"))
        gres = f"NodeName={gpus} Name=gpu Type=a100 File={device}\n"
        (self.directory / "gres.conf").write_text(f"AutoDetect=off\n{gres}")
        nodes = "".join(
            f"NodeName={node} NodeHostname={node} NodeAddr={address} CPUs=16 CoresPerSocket=16 RealMemory=64000 "
            f"{'Gres=gpu:a100:1' if node.startswith('gpu') else ''}\n"
            for node, address in self.addresses.items()
        )
        ours = _CONFIGURATION.format(d=self.directory, number=self.number, max_time=self.max_time, cpus=cpus, gpus=gpus)
        ports = (17000 + 4 * self.number, 17001 + 4 * self.number)
        self.write_configuration(address=self.addresses["cpu1"], ports=ports, more=ours + nodes)

    def _strays(self) -> list[int]:
        """Processes of jobs of this cluster that are still there."""
        marker = f"SLURM_CONF={self.conf}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return [process for process in found if process != os.getpid()]


_CONFIGURATION = """\
ClusterName=test{number}
SlurmdSpoolDir={d}/spool/%n
SlurmdPidFile={d}/run/slurmd.%n.pid
SlurmdLogFile={d}/log/slurmd.%n.log
SlurmdParameters=config_overrides
DefMemPerCPU=1000
PropagateResourceLimits=NONE
ReturnToService=2
KillWait=30
MinJobAge=600
SlurmdTimeout=20
AccountingStorageType=accounting_storage/none
PartitionName=test Nodes={cpus} Default=YES MaxTime={max_time} State=UP
PartitionName=gpu_test Nodes={gpus} MaxTime={max_time} State=UP
PartitionName=gpu_urgent Nodes={gpus} MaxTime={max_time} State=UP PriorityTier=10
PreemptType=preempt/partition_prio
SlurmctldParameters=preempt_send_user_signal
PreemptMode=REQUEUE
"""
