"""Condensation without a second model: the middle of a long history is left out, and a line says so."""

from openhands.sdk.context.condenser import RollingCondenser
from openhands.sdk.context.condenser.base import CondensationRequirement, NoCondensationAvailableException
from openhands.sdk.context.view import View
from openhands.sdk.event.condenser import Condensation
from openhands.sdk.llm import LLM

_KEPT_FIRST = 2
"The system prompt and the task."


class MiddleOut(RollingCondenser):
    """Forgets the older half of what follows the task, when it is asked to."""

    def handles_condensation_requests(self) -> bool:
        return True

    def condensation_requirement(self, view: View, agent_llm: LLM | None = None) -> CondensationRequirement | None:
        return CondensationRequirement.HARD if view.unhandled_condensation_request else None

    def get_condensation(self, view: View, agent_llm: LLM | None = None) -> Condensation:
        """Raises: NoCondensationAvailableException: there is nothing between the task and the last turn."""
        indices = view.manipulation_indices  # a call and its answer stay together
        first = indices.find_next(_KEPT_FIRST)
        last = indices.find_next(max(first, (len(view) + first) // 2))
        forgotten = view[first:last]
        if not forgotten or last >= len(view):
            raise NoCondensationAvailableException("there is no middle to leave out")
        return Condensation(
            forgotten_event_ids={event.id for event in forgotten},
            summary=f"{len(forgotten)} earlier calls and answers are left out here.",
            summary_offset=first,
            llm_response_id="none",
        )
