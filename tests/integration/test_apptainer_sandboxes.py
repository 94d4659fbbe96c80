"""Sandboxes of Apptainer, of an ordinary user who finds no Podman: episodes in them, what they see and leave."""

import asyncio
import shlex
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playing import play

from frozen_runtime import apptainer_runtime, hidden_podmans
from frozen_site import Site
from rootfs import SHELL_PROGRAMS, build_rootfs, write_archive
from skyrl_stack.agent.calls import render_call
from skyrl_stack.factory.make import write_tasks
from skyrl_stack.node import other_processes
from skyrl_stack.profile import Profile
from skyrl_stack.records import Endpoint
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.sandbox.contract import CommandResult, SandboxSpec
from skyrl_stack.tasks.task import Task
from toys import toy_task

pytestmark = [pytest.mark.podman, pytest.mark.apptainer, pytest.mark.timeout(600)]

EVALUATION = """\
#!/bin/bash
cd /testbed
: '>>>>> Start Test Output'
bash ./test_add.sh
: '>>>>> End Test Output'
"""
TEST = """\
. ./add.sh
[[ $(add 1 2) == 3 ]] && echo "PASSED test_add.sh::adds" || echo "FAILED test_add.sh::adds - not 3"
"""
HOLDS_ONE = """
import asyncio, sys
from skyrl_stack.sandbox.apptainer.sandboxes import ApptainerSandboxes
from skyrl_stack.sandbox.contract import SandboxSpec

CLOSE = "mkdir -p /testbed/closed/inside; touch /testbed/closed/inside/file; chmod 000 /testbed/closed"

async def hold():
    async with ApptainerSandboxes("killed", reason="a test", isolation="weak") as sandboxes:
        sandbox = await sandboxes.start(SandboxSpec(image=sys.argv[1]))
        assert (await sandbox.run(CLOSE)).exit_code == 0
        print("has one", flush=True)
        # Holds what it can of the lifeline, too.
        await sandbox.run("exec 7<>/proc/1/fd/0; sleep 4321", timeout_s=600)

asyncio.run(hold())
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A repository of one line, with a bug and a test, in the tar `rootfs.tar` of an image of its own."""
    place = tmp_path_factory.mktemp("repository")
    source = place / "testbed/add.sh"
    source.parent.mkdir()
    source.write_text("add() { echo $(($1 - $2)); }\n")
    source.with_name("test_add.sh").write_text(TEST)
    git(source.parent, "init", "--quiet")
    git(source.parent, "add", ".")
    git(source.parent, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=all")
    build_rootfs(place / "rootfs.tar", [*SHELL_PROGRAMS, "find"])
    with tarfile.open(place / "rootfs.tar", "a") as tar:
        tar.add(source.parent, "testbed")
    head = git(source.parent, "rev-parse", "HEAD").strip()
    source.write_text("add() { echo $(($1 + $2)); }\n")
    return toy_task(
        image=f"localhost/skyrl/tests-repository:{head}",
        base_commit=head,
        patch=git(source.parent, "diff"),
        eval_script=EVALUATION,
        FAIL_TO_PASS=("test_add.sh::adds",),
        rootfs=str(place / "rootfs.tar"),
    )


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def tiny(ordinary_site: Site, tiny_rootfs: Path, tiny_image: str) -> str:
    """The tests' image, on the user's site."""
    ordinary_site.install("runtime")
    archive = ordinary_site.checkout / "tiny.tar"
    write_archive(tiny_rootfs, tiny_image, archive)
    assert tiny_image in ordinary_site.stack("images", "load", archive)
    return tiny_image


@pytest.fixture(scope="module")
def weak(ordinary_site: Site, task: Task) -> Iterator[Endpoint]:
    archive = ordinary_site.checkout / "task.tar"
    write_archive(Path(str(task.rootfs)), task.image, archive)
    with apptainer_runtime(ordinary_site, [archive], [task], output_limit=64 * 1024) as endpoint:
        yield endpoint


@pytest.mark.parametrize(("fixes", "reward"), [(True, 1.0), (False, 0.0)])
def test_an_episode_is_graded(weak: Endpoint, task: Task, tmp_path: Path, fixes: bool, reward: float) -> None:
    fix = render_call("terminal", command=f"git apply - <<'PATCH'\n{task.patch}PATCH")
    script = [*([fix] if fixes else []), render_call("finish", message="done")]

    async def attempt() -> float | None:
        async with RuntimeClient(weak) as client:
            directory = RunDirectory.create(tmp_path, Profile.model_validate({"name": "test"}))
            return (await play(task, script, directory, client))[0].reward

    assert asyncio.run(attempt()) == reward


def run(weak: Endpoint, image: str, command: str) -> CommandResult:
    async def run_it() -> CommandResult:
        async with RuntimeClient(weak) as client:
            sandbox = await client.start(SandboxSpec(image=image))
            try:
                return await sandbox.run(command)
            finally:
                await sandbox.stop()

    return asyncio.run(run_it())


def test_it_sees_nothing_of_its_users(weak: Endpoint, task: Task, ordinary_site: Site) -> None:
    """Files, variables, processes, cgroups."""
    work = shlex.quote(str(ordinary_site.work))
    seen = run(weak, task.image, f"ls -d {work} /home/*; env; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls /sys").stdout
    assert str(ordinary_site.work) not in seen
    assert not any(word in seen for word in ("SKYRL_CACHE", "APPTAINER", "SINGULARITY", "skyrl-builder", "skyrl_stack"))
    assert "HOSTNAME=sandbox-" in seen and "cgroup" not in seen


def test_it_has_itself_and_nothing_of_what_it_is_told_by(weak: Endpoint, task: Task, ordinary_site: Site) -> None:
    result = run(weak, task.image, "id -u; touch /testbed/mine /tmp/mine && echo mine; touch /.skyrl/1.sh")
    owner = ordinary_site.work.joinpath("home").stat().st_uid
    assert result.stdout == f"{owner}\nmine\n"
    assert "Read-only file system" in result.stderr


def test_killed_it_leaves_no_process_and_a_sweep_the_rest(ordinary_site: Site, tiny: str) -> None:
    site = ordinary_site
    holder = site.popen(site.work / "venv/bin/python", "-c", HOLDS_ONE, tiny)
    assert holder.stdout and holder.stdout.readline() == "has one\n", holder.communicate()[0]
    eventually(lambda: sleeping(site))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    left = site.work / "tmp/skyrl-killed"
    eventually(lambda: not sleeping(site) and not any(other.has_open_below(left) for other in other_processes()))
    assert left.is_dir()
    assert f"removed directory {left} of launch killed" in site.stack("sweep")
    assert not left.exists()


def sleeping(site: Site) -> bool:
    owner = (site.work / "home").stat().st_uid
    listed = subprocess.run(["ps", "--no-headers", "-o", "args", "-u", str(owner)], capture_output=True, text=True)
    return "sleep 4321" in listed.stdout


def eventually(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["tasks.file=here.jsonl"], "'shared-uid' asks for more, --set runtime.isolation=weak takes it as it is"),
        (["tasks.file=elsewhere.jsonl", "runtime.isolation=weak"], "and here `skyrl-stack images load image.tar`"),
        (["runtime.isolation=weak"], "name a file by tasks.file"),
    ],
)
def test_what_it_cannot_is_one_line_with_the_way_out(
    ordinary_site: Site, tiny: str, settings: list[str], said: str
) -> None:
    site = ordinary_site
    write_tasks(site.checkout / "here.jsonl", [toy_task(image=tiny)])
    write_tasks(site.checkout / "elsewhere.jsonl", [toy_task(image="localhost/made/elsewhere:1")])
    given = [word for setting in ["tasks.unverified=true", *settings] for word in ("--set", setting)]
    command = [site.work / "venv/bin/skyrl-stack", "launch", "local", "--runtime-only", *given]
    output, _ = site.popen(*command, hidden=hidden_podmans(site)).communicate(timeout=120)
    assert sum(said in line for line in output.splitlines()) == 1, output
    assert "Traceback" not in output
