"""What happened in a conversation, in order, for people: OpenHands' events as small records."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Literal

from openhands.sdk.event import ActionEvent, AgentErrorEvent, MessageEvent, ObservationEvent, SystemPromptEvent
from openhands.sdk.event.condenser import Condensation
from openhands.sdk.event.conversation_error import ConversationErrorEvent
from openhands.sdk.llm import content_to_str
from pydantic import BaseModel, ConfigDict

Kind = Literal["system", "message", "call", "answer", "error", "condensed", "end"]


class Event(BaseModel):
    """One event. Turns that OpenHands drops, as one with a malformed call, are in the trajectory only."""

    model_config = ConfigDict(frozen=True)

    at: float
    "Seconds since the epoch."
    kind: Kind
    source: str
    "`agent` is the policy; `user` and `environment` are what it is told."
    tool: str | None = None
    text: str
    reasoning: str = ""


def told(events: Iterable[Any]) -> Iterator[Event]:
    """The records of OpenHands' events; those of its own bookkeeping are left out."""
    for event in events:
        match event:
            case SystemPromptEvent():
                yield _event(event, "system", event.system_prompt.text)
            case MessageEvent():
                reasoning = event.llm_message.reasoning_content or ""
                yield _event(event, "message", _text(event.llm_message.content), reasoning=reasoning)
            case ActionEvent():
                text = "\n".join(part for part in (_text(event.thought), event.tool_call.arguments) if part)
                yield _event(event, "call", text, tool=event.tool_name, reasoning=event.reasoning_content or "")
            case ObservationEvent():
                yield _event(event, "answer", _text(event.observation.to_llm_content), tool=event.tool_name)
            case AgentErrorEvent():
                yield _event(event, "error", event.error, tool=event.tool_name)
            case Condensation():
                yield _event(event, "condensed", event.summary or "")
            case ConversationErrorEvent():
                yield _event(event, "end", f"{event.code}: {event.detail}")


def _event(event: Any, kind: Kind, text: str, **facts: Any) -> Event:
    at = datetime.fromisoformat(event.timestamp).timestamp()
    return Event(at=at, kind=kind, source=event.source, text=text, **facts)


def _text(content: Any) -> str:
    return "\n".join(content_to_str(content))
