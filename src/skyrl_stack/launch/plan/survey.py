"""Survey: what is seen of the place where a run is to be, asked once before it is planned."""

from collections.abc import Sequence
from dataclasses import dataclass

from skyrl_stack.errors import SetupError, SlurmRefused, SlurmUnreachable
from skyrl_stack.launch.plan.model import Shape, read_parameters, read_shape
from skyrl_stack.launch.slurm import client, limits
from skyrl_stack.launch.slurm.client import Partition
from skyrl_stack.launch.slurm.jobs import Job
from skyrl_stack.launch.slurm.limits import Limit
from skyrl_stack.profile import Profile
from skyrl_stack.room import room
from skyrl_stack.tasks.manifest import Standing, standing


@dataclass(frozen=True)
class Survey:
    """What was seen; None is what could not be seen."""

    partitions: Sequence[Partition] | None = None
    limits: Sequence[Limit] = ()
    "Of accounting; none where the site has no accounting."
    queued: Sequence[Job] = ()
    "This user's jobs that wait or run already."
    array_size: int | None = None
    "Tasks that a job array may have."
    free_bytes: int | None = None
    "On the file system of `run.root`."
    free_files: int | None = None
    shape: Shape | None = None
    "Of the model."
    parameters: int | None = None
    "Of the model, counted in its weights."
    standing: Standing | None = None
    "Of the tasks of `tasks.file`; None where tasks are made, which measures each as it is made."


def survey(profile: Profile) -> Survey:
    """Look at the place that `profile` means to use. Nothing here waits for a network but Slurm's own commands."""
    left = room(profile.run.root.absolute())
    partitions = _partitions() if profile.launcher.kind == "slurm" else None
    return Survey(
        partitions=partitions,
        limits=limits.limits() if partitions is not None else (),
        queued=_queued() if partitions is not None else (),
        array_size=client.array_size() if partitions is not None else None,
        free_bytes=left.bytes,
        free_files=left.files,
        shape=read_shape(profile.model.path),
        parameters=read_parameters(profile.model.path),
        standing=standing(profile.tasks.file) if profile.tasks.file else None,
    )


def _partitions() -> list[Partition] | None:
    try:
        return client.partitions()
    except (SlurmUnreachable, SlurmRefused, SetupError):
        return None


def _queued() -> list[Job]:
    try:
        return client.in_queue()
    except (SlurmUnreachable, SlurmRefused, SetupError):
        return []
