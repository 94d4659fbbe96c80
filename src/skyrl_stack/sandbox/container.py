"""One container in a cell, made by the OCI runtime: its file system, its processes, its end. Imports Python's alone.

<directory>/layers/N      links to the directories of image layers, short because mount options are
<directory>/<id>/         the bundle: config.json, upper (what the sandbox wrote), root (what it sees)
"""

import errno
import itertools
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from skyrl_stack.sandbox.cgroups import born_in
from skyrl_stack.sandbox.entering import signal_all
from skyrl_stack.sandbox.syscalls import mount_overlay, open_in_root, unmount

_DEATH_TIMEOUT_MS = 10_000
_EXEC_TIMEOUT_S = 30.0
_KILL_ROUNDS = 100
_PF_EXITING = 4
_NOT_REGULAR = "not a regular file"


class Refused(Exception):
    """The container cannot do what is asked; `kind` is one of broker.ERRORS."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Layers:
    """Links to image layers, in the working directory of this process."""

    def __init__(self) -> None:
        self._links: dict[str, str] = {}
        self._lock = threading.Lock()
        Path("layers").mkdir()

    def links(self, layers: Sequence[str]) -> str:
        """The layers, topmost first, as overlay's `lowerdir` names them."""
        with self._lock:
            for layer in layers:
                if layer not in self._links:
                    link = f"layers/{len(self._links)}"
                    Path(link).symlink_to(layer)
                    self._links[layer] = link
        return ":".join(self._links[layer] for layer in layers)


class Container:
    """A container; its process 1 does nothing but reap. `runtime` is the argv of the OCI runtime with its options.

    All other processes are born into `cgroup`, where there is one.
    """

    def __init__(self, identifier: str, runtime: Sequence[str], cgroup: Path | None = None) -> None:
        self.id = identifier
        self.lock = threading.Lock()
        self.pid = 0
        "Process 1, as the cell counts."
        self._runtime = runtime
        self._cgroup = cgroup
        self._life = -1
        self._root = -1
        self._calls = itertools.count()

    def start(self, lower: str, config: Mapping[str, Any], files: Mapping[str, str], workdir: str) -> None:
        """Mount its file system and start process 1."""
        bundle = Path(self.id)
        for name in ("upper", "work", "root"):
            (bundle / name).mkdir(parents=True)
        for name, text in files.items():
            (bundle / name).write_text(text)
        (bundle / "config.json").write_text(json.dumps(in_user_namespace(config)))
        # userxattr: as Podman stores images in a user namespace. volatile: what it wrote is never needed on disk.
        upper = f"upperdir={self.id}/upper,workdir={self.id}/work"
        label = config["linux"].get("mountLabel")  # of SELinux
        context = f',context="{label}"' if label else ""
        mount_overlay(f"{self.id}/root", f"lowerdir={lower},{upper},userxattr,volatile{context}")
        self._root = os.open(bundle / "root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(open_in_root(self._root, workdir, os.O_PATH | os.O_DIRECTORY))
        except OSError as error:
            raise Refused("failed", f"working directory {workdir}: {error.strerror}") from error
        null = subprocess.DEVNULL
        # A keyring each would be too many: a user has 200 keys. All have the broker's, which is empty.
        options = ("--detach", "--no-new-keyring", "--bundle", self.id)
        self.pid = self._call("run", *options, streams=(null, null, null))
        self._life = os.pidfd_open(self.pid)
        self._await_program(config["process"]["args"][0])

    @property
    def is_running(self) -> bool:
        if self._life < 0 or _has_ended(self._life, 0):
            return False
        with suppress(OSError):  # it is exiting before what it takes along is seen to die
            return not int(_fields(self.pid)[6]) & _PF_EXITING
        return False

    def execute(self, process: Mapping[str, Any], streams: tuple[int, int, int]) -> int:
        """Start a process on the three streams; returns its id, as the cell counts. It becomes our child."""
        self.require_running()
        try:
            return self._call("exec", "--detach", streams=streams, process=process)
        except Refused:
            self.require_running()
            raise

    def require_running(self) -> None:
        if not self.is_running:
            raise Refused("gone", f"sandbox {self.id} is gone")

    def open(self, path: str, *, write: bool) -> int:
        """Open a regular file; for writing it is made, with its directories, where it is not there."""
        self.require_running()
        flags = (os.O_WRONLY if write else os.O_RDONLY) | os.O_NONBLOCK | os.O_NOCTTY
        try:
            try:
                descriptor = open_in_root(self._root, path, flags)
            except FileNotFoundError:
                if not write:
                    raise
                os.close(self._directory(PurePosixPath(path).parent))
                descriptor = open_in_root(self._root, path, flags | os.O_CREAT, 0o644)
        except OSError as error:
            reason = _NOT_REGULAR if error.errno in (errno.EISDIR, errno.ENXIO) else error.strerror
            raise Refused("missing", f"{path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Refused("missing", f"{path}: {_NOT_REGULAR}")
        return descriptor

    def kill(self, shell: int, marker: str) -> None:
        """Kill a shell and all that came of it.

        That is: its session and its group, what carries the marker in its environment although it left them (setsid),
        and every descendant of those; again until nobody is found, for a process may fork while it is looked at.
        """
        for _ in range(_KILL_ROUNDS):
            victims = self._victims(shell, f"SKYRL_SHELL={marker}".encode())
            if not victims:
                return
            for pid in sorted(victims):  # parents first: a shell would tell of the end of its children
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        raise Refused("failed", "its processes are not to be killed")

    def signal(self, number: int) -> None:
        """Send a signal to all processes but process 1."""
        self.require_running()
        signal_all(self.pid, number)

    def remove(self) -> None:
        """End every process and remove all that was written."""
        if self._life >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._life, signal.SIGKILL)
            _has_ended(self._life, _DEATH_TIMEOUT_MS)
        subprocess.run([*self._runtime, "delete", "--force", self.id], stderr=subprocess.DEVNULL, check=False)
        for descriptor in (self._life, self._root):
            if descriptor >= 0:
                os.close(descriptor)
        self._life = self._root = -1
        with suppress(OSError):  # not mounted
            unmount(f"{self.id}/root")
        shutil.rmtree(self.id, ignore_errors=True)

    def _call(
        self, action: str, *options: str, streams: tuple[int, int, int], process: Mapping[str, Any] | None = None
    ) -> int:
        """Have the runtime start a process; returns its id. Calls of several threads have files of their own."""
        directory = Path(self.id, f"call-{next(self._calls)}").absolute()  # crun reads it in the bundle
        directory.mkdir()
        log, pid, description = directory / "log", directory / "pid", directory / "process.json"
        if process is not None:
            description.write_text(json.dumps(process))
            options = (*options, "--process", str(description))
        argv = [*self._runtime, "--log", str(log), "--log-format", "json", action, *options]
        argv += ["--pid-file", str(pid), self.id]
        if action == "exec" and self._cgroup and self._cgroup.is_dir():
            argv = born_in(self._cgroup, argv)
        stdin, stdout, stderr = streams
        try:
            done = subprocess.run(argv, stdin=stdin, stdout=stdout, stderr=stderr, check=False)
            if done.returncode:
                lines = log.read_text().splitlines() if log.exists() else []
                said = "; ".join(json.loads(line)["msg"] for line in lines)  # crun says why, and then that it failed
                raise Refused("failed", said or f"{self._runtime[0]} {action} failed")
            return int(pid.read_text())
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _await_program(self, program: str) -> None:
        """Until process 1 is what the sandbox is given, and not the OCI runtime any more, which nobody may join."""
        deadline = time.monotonic() + _EXEC_TIMEOUT_S
        while not Path(f"/proc/{self.pid}/cmdline").read_bytes().startswith(program.encode()):
            if not self.is_running or time.monotonic() > deadline:
                raise Refused("failed", f"its process 1 does not become {program}")
            time.sleep(0.001)

    def _directory(self, path: PurePosixPath) -> int:
        """A directory of the container, opened; it and its parents are made where they are not there."""
        try:
            return open_in_root(self._root, str(path), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            parent = self._directory(path.parent)
            with suppress(FileExistsError):
                os.mkdir(path.name, 0o755, dir_fd=parent)
            os.close(parent)
            return open_in_root(self._root, str(path), os.O_PATH | os.O_DIRECTORY)

    def _victims(self, shell: int, marker: bytes) -> set[int]:
        """Living processes of the container that came of the shell."""
        namespace = Path(f"/proc/{self.pid}/ns/pid").stat().st_ino
        parents, victims = dict[int, int](), set[int]()
        for process in Path("/proc").iterdir():
            with suppress(OSError, ValueError):  # no process, or one that ended meanwhile
                pid = int(process.name)
                if pid == self.pid or (process / "ns/pid").stat().st_ino != namespace:
                    continue
                state, parent, group, session = _fields(pid)[:4]
                if state in b"ZX":
                    continue
                parents[pid] = int(parent)
                environment = (process / "environ").read_bytes().split(b"\0")
                if shell in (pid, int(group), int(session)) or marker in environment:
                    victims.add(pid)
        while grown := {pid for pid, parent in parents.items() if parent in victims} - victims:
            victims |= grown
        return victims


def in_user_namespace(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, with a user namespace of the container's own in which every id is the cell's.

    It changes who nobody is; but since Linux 5.14 the kernel counts processes by user and namespace, so that
    RLIMIT_NPROC holds for this container alone.
    """
    linux = config["linux"]
    maps = {f"{kind}Mappings": _same_ids(Path(f"/proc/self/{kind}_map")) for kind in ("uid", "gid")}
    return {**config, "linux": {**linux, **maps, "namespaces": [*linux["namespaces"], {"type": "user"}]}}


def _same_ids(file: Path) -> list[dict[str, int]]:
    """Mappings of ids to themselves, of all ids that there are here: user_namespaces(7)."""
    rows = (line.split() for line in file.read_text().splitlines())
    return [{"containerID": int(row[0]), "hostID": int(row[0]), "size": int(row[2])} for row in rows]


def _fields(pid: int) -> list[bytes]:
    """Of proc_pid_stat(5), from the third on: state, parent, group, session, terminal, its group, flags."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _has_ended(life: int, timeout_ms: int) -> bool:
    """Whether the process of a pidfd is dead, or dies in time."""
    poll = select.poll()
    poll.register(life, select.POLLIN)
    return bool(poll.poll(timeout_ms))
