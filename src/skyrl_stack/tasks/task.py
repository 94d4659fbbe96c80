"""One SWE problem as a typed record: the row shape that swebench 5 grades, and nothing invented."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skyrl_stack.errors import StackError

REPOSITORY = "/testbed"
"Where every image holds the repository."
EXACT = "r2e-gym"
"The `log_parser` of tasks that are graded by `expected_output`, which swebench does not know."


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
    FAIL_TO_PASS: tuple[str, ...] = ()
    PASS_TO_PASS: tuple[str, ...] = ()
    eval_script: str
    log_parser: str
    eval_type: str = "pass_and_fail"
    canary: str = ""
    "Id of a test that must fail, or the report is not believed. This column and those below are ours."
    expected_output: dict[str, str] = Field(default_factory=dict)
    "Status of every test, as R2E-Gym grades: all must be as here, and no other may be there. Empty elsewhere."
    setup: str = ""
    "Script that each sandbox of the task runs first, such as one that puts in the bug that an image lacks."
    hidden: tuple[str, ...] = ()
    "Absolute paths of the image that are taken away before the agent comes: tests it must not see."
    has_history: bool = False
    "Whether the image's repository holds commits besides the one to start from; they are taken away, too."

    @model_validator(mode="after")
    def _can_be_graded(self) -> Self:
        if not self.FAIL_TO_PASS and not self.expected_output:
            raise ValueError("no test that the fix makes pass (FAIL_TO_PASS)")
        return self


def read_tasks(path: Path) -> Iterator[Task]:
    """Tasks of a JSON-lines file, in order.

    Raises:
        TaskError: the file is missing or a line is not a task; names the file and the line.
    """
    if not path.is_file():
        raise TaskError(f"{path}: no such task file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                yield Task.model_validate(json.loads(line))
            except ValueError as error:  # no JSON, no text, or no task
                way_out = "`skyrl-stack tasks import` makes tasks of data sets"
                raise TaskError(f"{path}:{number}: not a task: {reason_of(error)}; {way_out}") from error


def reason_of(error: ValueError) -> str:
    """What is wrong with a row, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
