"""Site: the part of a profile that says who starts the two roles, this machine or Slurm, and with what.

What ends up in an `#SBATCH` line has a pattern here; what ends up in the job's shell is quoted where it is rendered.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from skyrl_stack.section import Section

SlurmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Constraint = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.&|,*()\[\]-]{1,200}$")]
TimeLimit = Annotated[str, StringConstraints(pattern=r"^(\d{1,3}-)?\d{1,3}:[0-5]\d:[0-5]\d$")]
Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+/-]{0,127}$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _no_secret(name: str) -> str:
    """A profile is readable by others; the shell that types `launch` hands its variables to the jobs anyway."""
    if re.search(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD)$", name, re.IGNORECASE):
        raise ValueError(f"{name} looks like a secret: export it in the shell that launches, jobs inherit it")
    return name


class JobSection(Section):
    """What one role asks of Slurm: one node."""

    partition: SlurmName
    time_limit: TimeLimit
    "`[days-]hours:minutes:seconds`."
    cpus: int = Field(ge=1, le=1024)
    memory_gb: int = Field(ge=1, le=16384)
    gpus: int = Field(default=0, ge=0, le=16)
    gpu_type: SlurmName | None = None
    "Slurm's own name of the GPU type, where a partition has several."
    qos: SlurmName | None = None
    constraint: Constraint | None = None
    "Node features, in Slurm's own notation."

    @property
    def time_limit_s(self) -> int:
        return seconds(self.time_limit)


class LocalLauncher(Section):
    """Both roles as processes of this machine."""

    kind: Literal["local"] = "local"


class SlurmLauncher(Section):
    """Both roles as Slurm jobs."""

    kind: Literal["slurm"] = "slurm"
    runtime: JobSection
    trainer: JobSection
    account: SlurmName | None = None
    modules: tuple[Module, ...] = ()
    "Environment modules that both jobs load."
    environment: dict[Annotated[Variable, AfterValidator(_no_secret)], str] = Field(default_factory=dict)
    "Variables of both jobs, over those inherited from the launching shell: proxies, caches. Never secrets."
    scratch: Path | None = None
    "Node-local directory for temporary files, the job's `TMPDIR`: sandboxes cannot live on a shared file system."

    def job(self, role: Literal["runtime", "trainer"]) -> JobSection:
        return self.runtime if role == "runtime" else self.trainer


Launcher = Annotated[LocalLauncher | SlurmLauncher, Field(discriminator="kind")]


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
