"""Every error type of the stack, by the boundary it crossed.

    StackError                       one line for the user, exit code 1
    ├── ProfileError                 a profile, or one of its values, is wrong
    ├── SetupError                   the machine lacks something; the message says what to install
    ├── RunDirectoryError            a run directory is missing, in use or damaged
    ├── SlurmUnreachable             Slurm does not answer: nothing is known, neither life nor death
    ├── SlurmRefused                 Slurm answered no; says what it said
    ├── PeerLost                     the other role stopped, died or fell silent
    ├── NodeLost                     another node of the trainer's own is gone, and Ray there
    ├── ToolFailed                   a tool of the agent cannot run, whatever the policy says
    ├── TrainingStopped              training cannot go on: too many failures in a row, or verl failed
    ├── SandboxExpired               a sandbox used up its wall time: the policy's doing, an outcome
    └── InfrastructureError          an episode died of something the policy did not do
        ├── RuntimeUnavailable       the runtime server cannot be reached or refuses
        ├── SandboxLost              a sandbox that was running is gone
        ├── SandboxStartFailed       a sandbox could not be started (image missing, no room)
        ├── ModelUnavailable         the rollout server failed to answer
        └── GradingFailed            the tests could not be run; says nothing about the patch

A non-zero exit code, a timeout or a full context window is a *result* and never raised from here.
An `InfrastructureError` belongs to one episode: it masks that episode and never becomes a reward.
Any other `StackError` ends the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class StackError(Exception):
    """Base of every error that the stack raises on purpose. `str()` is one line with the way out."""


class ProfileError(StackError):
    """A profile is missing, unreadable or holds an impossible value."""


class SetupError(StackError):
    """The machine lacks something that the stack needs."""


class RunDirectoryError(StackError):
    """A run directory is missing, already in use or damaged."""


class SlurmUnreachable(StackError):
    """Slurm does not answer. Nothing is known about its jobs: they may well be running."""


class SlurmRefused(StackError):
    """Slurm answered, and refused."""


class PeerLost(StackError):
    """The other role of the run ended, died or fell silent."""


class NodeLost(StackError):
    """Another node of the trainer's own is gone, or Ray there. What was saved is good, and may be gone on with."""


class ToolFailed(StackError):
    """A tool of the agent cannot run: a defect, that no episode should learn to live with."""


class TrainingStopped(StackError):
    """Training cannot go on."""


class SandboxExpired(StackError):
    """A sandbox used up its wall time and is gone. The policy's doing."""


class InfrastructureError(StackError):
    """An episode died of something that the policy did not do."""


class RuntimeUnavailable(InfrastructureError):
    """The runtime server cannot be reached, or refused the request."""


class SandboxStartFailed(InfrastructureError):
    """A sandbox could not be started."""


class SandboxLost(InfrastructureError):
    """A sandbox that was running is gone."""


class ModelUnavailable(InfrastructureError):
    """The rollout server failed to answer."""


class GradingFailed(InfrastructureError):
    """The tests could not be run, so the patch has no grade."""


@contextmanager
def attribute(to: type[StackError], what: str) -> Iterator[None]:
    """Attribute whatever escapes the block to `to`; errors that are already typed pass through.

    Raises:
        StackError: of type `to`, naming `what` and the cause.
    """
    try:
        yield
    except StackError:
        raise
    except Exception as error:
        raise to(f"{what}: {type(error).__name__}: {error}") from error
