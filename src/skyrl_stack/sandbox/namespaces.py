"""Runs one program as root of private user, mount and pid namespaces that die with whoever asked for them.

`python -m skyrl_stack.sandbox.namespaces [--hide DIR]... -- PROGRAM ARGUMENT...` is the helper; `command` gives
its argv. Standard input is the lifeline: at its end (the caller closed it, or died of anything) the first process
of the pid namespace is killed, and the kernel kills every process and unmounts every mount with it. Should the
helper itself be killed, PR_SET_PDEATHSIG does the same. PR_SET_PDEATHSIG belongs to the *thread* that forked,
which is why this is a program of one thread and not a function of the server.

Who is root in there, seen from outside:
    launched by root             uid 1879048192, and 65535 more: even root's sandboxes are rootless
    by root of a container       that root, and every other id that the container has
    by a user of /etc/subuid     the user, and the user's sub-ids (by newuidmap, newgidmap)
    by any other user            the user alone
"""

import argparse
import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skyrl_stack.errors import SetupError
from skyrl_stack.node import end_with_parent

ROOTS_FIRST_ID = 0x7000_0000
"Above what useradd gives to users (to 600 100 000) and systemd to containers (to 0x6fffffff): nobody else is it."
IDS = 65_536
Kind = Literal["uid", "gid"]
_MS_REC_PRIVATE = 0x4000 | 0x40000


@dataclass(frozen=True)
class IdMap:
    """Which outer ids the ids inside are: rows of (inside, outside, count), of users and of groups."""

    users: list[tuple[int, int, int]]
    groups: list[tuple[int, int, int]]

    @property
    def root(self) -> tuple[int, int]:
        """(uid, gid) that root has outside."""
        return self.users[0][1], self.groups[0][1]

    @property
    def is_single(self) -> bool:
        """Whether root is the only user there is."""
        return len(self.users) == 1 and self.users[0][2] == 1


def id_map() -> IdMap:
    """The widest map that the caller may use."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return IdMap(_roots_ids("uid"), _roots_ids("gid"))
    users, groups = _sub_ids("uid", uid), _sub_ids("gid", uid)
    if users and groups and shutil.which("newuidmap") and shutil.which("newgidmap"):
        return IdMap([(0, uid, 1), (1, *users)], [(0, gid, 1), (1, *groups)])
    return IdMap([(0, uid, 1)], [(0, gid, 1)])


def command(*argv: str | Path, hide: tuple[Path, ...] = ()) -> list[str]:
    """The argv that runs `argv` in private namespaces, with an empty directory over each of `hide`."""
    hidden = [word for path in hide for word in ("--hide", str(path))]
    return [sys.executable, "-m", __name__, *hidden, "--", *map(str, argv)]


def run(*argv: str | Path) -> tuple[int, str]:
    """Run `argv` in private namespaces to its end; returns its exit code and what it printed last."""
    with subprocess.Popen(
        command(*argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        return process.wait(), output.strip().rpartition("\n")[2]


def outermost(kind: Kind) -> int:
    """The id that root of this user namespace has outside of it."""
    return next((outside for inside, outside, _ in _rows(kind) if inside == 0), 0)


def _rows(kind: Kind) -> list[tuple[int, int, int]]:
    """The ids of this user namespace, as in `IdMap`. Source: user_namespaces(7)."""
    rows = [line.split() for line in Path(f"/proc/self/{kind}_map").read_text().splitlines()]
    return sorted((int(inside), int(outside), int(count)) for inside, outside, count in rows)


def _exist(kind: Kind, first: int, count: int) -> bool:
    return any(start <= first and first + count <= start + length for start, _, length in _rows(kind))


def _roots_ids(kind: Kind) -> list[tuple[int, int, int]]:
    """Ids of nobody where root is the machine's, and all ids there are where it is a container's."""
    if _exist(kind, ROOTS_FIRST_ID, IDS):
        return [(0, ROOTS_FIRST_ID, IDS)]
    # A row has to lie within one run: the kernel does not join them.
    return [(first, first, min(count, IDS - first)) for first, _, count in _rows(kind) if first < IDS]


def _sub_ids(kind: Kind, uid: int) -> tuple[int, int] | None:
    """(first, count) of the sub-ids that /etc/subuid or /etc/subgid gives to user `uid`."""
    file = Path(f"/etc/sub{kind}")
    if not file.is_file():
        return None
    try:
        owners = {pwd.getpwuid(uid).pw_name, str(uid)}
    except KeyError:
        owners = {str(uid)}
    rows = [line.split(":") for line in file.read_text().splitlines()]
    given = ((int(row[1]), int(row[2])) for row in rows if len(row) == 3 and row[0] in owners)
    # In a container the file may speak of ids that do not exist there.
    return next(((first, count) for first, count in given if _exist(kind, first, count)), None)


def _write_map(pid: int, ids: IdMap) -> None:
    """Give the user namespace of `pid` its ids; runs outside of it, where the right to do so is."""
    for kind, rows in (("uid", ids.users), ("gid", ids.groups)):
        if len(rows) > 1 and os.geteuid() != 0:
            words = [str(number) for row in rows for number in row]
            subprocess.run([f"new{kind}map", str(pid), *words], check=True)
            continue
        if kind == "gid" and os.geteuid() != 0:
            Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/{kind}_map").write_text("\n".join(" ".join(map(str, row)) for row in rows))


def _become_root_of_namespaces() -> None:
    """Unshare, while a process that stays outside writes the id map."""
    ids, me = id_map(), os.getpid()
    reading, writing = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(writing)
        ready = os.read(reading, 1)
        try:
            if ready:
                _write_map(me, ids)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"cannot map user ids: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWPID)
    os.write(writing, b"+")
    if os.waitpid(mapper, 0)[1] != 0:
        sys.exit(1)
    become_root()


def become_root() -> None:
    """Be root of the user namespace that this process is in."""
    os.setresgid(0, 0, 0)
    with suppress(PermissionError):  # a namespace of one id has no right to it
        os.setgroups([])
    os.setresuid(0, 0, 0)


def _first_process(argv: list[str], hidden: list[Path]) -> None:
    """Process 1: mounts what is private, starts the program, reaps whatever ends, and ends with the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    end_with_parent(signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _mount(libc, b"none", Path("/"), None, _MS_REC_PRIVATE)
    _mount(libc, b"proc", Path("/proc"), b"proc")
    for path in hidden:
        _mount(libc, b"tmpfs", path, b"tmpfs")
    program = os.posix_spawnp(argv[0], argv, os.environ)
    while True:
        ended, status = os.wait()
        if ended == program:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _mount(libc: ctypes.CDLL, source: bytes, target: Path, kind: bytes | None, flags: int = 0) -> None:
    if libc.mount(source, bytes(target), kind, flags, None):
        raise OSError(ctypes.get_errno(), f"cannot mount on {target}: {os.strerror(ctypes.get_errno())}")


def _main(argv: list[str], hidden: list[Path]) -> int:
    _become_root_of_namespaces()
    first = os.fork()
    if first == 0:
        try:
            _first_process(argv, hidden)
        except OSError as error:
            print(f"{argv[0]}: {error.strerror or error}", file=sys.stderr, flush=True)
            os._exit(1)
    descriptor = os.pidfd_open(first)
    lifeline = sys.stdin.fileno()
    ended, _, _ = select.select([descriptor, lifeline], [], [])
    if lifeline in ended:
        os.kill(first, signal.SIGKILL)
    # Returns when the pid namespace is empty: the kernel kills all of it before its process 1 can be reaped.
    return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF


def main() -> int:
    """The helper's entry point."""
    parser = argparse.ArgumentParser(prog="skyrl_stack.sandbox.namespaces")
    parser.add_argument("--hide", type=Path, action="append", default=[])
    parser.add_argument("argv", nargs="+")
    arguments = parser.parse_args()
    try:
        return _main(arguments.argv, arguments.hide)
    except OSError as error:
        print(f"user namespaces: {error.strerror or error}", file=sys.stderr)
        return 1


def require_user_namespaces() -> None:
    """Fail early where the kernel forbids them.

    Raises:
        SetupError: with the setting that allows them.
    """
    code, said = run("true")
    if code:
        raise SetupError(
            f"user namespaces are closed to uid {os.geteuid()} ({said}); an administrator opens them by "
            "`sysctl user.max_user_namespaces=65536`, on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0"
        )


if __name__ == "__main__":
    sys.exit(main())
