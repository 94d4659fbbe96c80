"""The command line: quick to answer, and one line for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [str(Path(sys.executable).with_name("skyrl-stack"))]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, text=True, capture_output=True, timeout=60)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = {"torch", "verl", "ray", "transformers", "openhands", "swebench", "fastapi", "podman", "rich", "pydantic"}
    code = f"import sys, skyrl_stack.cli; print(sorted({heavy!r} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout
    assert printed.strip() == "[]"
    assert "launch" in run("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["launch", "nope"], "no profile named nope; there are: "),
        (["launch", "absent.toml"], "absent.toml: no such profile"),
        (["launch", "local", "--set", "trainer.steps=none"], "trainer.steps = 'none'"),
        (["launch", "local", "--resume"], ".skyrl_jobs: no run of profile local there"),
        (["launch", "local", "--run-dir", "."], "add --resume"),
        (["report"], ".skyrl_jobs: no run there"),
        (["report", "."], "not a run directory"),
        (["tasks", "list", "absent.jsonl"], "absent.jsonl: no such task file"),
        (["tasks", "import", "absent.jsonl", "tasks.jsonl"], "absent.jsonl: no such file or directory"),
        (["tasks", "import", "absent.jsonl", "/proc/no/tasks.jsonl"], "/proc/no: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
