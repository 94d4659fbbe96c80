"""Token-in, token-out sampling of one transformers model: what vLLM does for a GPU, for a model small enough for a CPU.

The log-probability of a token is that of the distribution it was drawn from, as the trainer recomputes it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

CACHED_SEQUENCES = 16


class Generator:
    """Samples from one model. Not thread-safe: the caller serialises."""

    def __init__(self, model_path: str | Path, *, context_tokens: int, seed: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="sdpa")
        self.model.eval()
        eos = self.model.generation_config.eos_token_id
        self.eos = frozenset(eos if isinstance(eos, list) else [eos])
        self.context_tokens = context_tokens
        self.random = torch.Generator().manual_seed(seed)
        self._prefixes: OrderedDict[tuple[int, ...], DynamicCache] = OrderedDict()

    @torch.inference_mode()
    def sample(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> tuple[list[int], list[float]]:
        """Sample until an end-of-sequence token, `max_tokens` or the context's end; 0 for `temperature` is greedy.

        Ends early, but not before its first token, when it is `interrupted`.

        Returns the tokens, the end token included, and their log-probabilities.

        Raises:
            ValueError: the prompt leaves no room in the context.
        """
        room = min(max_tokens, self.context_tokens - len(prompt))
        if room < 1:
            raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room in a context of {self.context_tokens}")
        cache = self._take_prefix(prompt)
        pending = list(prompt[cache.get_seq_length() :])
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < room and not (tokens and (tokens[-1] in self.eos or interrupted())):
            logits = self.model(input_ids=torch.tensor([pending]), past_key_values=cache, logits_to_keep=1).logits[
                0, -1
            ]
            token, log_prob = self._draw(logits, temperature)
            tokens.append(token)
            log_probs.append(log_prob)
            pending = [token]
        self._keep_prefix((*prompt, *tokens[:-1]), cache)
        return tokens, log_probs

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take the trainer's weights; what was computed with the old ones is forgotten.

        Raises:
            ValueError: a name that the model does not have.
        """
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, value in weights:
            if name not in parameters:
                raise ValueError(f"the rollout model has no parameter {name}")
            parameters[name].copy_(value)
        self._prefixes.clear()

    def _draw(self, logits: torch.Tensor, temperature: float) -> tuple[int, float]:
        if temperature == 0:
            token = int(logits.argmax())
            return token, float(torch.log_softmax(logits, -1)[token])
        log_probs = torch.log_softmax(logits / temperature, -1)
        token = int(torch.multinomial(log_probs.exp(), 1, generator=self.random))
        return token, float(log_probs[token])

    def _take_prefix(self, prompt: Sequence[int]) -> Any:
        """Keys and values of the longest known proper prefix of `prompt`: an episode's last turn, as a rule."""
        prompt = tuple(prompt)
        known = [tokens for tokens in self._prefixes if len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens]
        return self._prefixes.pop(max(known, key=len)) if known else DynamicCache(config=self.model.config)

    def _keep_prefix(self, tokens: tuple[int, ...], cache: DynamicCache) -> None:
        self._prefixes[tokens] = cache
        if len(self._prefixes) > CACHED_SEQUENCES:
            self._prefixes.popitem(last=False)
