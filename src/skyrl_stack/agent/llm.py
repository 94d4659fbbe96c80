"""OpenHands' language model as a stream of tokens: what is sampled is kept, what is said to it is appended."""

import asyncio
import json
import uuid
from typing import Any, Self

from litellm import ChatCompletionMessageToolCall
from litellm.types.utils import Choices, Function, ModelResponse
from litellm.types.utils import Message as ResponseMessage
from openhands.sdk import LLM
from openhands.sdk.llm.exceptions import FunctionCallValidationError, LLMContextWindowExceedError
from pydantic import PrivateAttr

from skyrl_stack.agent.bridge import Bridge
from skyrl_stack.agent.calls import MalformedCall, Turn, parse_turn
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.policy import Completion, Policy
from skyrl_stack.agent.tokens import Message, Tokenizer, TokenStream, Tool

_NOT_FOR_THE_POLICY = ("summary", "security_risk")
"Parameters that OpenHands adds to every tool for its user interface; both are optional when it reads a call."


class TokenLLM(LLM):
    """Answers OpenHands from a `Policy`, token-in and token-out. One for each conversation: it holds its stream.

    `_transport_call` is private to the SDK, whose version is therefore pinned. It is the only place that sees
    the formatted messages and tools of a call and returns a response to which the SDK still applies all
    it does to a provider's; overriding the public `completion` would mean to repeat that.
    """

    _tokens: TokenStream = PrivateAttr()
    _policy: Policy = PrivateAttr()
    _bridge: Bridge = PrivateAttr()
    _said: list[Message] = PrivateAttr(default_factory=list)
    _turns: int = PrivateAttr(default=0)

    @classmethod
    def over(cls, policy: Policy, *, tokenizer: Tokenizer, context_tokens: int, bridge: Bridge) -> Self:
        """The model of one episode."""
        llm = cls(
            model="openai/policy",
            usage_id="policy",
            native_tool_calling=True,
            max_input_tokens=context_tokens,
            num_retries=0,
            caching_prompt=False,
            disable_vision=True,
            input_cost_per_token=0.0,
            output_cost_per_token=0.0,
        )
        llm._tokens = TokenStream(tokenizer, context_tokens=context_tokens)
        llm._policy, llm._bridge = policy, bridge
        return llm

    @property
    def tokens(self) -> TokenStream:
        return self._tokens

    @property
    def turns(self) -> int:
        """Turns sampled so far."""
        return self._turns

    def _transport_call(self, *, messages: list[Message], tools: list[Tool] | None = None, **_: Any) -> ModelResponse:
        self._hear(messages, tools)
        if self._tokens.room <= 0:
            raise self._overflow()
        completion = self._bridge.call(
            "model", self._policy.sample(list(self._tokens.ids), max_tokens=self._tokens.room)
        )
        self._tokens.append_sampled(completion)
        self._turns += 1
        turn = self._read(completion)
        if completion.stop_reason == "length" and not turn.calls and self._tokens.room <= 0:
            raise self._overflow()
        return _response(turn)

    async def _atransport_call(self, **kwargs: Any) -> ModelResponse:
        return await asyncio.to_thread(self._transport_call, **kwargs)  # the bridge waits for the loop

    def _hear(self, messages: list[Message], tools: list[Tool] | None) -> None:
        """Append what the environment said since the last turn.

        Only its messages count, not their position: OpenHands drops a turn whose call is malformed from its
        history, and keeps the error message. The sampled turn stays in the stream.
        """
        said = [entry for message in messages if message["role"] != "assistant" for entry in _plain(message)]
        known = len(self._said)
        if said[:known] != self._said:
            raise RuntimeError("OpenHands rewrote the history of the conversation; its tokens cannot be")
        if known:
            self._tokens.append_messages(said[known:])
        else:
            self._tokens.open(said, [_for_policy(tool) for tool in tools or ()])
        self._said = said

    def _read(self, completion: Completion) -> Turn:
        try:
            return parse_turn(self._tokens.text(completion))
        except MalformedCall as error:
            raise FunctionCallValidationError(str(error)) from error

    def _overflow(self) -> LLMContextWindowExceedError:
        self._bridge.end(Outcome.CONTEXT_EXCEEDED)
        return LLMContextWindowExceedError(f"the context of {self.max_input_tokens} tokens is full")


def _plain(message: Message) -> list[Message]:
    """Role and text of a message, which is all that a chat template shows.

    Each part of a user's message counts as a message: once the turn between them is dropped, OpenHands joins two
    messages of the user into one of two parts.
    """
    role, content = message["role"], message.get("content") or ""
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    texts = parts if role == "user" else ["\n".join(parts)]
    return [{"role": role, "content": text} for text in texts]


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


def _response(turn: Turn) -> ModelResponse:
    calls = [
        ChatCompletionMessageToolCall(
            id=f"call-{uuid.uuid4().hex}",
            type="function",
            function=Function(name=call.name, arguments=json.dumps(call.arguments)),
        )
        for call in turn.calls
    ]
    message = ResponseMessage(role="assistant", content=turn.content, tool_calls=calls or None)
    if turn.reasoning:
        message.reasoning_content = turn.reasoning
    return ModelResponse(choices=[Choices(index=0, finish_reason="tool_calls" if calls else "stop", message=message)])
