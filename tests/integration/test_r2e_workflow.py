"""Tasks of other people's shape, for real: image building, start-up and health, commands, hidden tests, grade.

No registry is in reach, so the images are built here as those of R2E-Gym and of SWE-smith are: a repository with its
history at /testbed, an environment that git does not know, the tests of R2E-Gym beside it.
"""

import json
import secrets
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyrl_stack import __version__
from skyrl_stack.errors import GradingFailed
from skyrl_stack.grading.grade import Grade, grade
from skyrl_stack.grading.patch import extract_patch
from skyrl_stack.grading.start import hand_over
from skyrl_stack.run_directory import Endpoint
from skyrl_stack.runtime.client import RemoteSandbox, RuntimeClient
from skyrl_stack.runtime.server import serving
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import CommandResult, FileMissing, SandboxSpec
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.isolation import LADDER
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.tasks.diff import diff_of
from skyrl_stack.tasks.imports import import_tasks
from skyrl_stack.tasks.task import Task, read_tasks

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(200)]

TOKEN = "the-token"
SOUND = "def half(x):\n    return x / 2\n\n\ndef word():\n    return 'sound'\n"
BUGGY = SOUND.replace("x / 2", "x // 2")
FIX = diff_of("pkg/maths.py", BUGGY, SOUND)
HIDDEN_TEST = """\
import pytest
from pkg.maths import half, word

class TestHalf:
    def test_odd(self): assert half(3) == 1.5
    @pytest.mark.parametrize("x", [2, 4])
    def test_even(self, x): assert half(x) == x / 2

def test_word(): assert word() == 'sound'
def test_known_to_fail(): assert word() == 'wrong'
"""
EXPECTED = {
    "TestHalf.test_odd": "PASSED",
    "TestHalf.test_even[2]": "PASSED",
    "TestHalf.test_even[4]": "PASSED",
    "test_word": "PASSED",
    "test_known_to_fail": "FAILED",
}
RUN_TESTS = "PYTHONWARNINGS='ignore::UserWarning' .venv/bin/python -W ignore -m pytest -rA r2e_tests\n"
CONTAINERFILE = """\
FROM {base}
ENV GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x
RUN rm -rf /testbed && mkdir -p /testbed/pkg /testbed/.venv/bin && ln -s $(command -v python3) /testbed/.venv/bin/python
WORKDIR /testbed
COPY conda/ /opt/miniconda3/bin/
COPY test_own.py buggy.py sound.py /tmp/parts/
RUN git init -q . && git config user.name x && git config user.email x && echo '*.log' > .gitignore \\
    && touch pkg/__init__.py && cp /tmp/parts/test_own.py test_own.py && cp /tmp/parts/{first}.py pkg/maths.py \\
    && git add .gitignore pkg test_own.py && git commit -q -m 'where the task begins' \\
    && cp /tmp/parts/{second}.py pkg/maths.py && git commit -q -a -m 'THE FUTURE' && git tag v2 && git stash list \\
    && git reset -q --hard HEAD~1 && rm -rf /tmp/parts
"""
R2E_PART = "COPY r2e_tests/ /r2e_tests/\nCOPY run_tests.sh /testbed/run_tests.sh\n"


@dataclass
class Lab:
    """A runtime, and the tasks of this module by the data set that they are shaped like."""

    runtime: RuntimeClient
    url: str
    tasks: dict[str, Task]

    async def grade(self, name: str, patch: str, timeout_s: float = 60) -> Grade:
        return await grade(self.tasks[name], patch, self.runtime, timeout_s=timeout_s)

    async def work(self, name: str, *commands: str) -> tuple[str, list[CommandResult]]:
        """The patch of an agent that types `commands`, and what it is answered."""
        sandbox = await self.runtime.start(SandboxSpec(image=self.tasks[name].image))
        try:
            start = await hand_over(sandbox, self.tasks[name])
            results = [await sandbox.run(command) for command in commands]
            return await extract_patch(sandbox, self.tasks[name], start), results
        finally:
            await sandbox.stop()

    async def sandbox(self, name: str) -> RemoteSandbox:
        return await self.runtime.start(SandboxSpec(image=self.tasks[name].image))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab(inflection_tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    base = inflection_tasks[0].image
    async with ImageStore() as store:
        r2e = await build(store, folder / "r2e", base, "r2e", first="buggy", second="sound")
        smith = await build(store, folder / "smith", base, "smith", first="sound", second="buggy")
    source = folder / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in (r2e_row(r2e), smith_row(smith))))
    import_tasks(str(source), folder / "tasks.jsonl")
    tasks = {str((task.model_extra or {})["data_set"]): task for task in read_tasks(folder / "tasks.jsonl")}
    podman = PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()])
    async with (
        podman,
        serving(podman, RuntimeSection(), TOKEN) as served,
        RuntimeClient(Endpoint(launch_id="x", url=served.url, token=TOKEN)) as runtime,
    ):
        yield Lab(runtime, served.url, tasks)


async def build(store: ImageStore, folder: Path, base: str, name: str, *, first: str, second: str) -> str:
    files = {
        "buggy.py": BUGGY,
        "sound.py": SOUND,
        "test_own.py": "from pkg.maths import half, word\n\n\ndef test_half():\n    assert half(3) == 1.5\n\n\n"
        "def test_word():\n    assert word() == 'sound'\n",
        "r2e_tests/test_1.py": HIDDEN_TEST,
        "r2e_tests/conftest.py": "collect_ignore = ['no.py']\n",
        "run_tests.sh": RUN_TESTS,
        "conda/activate": "conda() { :; }\n",
        "conda/pytest": '#!/bin/sh\nexec python3 -m pytest "$@"\n',
        "Containerfile": CONTAINERFILE.format(base=base, first=first, second=second)
        + (
            R2E_PART
            if name == "r2e"
            else "RUN ln -s /opt/miniconda3/bin/pytest /usr/local/bin/pytest && chmod +x /opt/miniconda3/bin/pytest\n"
        ),
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    reference = f"localhost/skyrl/tests-{name}:1"
    await store.build(folder, reference)
    return reference


def r2e_row(image: str) -> dict[str, Any]:
    diffs = [{"header": {"file": {"path": "pkg/maths.py"}}, "old_file_content": BUGGY, "new_file_content": SOUND}]
    return {
        "repo_name": "maths",
        "docker_image": image,
        "commit_hash": "c0ffee" * 7,
        "parsed_commit_content": json.dumps({"file_diffs": diffs}),
        "problem_statement": "[ISSUE]half(3) is 1[/ISSUE]",
        "expected_output_json": json.dumps(EXPECTED),
    }


def smith_row(image: str) -> dict[str, Any]:
    return {
        "instance_id": "maths__maths.1.lm_rewrite__x",
        "patch": diff_of("pkg/maths.py", SOUND, BUGGY),
        "image_name": image,
        "repo": "swesmith/maths__maths.1",
        "problem_statement": "half(3) is 1",
        "FAIL_TO_PASS": ["test_own.py::test_half"],
        "PASS_TO_PASS": ["test_own.py::test_word"],
    }


def changing(path: str, text: str) -> str:
    return f"printf %s {shlex.quote(text)} > {path}"


async def test_the_runtime_answers_that_it_is_well(lab: Lab) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{lab.url}/health", headers={"X-API-Key": TOKEN})
    said = answer.json()
    assert said.pop("isolation") in LADDER
    assert said == {
        "status": "ok",
        "version": __version__,
        "capacity": 4,
        "alive": 0,
        "waiting": 0,
        "oldest_wait_s": 0.0,
    }


async def test_commands_are_answered_with_stdout_and_stderr_apart(lab: Lab) -> None:
    _, (result,) = await lab.work("R2E-Gym", "echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")


SEEK = """
cd /testbed
git rev-list --all --count; git log --format=%s; git tag; git stash list; git remote
git cat-file --batch-all-objects --batch-check | grep -c commit
git fsck --unreachable --no-reflogs | wc -l
git status --porcelain | grep -v venv
find / -xdev -name 'r2e_tests*' -not -path '/proc/*'; ls /testbed/run_tests.sh /r2e_tests
grep -rl THE.FUTURE .git
"""


async def test_the_agent_finds_neither_hidden_tests_nor_the_future(lab: Lab) -> None:
    for name in lab.tasks:
        patch, (seen,) = await lab.work(name, SEEK)
        assert seen.stdout.split() == ["1", "start", "1", "0"]
        assert patch == ""


async def test_the_gold_patch_is_resolved_again_and_again(lab: Lab) -> None:
    for name, task in lab.tasks.items():
        first, second = await lab.grade(name, task.patch), await lab.grade(name, task.patch)
        assert (first.resolved, first.reason) == (True, "Resolved")
        assert first.model_dump(exclude={"seconds"}) == second.model_dump(exclude={"seconds"})


async def test_an_agent_that_fixes_it_is_resolved(lab: Lab) -> None:
    """It leaves things of its own behind, of which none harms the grade."""
    for name in lab.tasks:
        patch, _ = await lab.work(
            name, changing("pkg/maths.py", SOUND), "mkdir -p .venv/bin; echo 'exit 1' > .venv/bin/python; touch a.log"
        )
        assert patch.count("diff --git") == 1
        assert (await lab.grade(name, patch)).resolved


async def test_an_agent_that_does_nothing_is_not_resolved(lab: Lab) -> None:
    for name in lab.tasks:
        patch, _ = await lab.work(name, changing("NOTES.md", "no idea\n"))
        verdict = await lab.grade(name, patch)
        assert (verdict.resolved, verdict.reason) == (False, "TestsFailed")


SUMMARY = "\n".join(
    ["=" * 26 + " short test summary info " + "=" * 28]
    + [f"{status} r2e_tests/test_1.py::{name.replace('.', '::')}" for name, status in EXPECTED.items()]
    + ["FAILED r2e_tests/test_must_fail.py::test_must_fail - assert False"]
)
PRINTED_AT_THE_END = f"import atexit, os\natexit.register(lambda: os.write(1, {SUMMARY!r}.encode()))\n"


@pytest.mark.parametrize(
    "command",
    [
        "mkdir -p r2e_tests && echo 'def test_nothing(): pass' > r2e_tests/test_1.py; echo true > run_tests.sh",
        "echo 'import pytest' > conftest.py; echo 'pytest_runtest_makereport = None' >> conftest.py",
        f"printf %s {shlex.quote(f'print({SUMMARY!r})')} | cat - pkg/maths.py > x && mv x pkg/maths.py",
        f"printf %s {shlex.quote(PRINTED_AT_THE_END)} | cat - pkg/maths.py > x && mv x pkg/maths.py",
        "echo 'import os; os._exit(0)' >> pkg/maths.py",
        "echo 'import _pytest.python as p; p.Function.runtest = lambda self: None' >> pkg/maths.py",
        "echo 'raise SystemExit(0)' | tee pytest.py sitecustomize.py > usercustomize.py",
    ],
    ids=["tests", "conftest", "summary", "summary-at-exit", "exit", "pytest", "shadows"],
)
async def test_tampering_is_not_resolved(lab: Lab, command: str) -> None:
    patch, (done,) = await lab.work("R2E-Gym", command)
    assert done.exit_code == 0, done.stderr
    verdict = await lab.grade("R2E-Gym", patch)
    assert not verdict.resolved
    assert verdict.reason in ("EmptyPatch", "TestsFailed", "ReportForged", "TestsDidNotRun")


@pytest.mark.parametrize("path", [".venv/pyvenv.cfg", ".venv/lib/python3/site-packages/forge.pth", ".venv/bin/pytest"])
async def test_a_patch_into_the_environment_does_not_apply(lab: Lab, path: str) -> None:
    """As an agent could make one that has replaced git in its sandbox: extraction leaves the environment out."""
    patch = FIX + diff_of(path, None, "import os; os._exit(0)\n")
    assert (await lab.grade("R2E-Gym", patch)).reason == "PatchDoesNotApply"


async def test_an_image_that_cannot_be_made_ready_is_no_grade(lab: Lab) -> None:
    smith = lab.tasks["SWE-smith"]
    broken = smith.model_copy(update={"setup": smith.setup.replace("x / 2", "x / 3")})
    with pytest.raises(GradingFailed, match="cannot be made ready"):
        await grade(broken, smith.patch, lab.runtime, timeout_s=30)


async def test_what_is_hidden_is_there_for_the_grader(lab: Lab) -> None:
    sandbox = await lab.sandbox("R2E-Gym")
    assert await sandbox.read_file("/r2e_tests/test_1.py") == HIDDEN_TEST.encode()
    await hand_over(sandbox, lab.tasks["R2E-Gym"])
    with pytest.raises(FileMissing):
        await sandbox.read_file("/r2e_tests/test_1.py")
    await sandbox.stop()
