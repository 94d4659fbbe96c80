"""The image store: built, imported, and pulled from a real registry, which runs in a container of its own."""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from skyrl_stack.errors import SandboxStartFailed, SetupError
from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.outside.sandboxes import SocketSandboxes
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from toys import toy_task

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


def test_a_temporary_directory_may_have_a_long_name(
    store: Path, rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of Slurm jobs have. Podman takes no more than 50 characters for where it keeps what runs."""
    outer = Path(tempfile.mkdtemp(dir="/tmp"))
    deep = outer / "job-of-a-cluster" / "with-a-scratch-directory"
    deep.mkdir(parents=True)
    for directory in (outer, deep.parent, deep):
        directory.chmod(0o711)  # root's sandboxes are another user's
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    (tmp_path / "Containerfile").write_text("FROM localhost/made:1\nRUN pwd > /where\n")

    async def build_and_start() -> tuple[str, list[str]]:
        async with ImageStore(store) as images:
            await images.import_rootfs(rootfs, "localhost/made:1", changes=("WORKDIR /testbed",))
            await images.build(tmp_path, "localhost/built:1")
        async with PodmanSandboxes(f"{secrets.token_hex(8)}-0.0", image_stores=[store]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image="localhost/built:1"))
            return (await sandbox.run("cat /where")).stdout, [path.name for path in deep.iterdir()]

    try:
        said, there = asyncio.run(build_and_start())
        assert (said, len(there)) == ("/testbed\n", 1)
        assert not list(deep.iterdir())
    finally:
        shutil.rmtree(outer)


def written(directory: Path) -> dict[Path, tuple[int, int]]:
    """When, and by whom, each file was written."""
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_uid) for path in directory.rglob("*")}


def test_what_was_made_is_brought_to_a_podman_behind_a_socket(
    store: Path, rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command that the error names, as it is typed into a shell; the store stays as it is."""
    monkeypatch.setenv("SKYRL_CACHE", str(store.with_suffix(".cache")))
    images, made = [f"localhost/made:{number}" for number in (1, 2)], image_store_path()

    async def make() -> None:
        async with ImageStore() as node:
            for image in images:
                await node.import_rootfs(rootfs, image, changes=("WORKDIR /testbed",))

    async def start(socket: Path) -> None:
        async with SocketSandboxes(secrets.token_hex(8), socket) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=images[1]))
            assert (await sandbox.run("pwd")).stdout == "/testbed\n"
            assert await sandboxes.lacking_images([*images, "localhost/none:1"]) == ["localhost/none:1"]
            with tarfile.open(await sandboxes.save_images(images)) as archive:
                manifest = archive.extractfile("manifest.json")
                assert manifest
                assert sorted(name for image in json.load(manifest) for name in image["RepoTags"]) == images

    directory = make_private_directory(secrets.token_hex(8))
    try:
        asyncio.run(make())
        before = written(made)
        with Cell(directory) as cell, tempfile.TemporaryDirectory() as root:
            obtaining = ensure_images([toy_task(image=image) for image in images], print, podman_socket=cell.socket)
            with pytest.raises(SetupError, match=f"{images[0]}: no registry has it") as failed:
                asyncio.run(obtaining)
            with pytest.raises(SandboxStartFailed, match=f"{images[1]}: no registry has it, nor .*; bring"):
                asyncio.run(start(cell.socket))
            command = str(failed.value).split("`")[1]
            script = f"set -eo pipefail; {command}; umount $TMPDIR/*/overlay || true"  # Podman's own mount of it
            subprocess.run(["bash", "-c", script], env=os.environ | {"TMPDIR": root}, check=True)
            asyncio.run(start(cell.socket))
        assert written(made) == before
    finally:
        remove_private_directory(directory)
        remove_private_directory(made.parent)


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
