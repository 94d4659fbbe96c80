"""A runtime that a launch of an ordinary user starts, on a node with Apptainer and no Podman: out of runtime.sif, which
brings Podman along, or with sandboxes of Apptainer."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frozen_site import Site
from lanes import cannot_run
from rootfs import CHANGES
from skyrl_stack.factory.make import write_tasks
from skyrl_stack.records import Endpoint
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import Task
from toys import toy_task

PODMANS = ("podman", "crun", "runc", "conmon", "catatonit", "netavark")
"Programs that the image has to bring along."
AS_A_LAUNCH_DOES = ("--fakeroot", "--bind", "{work}")
IMPORT = """
import asyncio, sys
from pathlib import Path
from skyrl_stack.sandbox.images import ImageStore

async def main():
    async with ImageStore() as images:
        await images.import_rootfs(Path(sys.argv[1]), sys.argv[2], changes=tuple(sys.argv[3:]))

asyncio.run(main())
"""
PROFILE = """\
name = "frozen"
[tasks]
file = "tasks.jsonl"
unverified = true
[runtime]
isolation = "{isolation}"
output_limit_kb = {output_limit_kb}
"""
IMAGES = """\
[images]
runtime = "images/runtime.sif"
"""


@contextmanager
def frozen_runtime(site: Site, rootfs: Path, image: str, *, output_limit: int) -> Iterator[Endpoint]:
    """What `skyrl-stack launch --runtime-only` serves; it has `image`, which is made of the tar `rootfs`."""
    podmans = hidden_podmans(site)
    (site.checkout / "import.py").write_text(IMPORT)
    readable = shutil.copy(rootfs, site.checkout)
    importing = site.inside(AS_A_LAUNCH_DOES, site.checkout / "import.py", readable, image, *CHANGES, hidden=podmans)
    said, _ = importing.communicate(timeout=120)
    assert importing.returncode == 0, said
    profile = PROFILE.format(isolation="no-netns", output_limit_kb=output_limit // 1024)
    with _launched(site, profile + IMAGES, [toy_task(image=image)], podmans) as endpoint:
        assert site.processes("squashfuse")
        yield endpoint


@contextmanager
def apptainer_runtime(site: Site, archives: list[Path], tasks: list[Task], *, output_limit: int) -> Iterator[Endpoint]:
    """What a launch serves without Podman, in a Python of the node's; it has the images of `archives`."""
    podmans = hidden_podmans(site)
    site.install("runtime")
    site.stack("images", "load", *archives)
    profile = PROFILE.format(isolation="weak", output_limit_kb=output_limit // 1024)
    with _launched(site, profile, tasks, podmans) as endpoint:
        yield endpoint


def hidden_podmans(site: Site) -> list[Path]:
    """The files to hide from a user who is to find no Podman."""
    if os.geteuid():
        cannot_run("hides the node's Podman, which needs root")
    podmans = [Path(found) for program in PODMANS if (found := _installed(program))]
    look = 'PATH=$PATH:/usr/libexec/podman; for program; do command -v "$program"; done'
    assert site.popen("sh", "-c", look, "_", *PODMANS, hidden=podmans).communicate(timeout=10)[0] == ""
    return podmans


@contextmanager
def _launched(site: Site, profile: str, tasks: list[Task], hidden: list[Path]) -> Iterator[Endpoint]:
    """What a launch of the profile serves, until it is told to stop; it leaves nothing, beside what another one has."""
    before = _traces(site)
    (site.checkout / "frozen.toml").write_text(profile)
    write_tasks(site.checkout / "tasks.jsonl", tasks)
    launch = site.popen(site.work / "venv/bin/skyrl-stack", "launch", "frozen.toml", "--runtime-only", hidden=hidden)
    try:
        assert launch.stdout
        said = line = launch.stdout.readline()
        while line and "another launch uses it by" not in line:
            line = launch.stdout.readline()
            said += line
        assert line, said
        endpoint = RunDirectory.latest(site.checkout / ".skyrl_jobs").endpoint("runtime")
        assert endpoint
        assert site.processes("skyrl_stack.runtime")
        yield endpoint
    finally:
        launch.send_signal(signal.SIGINT)
        launch.communicate(timeout=60)
    assert _traces(site) - before == set()


def _traces(site: Site) -> set[str]:
    """Processes and private directories of launches."""
    directories = {str(path) for path in (site.work / "tmp").glob("skyrl-*")}
    return site.processes("skyrl_stack", "squashfuse", "apptainer") | directories


def _installed(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/libexec/podman")
