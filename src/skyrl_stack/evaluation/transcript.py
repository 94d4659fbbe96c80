"""Transcript: a tokenizer for models whose tokens nobody knows, so that they play the same episodes as our own.

A model behind a chat API takes and gives text. Here a token is up to four characters, which is what tokens of English
and code come to on average: contexts and counts are estimates, texts are exact. Messages are set as Qwen3 sets them.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from skyrl_stack.agent.tokens import Message, Tool

CHARACTERS = 4
START, END = "<|im_start|>", "<|im_end|>"
_MARKS = {START: -1, END: -2}
_NAMES = {token: mark for mark, token in _MARKS.items()}
_MESSAGE = re.compile(rf"{re.escape(START)}(\w+)\n(.*?){re.escape(END)}\n?", re.DOTALL)
TOOLS = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class TranscriptTokenizer:
    """See `agent.tokens.Tokenizer`. A token is its characters' code points, in base 2²¹."""

    eos_token_id = _MARKS[END]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        for part in re.split(rf"({re.escape(START)}|{re.escape(END)})", text):
            if part in _MARKS:
                ids.append(_MARKS[part])
            else:
                ids += [_pack(part[at : at + CHARACTERS]) for at in range(0, len(part), CHARACTERS)]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(_NAMES[token] if token in _NAMES else _unpack(token) for token in token_ids)

    def apply_chat_template(
        self, conversation: list[Message], *, tools: list[Tool] | None, add_generation_prompt: bool, tokenize: bool
    ) -> Any:
        text = ""
        for index, message in enumerate(conversation):
            role, content = message["role"], message["content"]
            if role == "tool":
                role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if index == 0 and tools:
                content += TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
            text += f"{START}{role}\n{content}{END}\n"
        return text + (f"{START}assistant\n" if add_generation_prompt else "")


def messages_of(transcript: str) -> list[Message]:
    """The messages of a prompt, as a chat API takes them; neighbours of one role are joined, for some APIs ask so."""
    messages: list[Message] = []
    for role, content in _MESSAGE.findall(transcript):
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{content}"
        else:
            messages.append({"role": role, "content": content})
    return messages


def _pack(text: str) -> int:
    """The highest digit is 1, so that no character is lost and every number is positive."""
    number = 1
    for character in text:
        number = number << 21 | ord(character)
    return number


def _unpack(number: int) -> str:
    text = ""
    while number > 1:
        text = chr(number & 0x1FFFFF) + text
        number >>= 21
    return text
