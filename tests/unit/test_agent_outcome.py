"""The closed list of endings, and what a profile makes of them."""

import asyncio

import pytest

from skyrl_stack.agent.outcome import Outcome, of_error, of_plain_text
from skyrl_stack.agent_section import OutcomesSection
from skyrl_stack.errors import GradingFailed, ModelUnavailable, RuntimeUnavailable, SandboxLost

INFRASTRUCTURE = {Outcome.SANDBOX_LOST, Outcome.MODEL_LOST}


def test_every_outcome_has_its_worth_in_the_profile_but_infrastructure() -> None:
    keys = {outcome.name.lower() for outcome in Outcome if outcome not in INFRASTRUCTURE}
    assert keys == set(OutcomesSection.model_fields)
    section = OutcomesSection(stuck="zero", context_exceeded="mask")
    assert Outcome.STUCK.worth(section) == "zero"
    assert Outcome.CONTEXT_EXCEEDED.worth(section) == "mask"
    assert {outcome.worth(section) for outcome in INFRASTRUCTURE} == {"mask"}


@pytest.mark.parametrize("text", ["I'm sorry, but I can't do that.", "I cannot help with this.", "Sorry, but no."])
def test_a_refusal_is_known_by_its_first_words(text: str) -> None:
    assert of_plain_text(text).outcome is Outcome.REFUSED


@pytest.mark.parametrize("text", ["Done.", "The function cannot help here, so I changed it.", ""])
def test_other_talk_is_plain(text: str) -> None:
    assert of_plain_text(text).outcome is Outcome.PLAIN_TEXT


def test_only_a_lost_sandbox_or_model_is_an_outcome_among_errors() -> None:
    for error in (SandboxLost("x"), RuntimeUnavailable("x")):
        assert (ending := of_error(error)) and ending.outcome is Outcome.SANDBOX_LOST
    assert (ending := of_error(ModelUnavailable("x"))) and ending.outcome is Outcome.MODEL_LOST
    for error in (GradingFailed("x"), asyncio.CancelledError(), KeyError("x")):
        assert of_error(error) is None
