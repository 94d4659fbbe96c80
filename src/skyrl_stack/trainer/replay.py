"""An episode scored again: are the stored log-probabilities those of the model that sampled?

Whoever changes an engine, a kernel, a chat template or a dtype sees here what it does to what the trainer learns from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import SetupError
from skyrl_stack.scratch import scratch
from skyrl_stack.trainer.checkpoints import is_checkpoint, merge

Dtype = Literal["float32", "bfloat16", "float16"]
BOUNDS: dict[Dtype, float] = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
"""Largest difference of one log-probability that rounding explains. bfloat16 has 8 bits: logits of 16 to 32 are
1/8 apart, and two engines that add in another order can differ by a step or two."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What scoring again gave."""

    tokens: int
    "Sampled tokens that were compared."
    largest: float
    "Largest absolute difference of a log-probability, in nats."
    mean: float
    bound: float

    @property
    def agrees(self) -> bool:
        return self.largest <= self.bound

    def line(self) -> str:
        verdict = "within" if self.agrees else "ABOVE"
        return (
            f"{self.tokens} sampled tokens: largest log-prob difference {self.largest:.2e}, mean {self.mean:.2e}; "
            f"{verdict} the bound of {self.bound:g}"
        )


def replay(file: Path, model: Path | None = None, *, dtype: Dtype = "float32", temperature: float = 1.0) -> Replay:
    """Score the episode in `file` with `model`, a Hugging Face directory or a checkpoint (`…/global_step_N`).

    By default it is the model that its run started from, which sampled the episodes of step 1; those of step N + 1 are
    of `global_step_N`.

    Raises:
        SetupError: the model cannot be loaded, or there is nothing to compare.
    """
    episode = Episode.model_validate_json(file.read_bytes())
    with _weights(model or file.absolute().parents[1] / "model") as path:
        network = _load(path, dtype)
    scored = [difference(network, each, temperature) for each in episode.trajectories if any(each.response_mask)]
    if not scored:
        raise SetupError(f"{file}: the policy sampled nothing in this episode")
    differences = torch.cat(scored)
    return Replay(len(differences), float(differences.max()), float(differences.mean()), BOUNDS[dtype])


@torch.inference_mode()
def difference(network: Any, trajectory: Trajectory, temperature: float) -> torch.Tensor:
    """Absolute difference of each sampled token's log-probability, shape (sampled,)."""
    ids = torch.tensor([trajectory.prompt_ids + trajectory.response_ids], device=network.device)
    count = len(trajectory.response_ids)
    logits = network(input_ids=ids, logits_to_keep=count + 1).logits[0, :-1].float() / temperature
    scores = torch.log_softmax(logits, -1).gather(-1, ids[0, -count:, None])[:, 0].cpu()
    sampled = torch.tensor(trajectory.response_mask, dtype=torch.bool)
    return (scores - torch.tensor(trajectory.response_log_probs)).abs()[sampled]


@contextmanager
def _weights(path: Path) -> Iterator[Path]:
    """`path`, or the Hugging Face files that verl makes of its checkpoint there, in a directory for the time being."""
    if not is_checkpoint(path):
        yield path
        return
    with scratch("replay") as merged:
        merge(path, merged)
        yield merged


def _load(path: Path, dtype: Dtype) -> Any:
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise SetupError(f"{path}: not a model that can be loaded: {str(error).splitlines()[0]}") from error
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
