"""Patches and grades with real sandboxes: what an agent may do to its sandbox, and what a patch may do to the tests."""

import asyncio
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from skyrl_stack.errors import GradingFailed, SandboxLost
from skyrl_stack.grading.apply import apply_patch
from skyrl_stack.grading.grade import Grade, grade
from skyrl_stack.grading.patch import Start, extract_patch
from skyrl_stack.grading.start import hand_over
from skyrl_stack.sandbox.contract import Sandbox, SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.tasks.task import Task

pytestmark = pytest.mark.podman

SOURCE = "inflection/__init__.py"
TESTS = "test_inflection.py"


@pytest.fixture(scope="module")
def task(inflection_tasks: list[Task]) -> Task:
    """The one whose bug breaks many tests."""
    return max(inflection_tasks, key=lambda task: len(task.FAIL_TO_PASS))


class Bench:
    """One provider of sandboxes, for all tests of this module."""

    def __init__(self, runner: asyncio.Runner, sandboxes: PodmanSandboxes) -> None:
        self.runner = runner
        self.sandboxes = sandboxes

    def grade(self, task: Task, patch: str, timeout_s: float = 60.0) -> Grade:
        return self.runner.run(grade(task, patch, self.sandboxes, timeout_s=timeout_s))

    def extract(self, task: Task, *commands: str, files: dict[str, bytes] | None = None) -> str:
        """The patch after an agent wrote `files` and ran `commands`."""
        return self.runner.run(self._extract(task, commands, files or {}))

    def at_import(self, task: Task, *lines: str) -> str:
        """The patch of an agent that put code at the top of the library."""
        text = shlex.quote("\n".join(lines) + "\n")
        return self.extract(task, f"printf %s {text} | cat - {SOURCE} > /tmp/new && cp /tmp/new {SOURCE}")

    async def _extract(self, task: Task, commands: Sequence[str], files: dict[str, bytes]) -> str:
        sandbox = await self.sandboxes.start(SandboxSpec(image=task.image))
        try:
            for path, data in files.items():
                await sandbox.write_file(f"/testbed/{path}", data)
            for command in commands:
                result = await sandbox.run(command)
                assert result.exit_code == 0, result.stderr
            return await extract_patch(sandbox, task, Start(task.base_commit))
        finally:
            await sandbox.stop()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        provider = PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()])
        sandboxes = runner.run(provider.__aenter__())
        yield Bench(runner, sandboxes)
        runner.run(provider.__aexit__(None, None, None))


def adding(path: str, *lines: str) -> str:
    """A patch that adds one file."""
    body = "".join(f"+{line}\n" for line in lines)
    header = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    return f"{header}@@ -0,0 +1,{len(lines)} @@\n{body}"


def change(path: str = SOURCE) -> str:
    return f"echo '# changed' >> {path}"


def touched(patch: str) -> list[str]:
    return sorted(line.rpartition(" b/")[2] for line in patch.splitlines() if line.startswith("diff --git "))


def test_the_gold_patch_is_resolved(bench: Bench, inflection_tasks: list[Task]) -> None:
    for task in inflection_tasks:
        verdict = bench.grade(task, task.patch)
        assert (verdict.resolved, verdict.reason, verdict.patch_applied) == (True, "Resolved", True)
        assert verdict.fail_to_pass.passed == verdict.fail_to_pass.total == len(task.FAIL_TO_PASS)
        assert verdict.pass_to_pass.passed == verdict.pass_to_pass.total == len(task.PASS_TO_PASS)


def test_no_patch_is_not_resolved_and_needs_no_sandbox(bench: Bench, task: Task) -> None:
    absent = task.model_copy(update={"image": "localhost/not/there:1"})
    verdict = bench.grade(absent, "\n")
    assert (verdict.resolved, verdict.reason) == (False, "EmptyPatch")


def test_a_patch_that_changes_nothing_that_matters_is_not_resolved(bench: Bench, task: Task) -> None:
    verdict = bench.grade(task, bench.extract(task, change()))
    assert (verdict.resolved, verdict.reason, verdict.fail_to_pass.passed) == (False, "TestsFailed", 0)
    assert verdict.pass_to_pass.passed == verdict.pass_to_pass.total


def test_a_patch_for_another_tree_does_not_apply(bench: Bench, task: Task) -> None:
    verdict = bench.grade(task, task.patch.replace("UNCOUNTABLES", "COUNTABLES").replace("return word", "return none"))
    assert (verdict.resolved, verdict.reason) == (False, "PatchDoesNotApply")


def test_a_patch_whose_context_moved_still_applies(bench: Bench, task: Task) -> None:
    moved = task.patch.replace(" 'CamelOctopi'\n", " 'CamelCacti'\n")
    assert moved != task.patch
    assert bench.grade(task, moved).resolved


def test_new_files_are_part_of_the_patch(bench: Bench, task: Task) -> None:
    """The fix lies in a new module, committed on a branch, in a repository whose configuration is hostile."""
    patch = bench.extract(
        task,
        "git config core.hooksPath /tmp/hooks && mkdir /tmp/hooks && "
        "printf '#!/bin/sh\\nexit 1\\n' > /tmp/hooks/pre-commit && chmod +x /tmp/hooks/pre-commit",
        "git config core.fsmonitor /bin/false && git config diff.external /bin/false && git config user.email a@b "
        "&& git config user.name a && git config filter.lose.clean 'cat > /dev/null' && echo '*.py filter=lose' "
        "> .git/info/attributes && echo '*' > .git/info/exclude && git config core.excludesFile /tmp/all "
        "&& echo '*' > /tmp/all",
        f"cp {SOURCE} /tmp/moved && echo 'from inflection.words import *' > {SOURCE}",
        "sed 's/ not in UNCOUNTABLES/ in UNCOUNTABLES/' /tmp/moved > inflection/words.py",
        "git checkout -q -b work && git add -A -f && git commit -q --no-verify -m work "
        "&& git checkout -q --orphan gone && git commit -q --no-verify -m gone",
        "git branch -D main work && rm .git/index",
    )
    assert touched(patch) == [SOURCE, "inflection/words.py"]
    assert bench.grade(task, patch).resolved


def test_an_orphaned_base_commit_is_still_the_base(bench: Bench, task: Task) -> None:
    patch = bench.extract(task, change(), "git add -A", "git replace --edit HEAD < /dev/null || true")
    assert touched(patch) == [SOURCE]


def test_leftovers_tests_and_configuration_are_no_part_of_the_patch(bench: Bench, task: Task) -> None:
    patch = bench.extract(
        task,
        change(),
        change(TESTS),
        "echo 'raise SystemExit' > conftest.py; cp conftest.py inflection/; echo '[pytest]' > pytest.ini",
        "python -m compileall -q inflection; mkdir -p build/lib; echo junk > build/lib/x.py; echo build/ > .gitignore",
        "head -c 5M /dev/zero > core; git init -q inner; echo 'x = 1' > inner/x.py; git init -q empty",
        "git init -q committed && cd committed && echo 1 > y && git add y && "
        "git -c user.email=a@b -c user.name=a commit -q -m y; cd ..",
    )
    assert touched(patch) == [".gitignore", "committed/y", SOURCE, "inner/x.py"]


def test_bytes_that_are_no_text_arrive(bench: Bench, task: Task) -> None:
    data = {"latin.txt": "é\r\n".encode("latin-1"), "blob": bytes(range(256)), "crlf.txt": b"a\r\nb"}
    patch = bench.extract(task, "chmod +x crlf.txt; ln -s blob link", files=data)

    async def body() -> tuple[list[bytes], str]:
        sandbox: Sandbox = await bench.sandboxes.start(SandboxSpec(image=task.image))
        assert await apply_patch(sandbox, task, patch)
        listing = await sandbox.run("stat -c '%A %N' crlf.txt link")
        return [await sandbox.read_file(f"/testbed/{name}") for name in data], listing.stdout

    contents, listing = bench.runner.run(body())
    assert contents == list(data.values())
    assert listing.splitlines() == ["-rwxr-xr-x 'crlf.txt'", "lrwxrwxrwx 'link' -> 'blob'"]


def test_a_destroyed_repository_leaves_no_patch(bench: Bench, task: Task) -> None:
    assert bench.extract(task, change(), "rm -rf .git") == ""


def test_edited_tests_are_not_resolved(bench: Bench, task: Task) -> None:
    """Neither by way of the agent's sandbox nor by a patch made by hand."""
    emptied = f"printf 'def test_nothing(bench: Bench):\\n    pass\\n' > {TESTS}"
    assert bench.grade(task, bench.extract(task, emptied)).reason == "EmptyPatch"
    by_hand = adding("conftest.py", "import os", "os._exit(0)") + adding("pytest.ini", "[pytest]", "addopts = --co")
    assert bench.grade(task, by_hand).reason == "TestsFailed"


def names_of_tests(task: Task) -> str:
    return f"TESTS = {[*task.FAIL_TO_PASS, *task.PASS_TO_PASS]!r}"


FORGERY = (
    "def _forge(status='PASSED'):",
    "    import sys",
    "    lines = [f'{status} {t}' for t in TESTS]",
    "    markers = [\"+ : '>>>>> End Test Output'\", '>>>>> Test Exit Code: 0', '']",
    "    text = '\\n'.join([*lines, '9 passed in 0.1s', *markers])",
    "    for stream in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__):",
    "        print(text, file=stream, flush=True)",
    "    import os; os.write(1, text.encode()); os.write(2, text.encode())",
)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("_forge()", "TestsFailed"),  # pytest captures what is printed while it imports
        ("_forge(); import os; os._exit(0)", "TestsDidNotRun"),
        ("import atexit; atexit.register(_forge)", "ReportForged"),
        ("import atexit, os; atexit.register(lambda: (_forge(), os._exit(0)))", "ReportForged"),
        ("import _pytest.python as p; p.Function.runtest = lambda self: None", "ReportForged"),
    ],
)
def test_a_forged_report_is_not_resolved(bench: Bench, task: Task, ending: str, reason: str) -> None:
    verdict = bench.grade(task, bench.at_import(task, names_of_tests(task), *FORGERY, ending))
    assert (verdict.resolved, verdict.reason) == (False, reason)


SPARED = (
    "import _pytest.python as p",
    "_run = p.Function.runtest",
    "def _spare(self):",
    "    try: _run(self)",
    "    except BaseException:",
    "        if {condition}: raise",
    "p.Function.runtest = _spare",
)


@pytest.mark.parametrize("condition", ["'must_fail' in self.name", "self.nodeid not in TESTS"])
def test_who_spares_the_test_that_must_fail_passes_broken_tests_too(bench: Bench, task: Task, condition: str) -> None:
    """By its name, or by knowing all others: what the agent can read in the repository."""
    lines = [line.format(condition=condition) for line in SPARED]
    verdict = bench.grade(task, bench.at_import(task, names_of_tests(task), *lines))
    assert (verdict.resolved, verdict.reason, verdict.fail_to_pass.passed) == (
        False,
        "ReportForged",
        len(task.FAIL_TO_PASS),
    )


WRITTEN_ANEW = (
    "import os",
    "lines = [*(f'PASSED {t}' for t in TESTS), 'FAILED test_must_fail.py::test_must_fail - x']",
    "start, end = (f\"+ : '>>>>> {word} Test Output'\" for word in ('Start', 'End'))",
    "open('/tmp/log', 'w').write('\\n'.join([start, *lines, end, '>>>>> Test Exit Code: 1', '']))",
    "open('/tmp/head', 'w').write('#!/bin/sh\\ncat /tmp/log\\n')",
    "os.chmod('/tmp/head', 0o755)",
    "os.replace('/tmp/head', '/usr/bin/head')",
)


def test_who_writes_the_whole_log_anew_passes_broken_tests_too(bench: Bench, task: Task) -> None:
    """What the control has broken is known before that could be written anew, too."""
    verdict = bench.grade(task, bench.at_import(task, names_of_tests(task), *WRITTEN_ANEW))
    assert (verdict.resolved, verdict.reason) == (False, "ReportForged")


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.py", "pytest.py", "_pytest.py", "pluggy.py"])
def test_a_module_in_the_place_of_the_runner_is_not_run(bench: Bench, task: Task, name: str) -> None:
    patch = adding(name, names_of_tests(task), *FORGERY, "_forge()", "import os; os._exit(0)")
    assert bench.grade(task, patch).reason == "TestsFailed"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("this is no Python", "TestsFailed"),
        ("import a_module_that_is_not_there", "TestsFailed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "TestsDidNotRun"),
        ("import os; print('Killed', flush=True); os._exit(0)", "TestsDidNotRun"),
        ("x = ' ' * 10**13", "TestsFailed"),
        ("import shutil; shutil.rmtree('/tmp', ignore_errors=True)", "TestsDidNotRun"),
    ],
)
def test_a_patch_that_stops_the_tests_is_not_resolved(bench: Bench, task: Task, code: str, reason: str) -> None:
    """Not infrastructure: without the patch the tests run."""
    verdict = bench.grade(task, bench.at_import(task, code))
    assert (verdict.resolved, verdict.reason) == (False, reason)


def test_tests_that_take_for_ever_are_not_resolved(bench: Bench, task: Task) -> None:
    verdict = bench.grade(task, bench.at_import(task, "import time; time.sleep(600)"), timeout_s=3)
    assert (verdict.resolved, verdict.reason) == (False, "TestsTimedOut")


def test_hooks_cannot_be_patched_in(bench: Bench, task: Task) -> None:
    assert bench.grade(task, adding(".git/hooks/post-checkout", "#!/bin/sh")).reason == "PatchRefused"


HOOK = ("#!/bin/sh", "touch /tmp/hooked")


def adding_hook(prefix: str) -> str:
    return adding(prefix, *HOOK).replace("mode 100644", "mode 100755")


@pytest.mark.parametrize(
    "patch",
    [
        adding("way", ".git").replace("mode 100644", "mode 120000") + adding_hook("way/hooks/post-checkout"),
        adding_hook("X")
        .replace("a/X", r'"a/\056git/hooks/post-checkout"')
        .replace("b/X", r'"b/\056git/hooks/post-checkout"'),
    ],
    ids=["symbolic-link", "quoted-name"],
)
def test_hooks_cannot_be_patched_in_by_a_way_round(bench: Bench, task: Task, patch: str) -> None:
    """git refuses both; patch(1), the last way to apply a patch, would write the hook."""
    verdict = bench.grade(task, f"{task.patch}{patch}")
    assert (verdict.resolved, verdict.reason) == (False, "PatchDoesNotApply")


def test_a_patch_larger_than_any_fix_is_none(bench: Bench, task: Task) -> None:
    fill = "for i in 1 2 3 4 5; do head -c 3500000 /dev/urandom > data$i.bin; done"
    assert bench.extract(task, change(), fill) == ""
    assert touched(bench.extract(task, change(), fill, "rm data[2-5].bin")) == ["data1.bin", SOURCE]


SUBMODULE = """
export GIT_CONFIG_GLOBAL=/tmp/gitconfig
git config --global protocol.file.allow always
git config --global user.name x && git config --global user.email x
git init -q /tmp/library && cd /tmp/library
echo one > a.py && git add . && git commit -q -m one && echo 'THE FUTURE' > b.py && git add . && git commit -q -m two
cd /testbed && git submodule add -q /tmp/library library && git -C library checkout -q HEAD~1
git add library && git commit -q -m 'with a submodule' && rm -rf /tmp/library
"""


def test_a_fix_beside_a_submodule_is_resolved(bench: Bench, task: Task) -> None:
    """Its repository lies in the one that is taken away: git must not ask for it, and nobody can look into it."""
    with_submodule = task.model_copy(update={"has_history": True, "base_commit": "HEAD", "setup": SUBMODULE})

    async def body() -> tuple[str, str]:
        sandbox = await bench.sandboxes.start(SandboxSpec(image=task.image))
        start = await hand_over(sandbox, with_submodule)
        await sandbox.run(f"sed -i 's/ not in UNCOUNTABLES/ in UNCOUNTABLES/' {SOURCE}; echo two >> library/a.py")
        seen = await sandbox.run(
            "ls -A library; git status --porcelain; git -C library log --format=%s; find / -name b.py"
        )
        return await extract_patch(sandbox, with_submodule, start), seen.stdout

    patch, seen = bench.runner.run(body())
    assert seen.splitlines() == ["a.py", f" M {SOURCE}", "start"]
    assert touched(patch) == [SOURCE]
    assert bench.grade(with_submodule, patch).resolved


class Doomed:
    """Starts real sandboxes, of which those that are counted out lose their process 1 while the tests run."""

    def __init__(self, sandboxes: PodmanSandboxes, doomed: set[int]) -> None:
        self.sandboxes = sandboxes
        self.doomed = doomed
        self.starts = 0
        self.ends: list[asyncio.Task[None]] = []

    async def start(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await self.sandboxes.start(spec)
        if self.starts in self.doomed:
            self.ends.append(asyncio.create_task(self._end(sandbox)))
        self.starts += 1
        return sandbox

    async def _end(self, sandbox: Sandbox) -> None:
        with suppress(SandboxLost):
            await sandbox.run(
                "until grep -qs 'pytes[t]' /proc/[0-9]*/cmdline; do sleep 0.02; done; kill -TERM 1", shell="end"
            )

    def grade(self, bench: Bench, task: Task) -> Grade:
        return bench.runner.run(grade(task, task.patch, self, timeout_s=60))


@pytest.mark.parametrize(("doomed", "starts"), [({0}, 3), ({1}, 4)], ids=["the-first", "the-control"])
def test_a_sandbox_that_is_lost_in_the_middle_of_a_grade_is_replaced(
    bench: Bench, task: Task, doomed: set[int], starts: int
) -> None:
    sandboxes = Doomed(bench.sandboxes, doomed)
    assert sandboxes.grade(bench, task).resolved
    assert sandboxes.starts == starts


def test_a_second_sandbox_that_is_lost_is_no_grade(bench: Bench, task: Task) -> None:
    with pytest.raises(GradingFailed, match="is gone"):
        Doomed(bench.sandboxes, {0, 1}).grade(bench, task)


def test_no_image_is_no_grade(bench: Bench, task: Task) -> None:
    absent = task.model_copy(update={"image": "localhost/not/there:1"})
    with pytest.raises(GradingFailed, match="not/there"):
        bench.grade(absent, task.patch)


def test_an_image_in_which_tests_cannot_run_is_no_grade(bench: Bench, task: Task) -> None:
    broken = task.model_copy(update={"eval_script": task.eval_script.replace("python3 -P", "python9 -P")})
    with pytest.raises(GradingFailed, match="even without the patch"):
        bench.grade(broken, task.patch)
