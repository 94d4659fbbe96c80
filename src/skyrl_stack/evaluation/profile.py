"""Profile: that of an evaluation, which has no trainer: the limits of sandboxes, agent and grading are what counts."""

from collections.abc import Iterable

from skyrl_stack.profile import Profile, override_profile

CONTEXT_TOKENS = 65_536
MAX_STEPS = 50
EPISODE_TIMEOUT_S = 3600.0


def evaluation_profile(overrides: Iterable[str], *, at_once: int) -> Profile:
    """Limits as the field evaluates with, then what the user overrides.

    Raises:
        ProfileError: an override is wrong.
    """
    defaults = {
        "name": "eval",
        "agent": {
            "max_steps": MAX_STEPS,
            "episode_timeout_s": EPISODE_TIMEOUT_S,
            "observation_limit_chars": 10_000,
            "call_form": "json",
        },
        "model": {"context_tokens": CONTEXT_TOKENS},
        "runtime": {"max_sandboxes": max(at_once, 4)},
    }
    return override_profile(Profile.model_validate(defaults), overrides)
