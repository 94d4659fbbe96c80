"""A runtime out of runtime.sif, as a launch of an ordinary user starts it, on a node with Apptainer and no Podman."""

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
[images]
runtime = "images/runtime.sif"
[tasks]
file = "tasks.jsonl"
unverified = true
[runtime]
isolation = "no-netns"
output_limit_kb = %d
"""


@contextmanager
def frozen_runtime(site: Site, rootfs: Path, image: str, *, output_limit: int) -> Iterator[Endpoint]:
    """What `skyrl-stack launch --runtime-only` serves; it has `image`, which is made of the tar `rootfs`."""
    if os.geteuid():
        cannot_run("hides the node's Podman, which needs root")
    podmans = [Path(found) for program in PODMANS if (found := _installed(program))]
    look = 'PATH=$PATH:/usr/libexec/podman; for program; do command -v "$program"; done'
    assert site.popen("sh", "-c", look, "_", *PODMANS, hidden=podmans).communicate(timeout=10)[0] == ""
    for name, text in (("import.py", IMPORT), ("frozen.toml", PROFILE % (output_limit // 1024))):
        (site.checkout / name).write_text(text)
    readable = shutil.copy(rootfs, site.checkout)
    importing = site.inside(AS_A_LAUNCH_DOES, site.checkout / "import.py", readable, image, *CHANGES, hidden=podmans)
    said, _ = importing.communicate(timeout=120)
    assert importing.returncode == 0, said
    write_tasks(site.checkout / "tasks.jsonl", [toy_task(image=image)])
    launch = site.popen(site.work / "venv/bin/skyrl-stack", "launch", "frozen.toml", "--runtime-only", hidden=podmans)
    try:
        assert launch.stdout
        said = line = launch.stdout.readline()
        while line and "another launch uses it by" not in line:
            line = launch.stdout.readline()
            said += line
        assert line, said
        endpoint = RunDirectory.latest(site.checkout / ".skyrl_jobs").endpoint("runtime")
        assert endpoint
        assert site.processes("skyrl_stack.runtime") and site.processes("squashfuse")
        yield endpoint
    finally:
        launch.send_signal(signal.SIGINT)
        launch.communicate(timeout=60)
    assert site.processes("skyrl_stack", "squashfuse") == set()


def _installed(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/libexec/podman")
