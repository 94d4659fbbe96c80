"""Task images on their way: a registry behind a proxy that misbehaves, the site's store, a node's store, a sandbox."""

import asyncio
import json
import multiprocessing
import os
import re
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry_proxy import Proxy, proxied
from skyrl_stack.cli import main
from skyrl_stack.errors import SandboxStartFailed, SetupError
from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.oci import claim
from skyrl_stack.oci.archive import load, save
from skyrl_stack.oci.pull import pull
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore
from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch, Upcoming, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandboxes import EngineSandboxes
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.outside.sandboxes import SocketSandboxes
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from toys import toy_task

pytestmark = [pytest.mark.podman, pytest.mark.timeout(180)]


@pytest.fixture
def proxy(registry: str) -> Iterator[Proxy]:
    with proxied(registry) as proxy:
        yield proxy


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteStore:
    monkeypatch.setenv("SKYRL_IMAGES", str(tmp_path / "site"))
    return SiteStore(tmp_path / "site")


@pytest.fixture
def said() -> list[str]:
    return []


def tiny(proxy: Proxy, version: str = "1") -> Reference:
    return Reference(proxy.address, "tests/tiny", version)


def visible(site: SiteStore) -> list[str]:
    """What other processes could take for finished."""
    return sorted(path.name for path in (*site.path.glob("blobs/sha256/*"), *site.path.glob("images/*")))


def site_digest(site: SiteStore, proxy: Proxy) -> str:
    """By which digest the tiny image is known."""
    image = site.find(tiny(proxy))
    assert image
    return image.digest


def test_each_blob_is_fetched_once(proxy: Proxy, site: SiteStore, said: list[str]) -> None:
    proxy.pace_s = 0.05
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(lambda _: pull(tiny(proxy), site, said.append), range(4)))
    assert len({image.digest for image in images}) == 1
    assert len(images[0].blobs) == 3  # manifest, configuration, one layer
    by_digest = tiny(proxy, images[0].digest)
    assert pull(by_digest, site, said.append).digest == images[0].digest
    assert len(proxy.blobs()) == len(set(proxy.blobs())) == 2
    assert any("waiting for" in line for line in said)
    assert not list(site.drafts.iterdir())


def test_a_rate_limit_is_honoured_and_said(proxy: Proxy, site: SiteStore, said: list[str]) -> None:
    proxy.refusals = ["2", "1"]
    start = time.monotonic()
    pull(tiny(proxy), site, said.append)
    assert proxy.asked[0][0] - start >= 3
    assert [line.partition("; ")[2] for line in said if "429" in line] == [
        "going on in 2 s, as it asks",
        "going on in 1 s, as it asks",
    ]


def test_a_rate_limit_of_hours_is_an_error_at_once(proxy: Proxy, site: SiteStore, said: list[str]) -> None:
    proxy.refusals = ["21600"]
    with pytest.raises(SetupError, match=r"rate limit is reached, and it asks to wait for 21600 s; .*podman login"):
        pull(tiny(proxy), site, said.append)


def test_a_broken_connection_goes_on_where_it_was(proxy: Proxy, site: SiteStore, said: list[str]) -> None:
    proxy.cuts = 1
    image = pull(tiny(proxy), site, said.append)
    layer = image.blobs[-1]
    ranges = [found for _, path, found in proxy.asked if path.endswith(layer.digest)]
    assert [bool(re.fullmatch(r"bytes=[1-9]\d*-", found)) for found in ranges] == [False, True]
    assert any("the connection broke" in line for line in said)


def _pull_in_process(address: str, path: str) -> None:
    pull(Reference(address, "tests/tiny", "1"), SiteStore(Path(path)), print)


def test_a_killed_pull_is_gone_on_with(
    proxy: Proxy, site: SiteStore, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.pace_s = 0.2
    killed = multiprocessing.get_context("spawn").Process(target=_pull_in_process, args=(proxy.address, str(site.path)))
    killed.start()
    while not any(path.stat().st_size > 1 << 20 for path in site.drafts.glob("*/*")):
        assert killed.is_alive()
        time.sleep(0.05)
    killed.kill()
    killed.join()
    proxy.pace_s = 0
    monkeypatch.setattr(claim, "SILENCE_S", 1.0)
    assert not site.find(tiny(proxy))
    pull(tiny(proxy), site, said.append)
    assert proxy.asked[-1][2].startswith("bytes=")
    assert not list(site.drafts.iterdir())


def test_what_is_not_what_its_digest_says_is_not_kept(proxy: Proxy, site: SiteStore, said: list[str]) -> None:
    proxy.corrupt = True
    with pytest.raises(SetupError, match=r"cannot pull .*: the registry sent something else for sha256:"):
        pull(tiny(proxy), site, said.append)
    assert not site.find(tiny(proxy))
    proxy.corrupt = False
    assert pull(tiny(proxy), site, said.append)


def test_what_cannot_be_had_is_one_line_at_once(proxy: Proxy, site: SiteStore, said: list[str]) -> None:
    absent = "sha256:" + "0" * 64
    for reference, reason in (
        (Reference(proxy.address, "tests/none", "1"), "the registry has no such image"),
        (tiny(proxy, "none"), "the registry has no such image"),
        (tiny(proxy, absent), "the registry has no such image"),
        (Reference("127.0.0.1:1", "tests/tiny", "1"), r"no answer .*skyrl-stack images pull"),
    ):
        with pytest.raises(SetupError, match=f"cannot pull {reference}: {reason}") as failed:
            pull(reference, site, said.append)
        assert "\n" not in str(failed.value)
    assert not visible(site)
    with pytest.raises(SetupError, match="not the name of an image"):
        Reference.parse("Not An Image")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("size=1m", r"it needs \d+ MB of .*, where 1 MB are free: .*images gc.*"),
        ("nr_inodes=5", "no room or quota is left"),
    ],
)
def test_a_full_file_system_is_one_line(
    proxy: Proxy, tmp_path: Path, options: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "full"
    path.mkdir()
    monkeypatch.setenv("SKYRL_IMAGES", str(path))
    command = f"{sys.executable} -c 'from skyrl_stack.cli import main; main()' images pull {tiny(proxy)}"
    script = f"mount -t tmpfs -o {options} none {path} && {command}; echo exit code $?; ls -A {path}/images"
    argv = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    printed = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    assert re.search(f"skyrl-stack: cannot pull {tiny(proxy)}: .*{reason}\nexit code 1\n", printed), printed
    assert "Traceback" not in printed
    assert tiny(proxy).file_name not in printed


def test_a_node_needs_no_registry_once_the_site_has_an_image(
    registry: str, site: SiteStore, said: list[str], tests_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tests_cache / f"node-{secrets.token_hex(4)}"
    monkeypatch.setenv("SKYRL_CACHE", str(cache))
    with proxied(registry) as proxy:
        by_tag = toy_task(image=str(tiny(proxy)))
        with pytest.raises(SetupError, match=r"tasks\.pull = false; run `skyrl-stack images pull"):
            asyncio.run(ensure_images([by_tag], said.append, pulling=False))
        image = pull(tiny(proxy), site, said.append)
        by_digest = toy_task(image=str(tiny(proxy, image.digest)))
        pull(tiny(proxy, image.digest), site, said.append)

    async def start(image: str) -> str:
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path(cache)]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=image))
            return (await sandbox.run("pwd")).stdout

    try:
        asyncio.run(ensure_images([by_tag, by_digest], said.append, pulling=False))
        assert asyncio.run(start(by_tag.image)) == asyncio.run(start(by_digest.image)) == "/testbed\n"
        assert asyncio.run(start(by_tag.image)) == "/testbed\n"
        assert not [line for line in said if line.startswith("image ")]  # the site has them
    finally:
        remove_private_directory(cache)


def test_a_node_brings_what_is_needed_once(
    registry: str, site: SiteStore, said: list[str], tests_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with proxied(registry) as proxy:
        by_tag = tiny(proxy)
        pull(by_tag, site, said.append)
    cache = tests_cache / f"node-{secrets.token_hex(4)}"
    absent = str(tiny(proxy, "other"))

    async def scene() -> None:
        spec = SandboxSpec(image=str(by_tag))
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path(cache)]) as sandboxes:
            assert await sandboxes.lacking_images([str(by_tag), absent]) == [absent]
            started = await asyncio.gather(*(sandboxes.start(spec) for _ in range(4)))
            assert [(await sandbox.run("pwd")).stdout for sandbox in started] == ["/testbed\n"] * 4
            with pytest.raises(SandboxStartFailed, match=f"neither this node nor .* has it; .*images pull {absent}`"):
                await sandboxes.start(SandboxSpec(image=absent))
            await sandboxes.announce([str(by_tag), absent, "No Image"])  # nothing that could be brought

    try:
        asyncio.run(scene())
    finally:
        remove_private_directory(cache)
    brought = [record.getMessage() for record in caplog.records if record.name.endswith("supply")]
    assert brought[0] == f"image {by_tag}"
    assert len(brought) == 2  # and the one that could not be


def test_a_runtime_has_ready_what_its_trainer_announces(
    registry: str, site: SiteStore, said: list[str], tests_cache: Path, tmp_path: Path
) -> None:
    with proxied(registry) as proxy:
        image = str(tiny(proxy))
        pull(tiny(proxy), site, said.append)
    cache = tests_cache / f"node-{secrets.token_hex(4)}"
    directory = RunDirectory.create(tmp_path, Profile(name="local"))
    directory.tasks_file.write_text(f"{toy_task(image=image).model_dump_json()}\n")
    launch = Launch()
    publish(directory.launch_file, launch)
    command = [sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(directory.path)]
    with subprocess.Popen(command, env=os.environ | {"SKYRL_CACHE": str(cache)}, stderr=subprocess.PIPE) as runtime:
        try:
            directory.await_endpoint("runtime", 60)
            publish(directory.upcoming_file, Upcoming(launch_id=launch.launch_id, images=(image,)))
            assert runtime.stderr
            assert any(line.endswith(f": image {image}\n".encode()) for line in runtime.stderr)
        finally:
            runtime.terminate()
            runtime.communicate(timeout=60)
            remove_private_directory(cache)


def test_a_podman_behind_a_socket_gets_them_from_the_site_too(
    registry: str, site: SiteStore, said: list[str], podman_socket: Path
) -> None:
    with proxied(registry) as proxy:
        image = pull(tiny(proxy), site, said.append)
        by_tag, by_digest = toy_task(image=str(tiny(proxy))), toy_task(image=str(tiny(proxy, image.digest)))
        pull(tiny(proxy, image.digest), site, said.append)

    async def start(image: str) -> str:
        async with SocketSandboxes(secrets.token_hex(8), podman_socket) as sandboxes:
            assert await sandboxes.lacking_images([image]) == []
            sandbox = await sandboxes.start(SandboxSpec(image=image))
            return (await sandbox.run("pwd")).stdout

    for one in (by_digest, by_tag):
        asyncio.run(ensure_images([one], said.append, pulling=False, podman_socket=podman_socket))
        assert asyncio.run(start(one.image)) == "/testbed\n"
    with pytest.raises(SetupError, match=r"tasks\.pull = false; run `skyrl-stack images pull"):
        other = toy_task(image=str(tiny(proxy, "other")))
        asyncio.run(ensure_images([other], said.append, pulling=False, podman_socket=podman_socket))


def test_the_commands(proxy: Proxy, site: SiteStore, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["images", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    file, given, archive = tmp_path / "tasks.jsonl", tmp_path / "given.jsonl", tmp_path / "images.tar"
    given.write_text(json.dumps({"image": str(tiny(proxy))}) + "\n")
    file.write_text(json.dumps({"image": str(tiny(proxy))}) + "\n" + json.dumps({"image": "localhost/made:1"}) + "\n")
    assert "MB, sha256:" in run("prefetch", str(file))
    assert run("pull", str(tiny(proxy))).count("\n") == 1  # it is there
    listed = run("list")
    assert str(tiny(proxy)) in listed
    assert re.search(r"3 blobs, 0\.\d\d GB, shared layers once; free: \d+\.\d GB, \d+ inodes", listed)
    assert f"{archive}: 1 images" in run("save", str(archive), str(tiny(proxy)), "--tasks", str(given))
    assert str(tiny(proxy)) in run("load", str(archive))
    assert "removed 127" not in run("gc", "--days", "0", "--keep", str(file))  # nor are blobs of the last day
    assert f"would remove {tiny(proxy)}" in run("gc", "--days", "0", "--dry-run")
    assert site.find(tiny(proxy))
    for path in site.path.glob("blobs/sha256/*"):
        os.utime(path, (0, 0))  # or they may be part of a pull that goes on
    assert "3 files without an image removed" in run("gc", "--days", "0")
    assert not visible(site)


def test_an_archive_brings_images_to_a_site_that_no_registry_reaches(
    proxy: Proxy, site: SiteStore, said: list[str], tmp_path: Path, store: Path
) -> None:
    images = [pull(tiny(proxy), site, said.append), pull(tiny(proxy, site_digest(site, proxy)), site, said.append)]
    archive, other = tmp_path / "images.tar", SiteStore(tmp_path / "other")
    save(images, site, archive)
    assert archive.stat().st_size < images[0].size * 1.1  # blobs that both have are there once
    assert [(image.reference, image.digest) for image in load(archive, other)] == [
        (image.reference, image.digest) for image in images
    ]
    assert visible(other) == visible(site)

    async def read_by_podman() -> bool:
        async with ImageStore(store) as node:
            await node.load(archive)
            return await node.has(str(tiny(proxy)))

    save(images[:1], site, archive)
    assert asyncio.run(read_by_podman())


def save_from(cache: Path, image: str, archive: Path) -> None:
    """As `podman save --format oci-archive`."""
    directory = make_private_directory(secrets.token_hex(8))
    try:
        with Cell(directory, image_stores=[image_store_path(cache)]) as cell, cell.client() as podman:
            answer = podman.api.get(f"/images/{image}/get", params={"format": "oci-archive"})
            archive.write_bytes(answer.content)
    finally:
        remove_private_directory(directory)


def test_an_archive_of_podman_is_read(tests_cache: Path, tiny_image: str, site: SiteStore, tmp_path: Path) -> None:
    archive = tmp_path / "podman.tar"
    save_from(tests_cache, tiny_image, archive)
    [unnamed] = load(archive, site, name="registry.example/renamed:2")
    assert site.find(Reference.parse("registry.example/renamed:2")) == unnamed
    assert [str(image.reference) for image in load(archive, site)] == [tiny_image]


def test_an_image_that_was_made_elsewhere_comes_from_the_site(
    tests_cache: Path, tiny_image: str, site: SiteStore, said: list[str], tmp_path: Path
) -> None:
    """Once it was loaded there; before, it is said how. By a cell of our own, and by a Podman behind a socket."""
    cache, directory = tests_cache / f"node-{secrets.token_hex(4)}", make_private_directory(secrets.token_hex(8))
    archive, tasks = tmp_path / "podman.tar", [toy_task(image=tiny_image)]

    async def start(sandboxes: EngineSandboxes) -> str:
        async with sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=tiny_image))
            return (await sandbox.run("pwd")).stdout

    def own() -> EngineSandboxes:
        return PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path(cache)])

    try:
        with pytest.raises(SandboxStartFailed, match=f"{tiny_image}: no registry has it; bring it by .* images load"):
            asyncio.run(start(own()))
        save_from(tests_cache, tiny_image, archive)
        load(archive, site)
        asyncio.run(ensure_images(tasks, said.append, pulling=False))
        assert asyncio.run(start(own())) == "/testbed\n"
        with Cell(directory) as cell:
            asyncio.run(ensure_images(tasks, said.append, pulling=False, podman_socket=cell.socket))
            assert asyncio.run(start(SocketSandboxes(secrets.token_hex(8), cell.socket))) == "/testbed\n"
    finally:
        remove_private_directory(cache)
        remove_private_directory(directory)


def damaged(archive: Path) -> None:
    """A bit of a layer is another one."""
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def cut_off(archive: Path) -> None:
    os.truncate(archive, archive.stat().st_size // 2)


def of_docker(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("manifest.json"))


def no_tar(archive: Path) -> None:
    archive.write_bytes(b"SIF" * 1000)


@pytest.mark.parametrize(
    ("harm", "said_of_it"),
    [
        (damaged, r"damaged: something else is in it for sha256:[0-9a-f]{64}$"),
        (cut_off, r"it is cut off \(unexpected end of data\); an archive is written by `skyrl-stack images save`"),
        (of_docker, r"it lacks index\.json; an archive is written by .*`podman save --format oci-archive` or skopeo$"),
        (no_tar, r"not a tar, or it is cut off"),
        (Path.unlink, r"No such file or directory$"),
    ],
)
def test_what_is_no_archive_is_one_line(
    proxy: Proxy, site: SiteStore, said: list[str], tmp_path: Path, harm: Callable[[Path], None], said_of_it: str
) -> None:
    archive = tmp_path / "images.tar"
    save([pull(tiny(proxy), site, said.append)], site, archive)
    harm(archive)
    other = tmp_path / "other"
    result = CliRunner(env={"SKYRL_IMAGES": str(other)}).invoke(main, ["images", "load", str(archive)])
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert re.search(rf"{archive}: .*{said_of_it}", result.output.strip())
    assert not list(SiteStore(other).images())
    assert not list(other.glob("blobs/sha256/.*"))
