"""The closed list of ways in which an episode ends, and what each is worth by the profile."""

import re
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from skyrl_stack.agent_section import OutcomesSection, Worth
from skyrl_stack.errors import ModelUnavailable, RuntimeUnavailable, SandboxExpired, SandboxLost, SandboxStartFailed


class Outcome(StrEnum):
    """How the policy's part of an episode ended."""

    FINISHED = "Finished"
    "It called the finish tool."
    PLAIN_TEXT = "PlainText"
    "It answered without a tool call, which OpenHands takes as the end of its turn."
    REFUSED = "Refused"
    "It answered without a tool call, and that it will not do it."
    STEP_LIMIT = "StepLimit"
    "It used all model calls of the profile."
    CONTEXT_EXCEEDED = "ContextExceeded"
    "Its context is full: no further token fits."
    TIMED_OUT = "TimedOut"
    "Its wall time is over, or that of its sandbox."
    STUCK = "Stuck"
    "It did the same again and again."
    MALFORMED_CALLS = "MalformedCalls"
    "Its calls could not be read, so many times in a row as the profile allows."
    OUT_OF_MEMORY = "OutOfMemory"
    "Its commands used up the memory, processes or disk of the sandbox again and again."
    SANDBOX_LOST = "SandboxLost"
    "Infrastructure: its sandbox was lost, or could not be started."
    MODEL_LOST = "ModelLost"
    "Infrastructure: the rollout server failed to answer."

    def worth(self, outcomes: OutcomesSection) -> Worth:
        """What the profile makes of it. Infrastructure is never a reward, whatever the profile says."""
        if self in (Outcome.SANDBOX_LOST, Outcome.MODEL_LOST):
            return "mask"
        return getattr(outcomes, self.name.lower())


class Ending(BaseModel):
    """An outcome, and what there is to say about it."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    detail: str = ""


_REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry,? but|sorry,? but|i (can(no|['’])t|am (not able|unable) to|will not|won['’]t)"
    r" (help|assist|do|fulfil|comply|complete|provide))",
    re.IGNORECASE,
)


def of_plain_text(text: str) -> Ending:
    """The ending by a turn without a call."""
    outcome = Outcome.REFUSED if _REFUSAL.match(text) else Outcome.PLAIN_TEXT
    return Ending(outcome=outcome, detail=text[:200])


def of_error(error: BaseException) -> Ending | None:
    """The ending by a sandbox or model that is gone; None for what is no outcome: a defect, or being cancelled."""
    match error:
        case SandboxLost() | SandboxStartFailed() | RuntimeUnavailable():
            return Ending(outcome=Outcome.SANDBOX_LOST, detail=str(error))
        case SandboxExpired():
            return Ending(outcome=Outcome.TIMED_OUT, detail=str(error))
        case ModelUnavailable():
            return Ending(outcome=Outcome.MODEL_LOST, detail=str(error))
    return None
