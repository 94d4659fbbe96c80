"""What accounting allows this user: limits of associations and of qualities of service, where there is accounting."""

import getpass
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from skyrl_stack.errors import SetupError, SlurmRefused, SlurmUnreachable
from skyrl_stack.launch.slurm import client
from skyrl_stack.site import seconds

_ASSOCIATION = "DefaultAccount,Account,Partition,DefaultQOS,MaxSubmit,MaxJobs,MaxWall,MaxTRES,GrpTRES"
_QOS = "Name,MaxSubmitPU,MaxJobsPU,MaxWall,MaxTRES,MaxTRESPU,GrpTRES"
_UNITS = {"K": 1 / 2**20, "M": 1 / 2**10, "G": 1.0, "T": 2.0**10}


@dataclass(frozen=True)
class Limit:
    """One association of this user, or one quality of service (QOS)."""

    kind: str
    "`association` or `qos`."
    name: str
    "The account or the QOS."
    partition: str = ""
    "Of an association that holds for one only."
    default_qos: str = ""
    "Of an association."
    submit: int | None = None
    "Jobs in the queue at once."
    jobs: int | None = None
    "Jobs that run at once."
    time_limit_s: float | None = None
    per_job: Mapping[str, float] = field(default_factory=dict)
    "Most of `cpu`, `node`, `gres/gpu`, `mem` (GB) for one job."
    together: Mapping[str, float] = field(default_factory=dict)
    "The same for all jobs of the user, or of the group, at once."
    is_default: bool = False
    "Of the association of the user's default account."


def limits() -> list[Limit]:
    """All that may hold for this user; none where the site has no accounting, or it does not answer."""
    user = getpass.getuser()
    try:
        associations = client.accounting("user", f"name={user}", "withassoc", f"format={_ASSOCIATION}")
        qualities = client.accounting("qos", f"format={_QOS}")
    except (SlurmRefused, SlurmUnreachable, SetupError):
        return []
    return [*map(_association, associations), *map(_quality, qualities)]


def _association(row: list[str]) -> Limit:
    default, account, partition, qos, submit, jobs, wall, per_job, together = row
    numbers = (_count(submit), _count(jobs), _wall(wall))
    limits = (_tres(per_job), _tres(together))
    return Limit("association", account, partition, qos, *numbers, *limits, is_default=account == default)


def _quality(row: list[str]) -> Limit:
    name, submit, jobs, wall, per_job, per_user, group = row
    least = _tres(group) | {what: min(most, _tres(group).get(what, most)) for what, most in _tres(per_user).items()}
    return Limit("qos", name, "", "", _count(submit), _count(jobs), _wall(wall), _tres(per_job), least)


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _wall(text: str) -> float | None:
    return seconds(text) if re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", text) else None


def _tres(text: str) -> dict[str, float]:
    """`cpu=4,gres/gpu=2,mem=64G` as numbers, memory in GB."""
    found = re.findall(r"([\w/]+)=(\d+(?:\.\d+)?)([KMGT]?)", text)
    return {name: float(number) * (_UNITS[unit or "M"] if name == "mem" else 1) for name, number, unit in found}
