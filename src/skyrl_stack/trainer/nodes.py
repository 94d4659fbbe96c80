"""The other nodes of the trainer's job: joined to the Ray of the first one, and watched.

    first node                                     each other node
    trainer: ray.init, then srun ────────────────▶ python -m skyrl_stack.trainer.join
             Ray's token, on standard input ─────▶   ray start --address=…, in a private directory of its own
             end of standard input ──────────────▶   ends

So the other nodes end with the trainer however it ends, and the trainer with the first of them that is lost.
"""

import fcntl
import os
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from skyrl_stack.errors import NodeLost, SetupError, TrainingStopped
from skyrl_stack.node import PYTHON_VARIABLE
from skyrl_stack.profile import Profile
from skyrl_stack.site import SlurmLauncher

POLL_S = 1.0
CANCEL_GRACE_S = 3.0
"A cancelled job's steps may end before the trainer is told that it is cancelled."
END_TIMEOUT_S = 5.0
_SIOCGIFADDR = 0x8915  # netdevice(7)


@contextmanager
def other_nodes(
    profile: Profile, run_directory: Path, *, private: Path, on_lost: Callable[[str], None]
) -> Iterator[None]:
    """Inside the block, which Ray on this node must outlive, Ray runs on all nodes of the job.

    `on_lost` is called once, from a thread, with the reason, if one of them is lost.

    Raises:
        NodeLost: what failed inside the block failed because one of them is lost.
        TrainingStopped: not all have joined within `run.start_timeout_s`; names those that have not.
        SetupError: this process is not part of a Slurm job.
    """
    launcher = profile.launcher
    if not isinstance(launcher, SlurmLauncher) or launcher.trainer.nodes == 1:
        yield
        return
    nodes = _allocated()[1:]
    command = srun_command(run_directory, others=len(nodes), cpus=launcher.trainer.cpus, head=_head())
    environment = os.environ | {"TMPDIR": str(private.parent)}
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    with _given_token(command, environment, token) as srun:
        _await(nodes, srun, profile.run.start_timeout_s)
        with _watched(nodes, srun, on_lost, noticed_within_s=profile.run.peer_timeout_s):
            yield


def own_address(profile: Profile) -> str | None:
    """IPv4 address of this node on `launcher.network.interface`; None where that is not set.

    Raises:
        SetupError: the node has no such interface.
    """
    launcher = profile.launcher
    if not isinstance(launcher, SlurmLauncher) or (interface := launcher.network.interface) is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError as error:
            known = ", ".join(name for _, name in socket.if_nameindex())
            node = os.uname().nodename
            raise SetupError(
                f"launcher.network.interface = {interface!r}: none with an IPv4 address on {node}, which has {known}"
            ) from error
    return socket.inet_ntoa(answer[20:24])


def srun_command(run_directory: Path, *, others: int, cpus: int, head: str) -> list[str]:
    """The step that holds Ray on all nodes but the first. `head` is the address of the first one's Ray."""
    return [
        "srun",
        "--overlap",  # the batch script's own step may hold everything that the job has
        "--relative=1",
        f"--nodes={others}",
        f"--ntasks={others}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",  # sbatch's does not count for steps since Slurm 22.05
        "--kill-on-bad-exit=1",
        "--mpi=none",
        *shlex.split(os.environ.get(PYTHON_VARIABLE, sys.executable)),
        "-m",
        "skyrl_stack.trainer.join",
        f"--run-dir={run_directory}",
        f"--head={head}",
    ]


def missing(nodes: list[str], joined: list[str]) -> str:
    """Those of `nodes` that have not `joined`, for a person to read."""
    left = [node for node in nodes if node not in joined]
    return f"{len(left)} of {len(nodes)} other nodes ({', '.join(left)})"


def _allocated() -> list[str]:
    """Names of the job's nodes; this one is the first."""
    try:
        argv = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        done = subprocess.run(argv, text=True, capture_output=True, timeout=60, check=True)
    except (KeyError, OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"launcher.trainer.nodes needs a Slurm job, whose nodes cannot be told: {error}") from error
    return done.stdout.split()


def _head() -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def _alive() -> list[str]:
    """Names that nodes of the cluster joined under, of those that live."""
    import ray

    return [node["NodeName"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _given_token(command: list[str], environment: dict[str, str], token: str) -> Iterator[subprocess.Popen[str]]:
    """Run the step with the token on its standard input, which stays open until the end of the block."""
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True) as srun:
        assert srun.stdin
        try:
            srun.stdin.write(f"{token}\n")
            srun.stdin.flush()
            yield srun
        finally:
            srun.stdin.close()
            try:
                srun.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:  # a node that hangs; the end of the job ends it
                srun.kill()


def _await(nodes: list[str], srun: subprocess.Popen[str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not set(nodes) <= set(joined := _alive()):
        if srun.poll() is not None:
            raise TrainingStopped(f"Ray could not be started on {missing(nodes, joined)}; the log of the job says why")
        if time.monotonic() > deadline:
            raise TrainingStopped(f"{missing(nodes, joined)} did not join within {timeout_s:.0f} s")
        time.sleep(POLL_S)
    print(f"trainer: {', '.join(nodes)} joined", flush=True)


@contextmanager
def _watched(
    nodes: list[str], srun: subprocess.Popen[str], on_lost: Callable[[str], None], *, noticed_within_s: float
) -> Iterator[None]:
    """Inside the block the loss of a node calls `on_lost`, and is the cause of what fails because of it.

    Ray notices at once that an actor is gone, but may take `noticed_within_s` to miss its node (`options.environment`).
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            if (reason := _loss(nodes, srun)) and not ended.wait(CANCEL_GRACE_S):
                on_lost(reason)
                return

    thread = threading.Thread(target=watch, name="other-nodes", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        deadline = time.monotonic() + noticed_within_s
        while time.monotonic() < deadline:
            if reason := _loss(nodes, srun):
                raise NodeLost(reason) from error
            time.sleep(POLL_S)
        raise
    finally:
        ended.set()
        thread.join(POLL_S)


def _loss(nodes: list[str], srun: subprocess.Popen[str]) -> str | None:
    if srun.poll() is not None:
        return f"Ray ended on {' or '.join(nodes)}"
    alive = _alive()
    return None if set(nodes) <= set(alive) else f"lost {missing(nodes, alive)}"
