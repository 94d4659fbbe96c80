"""The one seam to Slurm's own commands: submit, ask about all jobs at once, cancel, ask what a partition has.

Jobs are known by name, which carries the launch id, and never by job id: a controller that lost its state
gives the same ids to other people's jobs. Every call has a timeout; a controller that does not answer is
`SlurmUnreachable`, which says nothing about a job.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError, SlurmRefused, SlurmUnreachable
from skyrl_stack.launch.slurm.jobs import Job, by_name, read_jobs
from skyrl_stack.site import seconds

TIMEOUT_S = 30.0
HURRIED_TIMEOUT_S = 8.0
"For who was told to end: Slurm's KillWait is 30 s."
_UNREACHABLE = re.compile(
    r"unable to contact|connect failure|connection refused|timed out|communication|not responding|unexpected message",
    re.IGNORECASE,
)
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


@dataclass(frozen=True)
class Partition:
    """The largest that a partition offers: several records where its nodes differ."""

    name: str
    time_limit_s: float | None
    "None is unlimited."
    cpus: int
    memory_mb: int
    gpus: dict[str, int]
    "GPUs of a node by type; the type is empty where the site names none."
    nodes: int = 1
    "Nodes of this size."
    nodes_per_job: int | None = None
    "None is unlimited."
    qos: str = ""
    "The quality of service whose limits hold for every job of the partition, too."


def submit(script: Path, directory: Path, *, after: Sequence[str] = (), tasks: range | None = None) -> str:
    """Submit `script` to run in `directory`, once one of the jobs `after` has started; returns the job id.

    With `tasks` it becomes a job array, each task of which is a job of its own.

    Raises:
        SlurmRefused: in Slurm's words.
        SlurmUnreachable: it is not known whether the job was taken.
    """
    return _call(submit_command(script, directory, after=after, tasks=tasks)).strip().partition(";")[0]


def submit_command(
    script: Path, directory: Path, *, after: Sequence[str] = (), tasks: range | None = None
) -> list[str]:
    """What `submit` runs."""
    # `after` is also satisfied by a job that was cancelled; the roles notice that by themselves.
    any_of = "?".join(f"after:{job}" for job in after)
    dependency = [f"--dependency={any_of}", "--kill-on-invalid-dep=yes"] if after else []
    array = [f"--array={tasks[0]}-{tasks[-1]}"] if tasks else []
    return ["sbatch", "--parsable", f"--chdir={directory}", *array, *dependency, str(script)]


def jobs() -> dict[str, Job]:
    """All jobs of this user that Slurm still knows, ended ones too, by name.

    Raises:
        SlurmUnreachable, SlurmRefused
    """
    return by_name(read_jobs(_call(["squeue", "--json", "--states=all", "--me"])))


def in_queue() -> list[Job]:
    """All jobs of this user that have not ended.

    Raises:
        SlurmUnreachable, SlurmRefused
    """
    return [job for job in read_jobs(_call(["squeue", "--json", "--me"])) if not job.has_ended]


def array_size() -> int | None:
    """Tasks that a job array may have here; None where Slurm does not say."""
    with contextlib.suppress(SlurmUnreachable, SlurmRefused, SetupError):
        if found := re.search(r"^MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"]), re.MULTILINE):
            return int(found[1])
    return None


def find(job_id: str, name: str) -> Job | None:
    """What Slurm says of one job; None if it knows none of this id, or one of another name.

    Raises:
        SlurmUnreachable
    """
    try:
        answer = _call(["squeue", "--json", "--states=all", f"--jobs={job_id}"], timeout_s=HURRIED_TIMEOUT_S)
    except SlurmRefused:
        return None
    return next((job for job in read_jobs(answer) if (job.number, job.name) == (job_id, name)), None)


def requeue(job_id: str, *, behind: str | None = None) -> None:
    """Let a job wait in the queue again, until job `behind` has started if that is given. It is told to end.

    Raises:
        SlurmRefused: the job, or the site, does not allow it.
        SlurmUnreachable
    """
    _call(["scontrol", "requeue", job_id])
    if behind:
        with contextlib.suppress(SlurmRefused, SlurmUnreachable):  # without it, it starts too early and waits again
            _call(["scontrol", "update", f"JobId={job_id}", f"Dependency=after:{behind}"])


def accounted(names: Iterable[str]) -> dict[str, Job]:
    """Jobs of these names, long ended ones too, from accounting; none where the site has no accounting."""
    columns = "--format=JobIDRaw,JobName,State,NodeList"
    argv = ["sacct", "--allocations", "--parsable2", "--noheader", "--starttime=now-30days", columns]
    try:
        answer = _call([*argv, f"--name={','.join(names)}"])
    except (SlurmRefused, SlurmUnreachable, SetupError):
        return {}
    rows = [line.split("|") for line in answer.splitlines()]
    nowhere = "None assigned"  # cancelled in the queue; one that could not have started yet is not told by its name
    return {
        name: Job(job_id, name, state.split()[0], node="" if node == nowhere else node)
        for job_id, name, state, node in (row for row in rows if len(row) == 4)
    }


def cancel(names: Sequence[str], *, waiting: bool = False) -> None:
    """Cancel this user's jobs of these names, or those of them that wait; those that have ended are no error.

    Raises:
        SlurmUnreachable, SlurmRefused
    """
    for name in names:
        _call(["scancel", "--me", f"--name={name}", *(["--state=PENDING"] if waiting else [])])


def partitions() -> list[Partition]:
    """What the partitions offer.

    Raises:
        SlurmUnreachable, SlurmRefused, SetupError
    """
    answer = _call(["sinfo", "--noheader", "--exact", "--format=%R|%l|%c|%m|%G|%D"])
    rules = dict(map(_rules, _call(["scontrol", "--oneliner", "show", "partition"]).splitlines()))
    found = [_partition(line) for line in answer.splitlines() if line.count("|") == 5]
    return [replace(partition, **rules.get(partition.name, {})) for partition in found]


def accounting(*words: str) -> list[list[str]]:
    """Rows that `sacctmgr show` has for these words.

    Raises:
        SlurmUnreachable, SlurmRefused
        SetupError: the site has no such command.
    """
    answer = _call(["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", *words])
    return [line.split("|") for line in answer.splitlines() if line.strip()]


def _call(argv: Sequence[str], timeout_s: float | None = None) -> str:
    timeout_s = timeout_s or TIMEOUT_S
    try:
        done = subprocess.run(
            argv, env=_environment(), stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=timeout_s
        )
    except FileNotFoundError as error:
        raise SetupError(f"{argv[0]} not found: launch from a machine that has Slurm's commands") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachable(f"{argv[0]} gave no answer within {timeout_s:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    kind = SlurmUnreachable if _UNREACHABLE.search(said) else SlurmRefused
    raise kind(said if said.startswith(argv[0]) else f"{argv[0]}: {said}")


def _environment() -> dict[str, str]:
    """Without what a shell or an outer job has set for Slurm: `SBATCH_PARTITION` would win over the script."""
    kept = (name for name in os.environ if name in _KEPT_VARIABLES or not name.startswith(("SLURM_", "SBATCH_")))
    # Lists of an array's tasks as long as they are, and not cut after 64 characters.
    return {name: os.environ[name] for name in kept} | {"SLURM_BITSTR_LEN": "0"}


def _partition(line: str) -> Partition:
    name, limit, cpus, memory_mb, gres, nodes = line.split("|")
    gpus = {kind: int(count) for kind, count in re.findall(r"gpu:(?:([A-Za-z][\w.-]*):)?(\d+)", gres)}
    return Partition(name, _limit_s(limit), int(cpus.rstrip("+")), int(memory_mb.rstrip("+")), gpus, int(nodes))


def _rules(line: str) -> tuple[str, dict[str, Any]]:
    """Name and rules of a partition, of a line of `scontrol show partition`."""
    said = {name: value for name, _, value in (word.partition("=") for word in line.split())}
    nodes, qos = said.get("MaxNodes", ""), said.get("QoS", "N/A")
    rules = {"nodes_per_job": int(nodes) if nodes.isdigit() else None, "qos": "" if qos == "N/A" else qos}
    return said.get("PartitionName", ""), rules


def _limit_s(limit: str) -> float | None:
    """Seconds of sinfo's `infinite`, `MM:SS`, `HH:MM:SS` or `D-HH:MM:SS`."""
    if not limit[0].isdigit():
        return None
    return seconds(limit if limit.count(":") == 2 else f"0:{limit}")
