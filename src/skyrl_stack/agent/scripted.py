"""A policy that says what it is told to: for supervised traces, smoke runs and tests."""

from collections.abc import Iterable

from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Tokenizer
from skyrl_stack.errors import ModelUnavailable


class ScriptedPolicy:
    """Answers with `texts` in order, tokenised as a model would emit them, with log-probabilities of 0."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        self._texts = iter(texts)
        self._tokenizer = tokenizer

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        """The next text.

        Raises:
            ModelUnavailable: the script is over.
        """
        text = next(self._texts, None)
        if text is None:
            raise ModelUnavailable("the script of the scripted policy is over")
        end = self._tokenizer.eos_token_id
        ids = [*self._tokenizer.encode(text, add_special_tokens=False), end][:max_tokens]
        return Completion(ids, [0.0] * len(ids), "stop" if ids[-1] == end else "length")
