"""Tools that cannot run stop the run, instead of telling the policy so."""

from typing import Any

from openhands.sdk.tool import Observation, ToolDefinition, ToolExecutor
from pydantic import ValidationError

from skyrl_stack.agent.bridge import Bridge, Halted
from skyrl_stack.agent.turns import TURNS
from skyrl_stack.errors import StackError, ToolFailed


class SoundExecutor(ToolExecutor[Any, Observation]):
    """Another's executor, whose every exception is a defect: it ends the episode with a `ToolFailed`.

    OpenHands shows an exception of a tool to the policy and goes on. For one that cannot run, the policy would then
    learn to live without it, and nobody would know. Only a plain failure is told, by OpenHands' own convention: an
    observation, or a ValueError about what the policy asked for.
    """

    def __init__(self, tool: ToolDefinition[Any, Any], bridge: Bridge) -> None:
        self._tool, self._bridge = tool, bridge

    def __call__(self, action: Any, conversation: Any = None) -> Observation:
        assert self._tool.executor
        try:
            with TURNS.given_up():  # it may wait for something
                answer = self._tool.executor(action, conversation)
            wanted = self._tool.observation_type or Observation
            return answer if isinstance(answer, wanted) else wanted.model_validate(answer)
        except Halted:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and not isinstance(error, ValidationError):
                raise
            self._bridge.end(error if isinstance(error, StackError) else _failed(self._tool.name, error))
            raise Halted from error

    def interrupt(self) -> None:
        if self._tool.executor:
            self._tool.executor.interrupt()

    def close(self) -> None:
        if self._tool.executor:
            self._tool.executor.close()


def _failed(tool: str, error: Exception) -> ToolFailed:
    wrapped = ToolFailed(f"tool {tool}: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
