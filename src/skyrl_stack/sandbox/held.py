"""Sizes that the kernel holds, as the server sees them: a cgroup for each sandbox, and news of what it was refused."""

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from skyrl_stack.sandbox.cgroups import (
    Held,
    LaunchGroup,
    NotDelegated,
    SandboxGroup,
    delegated,
    launch_group,
)
from skyrl_stack.sandbox.contract import Excess, SandboxSpec
from skyrl_stack.sandbox.namespaces import id_map
from skyrl_stack.sandbox.storage import name_cgroup, named_cgroup
from skyrl_stack.sandbox.syscalls import ask_for_news, open_news, read_news

LOG = logging.getLogger(__name__)
_DEATH_TIMEOUT_S = 10.0
_FIELDS: dict[Held, str] = {"memory": "memory_mb", "processes": "pids", "cpus": "cpus"}


@dataclass
class _Sandbox:
    """What is known of a sandbox."""

    group: SandboxGroup
    memory_mb: int | None
    pids: int | None
    seen: dict[Held, int] = field(default_factory=dict)
    "Refusals that were told, or were of what is dead."
    news: Excess | None = None
    dying: asyncio.Task[None] | None = None
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    "There were news of it."


class HeldSizes:
    """Holds a launch's sandboxes to their sizes, as far as its cgroup can; `close` it after the cell.

    `news` is of inotify's, and closed here.
    """

    def __init__(self, group: LaunchGroup, news: int) -> None:
        self.group = group
        self._sandboxes: dict[str, _Sandbox] = {}
        self._files: dict[int, str] = {}
        "By the number under which its news come: whose sandbox's file it is."
        self._news = news
        self._listening: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        """Remove the cgroups, with all that is left in them. From a thread or the loop."""
        os.close(self._news)
        self.group.close()

    def listen(self) -> None:
        """Hear of refusals, from the loop of the caller, until `deafen`."""
        self._listening = asyncio.get_running_loop()
        self._listening.add_reader(self._news, self._hear)

    def deafen(self) -> None:
        """Before `close`, and where `listen` was called."""
        if self._listening:
            self._listening.remove_reader(self._news)

    def watch(self, identifier: str, spec: SandboxSpec) -> SandboxSpec:
        """Hold a sandbox, in which nothing runs but process 1, to its sizes; returns what it is not held to.

        Raises:
            RuntimeError: its cgroup cannot be made.
        """
        held = {_FIELDS[size]: getattr(spec, _FIELDS[size]) for size in self.group.held}
        sizes = {"memory_mb": None, "pids": None, "cpus": None} | held
        try:
            group = self.group.make(identifier, **sizes)
            sandbox = _Sandbox(group, sizes["memory_mb"], sizes["pids"], group.refusals())
            self._sandboxes[identifier] = sandbox
            for name in ("cgroup.events", "memory.events", "pids.events"):
                if (group.path / name).exists():
                    self._files[ask_for_news(self._news, str(group.path / name))] = identifier
        except OSError as error:
            raise RuntimeError(f"cgroup of {identifier}: {error}") from error
        return spec.model_copy(update=dict.fromkeys(held))

    def forget(self, identifier: str) -> None:
        """The sandbox is gone."""
        if sandbox := self._sandboxes.pop(identifier, None):
            self._files = {number: name for number, name in self._files.items() if name != identifier}
            sandbox.group.remove()  # the kernel forgets whom to tell of its files

    async def excess(self, identifier: str) -> Excess | None:
        """What the sandbox used too much of since this was asked last. All that did is dead by now."""
        sandbox = self._sandboxes.get(identifier)
        if sandbox is None:
            return None
        self._look(sandbox)
        if sandbox.dying:
            await asyncio.shield(sandbox.dying)
        news, sandbox.news = sandbox.news, None
        return news

    def _hear(self) -> None:
        for number in read_news(self._news):
            if sandbox := self._sandboxes.get(self._files.get(number, "")):
                sandbox.stirred.set()
                self._look(sandbox)

    def _look(self, sandbox: _Sandbox) -> None:
        """Kill a sandbox that was refused something since the last look, and remember why."""
        if sandbox.dying and not sandbox.dying.done():
            return  # those that die may still be refused something
        refused = sandbox.group.refusals()
        grown = {size for size, count in refused.items() if count > sandbox.seen.get(size, 0)}
        if "memory" in grown and sandbox.memory_mb:
            sandbox.news = _refused("memory", sandbox.memory_mb)
        elif "processes" in grown and sandbox.pids and sandbox.group.was_full:
            sandbox.news = _refused("processes", sandbox.pids)
        else:
            sandbox.seen = refused
            return
        with suppress(OSError):  # removed meanwhile
            sandbox.group.kill()
        sandbox.dying = asyncio.create_task(self._bury(sandbox))

    async def _bury(self, sandbox: _Sandbox) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_TIMEOUT_S):
                while not sandbox.group.is_empty:
                    sandbox.stirred.clear()
                    await sandbox.stirred.wait()
        sandbox.seen = sandbox.group.refusals()


def hold_sizes(launch_id: str, directory: Path) -> HeldSizes | str:
    """Sizes held for a launch, or why the node's kernel cannot. The private directory says where the cgroup is."""
    try:
        parent, news = delegated(), open_news()
    except (NotDelegated, OSError) as reason:
        return str(reason)
    try:
        name_cgroup(directory, launch_group(parent, launch_id))
        return HeldSizes(LaunchGroup.begin(parent, launch_id, id_map().root), news)
    except NotDelegated as reason:
        os.close(news)
        return str(reason)


def found_sizes(directory: Path) -> HeldSizes | None:
    """Sizes that a server before this one held, of a launch with this private directory."""
    group = named_cgroup(directory)
    if group is None or not group.is_dir():
        return None
    return HeldSizes(LaunchGroup(group, id_map().root), open_news())


def who_enforces(held: HeldSizes | str) -> str:
    """On one line; what `hold_sizes` returned."""
    if isinstance(held, str):
        return f"the warden enforces {', '.join([*_FIELDS, 'disk'])}, for no cgroup is delegated: {held}"
    left = [size for size in _FIELDS if size not in held.group.held]
    return f"cgroups enforce {', '.join(held.group.held)}, the warden {', '.join([*left, 'disk'])}"


def _refused(resource: Held, allowed: int) -> Excess:
    """The kernel lets nobody go over: what was in use, with what was refused, is more by less than one."""
    return Excess.model_validate({"resource": resource, "used": allowed + 1, "allowed": allowed})
