"""The `terminal` tool: a persistent bash in the sandbox."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from openhands.sdk.tool import Action, Observation, ToolDefinition
from pydantic import Field, field_validator

from skyrl_stack.agent.tools.cap import cap_middle
from skyrl_stack.agent.tools.executor import SandboxExecutor
from skyrl_stack.sandbox.contract import CommandResult

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState


class SandboxTerminalAction(Action):
    """One command."""

    command: str = Field(description="bash command; directory and environment last between calls")
    timeout: float | None = Field(default=None, gt=0, description="seconds")

    @field_validator("command")
    @classmethod
    def _no_nul(cls, command: str) -> str:
        if "\0" in command:
            raise ValueError("a command cannot hold a NUL byte")
        return command


class SandboxTerminalObservation(Observation):
    """What the command printed."""

    exit_code: int


class SandboxTerminalExecutor(SandboxExecutor[SandboxTerminalAction, SandboxTerminalObservation]):
    """Runs the command in the sandbox's main shell, at most for the profile's time."""

    async def act(self, action: SandboxTerminalAction) -> SandboxTerminalObservation:
        timeout_s = min(action.timeout or self._limits.command_timeout_s, self._limits.command_timeout_s)
        result = await self._sandbox.run(action.command, timeout_s=timeout_s)
        text = _describe(result, timeout_s=timeout_s, limit=self._limits.observation_limit_chars)
        return SandboxTerminalObservation.from_text(text, exit_code=result.exit_code)


class SandboxTerminalTool(ToolDefinition[SandboxTerminalAction, SandboxTerminalObservation]):
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
