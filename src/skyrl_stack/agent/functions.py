"""Tool calls as `<function=name><parameter=key>value</parameter></function>`: Qwen3-Coder's own form, and the form
in which OpenHands asks models for calls whose template knows no tools.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from openhands.sdk.llm.mixins.fn_call_converter import convert_tools_to_description, system_message_suffix_TEMPLATE

from skyrl_stack.agent.calls import Call, MalformedCall, Turn, split_reasoning

Tool = dict[str, Any]

_CALL = re.compile(r"(?:<tool_call>\s*)?<function=([^>\n]*)>(.*?)</function>(?:\s*</tool_call>)?", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>", re.DOTALL)


def tools_prompt(tools: list[Tool]) -> str:
    """OpenHands' own words for the system prompt: what can be called, and how."""
    return system_message_suffix_TEMPLATE.format(description=convert_tools_to_description(tools))  # type: ignore[arg-type]


def parse_functions(text: str, tools: list[Tool]) -> Turn:
    """Take a turn apart; values get the types that the tools' schemas say.

    Unlike OpenHands' reader this one keeps white space inside a value: an edit of Python depends on it.

    Raises:
        MalformedCall: a call is not closed, or a value is not of its type.
    """
    reasoning, text = split_reasoning(text)
    types = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in tools}
    calls = tuple(_read(found, types) for found in _CALL.finditer(text))
    content = _CALL.sub("", text).strip()
    if "<function=" in content:
        raise MalformedCall("Malformed tool call: </function> is missing")
    return Turn(reasoning, content, calls)


def render_function(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call."""
    lines = [f"<function={name}>"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"<parameter={key}>\n{text}\n</parameter>")
    return "\n".join([*lines, "</function>"])


def _read(found: re.Match[str], types: Mapping[str, Mapping[str, Any]]) -> Call:
    name, body = found[1].strip(), found[2]
    schemas = types.get(name, {})
    if (rest := _PARAMETER.sub("", body).strip()) and "<parameter=" in rest:
        raise MalformedCall("Malformed tool call: </parameter> is missing")
    return Call(name, {key: _typed(key, value, schemas.get(key, {})) for key, value in _PARAMETER.findall(body)})


def _typed(key: str, value: str, schema: Mapping[str, Any]) -> Any:
    kinds = {schema.get("type"), *(each.get("type") for each in schema.get("anyOf", ()))} - {None}
    if not kinds or "string" in kinds:
        return value
    try:
        typed = json.loads(value.strip().lower() if kinds & {"boolean"} else value)
        json.dumps(typed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedCall(f"Malformed tool call: parameter {key} is not of type {'/'.join(sorted(kinds))}") from error
    return typed
