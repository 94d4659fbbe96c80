"""The `finish` tool: OpenHands' own, described in one line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from openhands.sdk.tool.builtins.finish import FinishTool

from skyrl_stack.agent.tools.executor import FixedTool

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState


class BriefFinishTool(FixedTool, FinishTool):
    """OpenHands ends the conversation after the tool of this name."""

    name: ClassVar[str] = FinishTool.name

    @classmethod
    def create(cls, conv_state: "ConversationState | None" = None, **params: Any) -> Sequence[Self]:
        (tool,) = super().create(conv_state, **params)
        return [tool.model_copy(update={"description": "End the work."})]
