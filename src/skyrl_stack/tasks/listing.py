"""Listing: a task file for people, as a table of its tasks or as one of them in full."""

from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skyrl_stack.tasks.diff import changed_lines
from skyrl_stack.tasks.manifest import verified_tasks
from skyrl_stack.tasks.task import Task, TaskError, read_tasks

SHOWN_TESTS = 10


def print_tasks(file: Path, solved: Mapping[str, tuple[int, int]] | None = None) -> None:
    """A row a task. `solved`: of how many attempts at a task how many solved it.

    Raises:
        TaskError: the file is missing or malformed.
    """
    columns = ("instance_id", "repo", "kind", "tests", "lines", *(["solved"] if solved is not None else []))
    table = Table(box=SIMPLE, pad_edge=False)
    for column in (*columns, "verified", "image"):
        is_number = column in ("tests", "lines", "solved")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    count = 0
    for count, (task, found) in enumerate(verified_tasks(file), 1):  # noqa: B007
        verified = "-" if not found else "accepted" if found.accepted else found.why
        cells = [task.instance_id, task.repo, _kind(task), _tests(task), str(changed_lines(task.patch))]
        if solved is not None:
            cells.append("{}/{}".format(*solved[task.instance_id]) if task.instance_id in solved else "-")
        table.add_row(*map(escape, (*cells, verified, task.image)))
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
    facts |= {"log parser": task.log_parser, "kind": _kind(task), "difficulty": _difficulty(task)}
    for name, value in {**facts, "tests": _tests(task)}.items():
        console.print(f"[bold]{name:11}[/bold]{escape(value)}", highlight=False)
    console.print(f"\n{escape(task.problem_statement.strip())}\n", highlight=False)
    must_pass = task.FAIL_TO_PASS or tuple(task.expected_output)
    for test in must_pass[:SHOWN_TESTS]:
        console.print(f"  {escape(test)}", highlight=False)
    if len(must_pass) > SHOWN_TESTS:
        console.print(f"  and {len(must_pass) - SHOWN_TESTS} more")
    console.print(f"\n{escape(task.patch.strip())}", highlight=False)


def _kind(task: Task) -> str:
    """Of a task that was made: how, and how much its statement helps. Of an imported one: where it comes from."""
    said = task.model_extra or {}
    made = [str(said[name]) for name in ("strategy", "help") if said.get(name)]
    return ", ".join(made) or str(said.get("data_set", "-"))


def _difficulty(task: Task) -> str:
    """What the data set says of it, and what can be measured without a model."""
    said = task.model_extra or {}
    measured = dict(said.get("measured") or {"changed_lines": changed_lines(task.patch)})
    words = [f"{value:g} {name.replace('_', ' ')}" for name, value in measured.items()]
    return ", ".join([*([str(said["difficulty"])] if said.get("difficulty") else []), *words])


def _tests(task: Task) -> str:
    return (
        str(len(task.expected_output)) if task.expected_output else f"{len(task.FAIL_TO_PASS)}+{len(task.PASS_TO_PASS)}"
    )


def _console() -> Console:
    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=220, soft_wrap=True)
