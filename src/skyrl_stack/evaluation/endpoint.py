"""Endpoint: a model behind an OpenAI-compatible API, as the policy of an episode.

Anybody's is asked in text, by chats. One that we serve ourselves is asked in tokens, as in training.
"""

import asyncio
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Tokenizer
from skyrl_stack.errors import ModelUnavailable
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
    tokenizer: Tokenizer | None = None
    "The model's own: the server then takes and gives token ids, as vLLM's does."
    socket: Path | None = None
    "The Unix socket that the server listens on, in place of the URL's host."

    def policy(self, http: httpx.AsyncClient) -> "ChatPolicy | TokenPolicy":
        """One episode's view of it."""
        return TokenPolicy(self, http, self.tokenizer) if self.tokenizer else ChatPolicy(self, http)


@dataclass
class ChatPolicy:
    """A model that is asked in text; see `agent.policy.Policy`."""

    endpoint: Endpoint
    http: httpx.AsyncClient
    tokenizer: TranscriptTokenizer = field(default_factory=TranscriptTokenizer)
    usage: Usage = field(default_factory=Usage)

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        """See `Policy.sample`. A context that is full for the endpoint is one that is full for the episode."""
        transcript = self.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        choice = await _ask(
            self, "chat/completions", {"messages": messages_of(transcript)}, min(max_tokens, self.endpoint.max_tokens)
        )
        if choice is None:
            filler = self.tokenizer.encode(" ", add_special_tokens=False) * max_tokens
            return _completion(filler, "length")
        text = choice["message"].get("content") or ""
        ids = self.tokenizer.encode(text.replace(END, ""), add_special_tokens=False)
        if choice.get("finish_reason") != "length" and len(ids) < max_tokens:
            return _completion([*ids, self.tokenizer.eos_token_id], "stop")
        return _completion(ids[:max_tokens] or self.tokenizer.encode(" ", add_special_tokens=False), "length")


@dataclass
class TokenPolicy:
    """A model that is asked in its own tokens: nothing is decoded and encoded again, as in training."""

    endpoint: Endpoint
    http: httpx.AsyncClient
    tokenizer: Tokenizer
    usage: Usage = field(default_factory=Usage)

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        """See `Policy.sample`."""
        most = min(max_tokens, self.endpoint.max_tokens)
        choice = await _ask(self, "completions", {"prompt": prompt_ids, "return_token_ids": True}, most)
        ids: list[int] = choice["token_ids"] if choice else []
        if not ids:
            raise ModelUnavailable(f"{self.endpoint.model}: the server gave no tokens to {len(prompt_ids)} of a prompt")
        return _completion(ids, "stop" if ids[-1] == self.tokenizer.eos_token_id else "length")


async def _ask(
    policy: ChatPolicy | TokenPolicy, path: str, question: dict[str, Any], max_tokens: int
) -> dict[str, Any] | None:
    """The server's choice, or None where the context is full.

    Raises:
        ModelUnavailable: no good answer after some attempts.
    """
    endpoint = policy.endpoint
    body = {"model": endpoint.model, "max_tokens": max_tokens, "temperature": endpoint.temperature, **question}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answer = await policy.http.post(f"{endpoint.url}/{path}", json=body)
            if answer.is_success:
                return _read(answer.json(), policy.usage)
            if answer.status_code == 400 and any(word in answer.text.lower() for word in TOO_LONG):
                return None
            problem, passing = f"{answer.status_code}: {answer.text[:200]}", answer.status_code in PASSING
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            problem, passing = f"{type(error).__name__}: {error}", True
        if not passing or attempt == ATTEMPTS:
            raise ModelUnavailable(f"{endpoint.url}: {problem}")
        await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError


def _read(answer: dict[str, Any], usage: Usage) -> dict[str, Any]:
    """Raises ValueError, KeyError, IndexError, TypeError: it is no answer of such a server."""
    choice = answer["choices"][0]
    if not (isinstance(choice.get("message"), dict) or isinstance(choice.get("token_ids"), list)):
        raise ValueError("an answer with neither a message nor token ids")
    counted = answer.get("usage") or {}
    usage.prompt_tokens += counted.get("prompt_tokens") or 0
    usage.completion_tokens += counted.get("completion_tokens") or 0
    return choice


def open_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """The connection that all episodes share. The key comes from the environment, and goes to that URL alone."""
    transport = httpx.AsyncHTTPTransport(uds=str(endpoint.socket)) if endpoint.socket else None
    key = None if endpoint.socket else os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(endpoint.timeout_s, connect=10.0)
    return httpx.AsyncClient(headers=headers, timeout=timeout, transport=transport)


def _completion(ids: list[int], stop_reason: Any) -> Completion:
    return Completion(ids, [0.0] * len(ids), stop_reason)
