"""Endpoint: a model behind any OpenAI-compatible chat API, as the policy of an episode."""

import asyncio
import os
import random
from dataclasses import dataclass, field
from typing import Any

import httpx

from skyrl_stack.agent.policy import Completion
from skyrl_stack.errors import ModelUnavailable, SetupError
from skyrl_stack.evaluation.transcript import END, TranscriptTokenizer, messages_of

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"Answers that another attempt may turn into a good one."
TOO_LONG = ("context_length", "context length", "maximum context", "too long", "max_tokens", "max_model_len")


@dataclass
class Usage:
    """What the endpoint says that it read and wrote."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how."""

    url: str
    "Up to and with `/v1`."
    model: str
    temperature: float = 0.0
    max_tokens: int = 4096
    "Of one turn."
    timeout_s: float = 600.0


@dataclass
class ChatPolicy:
    """One episode's view of an endpoint; see `agent.policy.Policy`."""

    endpoint: Endpoint
    http: httpx.AsyncClient
    usage: Usage = field(default_factory=Usage)
    tokenizer: TranscriptTokenizer = field(default_factory=TranscriptTokenizer)

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        """See `Policy.sample`. A context that is full for the endpoint is one that is full for the episode."""
        transcript = self.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        answer = await self._ask(messages_of(transcript), min(max_tokens, self.endpoint.max_tokens))
        if answer is None:
            filler = self.tokenizer.encode(" ", add_special_tokens=False) * max_tokens
            return _completion(filler, "length")
        text, ended = answer
        ids = self.tokenizer.encode(text.replace(END, ""), add_special_tokens=False)
        if ended and len(ids) < max_tokens:
            return _completion([*ids, self.tokenizer.eos_token_id], "stop")
        return _completion(ids[:max_tokens] or self.tokenizer.encode(" ", add_special_tokens=False), "length")

    async def _ask(self, messages: list[dict[str, Any]], max_tokens: int) -> tuple[str, bool] | None:
        """Text of the answer and whether it is whole, or None where the context is full.

        Raises:
            ModelUnavailable: no good answer after some attempts.
        """
        body = {
            "model": self.endpoint.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self.endpoint.temperature,
        }
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = await self.http.post(f"{self.endpoint.url}/chat/completions", json=body)
                if answer.is_success:
                    return self._read(answer.json())
                if answer.status_code == 400 and any(word in answer.text.lower() for word in TOO_LONG):
                    return None
                problem, passing = f"{answer.status_code}: {answer.text[:200]}", answer.status_code in PASSING
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                problem, passing = f"{type(error).__name__}: {error}", True
            if not passing or attempt == ATTEMPTS:
                raise ModelUnavailable(f"{self.endpoint.url}: {problem}")
            await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise AssertionError

    def _read(self, answer: dict[str, Any]) -> tuple[str, bool]:
        choice = answer["choices"][0]
        usage = answer.get("usage") or {}
        self.usage.prompt_tokens += usage.get("prompt_tokens") or 0
        self.usage.completion_tokens += usage.get("completion_tokens") or 0
        return choice["message"].get("content") or "", choice.get("finish_reason") != "length"


def open_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """The connection that all episodes share. The key comes from the environment, and goes nowhere else.

    Raises:
        SetupError: the URL is none.
    """
    if not endpoint.url.startswith(("http://", "https://")):
        raise SetupError(
            f"--model {endpoint.url}: give the URL of an OpenAI-compatible server; a checkpoint is served by "
            "`vllm serve DIRECTORY`, after `python -m verl.model_merger merge` where it is verl's own"
        )
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(endpoint.timeout_s, connect=10.0))


def _completion(ids: list[int], stop_reason: Any) -> Completion:
    return Completion(ids, [0.0] * len(ids), stop_reason)
