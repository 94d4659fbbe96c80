"""How far a run has come, read from verl's checkpoint layout."""

from pathlib import Path


def steps_done(checkpoints: Path) -> int:
    """Steps in the newest complete checkpoint: verl writes its number last. 0 where there is none."""
    marker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(marker.read_text()) if marker.is_file() else 0
