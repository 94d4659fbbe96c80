"""Cgroups: sizes that the kernel holds, where a cgroup of version 2 was delegated to whoever launched.

    <delegated>/                  where this process was found
    ├── skyrl.rest/               all processes that were there: one that has controllers below has none itself
    └── skyrl-<launch>/           locked by the runtime while it lives
        ├── cell/                 the broker, what it starts, and process 1 of each sandbox
        └── sandbox-<id>/         all else of a sandbox: held to its sizes, killed at once

Source: the kernel's cgroup-v2.rst. It imports Python's own library alone, for the broker does so.
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

Held = Literal["memory", "processes", "cpus"]
"What the kernel can hold a sandbox to."
CONTROLLERS: Mapping[Held, str] = {"memory": "memory", "processes": "pids", "cpus": "cpu"}
PREFIX = "skyrl-"
_REST = "skyrl.rest"
_CELL = "cell"
_CPU_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000
_MOVE_ROUNDS = 50
_DEATH_TIMEOUT_S = 10.0
_ASK_TIMEOUT_S = 5.0


class NotDelegated(Exception):
    """Sizes cannot be held by cgroups here; says why."""


class SandboxGroup:
    """The cgroup of one sandbox. It has no process that is not an `exec` or came of one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def kill(self) -> None:
        """Kill all that is in it, by one write: nothing that forks meanwhile escapes."""
        (self.path / "cgroup.kill").write_text("1")

    @property
    def is_empty(self) -> bool:
        """Whether all that was in it is dead, and what it held is free."""
        return _counts(self.path / "cgroup.events").get("populated", 0) == 0

    def refusals(self) -> dict[Held, int]:
        """How often the kernel refused memory for this sandbox's sake, and processes for anybody's."""
        # `oom_kill` would count those, too, that the machine killed because it had no memory left.
        memory, processes = _counts(self.path / "memory.events"), _counts(self.path / "pids.events")
        return {"memory": memory.get("oom", 0), "processes": processes.get("max", 0)}

    @property
    def was_full(self) -> bool:
        """Whether it had all processes that it may have. Until Linux 6.11 refusals further up count here, too."""
        peak = self.path / "pids.peak"  # since Linux 6.1
        used, most = _number(peak if peak.exists() else self.path / "pids.current"), _number(self.path / "pids.max")
        return used is not None and most is not None and used >= most

    def remove(self) -> None:
        """Remove it, for nothing runs in it any more; if it does, it goes with the launch's."""
        with suppress(OSError):
            self.path.rmdir()


class LaunchGroup:
    """The cgroup of a launch, below the delegated one; `begin` makes it, `close` removes it with all that is in it.

    It is locked for as long as this process lives. Root of the cell is `owner` outside.
    """

    def __init__(self, path: Path, owner: tuple[int, int]) -> None:
        self.path = path
        self._owner = owner
        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def held(self) -> list[Held]:
        """What the kernel holds its sandboxes to."""
        return _sizes(self.path / "cgroup.subtree_control")

    @classmethod
    def begin(cls, parent: Path, launch_id: str, owner: tuple[int, int]) -> "LaunchGroup":
        """Divide `parent`, a cgroup of ours. Root of the cell, `owner`, may move processes within the launch's group.

        Raises:
            NotDelegated: it cannot be divided. It is as it was.
        """
        path = launch_group(parent, launch_id)
        with _locked(parent):
            _remove_dead(parent)
            try:
                path.mkdir()
            except OSError as error:
                raise NotDelegated(f"{path}: {error.strerror}") from error
            try:
                _divide(parent, path)
                os.chown(path / "cgroup.procs", *owner)
                return cls(path, owner)
            except (OSError, NotDelegated) as error:
                _remove(path)
                raise NotDelegated(str(error)) from error

    def make(self, name: str, *, memory_mb: int | None, pids: int | None, cpus: float | None) -> SandboxGroup:
        """The cgroup of a sandbox. Processes are `born_in` it."""
        group, held = self.path / name, self.held
        group.mkdir(exist_ok=True)
        if memory_mb and "memory" in held:
            (group / "memory.max").write_text(str(memory_mb << 20))
            (group / "memory.oom.group").write_text("1")
            if (group / "memory.swap.max").exists():
                (group / "memory.swap.max").write_text("0")
        if pids and "processes" in held:
            (group / "pids.max").write_text(str(pids))
        if cpus and "cpus" in held:
            quota = max(int(cpus * _CPU_PERIOD_US), _LEAST_QUOTA_US)
            (group / "cpu.max").write_text(f"{quota} {_CPU_PERIOD_US}")
        os.chown(group / "cgroup.procs", *self._owner)
        return SandboxGroup(group)

    def close(self) -> None:
        """Kill what is left, and remove it. Idempotent."""
        remove_launch(self.path)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def launch_group(parent: Path, launch_id: str) -> Path:
    """Where the cgroup of a launch is, below the delegated one."""
    return parent / f"{PREFIX}{launch_id}"


def delegated() -> Path:
    """The cgroup of this process, where it is ours to divide.

    Raises:
        NotDelegated: it is not.
    """
    group = _own()
    if group.name == _REST:
        group = group.parent
    files = (group, group / "cgroup.procs", group / "cgroup.subtree_control")
    if not all(os.access(file, os.W_OK) for file in files):
        raise NotDelegated(f"{group} is not ours")
    # Systemd takes back what it did not delegate, whoever owns it.
    unit = next((part for part in reversed(group.parts) if part.endswith((".scope", ".service", ".slice"))), "")
    if unit and not _systemd_delegates(unit, of_user=any(part.startswith("user@") for part in group.parts[:-1])):
        raise NotDelegated(f"systemd keeps {unit} for itself")
    if not _sizes(group / "cgroup.controllers"):
        raise NotDelegated(f"{group} has none of the controllers {', '.join(CONTROLLERS.values())}")
    return group


def enter_cell(launch: Path) -> None:
    """Move this process to where those are that no sandbox is held to."""
    (launch / _CELL / "cgroup.procs").write_text("0")


def born_in(group: Path, argv: Sequence[str]) -> list[str]:
    """The argv that runs `argv` as a member of `group`: what it starts never was elsewhere."""
    return ["/bin/sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(group), *argv]


def remove_launch(path: Path) -> None:
    """Kill all in the cgroup of a launch and remove it, as after a `kill -9`. Idempotent."""
    if path.name.startswith(PREFIX) and path.is_dir() and (path.parent / "cgroup.procs").exists():
        with suppress(FileNotFoundError), _locked(path.parent):  # systemd removes it, too
            _remove(path)


def _remove(path: Path) -> None:
    """Kill and remove a launch's group; the last one leaves the delegated cgroup as it was found."""
    with suppress(OSError):
        (path / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    while path.exists() and time.monotonic() < deadline:
        with suppress(OSError):  # some are dying
            for child in _below(path):
                child.rmdir()
            path.rmdir()
            break
        time.sleep(0.01)
    if [child.name for child in _below(path.parent)] == [_REST]:
        with suppress(OSError):  # one that cannot be moved keeps the rest
            _restore(path.parent)


def _divide(parent: Path, path: Path) -> None:
    """Have the controllers of `parent` in the cgroups below `path`, which is below it."""
    if not (path / "cgroup.kill").exists():
        raise NotDelegated("it takes Linux 5.14")
    (path / _CELL).mkdir()
    if (parent / "cgroup.type").exists():  # the machine's own may have both, processes and controllers
        (parent / _REST).mkdir(exist_ok=True)
        _move_all(parent, parent / _REST)
    wanted = " ".join(f"+{CONTROLLERS[size]}" for size in _sizes(parent / "cgroup.controllers"))
    for group in (parent, path):
        (group / "cgroup.subtree_control").write_text(wanted)


def _restore(parent: Path) -> None:
    """Have the processes of the delegated cgroup where they were found, with no controllers below."""
    enabled = (parent / "cgroup.subtree_control").read_text().split()
    (parent / "cgroup.subtree_control").write_text(" ".join(f"-{name}" for name in enabled))
    _move_all(parent / _REST, parent)
    (parent / _REST).rmdir()


def _move_all(source: Path, target: Path) -> None:
    """Move every process; again until none is found, for they fork meanwhile."""
    for _ in range(_MOVE_ROUNDS):
        pids = (source / "cgroup.procs").read_text().split()
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                (target / "cgroup.procs").write_text(pid)


def _remove_dead(parent: Path) -> None:
    """Remove groups of launches that nobody holds, and in which nothing runs."""
    for group in _below(parent):
        if group.name.startswith(PREFIX) and SandboxGroup(group).is_empty and not _is_locked(group):
            _remove(group)


def _is_locked(path: Path) -> bool:
    try:
        with _locked(path, fcntl.LOCK_NB):
            return False
    except OSError:
        return True


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


def _own() -> Path:
    """The directory of this process's cgroup. Source: cgroups(7), proc_pid_mountinfo(5)."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    inside = next((line[3:] for line in lines if line.startswith("0::")), None)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        root, point = mount.split()[3:5]
        if inside and source.startswith("cgroup2 ") and Path(inside).is_relative_to(root):
            return Path(point) / Path(inside).relative_to(root)
    raise NotDelegated("there are no cgroups of version 2")


def _systemd_delegates(unit: str, *, of_user: bool) -> bool:
    """Whether the manager of a unit, the user's or the machine's, left what is below it to others."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return False
    argv = [systemctl, *(["--user"] if of_user else []), "show", "--property=Delegate", "--value", unit]
    try:
        said = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_ASK_TIMEOUT_S).stdout
    except subprocess.TimeoutExpired:
        return False
    return said.strip() == "yes"


def _below(group: Path) -> list[Path]:
    return [path for path in group.iterdir() if path.is_dir()]


def _sizes(file: Path) -> list[Held]:
    """Those whose controllers a file lists."""
    there = file.read_text().split()
    return [size for size, controller in CONTROLLERS.items() if controller in there]


def _counts(file: Path) -> dict[str, int]:
    """Of a file of lines `name number`; nothing where there is none."""
    with suppress(OSError):
        return {name: int(number) for name, number in (line.split() for line in file.read_text().splitlines())}
    return {}


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):  # "max"
        return int(file.read_text())
    return None
