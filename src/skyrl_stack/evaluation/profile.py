"""Profile: that of an evaluation, which has no trainer: the limits of sandboxes, agent and grading are what counts."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skyrl_stack.profile import Profile, override_profile
from skyrl_stack.run_directory import RunDirectory

CONTEXT_TOKENS = 65_536
MAX_STEPS = 50
EPISODE_TIMEOUT_S = 3600.0


def evaluation_profile(overrides: Iterable[str], *, at_once: int, model: Path | None = None) -> Profile:
    """The limits that the field evaluates with, or those of the run that `model` belongs to; then what is overridden.

    Raises:
        ProfileError: an override is wrong.
    """
    if model and (run := _run_of(model)):
        profile = run.profile()
        sections = {name: getattr(profile, name).model_dump() for name in ("agent", "grading", "model", "runtime")}
    else:
        sections = _of_the_field(model)
    sections["runtime"] = {**sections.get("runtime", {}), "max_sandboxes": max(at_once, 4)}
    return override_profile(Profile.model_validate({"name": "eval", **sections}), overrides)


def _run_of(model: Path) -> RunDirectory | None:
    """The run that has `model` in it: as a checkpoint, or as what it started from."""
    runs = (RunDirectory(parent) for parent in model.absolute().parents)
    return next((run for run in runs if run.profile_file.is_file()), None)


def _of_the_field(model: Path | None) -> dict[str, Any]:
    limits = {"max_steps": MAX_STEPS, "episode_timeout_s": EPISODE_TIMEOUT_S, "observation_limit_chars": 10_000}
    # A model of somebody else's is asked in text, where calls are JSON; one of ours by its own chat template.
    form = "auto" if model else "json"
    return {
        "agent": {**limits, "call_form": form},
        "model": {"context_tokens": min(CONTEXT_TOKENS, _positions(model) if model else CONTEXT_TOKENS)},
    }


def _positions(model: Path) -> int:
    """The longest context of a model, as its configuration says, be it a checkpoint of verl's or Hugging Face files."""
    for file in (model / "config.json", model / "actor/huggingface/config.json"):
        if file.is_file():
            return json.loads(file.read_text()).get("max_position_embeddings") or CONTEXT_TOKENS
    return CONTEXT_TOKENS
