"""verl's checkpoints: how far a run has come, and one as files that every program can load."""

import subprocess
import sys
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.records import write_atomic

MARKER = "latest_checkpointed_iteration.txt"


def steps_done(checkpoints: Path) -> int:
    """Steps in the newest complete checkpoint. 0 where there is none.

    verl writes its number last, and not by rename: a full disk or a kill leaves an empty marker, but only after
    the checkpoint itself is complete.
    """
    marker = checkpoints / MARKER
    text = marker.read_text().strip() if marker.is_file() else "0"
    return int(text) if text.isdigit() else max(_complete(checkpoints), default=0)


def ranks_of(checkpoints: Path, step: int) -> int | None:
    """How many ranks saved the checkpoint of `step`, a shard each; None where that cannot be told."""
    shards = (checkpoints / f"global_step_{step}" / "actor").glob("model_world_size_*_rank_0.pt")
    return next((int(shard.name.split("_")[3]) for shard in shards), None)


def repair_marker(checkpoints: Path) -> None:
    """Write the marker again where it was cut short: verl reads it at its start."""
    marker = checkpoints / MARKER
    if marker.is_file() and marker.read_text().strip() != (number := str(steps_done(checkpoints))):
        write_atomic(marker, number.encode())


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a `global_step_N` of verl's, and not a directory of Hugging Face files."""
    return (path / "actor" / "fsdp_config.json").is_file()


def merge(checkpoint: Path, target: Path) -> None:
    """Make Hugging Face files of the shards of `checkpoint`, in `target`.

    Raises:
        SetupError: verl cannot.
    """
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    places = ["--local_dir", str(checkpoint / "actor"), "--target_dir", str(target)]
    done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise SetupError(f"{checkpoint}: verl could not merge this checkpoint: {last}")


def _complete(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints that have the file which verl writes last, the marker apart."""
    return [int(file.parent.name.removeprefix("global_step_")) for file in checkpoints.glob("global_step_*/data.pt")]
