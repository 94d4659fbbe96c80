"""Listing: a task file for people, as a table of its tasks or as one of them in full."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skyrl_stack.tasks.diff import changed_lines
from skyrl_stack.tasks.manifest import verified_tasks
from skyrl_stack.tasks.task import Task, TaskError, read_tasks

SHOWN_TESTS = 10


def print_tasks(file: Path) -> None:
    """A row a task.

    Raises:
        TaskError: the file is missing or malformed.
    """
    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("instance_id", "repo", "tests", "lines", "verified", "image"):
        table.add_column(column, justify="right" if column in ("tests", "lines") else "left", overflow="fold")
    count = 0
    for count, (task, found) in enumerate(verified_tasks(file), 1):  # noqa: B007
        verified = "-" if not found else "accepted" if found.accepted else found.why
        table.add_row(task.instance_id, task.repo, _tests(task), str(changed_lines(task.patch)), verified, task.image)
    console = _console()
    console.print(table)
    console.print(f"{count} tasks; tests: that must come to pass + that must stay so; lines: of the gold patch")


def find_task(file: Path, instance_id: str) -> Task:
    """The task of that name.

    Raises:
        TaskError: there is none.
    """
    for task in read_tasks(file):
        if task.instance_id == instance_id:
            return task
    raise TaskError(f"{file}: no task {instance_id}; `skyrl-stack tasks list {file}` shows those that there are")


def print_task(task: Task) -> None:
    console = _console()
    facts = {"repo": f"{task.repo} {task.version}", "commit": task.base_commit, "image": task.image}
    for name, value in {**facts, "log parser": task.log_parser, "tests": _tests(task)}.items():
        console.print(f"[bold]{name:11}[/bold]{escape(value)}")
    console.print(f"\n{escape(task.problem_statement.strip())}\n", highlight=False)
    must_pass = task.FAIL_TO_PASS or tuple(task.expected_output)
    for test in must_pass[:SHOWN_TESTS]:
        console.print(f"  {escape(test)}", highlight=False)
    if len(must_pass) > SHOWN_TESTS:
        console.print(f"  and {len(must_pass) - SHOWN_TESTS} more")
    console.print(f"\n{escape(task.patch.strip())}", highlight=False)


def _tests(task: Task) -> str:
    return (
        str(len(task.expected_output)) if task.expected_output else f"{len(task.FAIL_TO_PASS)}+{len(task.PASS_TO_PASS)}"
    )


def _console() -> Console:
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=220, soft_wrap=True)
