"""A persistent shell of a sandbox: one long-lived /bin/bash, and a successor where it ends or is killed.

After each command the shell says where it is and what it exports, so that a successor goes on from the last command
that finished. Shell functions, options and variables that are not exported live as long as their bash.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from shlex import quote

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.contract import CommandResult
from skyrl_stack.sandbox.service import Exec, PodmanService
from skyrl_stack.sandbox.stream import CommandStreams

TIMED_OUT = 124
_OPEN_TIMEOUT_S = 30.0
_LAST_WORDS_TIMEOUT_S = 1.0
_DRIVER = (files(__package__) / "driver.bash").read_text()
KILLER = (files(__package__) / "killer.bash").read_text()
"Defines `__skyrl_kill PID MARKER`, for a shell other than the one to be killed."


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
    `kill` is awaited with the arguments of `__skyrl_kill` to end this shell and all that came of it.
    """

    def __init__(
        self,
        service: PodmanService,
        container: str,
        name: str,
        *,
        workdir: str,
        preamble: str = ":",
        output_limit: int,
        kill: Callable[[int, str], Awaitable[None]],
    ) -> None:
        self.service = service
        self.container = container
        self.name = name
        self.output_limit = output_limit
        self._preamble = preamble
        self._end_processes = kill
        self._turn = asyncio.Lock()
        self._state = _State(workdir)
        self._bash: Exec | None = None
        self._pid = 0
        self._generation = 0

    async def run(self, command: str, *, timeout_s: float, cwd: str | None = None) -> CommandResult:
        """See `Sandbox.run`; a `cwd` is a `cd` before the command, and lasts like one."""
        text = f"builtin cd -- {quote(cwd)} && builtin eval {quote(command)}" if cwd else command
        data = text.encode()
        async with self._turn:
            bash = await self._living()
            started = time.monotonic()
            try:
                return await self._run(bash, data, timeout_s, started)
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
        argv = ("/bin/bash", "--noprofile", "--norc", "-c", _DRIVER, "bash")
        bash = self._bash = await self.service.exec(self.container, argv, {"SKYRL_SHELL": self._marker})
        streams = self._send(bash, f"{self._preamble}; {self._state.restore(self._marker)}".encode())
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                how = await streams.read(bash.output)
        except TimeoutError:
            how = "silent"
        if how != "ended":
            said = f"{streams.stdout.output.text()} {streams.stderr.output.text()}".strip()
            self.close()
            await self._require_running()
            raise RuntimeError(f"/bin/bash {how} at its start: {said[-300:]}")
        self._remember(streams)
        return bash

    async def _living(self) -> Exec:
        """The bash, or a new one where it died since the last command."""
        if self._bash is None:
            return await self.open()
        if await CommandStreams("", self.output_limit).read_waiting(self._bash.output) == "closed":
            self.close()
            return await self.open()
        return self._bash

    @property
    def _marker(self) -> str:
        return f"{self.name}-{self._generation}"

    def _send(self, bash: Exec, text: bytes) -> CommandStreams:
        mark = secrets.token_hex(16)
        bash.input.write(b"%d\n%b%b\n" % (len(text), text, mark.encode()))
        return CommandStreams(mark, self.output_limit)

    async def _run(self, bash: Exec, text: bytes, timeout_s: float, started: float) -> CommandResult:
        streams = self._send(bash, text)
        try:
            async with asyncio.timeout(timeout_s):
                how = await streams.read(bash.output)
        except TimeoutError:
            await self._kill(bash, streams)
            return _result(streams, TIMED_OUT, started, timed_out=True)
        if how == "ended":
            return _result(streams, self._remember(streams), started)
        code = await self.service.exit_code(bash.id)
        self.close()
        await self._require_running()
        return _result(streams, 137 if code is None else code, started)

    def _remember(self, streams: CommandStreams) -> int:
        """Keep the state that the shell told; returns the command's exit code."""
        code, pid, directory, exports = (field.decode(errors="replace") for field in streams.stdout.record or ())
        self._pid = int(pid)
        self._state = _State(directory.removesuffix("\n"), exports)
        return int(code)

    async def _kill(self, bash: Exec, streams: CommandStreams | None = None) -> None:
        """Kill this bash and all that came of it, and take what it still had to say."""
        try:
            await self._end_processes(self._pid, self._marker)
            if streams:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_TIMEOUT_S):
                        await streams.read(bash.output)
                streams.give_up()
        finally:
            self.close()

    def close(self) -> None:
        if self._bash:
            self._bash.input.close()
        self._bash = None

    async def _require_running(self) -> None:
        if not await self.service.is_running(self.container):
            raise SandboxLost(f"sandbox {self.container} is gone")


def _result(streams: CommandStreams, code: int, started: float, *, timed_out: bool = False) -> CommandResult:
    return CommandResult(
        exit_code=code,
        stdout=streams.stdout.output.text(),
        stderr=streams.stderr.output.text(),
        timed_out=timed_out,
        truncated_bytes=streams.stdout.output.cut_bytes + streams.stderr.output.cut_bytes,
        duration_s=time.monotonic() - started,
    )
