"""Cgroups of a launch: made in a delegated one, killed at once, and gone whatever ends the launch.

Where no controller is delegated, as on a machine whose controllers are those of version 1, nothing here is limited.
"""

import asyncio
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lanes import cannot_run, sweeping_alone
from skyrl_stack.sandbox.cgroups import LaunchGroup, NotDelegated, born_in, delegated
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.storage import private_root
from skyrl_stack.sandbox.sweep import sweep
from skyrl_stack.sandbox.syscalls import ask_for_news, open_news, read_news

pytestmark = pytest.mark.timeout(60)

ROOT = (os.geteuid(), os.getegid())
FORKS = "for i in 1 2 3; do (sleep 7411 & sleep 7411) & done; sleep 7411"
LAUNCH = """
import os, sys
from pathlib import Path
from skyrl_stack.sandbox.cgroups import LaunchGroup, launch_group
from skyrl_stack.sandbox.storage import make_private_directory, name_cgroup
parent, launch = Path(sys.argv[1]), sys.argv[2]
name_cgroup(make_private_directory(launch), launch_group(parent, launch))
group = LaunchGroup.begin(parent, launch, (os.geteuid(), os.getegid()))
group.make("sandbox", memory_mb=None, pids=None, cpus=None)
print("begun", flush=True)
sys.stdin.read()
"""


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def members(group: Path) -> set[int]:
    return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}


def start_in(
    group: Path, *argv: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> "subprocess.Popen[str]":
    return subprocess.Popen(born_in(group, argv), text=True, stdin=stdin, stdout=stdout, stderr=stderr)


@pytest.fixture
def parent() -> Iterator[Path]:
    """A cgroup of the test's own, as if it had been delegated."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mount = next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)
    if mount is None or not os.access(mount / "cgroup.procs", os.W_OK):
        cannot_run("needs cgroups of version 2 that are ours")
    path = mount / f"tests-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    (path / "cgroup.kill").write_text("1")
    eventually(lambda: "populated 0" in (path / "cgroup.events").read_text())
    for directory, _, _ in os.walk(path, topdown=False):
        Path(directory).rmdir()


@pytest.fixture
def group(parent: Path) -> Iterator[LaunchGroup]:
    group = LaunchGroup.begin(parent, "l", ROOT)
    yield group
    group.close()


def test_a_sandbox_is_killed_with_all_that_it_forked_and_nothing_else(group: LaunchGroup) -> None:
    sandbox = group.make("sandbox", memory_mb=100, pids=100, cpus=1.0)
    assert sandbox.is_empty
    process, other = start_in(sandbox.path, "/bin/bash", "-c", FORKS), start_in(group.path / "cell", "sleep", "7411")
    eventually(lambda: len(members(sandbox.path)) >= 8)
    assert process.pid in members(sandbox.path)
    sandbox.kill()
    assert process.wait(10) == -signal.SIGKILL
    eventually(lambda: sandbox.is_empty)
    assert other.poll() is None
    sandbox.remove()
    assert not sandbox.path.exists()
    group.close()
    assert other.wait(10) == -signal.SIGKILL
    assert not group.path.exists()


def test_the_news_are_that_somebody_came_and_that_all_are_dead(group: LaunchGroup) -> None:
    sandbox, news = group.make("sandbox", memory_mb=None, pids=None, cpus=None), open_news()
    number = ask_for_news(news, str(sandbox.path / "cgroup.events"))
    assert read_news(news) == set()
    process = start_in(sandbox.path, "sleep", "7411")
    eventually(lambda: read_news(news) == {number})
    assert not sandbox.is_empty
    sandbox.kill()
    process.wait()
    eventually(lambda: read_news(news) == {number})
    assert sandbox.is_empty
    os.close(news)


def test_who_was_there_steps_aside_until_the_last_launch_ends(parent: Path) -> None:
    process = start_in(parent, "sleep", "7411")
    eventually(lambda: process.pid in members(parent))
    first = LaunchGroup.begin(parent, "first", ROOT)
    assert members(parent) == set()
    assert members(parent / "skyrl.rest") == {process.pid}
    second = LaunchGroup.begin(parent, "second", ROOT)
    first.close()
    assert members(parent / "skyrl.rest") == {process.pid}
    second.close()
    assert members(parent) == {process.pid}
    assert not [path for path in parent.iterdir() if path.is_dir()]
    process.kill()
    process.wait()


def test_who_comes_after_its_runtime_finds_it_as_it_was(group: LaunchGroup) -> None:
    process = start_in(group.make("sandbox", memory_mb=100, pids=100, cpus=0.5).path, "sleep", "7411")
    eventually(lambda: process.pid in members(group.path / "sandbox"))
    os.close(group._lock)  # as when the process that has it dies
    group._lock = -1
    after = LaunchGroup(group.path, ROOT)
    assert after.held == group.held
    assert not after.make("sandbox", memory_mb=100, pids=100, cpus=0.5).is_empty
    after.close()
    assert process.wait(10) == -signal.SIGKILL


def test_one_launch_has_one_cgroup(group: LaunchGroup) -> None:
    with pytest.raises(NotDelegated, match="File exists"):
        LaunchGroup.begin(group.path.parent, "l", ROOT)
    assert group.path.exists()


def launched(parent: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that made a launch's cgroup, and is killed with a child of it left in the sandbox's."""
    launch_id = secrets.token_hex(8)
    pipe = subprocess.PIPE
    process = start_in(parent, sys.executable, "-c", LAUNCH, str(parent), launch_id, stdin=pipe, stdout=pipe)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    path = parent / f"skyrl-{launch_id}"
    assert process.pid in members(parent / "skyrl.rest")
    yield process
    process.kill()
    process.wait()
    assert (path / "sandbox").exists()
    yield process


def test_killed_it_leaves_what_a_sweep_finds(parent: Path) -> None:
    life = launched(parent)
    next(life)
    (path,) = parent.glob("skyrl-*")
    left = start_in(path / "sandbox", "sleep", "7411")
    eventually(lambda: left.pid in members(path / "sandbox"))
    with sweeping_alone():
        sweep()
        assert path.exists()
        next(life)
        assert any(path.name.removeprefix("skyrl-") in str(one) for one in sweep())
    assert left.wait(10) == -signal.SIGKILL
    assert not [path for path in parent.iterdir() if path.is_dir()]
    assert not (private_root() / path.name).exists()


def test_killed_it_leaves_what_the_next_launch_there_removes(parent: Path) -> None:
    with sweeping_alone():
        life = launched(parent)
        next(life)
        (path,) = parent.glob("skyrl-*")
        LaunchGroup.begin(parent, "second", ROOT).close()
        assert path.exists()
        next(life)
        LaunchGroup.begin(parent, "third", ROOT).close()
        assert not [path for path in parent.iterdir() if path.is_dir()]
        sweep()


def test_a_cgroup_without_controllers_is_left_as_it_is(parent: Path) -> None:
    if (parent / "cgroup.controllers").read_text().split():
        pytest.skip("controllers are delegated here")
    ask = "from skyrl_stack.sandbox.cgroups import delegated; delegated()"
    said = start_in(parent, sys.executable, "-c", ask, stderr=subprocess.PIPE).communicate()[1]
    assert f"NotDelegated: {parent} has none of the controllers memory, pids, cpu" in said
    assert not [path for path in parent.iterdir() if path.is_dir()]


@pytest.mark.podman
def test_the_first_line_says_who_enforces_sizes(tests_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def begin() -> None:
        stores = [image_store_path(tests_cache)]
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=stores, isolation="no-netns"):
            pass

    who = "cgroups enforce memory, processes, cpus, the warden disk"
    try:
        delegated()
    except NotDelegated as reason:
        who = f"the warden enforces memory, processes, cpus, disk, for no cgroup is delegated: {reason}"
    with caplog.at_level(logging.INFO):
        asyncio.run(begin())
    assert caplog.messages[0].endswith(who)
