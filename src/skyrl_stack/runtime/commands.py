"""Commands of one sandbox in OpenHands' way: started by one call, their end fetched by others, stopped by a third."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from skyrl_stack.runtime.wire import BashOutput, BashRequest, NotRight, Unknown
from skyrl_stack.sandbox.contract import CommandResult, Sandbox

KEPT = 256
"Commands of a sandbox whose output can still be fetched."
_HOLD_S = 10.0


@dataclass(frozen=True)
class Command:
    """One command under way, or ended."""

    request: BashRequest
    task: asyncio.Task[CommandResult]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class Commands:
    """Runs commands in the sandbox; `in_use` keeps its lease while one runs."""

    def __init__(self, sandbox: Sandbox, in_use: Callable[[], AbstractContextManager[None]]) -> None:
        self._sandbox = sandbox
        self._in_use = in_use
        self._commands: OrderedDict[str, Command] = OrderedDict()

    def start(self, request: BashRequest) -> Command:
        """Start a command; `output` has its end."""
        command = Command(request, asyncio.create_task(self._run(request)))
        # A client may never ask how it ended; an error that nobody fetched is no news.
        command.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._commands[command.id] = command
        while len(self._commands) > KEPT:
            self._commands.popitem(last=False)
        return command

    async def execute(self, request: BashRequest) -> BashOutput:
        """Run a command to its end. Cancelled, it kills the command."""
        return _event(str(uuid.uuid4()), await self._run(request))

    async def output(self, command_id: str) -> BashOutput | None:
        """The end of a command, waited for a while, in OpenHands' terms; None if it still runs.

        Its client polls every 0.1 s and gives each poll as long as the command itself, so a poll is held for less.

        Raises:
            Unknown: no such command.
            SandboxLost: it went while the command ran.
        """
        command = self._get(command_id)
        hold_s = min(_HOLD_S, command.request.timeout / 2)
        done, _ = await asyncio.wait({command.task}, timeout=hold_s)
        if not done:
            return None
        if command.task.cancelled():
            result = CommandResult(exit_code=-1, stdout="", stderr="stopped")
        else:
            result = command.task.result()
        if result.timed_out:  # -1 and these words are what its client takes for a timeout
            words = f"{result.stderr}\nCommand timed out after {command.request.timeout:g} seconds"
            result = result.model_copy(update={"exit_code": -1, "stderr": words})
        return _event(command_id, result)

    async def stop(self, command_id: str) -> None:
        """Kill a command and wait until it is dead.

        Raises:
            Unknown: no such command.
        """
        task = self._get(command_id).task
        task.cancel()
        await asyncio.wait({task})

    async def stop_all(self) -> None:
        """The sandbox is going: no command waits for it any more."""
        tasks = {command.task for command in self._commands.values() if not command.task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, request: BashRequest) -> CommandResult:
        with self._in_use():
            try:
                return await self._sandbox.run(
                    request.command, timeout_s=request.timeout, shell=request.shell, cwd=request.cwd
                )
            except ValueError as error:
                raise NotRight(str(error)) from error

    def _get(self, command_id: str) -> Command:
        if command_id not in self._commands:
            raise Unknown(f"no command {command_id}; the last {KEPT} of a sandbox are kept")
        return self._commands[command_id]


def _event(command_id: str, result: CommandResult) -> BashOutput:
    return BashOutput(
        id=f"{command_id}-0", command_id=command_id, timestamp=datetime.now(UTC).isoformat(), **result.model_dump()
    )
