"""Exact match: R2E-Gym's way to grade, by the status that every test must have.

Its own reader takes the first summary in a log, and a word anywhere in a line; so a patch could print its grade. Here
only pytest's last summary counts, only whole lines of it, and it must show the canary failing.
"""

import re

from skyrl_stack.tasks.task import Task

START, END = ">>>>> Start Test Output", ">>>>> End Test Output"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m|\r")
_SUMMARY = re.compile(r"^=+ short test summary info =+$", re.MULTILINE)
_LINE = re.compile(r"^(PASSED|FAILED|ERROR) (\S.*)$", re.MULTILINE)


def exact_statuses(task: Task, log: str) -> dict[str, str] | None:
    """Status by name, without the canary; None where the tests did not come to their end.

    A name is what R2E-Gym calls a test: its node id without the file, with dots.
    """
    output = _COLOUR.sub("", log.partition(START)[2])
    output, ended, _ = output.rpartition(END)
    *_, summary = _SUMMARY.split(output)
    found = {_name(line): line[1] for line in _LINE.finditer(summary)}
    return found if ended and summary is not output and found else None


def is_contradictory(log: str) -> bool:
    """Whether some line says another status of a test than an earlier one: pytest says each once."""
    said: dict[str, str] = {}
    lines = _LINE.finditer(_COLOUR.sub("", log.partition(START)[2]))
    return any(said.setdefault(line[2].split(" - ", 1)[0], line[1]) != line[1] for line in lines)


def _name(line: re.Match[str]) -> str:
    node = line[2] if line[1] == "PASSED" else line[2].split(" - ", 1)[0]
    return ".".join(node.split("::")[1:]) or node
