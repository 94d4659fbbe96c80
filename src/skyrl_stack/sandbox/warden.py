"""The warden: samples what each sandbox of a cell uses and, where one is over, kills all that runs in it.

    server ──stdin: watch, forget──▶ warden (in the cell's namespaces) ──stdout: excesses──▶ server

This is how sizes hold on a node that delegates no cgroups. It is a process of its own in the cell: there it may read
and kill what belongs to any id of a sandbox, and it costs the server no time. It imports the standard library alone.
"""

import argparse
import json
import os
import select
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from skyrl_stack.sandbox.entering import run_in_cell, signal_all

TICK_S = 0.2
_WORK_SHARE = 0.05
"Of one CPU, that sampling takes at most; it is done less often where there is much to look at."
_DISK_WORK_S = 0.01
"CPU time of one look that may go into measuring what is written."
_MIB = 1024 * 1024
_CPU_WINDOW_S = 2.0
_CPU_PATIENCE_S = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Usage:
    """What the processes of one sandbox use, at one moment."""

    pids: list[int] = field(default_factory=list)
    threads: int = 0
    rss: int = 0
    "Bytes; pages that processes share count for each of them."
    cpu_s: float = 0.0
    "Since the moment before."


@dataclass
class Watched:
    """A sandbox, its sizes, and what was seen of it."""

    id: str
    pid: int
    upper: str
    "Directory that holds what it wrote."
    memory_mb: int | None
    pids: int | None
    disk_mb: int | None
    cpus: float | None
    since: float = 0.0
    "Only what changed after counts as written; seconds since the epoch."
    namespace: str = ""
    has_worked: bool = True
    "Since its disk was measured."
    was_killed_for_disk: bool = False
    disk_at_kill: int = 0
    "Measured when all that had written was dead."
    cpu_rate: float = 0.0
    confined_to: frozenset[int] = frozenset()
    calm_since: float = 0.0


class Warden:
    """All sandboxes of one cell; or beside this process, which then leaves it to the server to kill what is over."""

    def __init__(self, *, kills: bool = True) -> None:
        self._kills = kills
        self._watched: dict[str, Watched] = {}
        self._namespaces: dict[int, tuple[int, str]] = {}
        "By process: when it started, and its pid namespace."
        self._cpu: dict[int, float] = {}
        self._killed_at: dict[str, int] = {}
        "By pid namespace: what started before is dying, and what it still holds does not count again."
        self._sampled_at = time.monotonic()
        self._disks = self._measure_disks()

    def obey(self, order: dict[str, Any]) -> None:
        """Watch a sandbox, or forget one."""
        if identifier := order.get("forget"):
            if watched := self._watched.pop(identifier, None):
                self._killed_at.pop(watched.namespace, None)
            return
        watched = Watched(**order["watch"])
        with suppress(OSError):  # gone already
            watched.namespace = _pid_namespace(watched.pid)
            self._watched[watched.id] = watched

    def tick(self) -> None:
        """Look at every sandbox once."""
        usages = self._sample()
        now = time.monotonic()
        elapsed, self._sampled_at = now - self._sampled_at, now
        for watched in self._watched.values():
            usage = usages.get(watched.namespace, Usage())
            watched.has_worked |= usage.cpu_s > 0
            if watched.pids and usage.threads > watched.pids:
                self._kill(watched, "processes", usage.threads, watched.pids)
            elif watched.memory_mb and usage.rss > watched.memory_mb * _MIB:
                used = ceil(sum(map(_proportional_memory, usage.pids)) / _MIB)
                if used > watched.memory_mb:
                    self._kill(watched, "memory", used, watched.memory_mb)
            if watched.cpus:
                self._share_cpus(watched, watched.cpus, usage, elapsed, now)
        until = time.thread_time() + _DISK_WORK_S
        while time.thread_time() < until and not next(self._disks):
            pass

    def _measure_disks(self) -> Generator[bool]:
        """Measure one disk after the other, in small steps; yields whether a round is done."""
        while True:
            for watched in list(self._watched.values()):
                if watched.disk_mb and watched.has_worked:
                    watched.has_worked = False
                    used = yield from _disk_usage(watched.upper, watched.since)
                    self._limit_disk(watched, used, watched.disk_mb)
            yield True

    def _limit_disk(self, watched: Watched, used: int, allowed_mb: int) -> None:
        # One that is over has to be let to clean up: it is killed again when it has grown since.
        if watched.was_killed_for_disk:
            watched.disk_at_kill, watched.was_killed_for_disk = used, False
        elif used > max(allowed_mb * _MIB, watched.disk_at_kill):
            watched.has_worked = watched.was_killed_for_disk = True
            self._kill(watched, "disk", ceil(used / _MIB), allowed_mb)

    def _sample(self) -> dict[str, Usage]:
        """Usage by pid namespace."""
        usages: dict[str, Usage] = defaultdict(Usage)
        namespaces, cpu = {}, {}
        with os.scandir("/proc") as entries:
            pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
        for pid in pids:
            try:
                fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
                started = int(fields[19])
                known = self._namespaces.get(pid)
                if not known or known[0] != started:
                    known = (started, _pid_namespace(pid))
                    self._cpu.pop(pid, None)
            except (OSError, IndexError):  # ended meanwhile
                continue
            namespaces[pid] = known
            if started <= self._killed_at.get(known[1], -1):
                continue
            cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
            usage = usages[known[1]]
            usage.pids.append(pid)
            usage.threads += int(fields[17])
            usage.rss += int(fields[21]) * _PAGE
            usage.cpu_s += cpu[pid] - self._cpu.get(pid, 0.0)
        self._namespaces, self._cpu = namespaces, cpu
        return usages

    def _share_cpus(self, watched: Watched, cpus: float, usage: Usage, elapsed: float, now: float) -> None:
        """Keep one that takes more than its CPUs on that many of them, until it is calm again."""
        weight = min(1.0, elapsed / _CPU_WINDOW_S)
        watched.cpu_rate += weight * (usage.cpu_s / elapsed - watched.cpu_rate)
        if watched.cpu_rate > cpus:
            watched.calm_since = now
            watched.confined_to = watched.confined_to or self._quiet_cpus(ceil(cpus))
        elif watched.confined_to and now - watched.calm_since > _CPU_PATIENCE_S and watched.cpu_rate < cpus / 2:
            _confine(usage.pids, frozenset(os.sched_getaffinity(0)))
            watched.confined_to = frozenset()
        if watched.confined_to:
            _confine(usage.pids, watched.confined_to)

    def _quiet_cpus(self, count: int) -> frozenset[int]:
        """The CPUs to which the fewest are confined."""
        confined = [cpu for other in self._watched.values() for cpu in other.confined_to]
        return frozenset(sorted(os.sched_getaffinity(0), key=confined.count)[:count])

    def _kill(self, watched: Watched, resource: str, used: int, allowed: int) -> None:
        """Say it, then do it, so that the server knows the cause before it sees the effect."""
        excess = {"resource": resource, "used": used, "allowed": allowed}
        print(json.dumps({"id": watched.id, "excess": excess}), flush=True)
        if self._kills:
            with suppress(OSError):  # gone already
                signal_all(watched.pid, signal.SIGKILL)
        self._killed_at[watched.namespace] = int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)


def _pid_namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _proportional_memory(pid: int) -> int:
    """Bytes; of a page that n processes share each has 1/n."""
    with suppress(OSError, ValueError):
        lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Pss:", b"SwapPss:")))
    return 0


def _disk_usage(directory: str, since: float) -> Generator[bool, None, int]:
    """Bytes that the files below take that changed after `since`, each once however many links it has; yields after
    each directory."""
    total, seen, left = 0, set[int](), [directory]
    while left:
        with suppress(OSError), os.scandir(left.pop()) as entries:  # it may be removed meanwhile
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    elif status.st_ctime > since and status.st_ino not in seen:
                        if status.st_nlink > 1:
                            seen.add(status.st_ino)
                        total += status.st_blocks * 512
        yield False
    return total


def _confine(pids: list[int], cpus: frozenset[int]) -> None:
    """Each thread has its own set; what it starts later inherits that."""
    for pid in pids:
        with suppress(OSError), os.scandir(f"/proc/{pid}/task") as threads:
            for thread in threads:
                with suppress(OSError):
                    os.sched_setaffinity(int(thread.name), cpus)


def _serve(warden: Warden) -> None:
    pending, wait = b"", TICK_S
    while True:
        deadline = time.monotonic() + wait
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([0], [], [], left)[0]:
                break
            if not (data := os.read(0, 65536)):
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                warden.obey(json.loads(line))
        started = time.thread_time()
        warden.tick()
        wait = max(TICK_S, (time.thread_time() - started) / _WORK_SHARE)


def main() -> int:
    """The program's entry point."""
    parser = argparse.ArgumentParser(prog="skyrl_stack.sandbox.warden")
    parser.add_argument("--helper", type=int, help="process id of the cell's namespaces helper")
    helper: int | None = parser.parse_args().helper
    if helper is not None:
        return run_in_cell(helper, lambda: _serve(Warden()))
    _serve(Warden(kills=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
