"""The `terminal` tool: a persistent bash in the sandbox."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from openhands.sdk.tool import Action, Observation
from pydantic import Field, field_validator

from skyrl_stack.agent.outcome import Ending, Outcome
from skyrl_stack.agent.tools.cap import cap_middle
from skyrl_stack.agent.tools.executor import FixedTool, SandboxExecutor
from skyrl_stack.sandbox.contract import CommandResult, Excess

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState


_MOST_EXCESSES = 3
"Of one episode, after which it ends: the policy was told twice."
_RESET = "Terminal session has been reset. All previous environment variables and session state have been cleared."
_NO_INPUT = "ERROR: No previous running command to interact with: a command runs to its end, or to its timeout."


class SandboxTerminalAction(Action):
    """One command. Field names are those of OpenHands' terminal."""

    command: str = Field(description="bash command; directory and environment last between calls")
    is_input: bool = Field(default=False, description="no command waits for input here")
    timeout: float | None = Field(default=None, ge=0, description="seconds")
    reset: bool = Field(default=False, description="begin with a new shell")

    @field_validator("command")
    @classmethod
    def _no_nul(cls, command: str) -> str:
        if "\0" in command:
            raise ValueError("a command cannot hold a NUL byte")
        return command


class SandboxTerminalObservation(Observation):
    """What the command printed."""

    exit_code: int | None = None


class SandboxTerminalExecutor(SandboxExecutor[SandboxTerminalAction, SandboxTerminalObservation]):
    """Runs the command in the sandbox's main shell, at most for the profile's time."""

    _excesses = 0

    async def act(self, action: SandboxTerminalAction) -> SandboxTerminalObservation:
        if action.is_input:
            text = "Cannot use reset=True with is_input=True" if action.reset else _NO_INPUT
            return SandboxTerminalObservation.from_text(text, is_error=True)
        if action.reset:
            await self._sandbox.run("kill -KILL $$", shell=self._workspace.shell)
            self._workspace.renew_shell()
            if not action.command:
                return SandboxTerminalObservation.from_text(_RESET)
        timeout_s = min(action.timeout or self._limits.command_timeout_s, self._limits.command_timeout_s)
        result = await self._sandbox.run(action.command, timeout_s=timeout_s, shell=self._workspace.shell)
        text = _describe(result, timeout_s=timeout_s, limit=self._limits.observation_limit_chars)
        if result.excess:
            text += f"\n[all processes were killed: {result.excess}]"
            self._count(result.excess)
        said = f"{_RESET}\n{text}" if action.reset else text
        return SandboxTerminalObservation.from_text(said, exit_code=result.exit_code)

    def _count(self, excess: Excess) -> None:
        self._excesses += 1
        if self._excesses >= _MOST_EXCESSES:
            self._bridge.end(Ending(outcome=Outcome.OUT_OF_MEMORY, detail=str(excess)))


class SandboxTerminalTool(FixedTool[SandboxTerminalAction, SandboxTerminalObservation]):
    """Named `terminal`, as OpenHands' own, which runs on the host and is not registered here."""

    name: ClassVar[str] = "terminal"

    @classmethod
    def create(cls, conv_state: "ConversationState") -> Sequence[Self]:
        return [
            cls(
                description="Run a command.",
                action_type=SandboxTerminalAction,
                observation_type=SandboxTerminalObservation,
                executor=SandboxTerminalExecutor(conv_state),
            )
        ]


def _describe(result: CommandResult, *, timeout_s: float, limit: int) -> str:
    printed = "\n".join(part.rstrip("\n") for part in (result.stdout, result.stderr) if part)
    status = f"timed out after {timeout_s:g} s and was killed" if result.timed_out else f"exit code {result.exit_code}"
    return "\n".join(part for part in (cap_middle(printed, limit), f"[{status}]") if part)
