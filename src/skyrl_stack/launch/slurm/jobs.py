"""Jobs as Slurm tells of them: the JSON of squeue, from 22.05 (plain values) to 24.11 (lists and `{set, number}`)."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from skyrl_stack.errors import SlurmUnreachable

ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "PREEMPTED"),
    *("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "REVOKED"),
}


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job."""

    id: str
    "Of a job array's tasks: `<array>_<task>`, or `<array>_[<tasks>]` while they wait."
    name: str
    state: str
    reason: str = ""
    "Why it waits, or how it ended; empty where Slurm says nothing."
    node: str = ""
    starts_at: float = 0
    "Seconds since the epoch, expected or past; 0 where Slurm has no estimate."
    time_limit_s: float = 0
    restarts: int = 0
    "How often Slurm has put it into the queue again."
    partition: str = ""
    account: str = ""
    qos: str = ""
    "The last two are empty where there is no accounting."
    number: str = ""
    "Its own id, whatever array it is of."
    tasks: int = 1
    "Jobs that it stands for: more than one are tasks of an array that have not started, and which Slurm tells as one."
    more_waiting: int = 0
    "Further tasks of its array that wait."

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"


def read_jobs(answer: str) -> list[Job]:
    """All jobs of `squeue --json`, in the order of their ids.

    Raises:
        SlurmUnreachable: Slurm answered that it cannot answer: exit code 0, no jobs, and errors among the JSON; or in
            a shape that we do not know.
    """
    try:
        return [_job(record) for record in sorted(_records(answer), key=lambda record: record["job_id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise SlurmUnreachable(f"squeue --json: unexpected answer: {type(error).__name__}: {error}") from error


def by_name(jobs: Iterable[Job]) -> dict[str, Job]:
    """Of several of one name, the tasks of an array or a former launch's, the one that got furthest and lives.

    If none lives, the newest. How many of them wait besides is told with it.
    """
    ranked = sorted(jobs, key=lambda job: 0 if job.has_ended else 1 if job.waits else 2)
    waiting = Counter[str]()
    for job in ranked:
        waiting[job.name] += job.tasks * job.waits
    first = {job.name: job for job in ranked}
    return {name: replace(job, more_waiting=waiting[name] - job.tasks * job.waits) for name, job in first.items()}


def _records(answer: str) -> list[dict[str, Any]]:
    content = json.loads(answer)
    if errors := content.get("errors"):
        raise SlurmUnreachable(f"squeue: {errors[0].get('description') or errors[0].get('error')}")
    return content["jobs"]


def _job(record: dict[str, Any]) -> Job:
    state, reason = record["job_state"], record["state_reason"]
    return Job(
        id=_id(record),
        number=str(record["job_id"]),
        name=record["name"],
        state=state if isinstance(state, str) else state[0],
        reason="" if reason == "None" else reason,
        node=record["nodes"],
        starts_at=_number(record["start_time"]),
        time_limit_s=60 * _number(record["time_limit"]),
        restarts=_number(record.get("restart_cnt")),
        partition=record.get("partition") or "",
        account=record.get("account") or "",
        qos=record.get("qos") or "",
        tasks=_count(record.get("array_task_string") or ""),
    )


def _id(record: dict[str, Any]) -> str:
    task = record.get("array_task_id")
    if task is None or (isinstance(task, dict) and not task["set"]):
        waiting = record.get("array_task_string")
        return f"{record['job_id']}_[{waiting}]" if waiting else str(record["job_id"])
    return f"{_number(record['array_job_id'])}_{_number(task)}"


def _count(tasks: str) -> int:
    """Of `0-6,8,10-20:5%2`, which are ten tasks, two at a time; 1 for no array."""
    parts = re.findall(r"(\d+)(?:-(\d+)(?::(\d+))?)?", tasks.partition("%")[0])
    return sum(len(range(int(first), int(last or first) + 1, int(step or 1))) for first, last, step in parts) or 1


def _number(value: int | dict[str, Any] | None) -> int:
    """A number of either shape; 0 where it is not set or has no bound."""
    if isinstance(value, dict):
        return value["number"] if value["set"] and not value["infinite"] else 0
    return value or 0
