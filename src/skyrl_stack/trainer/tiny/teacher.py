"""A mediocre teacher: for each task a script that solves it and scripts that do not, in the agent's own calls.

The model learns all of them, in these shares, so its samples of one task differ in reward from the first step. What
the teacher does most often is wrong, and the same everywhere: only rewards can teach the model not to.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from skyrl_stack.agent.calls import render_call
from skyrl_stack.errors import ProfileError
from skyrl_stack.tasks.task import REPOSITORY, Task

SOLVES, GUESSES, GIVES_UP = 3, 5, 2
"Shares of the scripts, of 10."
_CONTEXT_LINES = 2


@dataclass(frozen=True, slots=True)
class Script:
    """What the policy says, turn by turn, and how often the model is shown it."""

    turns: tuple[str, ...]
    share: int


@dataclass(frozen=True, slots=True)
class LineFix:
    """A gold patch that replaces one line."""

    file: str
    line: int
    buggy: str
    sound: str


def scripts(task: Task) -> list[Script]:
    """The scripts of one task: look, edit, finish.

    Raises:
        ProfileError: the task's fix is more than one line.
    """
    fix = line_fix(task)
    path = shlex.quote(str(PurePosixPath(REPOSITORY) / fix.file))
    first, last = max(1, fix.line - _CONTEXT_LINES), fix.line + _CONTEXT_LINES
    look = _terminal(f"sed -n {first},{last}p {path}")
    finish = render_call("finish", message="done")
    guess = fix.buggy[: len(fix.buggy) - len(fix.buggy.lstrip())] + "pass"
    return [
        Script((look, _replace(fix.line, fix.sound, path), finish), SOLVES),
        Script((look, _replace(fix.line, guess, path), finish), GUESSES),
        Script((look, finish), GIVES_UP),
    ]


def line_fix(task: Task) -> LineFix:
    """Read the gold patch.

    Raises:
        ProfileError: it is more than one line.
    """
    files = re.findall(r"^\+\+\+ b/(.+)$", task.patch, re.MULTILINE)
    changes = list(_changes(task.patch))
    match files, changes:
        case [file], [("-", line, buggy), ("+", _, sound)]:
            return LineFix(file, line, buggy, sound)
    raise ProfileError(
        f"model.path = tiny learns to fix one line, and {task.instance_id} needs more: choose another model or tasks"
    )


def _changes(patch: str) -> Iterator[tuple[str, int, str]]:
    """Removed and added lines: sign, line number in the old file, text."""
    number = 0
    for text in patch.splitlines():
        if hunk := re.match(r"@@ -(\d+)", text):
            number = int(hunk[1])
        elif number and text[:1] in ("-", "+"):
            yield text[0], number, text[1:]
        if number and text[:1] in ("-", " "):
            number += 1


def _replace(line: int, text: str, path: str) -> str:
    escaped = text.replace("\\", "\\\\")  # sed takes one of two away
    return _terminal(f"sed -i {shlex.quote(f'{line}c\\{escaped}')} {path}")


def _terminal(command: str) -> str:
    return render_call("terminal", command=command)
