"""Tasks → the rows that verl iterates over: only names; the agent loop reads the task itself."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from skyrl_stack.errors import ProfileError
from skyrl_stack.tasks.task import Task


def write_rows(tasks: Sequence[Task], file: Path, *, tasks_per_step: int) -> None:
    """Write one row per task, in the order of `tasks`: the same run gives the same file.

    Raises:
        ProfileError: there are fewer tasks than one step takes.
    """
    if len(tasks) < tasks_per_step:
        raise ProfileError(
            f"trainer.tasks_per_step = {tasks_per_step}, but the run has {len(tasks)} tasks: lower it or make more"
        )
    rows = [
        {
            "data_source": task.repo,
            "prompt": [{"role": "user", "content": task.problem_statement}],
            "instance_id": task.instance_id,
            "extra_info": {"index": index},
        }
        for index, task in enumerate(tasks)
    ]
    file.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
