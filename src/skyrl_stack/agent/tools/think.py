"""The `think` tool: OpenHands' own, described in one line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from openhands.sdk.tool.builtins.think import ThinkTool

from skyrl_stack.agent.tools.executor import FixedTool

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState


class BriefThinkTool(FixedTool, ThinkTool):
    """Changes nothing: a place for a thought, in the trajectory."""

    name: ClassVar[str] = ThinkTool.name

    @classmethod
    def create(cls, conv_state: "ConversationState | None" = None, **params: Any) -> Sequence[Self]:
        (tool,) = super().create(conv_state, **params)
        return [tool.model_copy(update={"description": "Note a thought. Changes nothing."})]
