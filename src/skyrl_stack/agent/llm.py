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

from skyrl_stack.agent.bridge import Bridge, Halted
from skyrl_stack.agent.calls import MalformedCall, Turn
from skyrl_stack.agent.dialogue import Dialogue
from skyrl_stack.agent.forms import form_of
from skyrl_stack.agent.outcome import Ending, Outcome
from skyrl_stack.agent.policy import Completion, Policy
from skyrl_stack.agent.tokens import Message, Tokenizer, TokenStream, Tool
from skyrl_stack.agent_section import AgentSection


class TokenLLM(LLM):
    """Answers OpenHands from a `Policy`, token-in and token-out. One for each conversation: it holds its dialogue.

    `_transport_call` is private to the SDK, whose version is therefore pinned. It is the only place that sees
    the formatted messages and tools of a call and returns a response to which the SDK still applies all
    it does to a provider's; overriding the public `completion` would mean to repeat that.
    """

    _dialogue: Dialogue = PrivateAttr()
    _policy: Policy = PrivateAttr()
    _bridge: Bridge = PrivateAttr()
    _limits: AgentSection = PrivateAttr()
    _context_tokens: int = PrivateAttr()
    _turns: int = PrivateAttr(default=0)
    _malformed_in_a_row: int = PrivateAttr(default=0)
    _thresholds_told: int = PrivateAttr(default=0)

    @classmethod
    def over(
        cls,
        policy: Policy,
        *,
        tokenizer: Tokenizer,
        context_tokens: int,
        bridge: Bridge,
        limits: AgentSection,
    ) -> Self:
        """The model of one episode."""
        llm = cls(
            model="openai/policy",
            usage_id="policy",
            native_tool_calling=True,  # also for the prompt's form, which `forms.py` reads and writes
            max_input_tokens=context_tokens,
            num_retries=0,
            caching_prompt=False,
            disable_vision=True,
            input_cost_per_token=0.0,
            output_cost_per_token=0.0,
        )
        llm._policy, llm._bridge, llm._context_tokens = policy, bridge, context_tokens
        llm._limits = limits
        llm._dialogue = Dialogue(
            tokenizer,
            context_tokens=context_tokens,
            form=form_of(tokenizer, llm._limits.call_form),
            strip_reasoning=llm._limits.reasoning == "strip",
            notice=llm._notice,
        )
        return llm

    @property
    def dialogue(self) -> Dialogue:
        return self._dialogue

    @property
    def turns(self) -> int:
        """Turns sampled so far."""
        return self._turns

    def _transport_call(self, *, messages: list[Message], tools: list[Tool] | None = None, **_: Any) -> ModelResponse:
        self._dialogue.hear(messages, tools)
        stream = self._dialogue.stream
        if stream.room <= 0:
            raise self._overflow()
        if self._is_to_be_condensed(stream):
            raise LLMContextWindowExceedError("the history is long enough to be condensed")
        completion = self._bridge.call("model", self._policy.sample(list(stream.ids), max_tokens=stream.room))
        self._turns += 1
        turn = self._read(completion)
        if completion.stop_reason == "length" and not turn.calls and stream.room <= 0:
            raise self._overflow()
        return _response(turn)

    async def _atransport_call(self, **kwargs: Any) -> ModelResponse:
        return await asyncio.to_thread(self._transport_call, **kwargs)  # the bridge waits for the loop

    def _read(self, completion: Completion) -> Turn:
        try:
            turn = self._dialogue.sampled(completion)
        except MalformedCall as error:
            self._malformed_in_a_row += 1
            if self._malformed_in_a_row >= self._limits.max_malformed_calls:
                self._bridge.end(Ending(outcome=Outcome.MALFORMED_CALLS, detail=str(error)))
                raise Halted from error
            raise FunctionCallValidationError(str(error)) from error
        self._malformed_in_a_row = 0
        return turn

    def _is_to_be_condensed(self, stream: TokenStream) -> bool:
        share = self._limits.condense_at
        return share is not None and stream.has_sampled and len(stream.ids) >= share * self._context_tokens

    def _overflow(self) -> LLMContextWindowExceedError:
        detail = f"the context of {self._context_tokens} tokens is full"
        self._bridge.end(Ending(outcome=Outcome.CONTEXT_EXCEEDED, detail=detail))
        return LLMContextWindowExceedError(detail)

    def _notice(self, stream: TokenStream) -> str | None:
        """What is left of context and steps, once for each threshold of the profile that was passed."""
        used = max(len(stream.ids) / self._context_tokens, self._turns / self._limits.max_steps)
        passed = sum(used >= share for share in self._limits.tell_at)
        if passed <= self._thresholds_told:
            return None
        self._thresholds_told = passed
        return f"{max(0, stream.room)} tokens and {self._limits.max_steps - self._turns} steps are left"


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
