"""Tasks from a real project, measured in real sandboxes."""

import asyncio
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyrl_stack.errors import ProfileError, SetupError
from skyrl_stack.factory.base import ensure_base
from skyrl_stack.factory.given import given_tasks
from skyrl_stack.factory.make import make_tasks, write_tasks
from skyrl_stack.factory.repository import git
from skyrl_stack.profile import Profile, TasksSection
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.tasks.task import Task, read_tasks

pytestmark = pytest.mark.podman
SECTION = TasksSection(projects=("inflection",), per_project=2)


def test_the_same_seed_makes_the_same_bytes(inflection_tasks: list[Task], tmp_path: Path) -> None:
    """Measured again in a cache of its own: only the images are those of the machine."""
    path = asyncio.run(make_tasks(SECTION, tmp_path))
    assert path.read_text() == "".join(f"{task.model_dump_json()}\n" for task in inflection_tasks)
    started = time.monotonic()
    assert asyncio.run(make_tasks(SECTION, tmp_path)) == path
    assert time.monotonic() - started < 5


def test_another_seed_makes_other_tasks(inflection_tasks: list[Task], tmp_path: Path) -> None:
    other = asyncio.run(make_tasks(SECTION.model_copy(update={"seed": 1, "per_project": 1}), tmp_path))
    assert other.read_text().splitlines()[0] not in {task.model_dump_json() for task in inflection_tasks}


def test_a_task_says_what_fails_and_not_how_to_mend_it(inflection_tasks: list[Task]) -> None:
    assert len(inflection_tasks) == 2
    for task in inflection_tasks:
        assert task.FAIL_TO_PASS[0] in task.problem_statement
        fix = re.findall(r"^\+ +(.*)$", task.patch, re.MULTILINE)
        assert len(fix) == 1
        assert fix[0] not in task.problem_statement


SEEK = """
set -e
cp -r /testbed /tmp/copy
git -C /tmp/copy apply /tmp/fix
fixed=$(git hash-object /tmp/copy/inflection/__init__.py)
buggy=$(git hash-object inflection/__init__.py)
rm -r /tmp/copy
for content in $buggy $fixed; do
    find / -xdev -type f -name '__init__.py*' -exec git hash-object {} + | grep -c "^$content" || true
    git cat-file --batch-all-objects --batch-check | grep -c "^$content" || true
done
git log --all --reflog --format=%H
git status --porcelain --ignored
"""


def test_the_image_holds_the_bug_and_no_trace_of_the_fix(inflection_tasks: list[Task]) -> None:
    async def look(task: Task) -> tuple[list[str], str]:
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=task.image))
            await sandbox.write_file("/tmp/fix", task.patch.encode())
            sought = await sandbox.run(f"({SEEK})")
            assert sought.exit_code == 0, sought.stderr
            tests = await sandbox.run(
                "cd /tmp && python -m pytest -q --co /testbed | tail -1; python -c 'import inflection'"
            )
            return sought.stdout.split(), tests.stdout + tests.stderr

    for task in inflection_tasks:
        sought, tests = asyncio.run(look(task))
        assert sought == ["1", "1", "0", "0", task.base_commit]
        assert tests.strip().startswith("455 tests collected")


def test_a_given_file_is_taken_when_its_images_are_there(inflection_tasks: list[Task], tmp_path: Path) -> None:
    given = tmp_path / "mine.jsonl"
    write_tasks(given, inflection_tasks)
    with pytest.raises(ProfileError, match=r"2 of 2 tasks are not verified.*tasks verify"):
        asyncio.run(given_tasks(given, print))
    assert asyncio.run(given_tasks(given, print, unverified=True)) == inflection_tasks


def test_a_given_file_whose_image_cannot_be_had_is_refused(inflection_tasks: list[Task], tmp_path: Path) -> None:
    given = tmp_path / "mine.jsonl"
    write_tasks(given, [inflection_tasks[0].model_copy(update={"image": "127.0.0.1:9/nobody/there:1"})])
    with pytest.raises(SetupError, match="nobody/there"):
        asyncio.run(given_tasks(given, print, unverified=True))


def test_an_image_of_the_store_can_be_the_base(inflection_tasks: list[Task]) -> None:
    async def body() -> str:
        async with ImageStore() as store:
            return await ensure_base(store, inflection_tasks[0].image, print)

    assert asyncio.run(body()).startswith("localhost/skyrl-stack/base:task-inflection-")


def test_the_command_puts_the_tasks_into_the_run_directory(inflection_tasks: list[Task], tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, Profile(name="t", tasks=SECTION))
    done = command(directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(read_tasks(directory.tasks_file)) == inflection_tasks


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, Profile(name="t", tasks=TasksSection(projects=("inflexion",))))
    done = command(directory)
    assert done.returncode == 1
    assert done.stderr.startswith("factory: tasks.projects: no project inflexion; there are boltons")
    assert done.stderr.count("\n") == 1


def command(directory: RunDirectory) -> subprocess.CompletedProcess[str]:
    publish(directory.launch_file, Launch())
    argv = [sys.executable, "-m", "skyrl_stack.factory", "--run-dir", str(directory.path)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200)


def test_tasks_of_a_checkout_of_ones_own(tmp_path: Path) -> None:
    """By the command, which needs neither the catalogue nor an index for it; the result can be verified."""
    root = tmp_path / "ruler"
    (root / "tests").mkdir(parents=True)
    (root / "ruler.py").write_text("def half(x):\n    if x < 0:\n        return None\n    return x // 2\n")
    tests = "from ruler import half\n\n\ndef test_half():\n    assert half(9) == 4\n\n\ndef test_below():\n"
    (root / "tests" / "test_ruler.py").write_text(f"{tests}    assert half(-2) is None\n")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=x")
    argv = [str(Path(sys.executable).with_name("skyrl-stack")), "tasks", "make", str(tmp_path / "t.jsonl")]
    argv += ["--from", str(root), "--sources", "ruler.py", "--tests", "tests/test_*.py"]
    argv += ["--set", "per_project=2", "--set", 'strategies=["branch", "line"]', "--set", "help=symptom"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    one, other = read_tasks(tmp_path / "t.jsonl")
    assert {(extra := task.model_extra or {})["strategy"] for task in (one, other)} == {"branch", "line"}, extra
    assert "half" not in one.problem_statement
    assert one.FAIL_TO_PASS in (("tests/test_ruler.py::test_half",), ("tests/test_ruler.py::test_below",))
