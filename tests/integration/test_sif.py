"""runtime.sif, built for real from Debian packages by an ordinary user, and sandboxes inside it."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lanes import cannot_run
from rootfs import build_rootfs

pytestmark = [pytest.mark.apptainer, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
BUILDER = "skyrl-builder"
MODES = {
    "as a user": ["--bind", "{work}"],
    "as root by sub-ids": ["--fakeroot", "--bind", "{work}"],
    "contained": ["--containall", "--bind", "/dev/full", "--bind", "/tmp", "--bind", "{work}"],
    "as root, contained": ["--fakeroot", "--containall", "--bind", "/dev/full", "--bind", "/tmp", "--bind", "{work}"],
    "with process ids of its own": ["--pid", "--bind", "{work}"],
}
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
    async with PodmanSandboxes(f"sif-{time.time_ns():x}", image_stores=[image_store_path()], places=1) as sandboxes:
        sandbox = await sandboxes.start(SandboxSpec(image="localhost/probe:1"))
        await sandbox.write_file("/root/x", b"written")
        result = await sandbox.run("id -u; cat /root/x")
        print(repr(result.stdout), flush=True)
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


@dataclass(frozen=True)
class Site:
    """An ordinary user's home on this machine: a copy of the checkout, and a Python that this user can read."""

    work: Path
    user: str | None

    @property
    def checkout(self) -> Path:
        return self.work / "checkout"

    @property
    def image(self) -> Path:
        return self.checkout / "images/runtime.sif"

    def popen(self, *command: str | Path, **options: object) -> "subprocess.Popen[str]":
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.work / "home"),
            "TMPDIR": str(self.work / "tmp"),
            "LD_LIBRARY_PATH": str(self.work / "python/lib"),
            "SKYRL_CACHE": str(self.work / "cache"),
            "APPTAINER_CACHEDIR": str(self.work / "apptainer"),
            **{name: os.environ[name] for name in ("SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY") if name in os.environ},
        }
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=self.checkout,
            env=environment,
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user else None,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stack(self, *arguments: str | Path, fails: bool = False) -> str:
        """Run the `skyrl-stack` command; returns what it printed."""
        process = self.popen(self.work / "venv/bin/skyrl-stack", *arguments)
        output, _ = process.communicate(timeout=1400)
        assert (process.returncode != 0) == fails, output
        return output

    def inside(self, mode: Sequence[str], *arguments: str) -> "subprocess.Popen[str]":
        """Run a program of Python's inside the image, which has the sandbox code of its own."""
        options = [word.format(work=self.work) for word in mode]
        cache = f"SKYRL_CACHE={self.work / 'cache'}"
        command = ["apptainer", "-q", "exec", *options, "--env", cache, str(self.image), "python", *arguments]
        return self.popen(*command)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if shutil.which("apptainer") is None:
        cannot_run("no Apptainer here: scripts/setup-apptainer")
    as_root = os.geteuid() == 0
    work = Path(tempfile.mkdtemp(prefix="sif-", dir="/var/tmp"))
    try:
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in ("checkout", "home", "tmp", "cache", "apptainer"):
            (work / name).mkdir()
        copy = ["tar", "--null", "-T", "-", "-cf", "-"]
        with subprocess.Popen(copy, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
            assert tar.stdin
            tar.stdin.write(files)
            tar.stdin.close()
            subprocess.run(["tar", "-xf", "-", "-C", work / "checkout"], stdin=tar.stdout, check=True)
        ignored = shutil.ignore_patterns("__pycache__", "site-packages", "test")
        shutil.copytree(sys.base_prefix, work / "python", symlinks=True, ignore=ignored)
        install(work)
        build_rootfs(work / "rootfs.tar")
        (work / "sandbox.py").write_text(SANDBOX)
        (work / "role.py").write_text(ROLE)
        if as_root:
            subprocess.run(["chown", "-R", f"{BUILDER}:", work], check=True)
        work.chmod(0o755)
        yield Site(work, BUILDER if as_root else None)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def install(work: Path) -> None:
    """What a login node has: the command, without any of the groups."""
    uv = shutil.which("uv") or ROOT / ".uv/bin/uv"
    environment = os.environ | {
        "UV_PROJECT_ENVIRONMENT": str(work / "venv"),
        "UV_LINK_MODE": "copy",
        "LD_LIBRARY_PATH": str(work / "python/lib"),
    }
    python = work / "python/bin/python3.12"
    command = [uv, "sync", "-q", "--frozen", "--no-default-groups", "--python", python]
    subprocess.run(command, cwd=work / "checkout", env=environment, check=True)


@pytest.fixture(scope="module")
def built(site: Site) -> Site:
    arguments = ["--arg", "BOOTSTRAP=debootstrap", "--python", str(site.work / "python")]
    output = site.stack("images", "build", "runtime", *arguments)
    assert "images/runtime.sif: " in output
    return site


def test_a_build_leaves_the_image_its_log_and_nothing_else(built: Site) -> None:
    assert sorted(path.name for path in (built.checkout / "images").iterdir()) == ["runtime.log", "runtime.sif"]
    assert list((built.work / "tmp").glob("skyrl-build-*")) == []
    assert built.stack("images", "verify") == "images/runtime.sif: as locked\n"
    assert "skyrl-stack.definition.sha256: " in built.stack("images", "inspect", "images/runtime.sif")


def test_a_second_build_of_the_same_inputs_is_the_first(built: Site) -> None:
    before = built.image.stat().st_mtime_ns
    arguments = ["--arg", "BOOTSTRAP=debootstrap", "--python", str(built.work / "python")]
    assert "made of the same inputs" in built.stack("images", "build", "runtime", *arguments)
    assert built.image.stat().st_mtime_ns == before


def test_without_arguments_it_says_what_it_is(built: Site) -> None:
    process = built.popen("apptainer", "-q", "run", built.image)
    output, _ = process.communicate(timeout=60)
    assert "gives each episode a sandbox" in output
    assert "--run-dir DIR" in output


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_sandboxes_run_inside(built: Site, mode: list[str]) -> None:
    process = built.inside(mode, str(built.work / "sandbox.py"), str(built.work / "rootfs.tar"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.splitlines()[-1] == r"'0\nwritten'"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_runs_on_when_it_is_killed(built: Site, number: signal.Signals) -> None:
    mode = MODES["as a user"]
    process = built.inside(mode, str(built.work / "sandbox.py"), str(built.work / "rootfs.tar"), "hold")
    try:
        assert process.stdout
        assert process.stdout.readline() == "'0\\nwritten'\n"
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
def test_the_runtime_serves_from_its_image_and_leaves_nothing(built: Site, end: str) -> None:
    before = of_user(built)
    process = built.popen(built.work / "venv/bin/python", built.work / "role.py", built.work / "runs", built.image, end)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.splitlines()[-1] == "endpoints 1", output
    await_(lambda: of_user(built) <= before)
    assert [path.name for path in (built.work / "tmp").iterdir() if path.name.startswith("skyrl-")] == []


def test_a_tampered_image_is_refused(built: Site) -> None:
    copy = built.checkout / "images/copy/runtime.sif"
    copy.parent.mkdir()
    data = bytearray(built.image.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    output = built.stack("images", "verify", copy, fails=True)
    assert output.count("\n") == 1
    assert "not the image that the lock describes" in output
    shutil.rmtree(copy.parent)


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


def of_user(site: Site) -> set[str]:
    """Living processes of the site's user that serve sandboxes, or show an image."""
    name = site.user or pwd.getpwuid(os.geteuid()).pw_name
    columns = ["-o", "pid,stat,args", "-u", name]
    listed = subprocess.run(["ps", "--no-headers", *columns], capture_output=True, text=True, check=False).stdout
    living = [line.split(maxsplit=2) for line in listed.splitlines() if line.split()[1][0] != "Z"]
    return {f"{pid} {args}" for pid, _, args in living if "skyrl_stack.runtime" in args or "squashfuse" in args}


def commands() -> str:
    """Command lines of all processes of this machine."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_the_builder_is_an_ordinary_user(site: Site) -> None:
    assert site.user is None or pwd.getpwnam(site.user).pw_uid != 0
