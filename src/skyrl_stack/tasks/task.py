"""One SWE problem as a typed record: the row shape that swebench 5 grades, and nothing invented."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skyrl_stack.errors import StackError


class TaskError(StackError):
    """A task file is missing or a row of it is malformed."""


class Task(BaseModel):
    """A row with the columns of the `SWE-bench/…` datasets, which carry their own recipe.

    Source: swebench 5 `TestSpec`. `patch` is the gold fix and never enters a sandbox that the agent sees.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    instance_id: str = Field(min_length=1, pattern=r"^\S+$")
    repo: str
    version: str
    base_commit: str
    image: str
    problem_statement: str
    patch: str
    test_patch: str = ""
    FAIL_TO_PASS: tuple[str, ...] = Field(min_length=1)
    PASS_TO_PASS: tuple[str, ...]
    eval_script: str
    log_parser: str
    eval_type: str = "pass_and_fail"
    canary: str = ""
    "Id of a test that must fail, or the report is not believed. Ours; swebench ignores it."


def read_tasks(path: Path) -> Iterator[Task]:
    """Tasks of a JSON-lines file, in order.

    Raises:
        TaskError: the file is missing or a line is not a task; names the file and the line.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Task.model_validate(json.loads(line))
            except (json.JSONDecodeError, ValidationError) as error:
                first = str(error).splitlines()[0]
                raise TaskError(f"{path}:{number}: not a task: {first}") from error
