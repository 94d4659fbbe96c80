"""A persistent shell of a sandbox: one long-lived /bin/bash, and a successor where it ends or is killed.

After each command the shell says where it is and what it exports, so that a successor goes on from the last command
that finished. Shell functions, options and variables that are not exported live as long as their bash. That may be
longer than the server does: the keeper holds its pipes, and the next server goes on with it. A command that was under
way is killed then, with its bash, for nobody could tell any more how it ended.
"""

import asyncio
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from shlex import quote

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.containers import Exec, attach
from skyrl_stack.sandbox.contract import CommandResult
from skyrl_stack.sandbox.engine import Engine
from skyrl_stack.sandbox.keeping import UNKEPT, Kept, Store
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.stream import CommandStreams

TIMED_OUT = 124
KILLED = 128 + signal.SIGKILL
KEPT = "shell"
"Below this key shells are kept for a server after this one, by sandbox and name."
_OPEN_TIMEOUT_S = 60.0
_LAST_WORDS_TIMEOUT_S = 1.0
_DRIVER = (files(__package__) / "driver.bash").read_text()


@dataclass(frozen=True)
class _State:
    """What a successor starts from."""

    directory: str
    exports: str = ""
    "Commands that declare what the shell exported; bash's own `declare -px`."

    def restore(self, marker: str) -> str:
        exports = f"unset $(compgen -e); {self.exports}\n" if self.exports else ""
        return f"{exports}export SKYRL_SHELL={quote(marker)}; builtin cd -- {quote(self.directory)}"


class Shell:
    """The shell `name` of a container. One command at a time; others wait for it.

    `preamble` is run first in each bash.
    """

    def __init__(
        self,
        containers: Engine,
        container: str,
        name: str,
        *,
        description: Description,
        preamble: str = ":",
        output_limit: int,
        store: Store = UNKEPT,
    ) -> None:
        self.containers = containers
        self.container = container
        self.name = name
        self.output_limit = output_limit
        self._preamble = preamble
        self._turn = asyncio.Lock()
        self._description = description
        self._state = _State(description.workdir)
        self._bash: Exec | None = None
        self._generation = 0
        self._store = store

    async def run(self, command: str, *, timeout_s: float, cwd: str | None = None) -> CommandResult:
        """See `Sandbox.run`; a `cwd` is a `cd` before the command, and lasts like one."""
        text = f"builtin cd -- {quote(cwd)} && builtin eval {quote(command)}" if cwd else command
        data = text.encode()
        async with self._turn:
            streams = CommandStreams(self.output_limit)
            bash = await self._living(streams)
            self._keep(is_busy=True)
            try:
                return await self._run(bash, streams, data, timeout_s)
            except (asyncio.CancelledError, ValueError, OSError):
                await asyncio.shield(self._kill(bash))
                raise

    async def open(self) -> Exec:
        """Start a bash where the last one ended.

        Raises:
            SandboxLost: the container is gone.
            RuntimeError: it cannot be started, as when the image has no /bin/bash.
        """
        self._generation += 1
        argv = ["/bin/bash", "--noprofile", "--norc", "-c", _DRIVER, "bash"]
        process = self._description.process(argv, {"SKYRL_SHELL": self._marker})
        restore = f"{self._preamble}; {self._state.restore(self._marker)}"
        bash: Exec | None = None
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                bash = await self.containers.execute(self.container, process)
                streams = CommandStreams(self.output_limit)
                _send(bash, restore.encode(), streams)
                how = await streams.read(bash.output)
            if how != "ended":
                await self._require_running()
                raise RuntimeError(f"/bin/bash ended at its start: {streams.words()}")
        except BaseException as error:
            if bash:
                bash.close()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"/bin/bash did not start within {_OPEN_TIMEOUT_S:g} s") from error
            raise
        self._bash = bash
        self._remember(streams)
        self._keep(bash.descriptors)
        return bash

    async def go_on(self, kept: Kept) -> None:
        """Be what a server before this one put away, with its bash, unless that was in the middle of a command.

        Raises:
            SandboxLost: the container is gone.
            RuntimeError: what the command started does not let itself be killed.
        """
        record = kept.data
        self._state, self._generation = _State(record["directory"], record["exports"]), record["generation"]
        if kept.descriptors:
            self._bash = await attach(record["pid"], kept.descriptors)
            if record["is_busy"]:
                await self._kill(self._bash)

    async def _living(self, streams: CommandStreams) -> Exec:
        """The bash, or a new one where it died since the last command.

        What background processes said since then belongs to the output of the next command, as on a terminal.
        """
        if self._bash and await streams.read_waiting(self._bash.output) == "open":
            return self._bash
        self.close()
        return await self.open()

    @property
    def _marker(self) -> str:
        return f"shell-{self.name}-{self._generation}"

    async def _run(self, bash: Exec, streams: CommandStreams, text: bytes, timeout_s: float) -> CommandResult:
        started = time.monotonic()
        _send(bash, text, streams)
        try:
            async with asyncio.timeout(timeout_s):
                how = await streams.read(bash.output)
        except TimeoutError:
            await self._kill(bash, streams)
            return _result(streams, TIMED_OUT, started, timed_out=True)
        if how == "ended":
            code = self._remember(streams)
            self._keep()
            return _result(streams, code, started)
        code = await self.containers.exit_code(bash)
        self.close()
        await self._require_running()
        return _result(streams, KILLED if code is None else code, started)

    def _remember(self, streams: CommandStreams) -> int:
        """Keep the state that the shell told; returns the command's exit code."""
        code, directory, exports = (field.decode(errors="replace") for field in streams.stdout.record or ())
        self._state = _State(directory.removesuffix("\n"), exports)
        return int(code)

    def _keep(self, descriptors: Sequence[int] | None = None, *, is_busy: bool = False) -> None:
        """Put away what a server after this one needs, with the `descriptors` of the bash where that is another."""
        record = {"generation": self._generation, "pid": self._bash and self._bash.pid, "is_busy": is_busy}
        self._store.put(f"{KEPT}/{self.container}/{self.name}", {**vars(self._state), **record}, descriptors)

    async def _kill(self, bash: Exec, streams: CommandStreams | None = None) -> None:
        """Kill this bash and all that came of it, and take what it still had to say."""
        try:
            await self.containers.kill(self.container, bash.pid, self._marker)
            if streams:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_TIMEOUT_S):
                        await streams.read(bash.output)
                streams.give_up()
        finally:
            self.close()

    def close(self) -> None:
        bash, self._bash = self._bash, None
        if bash:
            bash.close()
            self._keep(())

    async def _require_running(self) -> None:
        if not await self.containers.is_running(self.container):
            raise SandboxLost(f"sandbox {self.container} is gone")


def _send(bash: Exec, text: bytes, streams: CommandStreams) -> None:
    """Hand `text` to the driver; the mark comes behind it, where the command cannot know it."""
    bash.input.write(b"%d\n%b%b\n" % (len(text), text, streams.mark))


def _result(streams: CommandStreams, code: int, started: float, *, timed_out: bool = False) -> CommandResult:
    return CommandResult(
        exit_code=code,
        stdout=streams.stdout.output.text(),
        stderr=streams.stderr.output.text(),
        timed_out=timed_out,
        truncated_bytes=streams.stdout.output.cut_bytes + streams.stderr.output.cut_bytes,
        duration_s=time.monotonic() - started,
    )
