"""The image store: built, imported, and pulled from a real registry, which runs in a container of its own."""

import asyncio
import secrets
from pathlib import Path

import pytest

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.podman import PodmanSandboxes

pytestmark = [pytest.mark.podman, pytest.mark.timeout(180)]


def test_a_pulled_image_starts(registry: str, store: Path) -> None:
    reference = f"{registry}/tests/tiny:1"

    async def pull_and_start() -> str:
        async with ImageStore(store) as images:
            assert not await images.has(reference)
            await images.pull(reference, tls_verify=False)
            assert await images.has(reference)
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=reference))
            return (await sandbox.run("pwd; echo $BASH_VERSION | wc -l")).stdout

    assert asyncio.run(pull_and_start()) == "/testbed\n1\n"


def test_what_a_registry_does_not_have_is_an_error(registry: str, store: Path) -> None:
    async def pull() -> None:
        async with ImageStore(store) as images:
            await images.pull(f"{registry}/tests/none:1", tls_verify=False)

    with pytest.raises(SetupError, match=r"cannot pull .*/tests/none:1: .*unknown"):
        asyncio.run(pull())


def test_a_build_has_no_network_and_fails_in_one_line(store: Path, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("good day")
    (tmp_path / "good").write_text("FROM localhost/base:1\nCOPY greeting /greeting\nRUN cat /proc/net/dev > /devices\n")
    (tmp_path / "bad").write_text("FROM localhost/base:1\nRUN echo 'the cause' && false\n")

    async def build() -> str:
        async with ImageStore(store) as images:
            await images.import_rootfs(rootfs, "localhost/base:1", changes=("WORKDIR /tmp",))
            await images.build(tmp_path, "localhost/good:1", containerfile="good")
            with pytest.raises(SetupError, match=r"cannot build localhost/bad:1: .*the cause") as failed:
                await images.build(tmp_path, "localhost/bad:1", containerfile="bad")
            assert "\n" not in str(failed.value)
            assert not await images.has("localhost/bad:1")
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image="localhost/good:1", workdir=None))
            return (await sandbox.run("pwd; cat /greeting /devices")).stdout

    printed = asyncio.run(build())
    assert printed.startswith("/tmp\ngood day")
    assert [line.split(":")[0].strip() for line in printed.splitlines() if ":" in line] == ["lo"]


def test_two_writers_take_turns_and_a_reader_sees_new_images(store: Path, rootfs: Path) -> None:
    async def write(reference: str) -> None:
        async with ImageStore(store) as images:
            await images.import_rootfs(rootfs, reference)

    async def run() -> None:
        await write("localhost/first:1")
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
            await asyncio.gather(write("localhost/second:1"), write("localhost/third:1"))
            for name in ("first", "second", "third"):
                sandbox = await sandboxes.start(SandboxSpec(image=f"localhost/{name}:1", workdir="/"))
                assert (await sandbox.run("echo up")).stdout == "up\n"

    asyncio.run(run())
