"""The closed list of ways in which an episode ends; an infrastructure failure is not one of them."""

from enum import StrEnum


class Outcome(StrEnum):
    """How the policy's part of an episode ended. Each is graded: what counts is the repository it left."""

    FINISHED = "Finished"
    "It called the finish tool."
    PLAIN_TEXT = "PlainText"
    "It answered without a tool call, which OpenHands takes as the end of its turn."
    STEP_LIMIT = "StepLimit"
    "It used all model calls of the profile."
    CONTEXT_EXCEEDED = "ContextExceeded"
    "Its context is full: no further token fits."
    TIMED_OUT = "TimedOut"
    "Its wall time is over."
