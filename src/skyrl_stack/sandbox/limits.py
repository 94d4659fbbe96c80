"""Limits of a cell's sandboxes: the kernel's, the server's end of the warden, and what each shell limits for itself."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from skyrl_stack.sandbox.contract import Excess, SandboxSpec
from skyrl_stack.sandbox.held import HeldSizes


class Limits:
    """The warden of the cell whose namespaces `helper` holds; `start` it, and `close` it before the cell.

    What the kernel can hold sandboxes to is not the warden's.

    Without a helper, of sandboxes beside us, which begin as copies of an image: only what is newer than `watch` counts
    as written. It may kill nothing there: `exceeded` is called with a sandbox's id.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, held: HeldSizes | None, exceeded: Callable[[str], None] | None
    ) -> None:
        self._process = process
        self._exceeded = exceeded
        self._held = held
        if held:
            held.listen()
        self._excesses: dict[str, Excess] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        helper: int | None = None,
        *,
        held: HeldSizes | None = None,
        exceeded: Callable[[str], None] | None = None,
    ) -> Self:
        """Start the warden."""
        argv = [sys.executable, "-m", "skyrl_stack.sandbox.warden"]
        if helper is not None:
            argv += ["--helper", str(helper)]
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, start_new_session=True)
        return cls(process, held, exceeded)

    async def close(self) -> None:
        """End the warden; the sandboxes are without limits from then on."""
        if self._held:
            self._held.deafen()
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()
        await asyncio.wait([self._reading])  # if it was cancelled, as at the end of a loop, that is no matter

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    def watch(self, identifier: str, pid: int, upper: str, spec: SandboxSpec) -> None:
        """Hold the sandbox to its sizes. `pid` is its process 1, as the cell counts; `upper` takes what it writes.

        Raises:
            RuntimeError: it cannot be held.
        """
        since = time.time() if self._exceeded else 0.0
        if self._held:
            spec = self._held.watch(identifier, spec)
        sizes = spec.model_dump(include={"memory_mb", "pids", "disk_mb", "cpus"})
        self._tell({"watch": {"id": identifier, "pid": pid, "upper": upper, "since": since, **sizes}})

    def forget(self, identifier: str) -> None:
        """The sandbox is gone."""
        self._excesses.pop(identifier, None)
        if self._held:
            self._held.forget(identifier)
        self._tell({"forget": identifier})

    async def excess(self, identifier: str) -> Excess | None:
        """What the sandbox used too much of since this was asked last."""
        refused = await self._held.excess(identifier) if self._held else None
        return refused or self._excesses.pop(identifier, None)

    def _tell(self, order: dict[str, object]) -> None:
        assert self._process.stdin
        if not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout
        with suppress(ConnectionError):
            while line := await self._process.stdout.readline():
                said = json.loads(line)
                self._excesses[said["id"]] = Excess.model_validate(said["excess"])
                if self._exceeded:
                    self._exceeded(said["id"])


def of_shell(spec: SandboxSpec) -> str:
    """Commands by which a shell limits what it starts: the hard stop between two looks of the warden.

    Memory and file size per process, and processes of one user, at twice what the sandbox may have in all.
    Where the node's memory runs out, the kernel is told to take a sandbox before the server.
    """
    commands = ["echo 1000 2>/dev/null >/proc/self/oom_score_adj"]
    if spec.memory_mb:
        commands.append(f"ulimit -d {2 * spec.memory_mb * 1024}")
    if spec.disk_mb:
        commands.append(f"ulimit -f {2 * spec.disk_mb * 1024}")
    if spec.pids and _processes_are_counted_by_namespace():
        most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        commands.append(f"ulimit -u {2 * spec.pids if most == resource.RLIM_INFINITY else min(2 * spec.pids, most)}")
    return "; ".join(commands)


def _processes_are_counted_by_namespace() -> bool:
    """Since Linux 5.14. Before, RLIMIT_NPROC counts all that the user runs on the node, such as a trainer."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (5, 14)
