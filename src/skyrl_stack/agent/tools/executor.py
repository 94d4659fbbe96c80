"""What every tool here shares: a schema made once, and an executor that reaches the sandbox through the bridge."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from openhands.sdk.tool import Action, Observation, ToolDefinition, ToolExecutor

from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.errors import ToolFailed, attribute

if TYPE_CHECKING:
    from openhands.sdk.conversation.impl.local_conversation import LocalConversation
    from openhands.sdk.conversation.state import ConversationState


class FixedTool[A: Action, O: Observation](ToolDefinition[A, O]):
    """A tool whose words do not change, so that its schema is made once: OpenHands makes it anew for every turn."""

    def to_openai_tool(self, *args: Any, **options: Any) -> Any:
        key = (type(self), args, tuple(sorted(options.items())))
        if key not in _SCHEMAS:
            _SCHEMAS[key] = super().to_openai_tool(*args, **options)
        return _SCHEMAS[key]


_SCHEMAS: dict[Any, Any] = {}


class SandboxExecutor[A: Action, O: Observation](ToolExecutor[A, O]):
    """Carries out an action in the sandbox of its conversation, never in this process."""

    def __init__(self, state: "ConversationState") -> None:
        if not isinstance(state.workspace, LocalWorkspaceAdapter):
            raise TypeError(f"these tools need a LocalWorkspaceAdapter, not a {type(state.workspace).__name__}")
        self._workspace = state.workspace
        self._bridge = state.workspace.bridge
        self._sandbox = state.workspace.sandbox
        self._limits = state.workspace.limits

    def __call__(self, action: A, conversation: "LocalConversation | None" = None) -> O:
        return self._bridge.call("tools", self._act(action))

    async def _act(self, action: A) -> O:
        with attribute(ToolFailed, type(action).__name__):
            return await self.act(action)

    @abstractmethod
    async def act(self, action: A) -> O:
        """Do it, on the event loop. What the policy got wrong is an observation with `is_error`.

        Any exception is a failure of the tool itself: an `InfrastructureError`, or else it becomes a `ToolFailed`.
        """
