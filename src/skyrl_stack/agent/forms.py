"""How a model is told of its tools, writes its calls and is answered: by its chat template, or by the prompt."""

from typing import Any, Literal, Protocol

from skyrl_stack.agent.calls import Turn, parse_turn, render_call
from skyrl_stack.agent.functions import parse_functions, render_function, tools_prompt
from skyrl_stack.agent.native import describe_marked, parse_llama, parse_marked, render_llama, render_marked
from skyrl_stack.agent.tokens import Message, Tokenizer, Tool

FormName = Literal["json", "function", "deepseek", "llama", "prompt"]

_PROBE: Tool = {
    "type": "function",
    "function": {"name": "probe_tool", "description": "x", "parameters": {"type": "object", "properties": {}}},
}
_QUESTION: Message = {"role": "user", "content": "?"}
_ANSWERED: list[Message] = [{"role": "assistant", "content": "x"}, {"role": "tool", "content": "y"}]


class CallForm(Protocol):
    """The form of one conversation."""

    def opening(self, messages: list[Message], tools: list[Tool]) -> tuple[list[Message], list[Tool] | None]:
        """The first messages as the template is given them, and the tools if it shows them itself."""
        ...

    def answers(self, messages: list[Message]) -> list[Message]:
        """What the environment said, as the template is given it."""
        ...

    def parse(self, text: str) -> Turn:
        """Take a sampled turn apart.

        Raises:
            MalformedCall: a call cannot be read.
        """
        ...

    def render(self, name: str, arguments: dict[str, Any]) -> str:
        """A call as text, for a history that is told anew."""
        ...


class JsonForm:
    """Native calls of Qwen3, Qwen2.5 and Hermes: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

    def opening(self, messages: list[Message], tools: list[Tool]) -> tuple[list[Message], list[Tool] | None]:
        return messages, tools or None

    def answers(self, messages: list[Message]) -> list[Message]:
        return messages

    def parse(self, text: str) -> Turn:
        return parse_turn(text)

    def render(self, name: str, arguments: dict[str, Any]) -> str:
        return render_call(name, **arguments)


class FunctionForm(JsonForm):
    """Native calls of Qwen3-Coder: `<tool_call><function=…>…</function></tool_call>`."""

    def __init__(self) -> None:
        self._tools: list[Tool] = []

    def opening(self, messages: list[Message], tools: list[Tool]) -> tuple[list[Message], list[Tool] | None]:
        self._tools = tools or self._tools
        return super().opening(messages, tools)

    def parse(self, text: str) -> Turn:
        return parse_functions(text, self._tools)

    def render(self, name: str, arguments: dict[str, Any]) -> str:
        return f"<tool_call>\n{render_function(name, arguments)}\n</tool_call>"


class LlamaForm(JsonForm):
    """Native calls of Llama 3.1 and later: a turn of bare JSON, `{"name": …, "parameters": …}`."""

    def parse(self, text: str) -> Turn:
        return parse_llama(text)

    def render(self, name: str, arguments: dict[str, Any]) -> str:
        return render_llama(name, arguments)


class DeepSeekForm(JsonForm):
    """Native calls of DeepSeek-V3, whose template knows calls and answers; the system prompt describes the tools."""

    def opening(self, messages: list[Message], tools: list[Tool]) -> tuple[list[Message], list[Tool] | None]:
        return (_with_system(messages, describe_marked(tools)) if tools else messages), None

    def parse(self, text: str) -> Turn:
        return parse_marked(text)

    def render(self, name: str, arguments: dict[str, Any]) -> str:
        return render_marked(name, arguments)


class PromptForm(FunctionForm):
    """Any model: the system prompt describes the tools, `<function=…>` calls them, the user's turn answers."""

    def opening(self, messages: list[Message], tools: list[Tool]) -> tuple[list[Message], list[Tool] | None]:
        self._tools = tools or self._tools
        return _with_system(self.answers(messages), tools_prompt(self._tools) if self._tools else ""), None

    def answers(self, messages: list[Message]) -> list[Message]:
        """One message of the user for all that follows a turn: many templates refuse two in a row."""
        joined: list[Message] = []
        for message in messages:
            role, content = message["role"], message["content"]
            if role == "tool":
                role, content = "user", f"EXECUTION RESULT of [{message.get('name', 'function')}]:\n{content}"
            if joined and joined[-1]["role"] == role == "user":
                joined[-1] = {"role": role, "content": f"{joined[-1]['content']}\n\n{content}"}
            else:
                joined.append({"role": role, "content": content})
        return joined

    def render(self, name: str, arguments: dict[str, Any]) -> str:
        return render_function(name, arguments)


def form_of(tokenizer: Tokenizer, wanted: FormName | Literal["auto"] = "auto") -> CallForm:
    """The form that is `wanted`; `auto` is the chat template's own where it is known here, else the prompt's."""
    name = _detected(tokenizer) if wanted == "auto" else wanted
    forms: dict[FormName, type[JsonForm]] = {
        "json": JsonForm,
        "function": FunctionForm,
        "deepseek": DeepSeekForm,
        "llama": LlamaForm,
        "prompt": PromptForm,
    }
    return forms[name]()


def _with_system(messages: list[Message], words: str) -> list[Message]:
    """`messages` with `words` at the end of their system prompt."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{"role": "system", "content": messages[0]["content"] + words}, *messages[1:]]


def _detected(tokenizer: Tokenizer) -> FormName:
    text = _shown(tokenizer, [_QUESTION], [_PROBE])
    if "<｜Assistant｜>" in text and "<｜tool▁output▁begin｜>" in _shown(tokenizer, [_QUESTION, *_ANSWERED], None):
        return "deepseek"
    if "probe_tool" not in text:
        return "prompt"
    if '"parameters": dictionary of argument name' in text:
        return "llama"
    if "<tool_call>" not in text:
        return "prompt"
    return "function" if "<function=" in text else "json"


def _shown(tokenizer: Tokenizer, messages: list[Message], tools: list[Tool] | None) -> str:
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
