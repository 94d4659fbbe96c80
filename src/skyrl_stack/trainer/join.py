"""One more node of the trainer's job: `srun python -m skyrl_stack.trainer.join --run-dir DIR --head HOST:PORT`.

Reads Ray's token from standard input and keeps Ray running on this node, as part of the cluster whose first node is
HEAD, until standard input ends. Whatever ends this process, its guard leaves nothing of it on the node.
"""

import argparse
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from skyrl_stack.errors import StackError, TrainingStopped
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer import cluster, gpus, options

POLL_S = 0.25
GRACE_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.trainer.join", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--head", required=True, help="address of the first node's Ray")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the trainer is told, too, and ends us in order
        signal.signal(number, signal.SIG_IGN)
    try:
        join(RunDirectory.open(arguments.run_dir), arguments.head)
    except StackError as error:
        print(f"trainer on {_node()}: {error}", file=sys.stderr)
        return 1
    return 0


def join(directory: RunDirectory, head: str) -> None:
    """Run Ray on this node until standard input ends.

    Raises:
        TrainingStopped: Ray ended before.
        SetupError: the GPUs of this node cannot be used.
    """
    token = sys.stdin.readline().strip()
    gpus.use_given_gpus()
    with cluster.private_directory(directory.launch().launch_id, directory.path) as private:
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(cluster.write_token(private, token))
        told = options.verl_options(directory.profile(), directory, ray_dir=cluster.ray_directory(private))
        with subprocess.Popen(ray_command(head, told), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as ray:
            try:
                _wait(ray)
            finally:
                _end(ray)


def ray_command(head: str, told: options.Options) -> list[str]:
    """`ray start` with what `told`, verl's options, says of the first node's Ray. Ports are left to the kernel."""

    def init(name: str) -> Any:
        return told[f"{options.RAY_INIT}{name}"]

    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        f"--address={head}",
        f"--node-name={_node()}",
        f"--temp-dir={init('_temp_dir')}",
        f"--num-cpus={init('num_cpus')}",
        f"--num-gpus={init('num_gpus')}",
        f"--object-store-memory={init('object_store_memory')}",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]


def _wait(ray: subprocess.Popen[bytes]) -> None:
    while ray.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return
    raise TrainingStopped(f"Ray ended with exit code {ray.returncode}")


def _end(ray: subprocess.Popen[bytes]) -> None:
    """In order, so that the rest of the cluster is told; the guard ends what that leaves."""
    ray.terminate()
    try:
        ray.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        ray.kill()


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


if __name__ == "__main__":
    sys.exit(main())
