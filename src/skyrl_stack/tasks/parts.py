"""Parts: a task file in two, to train on one and to measure with the other."""

import hashlib
from pathlib import Path

from skyrl_stack.records import draft_of
from skyrl_stack.tasks.task import TaskError, read_tasks


def split_tasks(file: Path, *, holdout: float, by: str, seed: int) -> dict[Path, int]:
    """Write the two parts of a task file beside it; each task's part depends on its name, or its repository's, alone.

    Raises:
        TaskError: the file is missing or malformed, or a part would be empty.
    """
    train, held = (file.with_name(f"{file.stem}.{part}.jsonl") for part in ("train", "holdout"))
    counts = {train: 0, held: 0}
    keys: set[str] = set()
    with draft_of(train) as first, draft_of(held) as second:
        for task in read_tasks(file):
            key = f"{seed} {task.repo if by == 'repo' else task.instance_id}"
            keys.add(key)
            share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
            path, part = (held, second) if share < holdout else (train, first)
            part.write(f"{task.model_dump_json()}\n".encode())
            counts[path] += 1
        for path, count in counts.items():
            if not count:
                found = f"of {len(keys)} {'repositories' if by == 'repo' else 'tasks'} none falls there"
                way_out = "choose another --holdout or --seed" if len(keys) > 1 else "one alone cannot be split"
                raise TaskError(f"{path.name} would be empty: {found}; {way_out}")
    return counts
