"""OpenHands' messages ⇄ token streams: the trajectories of one episode, linked where its history was told anew.

    stream 0   prompt · sampled · said · sampled · said … sampled
    stream 1   prompt = the history as it is told from here on · sampled …

Within a stream prompt[t+1] starts with prompt[t] + response[t]. What was sampled is never rewritten: a condensed
history, or one whose reasoning is left out, is the prompt of a new stream.
"""

import json
from collections.abc import Callable
from typing import Any

from skyrl_stack.agent.calls import Turn, split_reasoning
from skyrl_stack.agent.forms import CallForm
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Message, Tokenizer, TokenStream, Tool, Trajectory

_NOT_FOR_THE_POLICY = ("summary", "security_risk")
"Parameters that OpenHands adds to every tool for its user interface; both are optional when it reads a call."
Notice = Callable[[TokenStream], str | None]
"Words for the end of what the environment says next, if there is something to tell."


class Dialogue:
    """One episode as the policy sees it."""

    def __init__(
        self, tokenizer: Tokenizer, *, context_tokens: int, form: CallForm, strip_reasoning: bool, notice: Notice
    ) -> None:
        self.form = form
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._strip_reasoning = strip_reasoning
        self._notice = notice
        self._tools: list[Tool] = []
        self._shown_tools: list[Tool] | None = None
        "Those that the template shows; none where the prompt does."
        self._said: list[Message] = []
        "What OpenHands' history holds of the environment's messages, as far as the stream does."
        self._told: list[Message] = []
        "All messages as the template would be given them, turns without their reasoning."
        self._reasoned = False
        self._streams: list[TokenStream] = []

    @property
    def stream(self) -> TokenStream:
        """The one that goes on."""
        return self._streams[-1]

    def hear(self, messages: list[Message], tools: list[Tool] | None) -> None:
        """Take in what the environment said since the last turn.

        Only its messages count, not their position: OpenHands drops a turn whose call is malformed from its
        history, and keeps the error message. The sampled turn stays in the stream.
        """
        said = [entry for message in messages if message["role"] != "assistant" for entry in _plain(message)]
        if not self._streams:
            self._tools = [_for_policy(tool) for tool in tools or ()]
            self._open(said)
        elif said[: len(self._said)] == self._said:
            self._answer(said[len(self._said) :])
        else:
            self._open([self._retold(entry) for message in messages for entry in _plain(message)])
        self._said = said

    def sampled(self, completion: Completion) -> Turn:
        """Take in a turn of the policy, and take it apart.

        Raises:
            MalformedCall: a call cannot be read; the turn is in the stream all the same.
        """
        self.stream.append_sampled(completion)
        text = self.stream.text(completion)
        reasoning, visible = split_reasoning(text)
        self._reasoned = bool(reasoning)
        self._told = [*self._told, {"role": "assistant", "content": visible.strip()}]
        return self.form.parse(text)

    def trajectories(self) -> list[Trajectory]:
        """What was sampled, in order; a stream in which nothing was is left out, unless there is no other."""
        trajectories = [stream.trajectory() for stream in self._streams]
        return [each for each in trajectories if each.response_ids] or trajectories[:1]

    def _open(self, messages: list[Message]) -> None:
        opening, self._shown_tools = self.form.opening(messages, self._tools)
        self._told = list(opening)
        self._begin_stream()

    def _begin_stream(self) -> None:
        stream = TokenStream(self._tokenizer, context_tokens=self._context_tokens)
        stream.open(self._told, self._shown_tools)
        self._streams.append(stream)

    def _answer(self, said: list[Message]) -> None:
        if not said:
            return
        answers = [dict(message) for message in self.form.answers(said)]
        if told := self._notice(self.stream):
            answers[-1]["content"] += f"\n\n[{told}]"
        self._told = [*self._told, *answers]
        if self._strip_reasoning and self._reasoned:
            self._begin_stream()
        else:
            self.stream.append_messages(answers)

    def _retold(self, message: Message) -> Message:
        """A message of a history that was rewritten; a turn's calls are written out in their form."""
        calls = [
            self.form.render(call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ]
        content = "\n".join(part for part in (message["content"], *calls) if part)
        return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}


def _plain(message: Message) -> list[Message]:
    """Role and text of a message, which is all that a chat template shows.

    Each part of a user's message counts as a message: once the turn between them is dropped, OpenHands joins two
    messages of the user into one of two parts.
    """
    role, content = message["role"], message.get("content") or ""
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    texts = parts if role == "user" else ["\n".join(parts)]
    kept: dict[str, Any] = {key: message[key] for key in ("name", "tool_calls") if message.get(key)}
    return [{"role": role, "content": text} | kept for text in texts]


def _for_policy(tool: Tool) -> Tool:
    """A tool's schema without what serves OpenHands only; every episode's prompt holds it."""
    function = tool["function"]
    parameters = function["parameters"]
    properties = {
        name: {key: value for key, value in schema.items() if key != "title"}
        for name, schema in parameters["properties"].items()
        if name not in _NOT_FOR_THE_POLICY
    }
    required = [name for name in parameters.get("required", ()) if name in properties]
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function["description"],
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }
