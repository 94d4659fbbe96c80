"""Tool calls in the text of a sampled turn: the `<tool_call>{json}</tool_call>` form of Qwen3 and Hermes."""

import json
import re
from dataclasses import dataclass
from typing import Any

_OPEN = re.compile(r"<tool_call>\s*")
_CALL_START = re.compile(r"<tool_call>|<function=|<｜tool▁calls▁begin｜>")
_CLOSE = re.compile(r"\s*</tool_call>")


class MalformedCall(ValueError):
    """A call that cannot be read; the message is for the policy."""


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """A sampled turn in its parts."""

    reasoning: str
    content: str
    "Text outside of reasoning and calls."
    calls: tuple[Call, ...]


def parse_turn(text: str) -> Turn:
    """Take a turn apart.

    Raises:
        MalformedCall: a call is not closed, not JSON, or not of the form {"name": …, "arguments": {…}}.
    """
    reasoning, text = split_reasoning(text)
    calls: list[Call] = []
    content: list[str] = []
    position = 0
    while opened := _OPEN.search(text, position):
        content.append(text[position : opened.start()])
        call, position = _read_call(text, opened.end())
        calls.append(call)
    content.append(text[position:])
    return Turn(reasoning, "".join(content).strip(), tuple(calls))


def render_call(name: str, **arguments: Any) -> str:
    """The text of a call, as the chat template writes it."""
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def split_reasoning(text: str) -> tuple[str, str]:
    """Reasoning and the rest; a template's generation prompt may have opened `<think>` already."""
    opened = text.lstrip().startswith("<think>")
    head, closed, tail = text.partition("</think>")
    if closed and (opened or not _CALL_START.search(head)):
        return head.strip().removeprefix("<think>").strip(), tail
    return (text.strip().removeprefix("<think>").strip(), "") if opened else ("", text)


def read_json(text: str, position: int) -> tuple[Any, int]:
    """The JSON value that starts at `position`, and where it ends.

    Raises:
        MalformedCall: there is none, or one that OpenHands would fail on.
    """
    try:
        value, end = json.JSONDecoder().raw_decode(text, position)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        # Also an integer of more than 4,300 digits, deep nesting, and half of a surrogate pair, written as \ud800:
        # JSON allows each, and OpenHands would fail on it.
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a value is out of bounds"
        raise MalformedCall(f"Malformed tool call: not valid JSON: {reason}") from error
    return value, end


def _read_call(text: str, position: int) -> tuple[Call, int]:
    """The call whose JSON starts at `position`, and where its closing tag ends."""
    call, end = read_json(text, position)
    closed = _CLOSE.match(text, end)
    if not closed:
        raise MalformedCall("Malformed tool call: </tool_call> is missing")
    match call:
        case {"name": str(name), "arguments": dict(arguments)}:
            return Call(name, arguments), closed.end()
    raise MalformedCall('Malformed tool call: write {"name": <function-name>, "arguments": <args-json-object>}')
