"""Evaluation: swebench's own reading of a row's recipe and of the log of its tests.

The factory measures by it and the grader grades by it, so both see the same tests in the same way.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skyrl_stack.scratch import scratch


def specification(row: Mapping[str, Any]) -> Any:
    """swebench's `TestSpec` of a row; its eval script also records the exit code of the tests.

    Slow the first time: swebench imports docker, datasets and modal (about 3 s).
    """
    from swebench.harness.utils import make_test_spec

    return make_test_spec(dict(row))


def statuses(row: Mapping[str, Any], log: str) -> dict[str, str] | None:
    """Status by test id, or None where the log does not show that the tests ran. As slow as `specification`."""
    from swebench.harness.grading import get_logs_eval

    with log_file(log) as path:
        found, ran = get_logs_eval(specification(row), str(path))
    return found if ran else None


@contextmanager
def log_file(log: str) -> Iterator[Path]:
    """The log as a file, which is how swebench takes it."""
    with scratch("log") as directory:
        path = directory / "test_output.txt"
        path.write_text(log, encoding="utf-8")
        yield path
