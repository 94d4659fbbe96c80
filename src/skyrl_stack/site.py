"""Site: the part of a profile that says who starts the two roles, this machine or Slurm, and with what.

What belongs to a cluster rather than to an experiment can stand in a file of its own, `profiles/sites/<site>.toml`:
its keys are those of `[launcher]`, with a partition and what goes with it for each of its queues. A profile names the
site and a queue, and its own `[launcher]` wins over both.

What ends up in an `#SBATCH` line has a pattern here; what ends up in the job's shell is quoted where it is rendered.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from skyrl_stack.errors import ProfileError
from skyrl_stack.section import Section, did_you_mean, explain, read_toml

SlurmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Constraint = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.&|,*()\[\]-]{1,200}$")]
TimeLimit = Annotated[str, StringConstraints(pattern=r"^(\d{1,3}-)?\d{1,3}:[0-5]\d:[0-5]\d$")]
Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+/-]{0,127}$")]
Bind = Annotated[str, StringConstraints(pattern=r"^/[^:,\s]*(:/[^:,\s]*(:(ro|rw))?)?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Device = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,31}$")]


def _no_secret(name: str) -> str:
    """A profile is readable by others; the shell that types `launch` hands its variables to the jobs anyway."""
    if re.search(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD)$", name, re.IGNORECASE):
        raise ValueError("looks like a secret: export it in the shell that launches, jobs inherit it")
    return name


class PartitionSection(Section):
    """Where one role's job goes."""

    partition: SlurmName
    qos: SlurmName | None = None
    constraint: Constraint | None = None
    "Node features, in Slurm's own notation."
    gpu_type: SlurmName | None = None
    "Slurm's own name of the GPU type, where a partition has several."
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    "Memory of one GPU, for `plan`; without it, what is known of the type."


class JobSection(PartitionSection):
    """What one role asks of Slurm."""

    nodes: int = Field(default=1, ge=1, le=256)
    "Nodes of this kind; every other size is per node."
    time_limit: TimeLimit
    "`[days-]hours:minutes:seconds`."
    cpus: int = Field(ge=1, le=1024)
    memory_gb: int = Field(ge=1, le=16384)
    gpus: int = Field(default=0, ge=0, le=16)

    @property
    def time_limit_s(self) -> int:
        return seconds(self.time_limit)


class LocalLauncher(Section):
    """Both roles as processes of this machine."""

    kind: Literal["local"] = "local"


class NetworkSection(Section):
    """What the nodes of the trainer's job talk to each other by."""

    fabric: Literal["tcp", "infiniband", "efa"] | None = None
    "What NCCL must use; without it NCCL takes the fastest that it finds."
    interface: Device | None = None
    "Network interface of every node for all that goes by IP: Ray, gloo, NCCL's own start. As `ib0`."
    hcas: tuple[Device, ...] = ()
    'Adapters of `fabric = "infiniband"` that NCCL may use, all where none is named. As `mlx5_0` or `mlx5_0:1`.'

    @model_validator(mode="after")
    def _hcas_are_of_infiniband(self) -> Self:
        if self.hcas and self.fabric != "infiniband":
            raise ValueError('hcas are those of fabric = "infiniband"')
        return self


class ClusterSection(Section):
    """What both jobs are given by their cluster."""

    account: SlurmName | None = None
    "The account that both are charged to; the user's default one where it is not given."
    modules: tuple[Module, ...] = ()
    "Environment modules that both jobs load."
    environment: dict[Annotated[Variable, AfterValidator(_no_secret)], str] = Field(default_factory=dict)
    "Variables of both jobs, over those inherited from the launching shell: proxies, caches. Never secrets."
    scratch: Path | None = None
    "Node-local directory for temporary files, the job's `TMPDIR`: sandboxes cannot live on a shared file system."
    network: NetworkSection = NetworkSection()
    "Between the nodes of the trainer's job."
    bind: tuple[Bind, ...] = ()
    "Directories that Apptainer shows to what it runs, as `path` or `path:inside[:ro]`: the jobs' `APPTAINER_BIND`."


class SlurmLauncher(ClusterSection):
    """Both roles as Slurm jobs."""

    kind: Literal["slurm"] = "slurm"
    queue: SlurmName | None = None
    "Which of the site's queues gives the two partitions."
    runtime: JobSection
    trainer: JobSection

    def job(self, role: Literal["runtime", "trainer"]) -> JobSection:
        return self.runtime if role == "runtime" else self.trainer


Launcher = Annotated[LocalLauncher | SlurmLauncher, Field(discriminator="kind")]


class QueueSection(Section):
    """Partitions of one cluster that belong together: short ones for tests, long ones for production."""

    runtime: PartitionSection
    trainer: PartitionSection


class Site(ClusterSection):
    """One cluster: `profiles/sites/<site>.toml`."""

    queues: dict[SlurmName, QueueSection] = Field(default_factory=dict)


def load_site(name: str, folder: Path) -> Site:
    """The site `name` of `folder`, or the TOML file that `name` is the path of.

    Raises:
        ProfileError: one line naming the file, the key and the remedy.
    """
    is_path = name.endswith(".toml") or "/" in name
    file = Path(name).expanduser() if is_path else folder / f"{name}.toml"
    if not file.is_file():
        known = sorted(other.stem for other in folder.glob("*.toml"))
        raise ProfileError(f"site = {name!r}: no file {file}; {did_you_mean(name, known)}")
    try:
        return Site.model_validate(read_toml(file))
    except ValidationError as error:
        raise ProfileError(f"site {file}: {explain(error, Site)}") from error


def beneath(launcher: Mapping[str, Any], site: Site) -> dict[str, Any]:
    """A profile's `[launcher]` table with what it does not say itself taken from `site` and its queue.

    Raises:
        ProfileError: it names no queue of the site.
    """
    queue, known = launcher.get("queue"), sorted(site.queues)
    if known and queue not in site.queues:
        raise ProfileError(
            f"launcher.queue = {queue!r}: no such queue in the site's file; {did_you_mean(str(queue), known)}"
        )
    table = site.model_dump(mode="json", exclude={"queues"}, exclude_unset=True)
    if known:
        table |= site.queues[str(queue)].model_dump(mode="json", exclude_unset=True)
    return _merged(table, launcher)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key; of anything else, what is above."""
    both = {
        key: _merged(below[key], value) if isinstance(value, Mapping) and isinstance(below.get(key), Mapping) else value
        for key, value in above.items()
    }
    return {**below, **both}


def seconds(time_limit: str) -> int:
    """Seconds of `[days-]hours:minutes:seconds`."""
    days, _, clock = time_limit.rpartition("-")
    hours, minutes, rest = clock.split(":")
    return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + int(rest)


def clock(duration_s: float) -> str:
    """`[days-]hours:minutes:seconds` of whole seconds: the inverse of `seconds`."""
    minutes, rest = divmod(int(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}" if days else f"{hours}:{minutes:02}:{rest:02}"
