"""Calls as the families write them that share no form with others: DeepSeek's in marks, Llama's as bare JSON."""

import json
import re
from collections.abc import Mapping
from typing import Any

from skyrl_stack.agent.calls import Call, MalformedCall, Turn, read_json, split_reasoning

Tool = dict[str, Any]

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BLOCK = re.compile(f"\\s*(?:{BEGIN}|{END})\\s*")
_MARKED_CALL = re.compile(r"\s*<｜tool▁call▁begin｜>function<｜tool▁sep｜>([^\n]*)\n```json\n")
_MARKED_CLOSE = re.compile(r"\s*```<｜tool▁call▁end｜>")
_LLAMA_CALL = re.compile(r'(?:<\|python_tag\|>)?\s*(?=\{\s*"name"\s*:)')
_LLAMA_NEXT = re.compile(r"[\s;]*")


def parse_marked(text: str) -> Turn:
    """Take a turn of DeepSeek-V3 apart.

    Raises:
        MalformedCall: a call is not closed, or its arguments are no JSON object.
    """
    reasoning, text = split_reasoning(text)
    calls: list[Call] = []
    content: list[str] = []
    position = 0
    while opened := _MARKED_CALL.search(text, position):
        content.append(text[position : opened.start()])
        arguments, end = read_json(text, opened.end())
        closed = _MARKED_CLOSE.match(text, end)
        if not closed:
            raise MalformedCall("Malformed tool call: ```<｜tool▁call▁end｜> is missing")
        if not isinstance(arguments, dict):
            raise MalformedCall("Malformed tool call: the arguments are no JSON object")
        calls.append(Call(opened[1].strip(), arguments))
        position = closed.end()
    around = "".join([*content, text[position:]])
    said = _BLOCK.sub("", around).strip()
    if around.count(BEGIN) != around.count(END) or "<｜tool▁" in said or (BEGIN in around and not calls):
        raise MalformedCall(f"Malformed tool call: write {render_marked('<function-name>', {})}")
    return Turn(reasoning, said, tuple(calls))


def render_marked(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call, as DeepSeek-V3's template writes it."""
    body = json.dumps(arguments, ensure_ascii=False)
    call = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{body}\n```<｜tool▁call▁end｜>"
    return f"{BEGIN}{call}{END}"


def describe_marked(tools: list[Tool]) -> str:
    """For the system prompt, since the template shows no tools: what can be called, and how."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return f"\n\n## Tools\n\n{described}\n\nTo call a tool, write\n{render_marked('<function-name>', {})}"


def parse_llama(text: str) -> Turn:
    """Take a turn of Llama 3 apart: a call is the end of its turn, alone or followed by more.

    Raises:
        MalformedCall: what begins as a call is none.
    """
    reasoning, text = split_reasoning(text)
    opened = _LLAMA_CALL.search(text)
    if not opened:
        return Turn(reasoning, text.strip(), ())
    calls: list[Call] = []
    position = opened.end()
    while position < len(text):
        call, end = read_json(text, position)
        match call:
            case {"name": str(name), "parameters": dict(arguments)}:
                calls.append(Call(name, arguments))
            case _:
                wanted = '{"name": <function-name>, "parameters": <args-json-object>}'
                raise MalformedCall(f"Malformed tool call: write {wanted}")
        following = _LLAMA_NEXT.match(text, end)
        position = following.end() if following else end
    return Turn(reasoning, text[: opened.start()].strip(), tuple(calls))


def render_llama(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call, as Llama 3's templates ask for it."""
    return json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)
