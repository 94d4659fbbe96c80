"""An ordinary user of this machine with a checkout, a Python and Apptainer: who images are built by, and run by."""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lanes import cannot_run
from skyrl_stack.node import Process, other_processes
from skyrl_stack.sandbox.storage import cache_dir
from skyrl_stack.sif.lock import LOCK

ROOT = Path(__file__).parents[1]
BUILDER = "skyrl-builder"
SUB_IDS = (Path("/etc/subuid"), Path("/etc/subgid"))
_HIDE = 'while [ "$1" != -- ]; do mount --bind /dev/null "$1"; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class Site:
    """The user's directories below `work`; `user` is None where these tests are not run by root."""

    work: Path
    user: str | None

    @property
    def checkout(self) -> Path:
        return self.work / "checkout"

    @property
    def image(self) -> Path:
        return self.checkout / "images/runtime.sif"

    @property
    def python(self) -> Path:
        return self.work / "venv/bin/python"

    def popen(self, *command: str | Path, hidden: Iterable[Path] = (), **environment: str) -> "subprocess.Popen[str]":
        """Start a command in the checkout, with `environment` beside the user's own.

        It and what it starts find nothing in the files that are `hidden`, which needs root.
        """
        argv = [str(word) for word in command]
        if self.user:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--", *argv]
        if hidden:
            argv = ["unshare", "--mount", "sh", "-ec", _HIDE, "_", *map(str, hidden), "--", *argv]
        return subprocess.Popen(
            argv,
            cwd=self.checkout,
            env=self._environment() | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stack(self, *arguments: str | Path, fails: bool = False, **environment: str) -> str:
        """Run the `skyrl-stack` command; returns what it printed."""
        process = self.popen(self.work / "venv/bin/skyrl-stack", *arguments, **environment)
        try:
            output, _ = process.communicate(timeout=1400)
        finally:
            process.kill()
        assert (process.returncode != 0) == fails, output
        return output

    def install(self, group: str) -> None:
        """Have the packages of a dependency group beside the command."""
        _install(self.work, "--group", group)
        if self.user:
            subprocess.run(["chown", "-R", f"{self.user}:", self.work / "venv"], check=True)

    def build(self, name: str, *options: str) -> None:
        """Build an image from Debian packages and this user's Python."""
        arguments = ["--arg", "BOOTSTRAP=debootstrap", "--python", str(self.work / "python")]
        assert f"images/{name}.sif: " in self.stack("images", "build", name, *arguments, *options)
        assert list((self.work / "tmp").glob("skyrl-build-*")) == []

    def build_once(self, shared: Path) -> None:
        """Build runtime.sif, or take that which was kept in the directory `shared`."""
        kept = shared / "runtime.sif"
        with (shared / "runtime.sif.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.is_dir():
                self.build("runtime")
                _copy(self.checkout, kept.with_suffix(".draft"))
                kept.with_suffix(".draft").rename(kept)
                return
        _copy(kept, self.checkout)
        if self.user:
            subprocess.run(["chown", "-R", f"{self.user}:", self.checkout / "images", self.checkout / LOCK], check=True)

    def inside(
        self, mode: Sequence[str], *arguments: str | Path, hidden: Iterable[Path] = ()
    ) -> "subprocess.Popen[str]":
        """Run a program of Python's inside runtime.sif, which has the sandbox code of its own."""
        options = [word.format(work=self.work) for word in mode]
        cache = f"SKYRL_CACHE={self.work / 'cache'}"
        command = ["apptainer", "-q", "exec", *options, "--env", cache, str(self.image), "python", *arguments]
        return self.popen(*command, hidden=hidden)

    def processes(self, *words: str) -> set[str]:
        """Living processes of the user whose command line has one of `words`, by process id and command line.

        Of those that came from here: another file of tests may run beside this one.
        """
        name = self.user or pwd.getpwuid(os.geteuid()).pw_name
        columns = ["-o", "pid,stat,args", "-u", name]
        listed = subprocess.run(["ps", "--no-headers", *columns], capture_output=True, text=True, check=False).stdout
        living = [line.split(maxsplit=2) for line in listed.splitlines() if line.split()[1][0] != "Z"]
        found = [(pid, args) for pid, _, args in living if any(word in args for word in words)]
        return {f"{pid} {args}" for pid, args in found if self._came_from_here(Process(int(pid)))}

    def _came_from_here(self, process: Process) -> bool:
        """Whether it was started with a variable that names one of our directories, or has a file open there."""
        return str(self.work) in " ".join(process.environment.values()) or process.has_open_below(self.work)

    def _environment(self) -> dict[str, str]:
        kept = ("PATH", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "RAY_worker_niceness")
        return {name: os.environ[name] for name in kept if name in os.environ} | {
            "HOME": str(self.work / "home"),
            "TMPDIR": str(self.work / "tmp"),
            "LD_LIBRARY_PATH": str(self.work / "python/lib"),
            "SKYRL_CACHE": str(self.work / "cache"),
            "APPTAINER_CACHEDIR": str(self.work / "apptainer"),
            "UV_CACHE_DIR": str(_wheels(self.user)),
        }


@contextlib.contextmanager
def ordinary_user() -> Iterator[Site]:
    """Such a user, whose files are removed at the end."""
    if shutil.which("apptainer") is None:
        cannot_run("no Apptainer here: scripts/setup-apptainer")
    user = BUILDER if os.geteuid() == 0 else None
    work = Path(tempfile.mkdtemp(prefix="sif-", dir="/var/tmp"))
    try:
        for name in ("checkout", "home", "tmp", "cache", "apptainer"):
            (work / name).mkdir()
        _check_out(work / "checkout")
        ignored = shutil.ignore_patterns("__pycache__", "site-packages", "test")
        shutil.copytree(sys.base_prefix, work / "python", symlinks=True, ignore=ignored)
        _install(work)
        if user:
            subprocess.run(["chown", "-R", f"{user}:", work], check=True)
        work.chmod(0o755)
        yield Site(work, user)
    finally:
        _kill_what_shows_an_image(work)
        shutil.rmtree(work, ignore_errors=True)


def _copy(source: Path, destination: Path) -> None:
    """What a build has made: the image, its log, and its entry of the lock."""
    shutil.copytree(source / "images", destination / "images")
    (destination / LOCK).parent.mkdir(exist_ok=True)
    shutil.copy(source / LOCK, destination / LOCK)


def _kill_what_shows_an_image(work: Path) -> None:
    """Apptainer's own helper outlives a `kill -9` of Apptainer, which tests do."""
    for process in other_processes():
        if process.command.startswith("squashfuse") and process.has_open_below(work):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def _check_out(place: Path) -> None:
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    copy = ["tar", "--null", "-T", "-", "-cf", "-"]
    with subprocess.Popen(copy, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
        assert tar.stdin
        tar.stdin.write(files)
        tar.stdin.close()
        subprocess.run(["tar", "-xf", "-", "-C", place], stdin=tar.stdout, check=True)


def _install(work: Path, *options: str) -> None:
    """What a login node has: the command, without any of the groups; `options` may name some."""
    uv = shutil.which("uv") or ROOT / ".uv/bin/uv"
    environment = os.environ | {
        "UV_PROJECT_ENVIRONMENT": str(work / "venv"),
        "UV_LINK_MODE": "copy",
        "LD_LIBRARY_PATH": str(work / "python/lib"),
    }
    python = work / "python/bin/python3.12"
    command = [uv, "sync", "-q", "--frozen", "--no-default-groups", *options, "--python", python]
    subprocess.run(command, cwd=work / "checkout", env=environment, check=True)


def _wheels(user: str | None) -> Path:
    """The user's uv cache, kept from run to run: 6 GB that are fetched once."""
    place = cache_dir() / "tests" / "wheels"
    place.mkdir(parents=True, exist_ok=True)
    if user:
        shutil.chown(place, user, user)
    return place
