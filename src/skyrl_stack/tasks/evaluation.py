"""Evaluation: runs the tests of a task in a sandbox and reads the log with swebench's own parsers.

The factory measures by it and the grader grades by it, so both see the same tests in the same way.
"""

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from skyrl_stack.sandbox.contract import Sandbox

LOG_LIMIT_MB = 16
"A longer log is cut, which loses its end marker: it counts as tests that did not run to their end."


class TestRun(BaseModel):
    """What one run of an eval script said."""

    __test__ = False  # not for pytest to collect
    model_config = ConfigDict(frozen=True)

    log: str
    timed_out: bool
    seconds: float


async def run_tests(sandbox: "Sandbox", script: str, *, timeout_s: float) -> TestRun:
    """Run an eval script by /bin/bash, stdout and stderr in one log.

    The log goes through a file: the answer of a command is capped in the middle, where the results are.

    Raises:
        SandboxLost: the sandbox is gone.
    """
    directory = f"/tmp/evaluation-{secrets.token_hex(8)}"
    await sandbox.write_file(f"{directory}/eval.sh", script.encode())
    done = await sandbox.run(f"/bin/bash {directory}/eval.sh > {directory}/log 2>&1 < /dev/null", timeout_s=timeout_s)
    # A new file: whatever the tests made of the log, something can be read.
    result = f"/tmp/result-{secrets.token_hex(8)}"
    await sandbox.run(f"head --bytes={LOG_LIMIT_MB}M {directory}/log > {result}")
    log = await sandbox.read_file(result)
    return TestRun(log=log.decode(errors="replace"), timed_out=done.timed_out, seconds=done.duration_s)


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
    with tempfile.TemporaryDirectory(prefix="skyrl-log-") as directory:
        path = Path(directory) / "test_output.txt"
        path.write_text(log, encoding="utf-8")
        yield path
