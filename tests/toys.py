"""Records that tests need one of, whatever it says."""

from typing import Any

from skyrl_stack.tasks.task import Task


def toy_task(**given: Any) -> Task:
    """A task with what is `given` of it. Nobody can play it."""
    row = {
        "instance_id": "task",
        "repo": "a/b",
        "version": "1",
        "base_commit": "0",
        "image": "none",
        "problem_statement": "f() is wrong",
        "patch": "",
        "FAIL_TO_PASS": ("t",),
        "eval_script": "",
        "log_parser": "parse_log_pytest_v2",
    }
    return Task.model_validate(row | given)
