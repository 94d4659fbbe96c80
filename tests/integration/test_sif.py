"""runtime.sif, built for real from Debian packages by an ordinary user, and sandboxes inside it."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from frozen_site import SUB_IDS, Site
from lanes import cannot_run
from rootfs import SHELL_PROGRAMS, build_rootfs
from skyrl_stack.sif.lock import sha256

pytestmark = [pytest.mark.apptainer, pytest.mark.timeout(1500)]

MODES = {
    "as a user": ["--bind", "{work}"],
    "as root by sub-ids": ["--fakeroot", "--bind", "{work}"],
    "contained": ["--containall", "--bind", "/dev/full", "--bind", "/tmp", "--bind", "{work}"],
    "as root, contained": ["--fakeroot", "--containall", "--bind", "/dev/full", "--bind", "/tmp", "--bind", "{work}"],
    "with process ids of its own": ["--pid", "--bind", "{work}"],
}
BUILD = ("images", "build", "runtime")
SMALL = """
Bootstrap: {{ BOOTSTRAP }}
From: {{ FROM }}
%arguments
    BOOTSTRAP=localimage
    FROM=base.sif
    DEFINITION=unknown
%post
    mount -t tmpfs tmpfs /tmp
    mount -t tmpfs tmpfs /var/tmp
    mkdir /opt/manifest
    echo none >/opt/manifest/debian.txt
    echo none >/opt/manifest/python.cdx.json
%labels
    org.label-schema.build-date 1970-01-01T00:00:00Z
    skyrl-stack.definition.sha256 {{ DEFINITION }}
"""
SANDBOX = """
import asyncio, sys, time
from pathlib import Path
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes

async def main():
    async with ImageStore() as images:
        if not await images.has("localhost/probe:1"):
            await images.import_rootfs(Path(sys.argv[1]), "localhost/probe:1")
    async with PodmanSandboxes(f"sif-{time.time_ns():x}", image_stores=[image_store_path()]) as sandboxes:
        sandbox = await sandboxes.start(SandboxSpec(image="localhost/probe:1"))
        await sandbox.write_file("/root/x", b"written")
        result = await sandbox.run("id -u; cat /root/x")
        print(sandboxes.isolation, repr(result.stdout), flush=True)
        if sys.argv[2:] == ["hold"]:
            await sandbox.run("sleep 86421", timeout_s=600)

asyncio.run(main())
"""
ROLE = """
import os, sys, time
from pathlib import Path
from skyrl_stack.launch.roles import RoleProcesses
from skyrl_stack.profile import ImagesSection, Profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory

image = Path(sys.argv[2])
profile = Profile(name="sif", images=ImagesSection(runtime=image))
directory, launch = RunDirectory.create(Path(sys.argv[1]), profile), Launch()
publish(directory.launch_file, launch)
roles = RoleProcesses(directory, launch.launch_id)
with roles.nothing_left():
    role = roles.start("runtime", log=directory.log("runtime"))
    deadline = time.monotonic() + 60
    while not directory.endpoints("runtime") and role.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    print(directory.log("runtime").read_text())
    print("endpoints", len(directory.endpoints("runtime")), flush=True)
    if sys.argv[3] == "kill":
        role.kill()
"""


@pytest.fixture(scope="module")
def site(frozen_site: Site) -> Site:
    build_rootfs(frozen_site.work / "rootfs.tar", [*SHELL_PROGRAMS, "mount"])
    (frozen_site.work / "sandbox.py").write_text(SANDBOX)
    (frozen_site.work / "role.py").write_text(ROLE)
    return frozen_site


def test_a_build_leaves_the_image_its_log_and_nothing_else(site: Site) -> None:
    assert sorted(path.name for path in (site.checkout / "images").iterdir()) == ["runtime.log", "runtime.sif"]
    assert list((site.work / "tmp").glob("skyrl-build-*")) == []
    assert site.stack("images", "verify") == "images/runtime.sif: as locked\n"
    assert "skyrl-stack.definition.sha256: " in site.stack("images", "inspect", "images/runtime.sif")


def test_a_second_build_of_the_same_inputs_is_the_first(site: Site) -> None:
    before = site.image.stat().st_mtime_ns
    arguments = ["--arg", "BOOTSTRAP=debootstrap", "--python", str(site.work / "python")]
    assert "made of the same inputs" in site.stack("images", "build", "runtime", *arguments)
    assert site.image.stat().st_mtime_ns == before


def test_the_same_inputs_give_the_same_bytes(site: Site) -> None:
    """Of a definition that is built in seconds; runtime.sif itself is the same each time, too, and takes minutes."""
    root = site.work / "small"
    prepare = f"""
        mkdir -p {root}/rootfs {root}/containers && cd {root}
        tar -xf {site.work}/rootfs.tar -C rootfs && mkdir -p rootfs/mnt rootfs/var/tmp rootfs/opt
        touch rootfs/etc/hosts rootfs/etc/resolv.conf
        cp {site.checkout}/uv.lock . && apptainer -q build base.sif rootfs
    """
    process = site.popen("sh", "-ec", prepare)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (root / "containers/runtime.def").write_text(SMALL)
    hashes = set()
    for name in ("one", "two"):
        time.sleep(1.1)  # which shows in whatever keeps a time of the build
        process = site.popen("env", "-C", root, site.work / "venv/bin/skyrl-stack", *BUILD, "--output", root / name)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        hashes.add(sha256(root / name / "runtime.sif"))
    assert len(hashes) == 1


def test_without_arguments_it_says_what_it_is(site: Site) -> None:
    process = site.popen("apptainer", "-q", "run", site.image)
    output, _ = process.communicate(timeout=60)
    assert "gives each episode a sandbox" in output
    assert "--run-dir DIR" in output


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_sandboxes_run_inside(site: Site, mode: list[str]) -> None:
    process = site.inside(mode, str(site.work / "sandbox.py"), str(site.work / "rootfs.tar"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    isolation = "full" if "--fakeroot" in mode else "shared-uid"
    assert output.splitlines()[-1] == rf"{isolation} '0\nwritten'"


@pytest.mark.skipif(os.geteuid() != 0, reason="hides /etc/subuid, which needs root")
def test_sandboxes_run_inside_for_a_user_without_sub_ids(site: Site) -> None:
    script = [str(site.work / name) for name in ("sandbox.py", "rootfs.tar")]
    process = site.inside(MODES["as a user"], *script, hidden=SUB_IDS)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.splitlines()[-1] == r"shared-uid '0\nwritten'"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_runs_on_when_it_is_killed(site: Site, number: signal.Signals) -> None:
    mode = MODES["as a user"]
    process = site.inside(mode, str(site.work / "sandbox.py"), str(site.work / "rootfs.tar"), "hold")
    try:
        assert process.stdout
        assert process.stdout.readline() == "shared-uid '0\\nwritten'\n"
        await_(lambda: "sleep 86421" in commands())
    finally:
        process.send_signal(number)
        process.wait(20)
    await_(lambda: "sleep 86421" not in commands())


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_runtime_serves_from_its_image_and_leaves_nothing(site: Site, end: str) -> None:
    before = shown(site)
    process = site.popen(site.python, site.work / "role.py", site.work / "runs", site.image, end)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.splitlines()[-1] == "endpoints 1", output
    await_(lambda: shown(site) <= before)
    assert [path.name for path in (site.work / "tmp").iterdir() if path.name.startswith("skyrl-")] == []


@pytest.mark.parametrize("rights", [[], ["--fakeroot"]], ids=["as a user", "as root by sub-ids"])
@pytest.mark.parametrize(("on_notice", "code"), [("trap 'exit 75' USR1", 75), (":", -signal.SIGUSR1)])
def test_a_notice_reaches_the_role_and_its_answer_comes_back(
    site: Site, rights: list[str], on_notice: str, code: int
) -> None:
    script = f"{on_notice}; echo ready; while :; do sleep 0.1; done"
    process = site.popen("apptainer", "-q", "exec", *rights, site.image, "sh", "-c", script)
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.communicate()


def test_a_tampered_image_is_refused(site: Site) -> None:
    copy = site.checkout / "images/copy/runtime.sif"
    copy.parent.mkdir()
    data = bytearray(site.image.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    output = site.stack("images", "verify", copy, fails=True)
    assert output.count("\n") == 1
    assert "not the image that the lock describes" in output
    shutil.rmtree(copy.parent)


def test_a_signature_is_told_from_a_strangers(site: Site) -> None:
    for name in ("ours", "strangers"):
        private, public = site.work / f"{name}.pem", site.work / f"{name}.pub"
        curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        for command in (["genpkey", *curve, "-out", private], ["pkey", "-in", private, "-pubout", "-out", public]):
            site.popen("openssl", *command).communicate(timeout=30)
    image = "images/runtime.sif"
    assert "no good signature" in site.stack("images", "verify", image, "--key", site.work / "ours.pub", fails=True)
    site.stack("images", "sign", image, "--key", site.work / "ours.pem")
    said = site.stack("images", "verify", image, "--key", site.work / "ours.pub")
    assert said == f"{image}: as locked, and signed\n"
    output = site.stack("images", "verify", image, "--key", site.work / "strangers.pub", fails=True)
    assert "no good signature by" in output and output.count("\n") == 1


def test_what_is_pushed_is_what_is_pulled(site: Site, registry: str) -> None:
    address = f"oras://{registry}/skyrl/runtime:1"
    site.stack("images", "push", "images/runtime.sif", address, APPTAINER_NOHTTPS="1")
    pulled = site.work / "home/runtime.sif"
    process = site.popen("apptainer", "-q", "pull", "--dir", pulled.parent, pulled.name, address, APPTAINER_NOHTTPS="1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert site.stack("images", "verify", pulled) == f"{pulled}: as locked\n"


@pytest.fixture
def registry(site: Site) -> Iterator[str]:
    """Address of an empty registry."""
    if shutil.which("docker-registry") is None:
        cannot_run("not installed: docker-registry; run `apt-get install docker-registry`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = site.work / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(site.work / "home/registry")}}
    settings.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": address}}))
    process = site.popen("docker-registry", "serve", settings)
    try:
        await_(lambda: answers(address))
        yield address
    finally:
        process.kill()
        process.communicate()


def answers(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as trial:
        return trial.connect_ex((host, int(port))) == 0


def test_a_build_that_is_told_to_end_leaves_nothing(site: Site) -> None:
    arguments = ["--arg", "BOOTSTRAP=debootstrap", "--output", str(site.work / "other")]
    process = site.popen(site.work / "venv/bin/skyrl-stack", "images", "build", "runtime", *arguments)
    assert process.stdout
    while "Starting build" not in (line := process.stdout.readline()):
        assert line
    time.sleep(3)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert output == "skyrl-stack: stopped by SIGTERM\n"
    assert list((site.work / "tmp").glob("skyrl-build-*")) == []
    await_(lambda: not site.processes("skyrl-build-"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "docker:debian:trixie"], "name the base by digest"),
        (["--arg", "BASE=x"], "has no build argument BASE"),
        (["--from", "oci-archive:/nowhere.tar"], "nowhere.tar"),
        (["--from", f"docker:localhost:1/x/y@sha256:{'0' * 64}"], "no way to the network"),
    ],
)
def test_what_cannot_be_built_is_one_line(site: Site, arguments: list[str], says: str) -> None:
    output = site.stack("images", "build", "runtime", *arguments, "--output", str(site.work / "other"), fails=True)
    assert says in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith("skyrl-stack: ")
    assert not (site.work / "other/runtime.sif").exists()


def shown(site: Site) -> set[str]:
    """Processes of the site's user that serve sandboxes, or show an image."""
    return site.processes("skyrl_stack.runtime", "squashfuse")


def commands() -> str:
    """Command lines of all processes of this machine."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_the_builder_is_an_ordinary_user(site: Site) -> None:
    assert site.user is None or pwd.getpwnam(site.user).pw_uid != 0
