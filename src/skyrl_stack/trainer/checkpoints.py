"""How far a run has come, read from verl's checkpoint layout."""

from pathlib import Path


def steps_done(checkpoints: Path) -> int:
    """Steps in the newest complete checkpoint: verl writes its number last. 0 where there is none."""
    marker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(marker.read_text()) if marker.is_file() else 0


def ranks_of(checkpoints: Path, step: int) -> int | None:
    """How many ranks saved the checkpoint of `step`, a shard each; None where that cannot be told."""
    shards = (checkpoints / f"global_step_{step}" / "actor").glob("model_world_size_*_rank_0.pt")
    return next((int(shard.name.split("_")[3]) for shard in shards), None)
