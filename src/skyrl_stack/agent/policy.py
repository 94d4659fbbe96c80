"""The model as the agent sees it: token ids in, token ids and their log-probabilities out."""

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy sampled, exactly."""

    token_ids: list[int]
    log_probs: list[float]
    "One for each token, from the engine that sampled it."
    stop_reason: Literal["stop", "length"]
    "`stop`: the last token is the end-of-turn token. `length`: cut off at `max_tokens`."

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.log_probs):
            raise ValueError(f"{len(self.token_ids)} tokens with {len(self.log_probs)} log-probabilities")


class Policy(Protocol):
    """Samples the next turn of one episode."""

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        """Continue `prompt_ids` by at most `max_tokens` tokens.

        Raises:
            ModelUnavailable: the rollout server failed to answer.
        """
        ...
