"""The token view of an episode: an append-only stream of ids that the trainer learns from as it is.

What the policy sampled is never decoded and tokenised again. What the environment says is added as the chat
template's own text: a fixed turn of the assistant is rendered with the new messages behind it, and all
that follows the turn's content is what the template would have written there.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from skyrl_stack.agent.policy import Completion

Message = dict[str, Any]
Tool = dict[str, Any]

_TURN = "\u241f turn \u241f"
"Stands for the assistant's content in the fixed conversation; no template and no tool description holds it."
_PROBE = "def f(x):\n    return  x\n"


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used."""

    @property
    def eos_token_id(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def apply_chat_template(
        self, conversation: list[Message], *, tools: list[Tool] | None, add_generation_prompt: bool, tokenize: bool
    ) -> Any: ...


class Trajectory(BaseModel):
    """One stream for the trainer. The three response lists are aligned; the response ends with a sampled token."""

    model_config = ConfigDict(frozen=True)

    prompt_ids: list[int]
    "What the policy saw before its first turn."
    response_ids: list[int]
    "All that follows: sampled turns, and what the environment said between them."
    response_mask: list[int]
    "1 on exactly the sampled ids."
    response_log_probs: list[float]
    "The engine's, 0.0 where the mask is 0."


class TokenStream:
    """Token ids of one conversation, in the order in which the policy saw and sampled them."""

    def __init__(self, tokenizer: Tokenizer, *, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._tools: list[Tool] | None = None
        self._prompt_length = 0
        self._mask: list[int] = []
        self._log_probs: list[float] = []
        self.ids: list[int] = []
        "Prompt of the next turn. Not to be changed by the caller."

    @property
    def room(self) -> int:
        """Tokens that still fit into the context; not positive when it is full."""
        return self._context_tokens - len(self.ids)

    @property
    def has_sampled(self) -> bool:
        """Whether the policy said anything in this stream."""
        return 1 in self._mask

    def open(self, messages: list[Message], tools: list[Tool] | None = None) -> None:
        """Start with the first prompt, generation prompt included.

        Raises:
            ValueError: the tokenizer loses white space, so that no file could be told as it is.
        """
        if self._tokenizer.decode(self._encode(_PROBE), skip_special_tokens=False) != _PROBE:
            raise ValueError("the tokenizer loses text that it encodes; was it loaded as another kind?")
        self._tools = tools
        self._extend(self._encode(self._render(messages)))
        self._prompt_length = len(self.ids)

    def append_sampled(self, completion: Completion) -> None:
        """Add a turn of the policy, token by token as it was sampled."""
        self.ids += completion.token_ids
        self._mask += [1] * len(completion.token_ids)
        self._log_probs += completion.log_probs

    def append_messages(self, messages: list[Message]) -> None:
        """Add what the environment answered to the last turn, and the prompt of the next one.

        The template's text begins with the end of the turn. A turn that was cut off lacks it, and gets it as
        context; a turn that ended by itself has sampled its first token already.
        """
        ids = self._encode(self._text_after_turn(messages))
        ended = self.ids[-1] == ids[0]
        self._extend(ids[ended:])

    def text(self, completion: Completion) -> str:
        """What a sampled turn says, without its end-of-turn token."""
        ids = completion.token_ids
        ended = bool(ids) and ids[-1] == self._tokenizer.eos_token_id
        return self._tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)

    def trajectory(self) -> Trajectory:
        """The stream so far, up to the last sampled token."""
        end = len(self._mask) - next((i for i, sampled in enumerate(reversed(self._mask)) if sampled), len(self._mask))
        end = max(end, self._prompt_length)
        response = slice(self._prompt_length, end)
        return Trajectory(
            prompt_ids=self.ids[: self._prompt_length],
            response_ids=self.ids[response],
            response_mask=self._mask[response],
            response_log_probs=self._log_probs[response],
        )

    def _extend(self, ids: list[int]) -> None:
        self.ids += ids
        self._mask += [0] * len(ids)
        self._log_probs += [0.0] * len(ids)

    def _text_after_turn(self, messages: list[Message]) -> str:
        fixed = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN}]
        _, turn, text = self._render(fixed + messages).partition(_TURN)
        if not turn:
            raise ValueError("the chat template changes the content of an assistant's turn; it cannot be continued")
        return text

    def _render(self, messages: list[Message]) -> str:
        return self._tokenizer.apply_chat_template(
            messages, tools=self._tools, add_generation_prompt=True, tokenize=False
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)
