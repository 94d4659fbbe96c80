"""What the queue allows: partitions with their nodes and time limits, and the limits of accounting.

Slurm itself accepts a job that can never start, and lets it wait for ever.
"""

from collections.abc import Iterator, Mapping, Sequence

from skyrl_stack.launch.plan.findings import Finding, Need
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.launch.slurm.client import Partition
from skyrl_stack.launch.slurm.jobs import Job
from skyrl_stack.launch.slurm.limits import Limit
from skyrl_stack.run_directory import Role
from skyrl_stack.section import did_you_mean
from skyrl_stack.site import JobSection, SlurmLauncher, clock


def queue(launcher: SlurmLauncher, started: Sequence[Role], survey: Survey) -> Iterator[Need | Finding]:
    """The jobs of the roles that are started against what Slurm says."""
    for role in started:
        job = launcher.job(role)
        gpus = f", {job.gpus} GPUs" if job.gpus else ""
        asked = f"{job.nodes} × ({job.cpus} cores, {job.memory_gb} GB{gpus}) for {job.time_limit}"
        offered = [partition for partition in survey.partitions or () if partition.name == job.partition]
        yield Need(f"{role}'s job", asked, _offer(job, offered))
        if survey.partitions is not None:
            yield from _partition(role, job, survey.partitions, offered)
    if "runtime" in started:
        yield from _array(launcher, survey.array_size)
    if survey.partitions is None:
        yield Finding("note", "Slurm does not say what its partitions offer; they are not checked")
    else:
        yield from _limits(launcher, started, survey)


def _offer(job: JobSection, offered: Sequence[Partition]) -> str:
    if not offered:
        return ""
    largest = max(offered, key=lambda partition: (sum(partition.gpus.values()), partition.cpus))
    limit = clock(largest.time_limit_s) if largest.time_limit_s is not None else "any time"
    gpus = f", {sum(largest.gpus.values())} GPUs" if largest.gpus else ""
    nodes = sum(partition.nodes for partition in offered)
    return f"{job.partition}: {nodes} × ({largest.cpus} cores, {largest.memory_mb // 1024} GB{gpus}), {limit}"


def _partition(
    role: Role, job: JobSection, partitions: Sequence[Partition], offered: Sequence[Partition]
) -> Iterator[Finding]:
    key = f"launcher.{role}"
    if not offered:
        names = sorted({partition.name for partition in partitions})
        hint = did_you_mean(job.partition, names)
        yield Finding("error", f"{key}.partition = {job.partition!r}: no such partition here; {hint}")
        return
    limit_s = offered[0].time_limit_s
    if limit_s is not None and job.time_limit_s > limit_s:
        works = clock(limit_s)
        yield Finding(
            "error", f"{key}.time_limit = {job.time_limit} is over what {job.partition} allows: {works} works"
        )
    for name, wanted, most in (
        ("cpus", job.cpus, max(partition.cpus for partition in offered)),
        ("memory_gb", job.memory_gb, max(partition.memory_mb for partition in offered) // 1024),
        ("gpus", job.gpus, max(_gpus_of(partition, job.gpu_type) for partition in offered)),
    ):
        if wanted > most:
            of_type = f" of type {job.gpu_type}" if name == "gpus" and job.gpu_type else ""
            yield Finding("error", f"{key}.{name} = {wanted}: a node of {job.partition} has {most}{of_type} at most")
    if role == "trainer":
        yield from _nodes(job, offered)


def _nodes(job: JobSection, offered: Sequence[Partition]) -> Iterator[Finding]:
    """Nodes that could take a share of the trainer's one job. The runtime's nodes are jobs of their own."""
    fit = [
        partition
        for partition in offered
        if partition.cpus >= job.cpus
        and partition.memory_mb // 1024 >= job.memory_gb
        and _gpus_of(partition, job.gpu_type) >= job.gpus
    ]
    there_are = sum(partition.nodes for partition in fit)
    if fit and job.nodes > there_are:
        yield Finding("error", f"launcher.trainer.nodes = {job.nodes}: {job.partition} has {there_are} that large")
    most = offered[0].nodes_per_job
    if most is not None and job.nodes > most:
        yield Finding("error", f"launcher.trainer.nodes = {job.nodes}: a job of {job.partition} may have {most}")


def _array(launcher: SlurmLauncher, most: int | None) -> Iterator[Need | Finding]:
    """Each node of the runtime is a task of an array."""
    nodes = launcher.runtime.nodes
    if most is None or nodes == 1:
        return
    yield Need("tasks of the runtime's array", str(nodes), f"{most} (MaxArraySize)")
    if nodes > most:
        yield Finding(
            "error", f"launcher.runtime.nodes = {nodes}: an array has {most} tasks at most here: {most} works"
        )


def _limits(launcher: SlurmLauncher, started: Sequence[Role], survey: Survey) -> Iterator[Need | Finding]:
    """The limits that hold for each of the jobs, and for both together where they share one."""
    for limit in survey.limits:
        roles: list[Role] = [role for role in started if _holds(limit, launcher, role, survey)]
        if not roles:
            continue
        name = f"{'account' if limit.kind == 'association' else 'QOS'} {limit.name}"
        yield from _counts(
            limit, name, launcher, roles, [job for job in survey.queued if _counts_for(job, limit, survey)]
        )
        for role in roles:
            yield from _one_job(limit, name, role, launcher.job(role))
        yield from _together(limit, name, {role: launcher.job(role) for role in roles})


def _counts(
    limit: Limit, name: str, launcher: SlurmLauncher, roles: Sequence[Role], queued: Sequence[Job]
) -> Iterator[Need | Finding]:
    """How many jobs may be submitted, and run, at once. Tasks of an array that wait count one by one."""
    count = sum(_jobs(role, launcher) for role in roles)
    submitted = sum(job.tasks for job in queued)
    running = sum(job.state != "PENDING" for job in queued)
    for most, does, others in ((limit.submit, "submitted", submitted), (limit.jobs, "running", running)):
        if most is None:
            continue
        yield Need(f"jobs {does}, {name}", str(count), f"{most}, {others} of them taken" if others else str(most))
        if count > most:
            yield Finding("error", f"{count} jobs, but {name} allows {most} {does} at once: {_fewer(launcher, most)}")
        elif count + others > most and does == "submitted":
            there = f"{others} of yours are in the queue"
            yield Finding("error", f"{count} jobs, but {name} allows {most} submitted at once and {there}: squeue --me")
        elif count + others > most:
            yield Finding("warning", f"{name} lets {most} jobs run at once, and {others} of yours do: this run waits")


def _counts_for(job: Job, limit: Limit, survey: Survey) -> bool:
    if limit.kind == "association":
        return job.account == limit.name and limit.partition in ("", job.partition)
    of_partition = {partition.qos for partition in survey.partitions or () if partition.name == job.partition}
    return limit.name in of_partition | {job.qos}


def _holds(limit: Limit, launcher: SlurmLauncher, role: Role, survey: Survey) -> bool:
    job = launcher.job(role)
    defaults = [other for other in survey.limits if other.kind == "association" and _accounts(other, launcher, job)]
    if limit.kind == "association":
        return limit in defaults
    of_partition = {partition.qos for partition in survey.partitions or () if partition.name == job.partition}
    default = next((association.default_qos for association in defaults if association.default_qos), "normal")
    return limit.name in of_partition | {job.qos or default}


def _accounts(limit: Limit, launcher: SlurmLauncher, job: JobSection) -> bool:
    is_charged = limit.is_default if launcher.account is None else limit.name == launcher.account
    return is_charged and limit.partition in ("", job.partition)


def _jobs(role: Role, launcher: SlurmLauncher) -> int:
    """An array's elements are counted one by one."""
    return launcher.runtime.nodes if role == "runtime" else 1


def _fewer(launcher: SlurmLauncher, most: int) -> str:
    if launcher.runtime.nodes > 1 and most > 1:
        return f"launcher.runtime.nodes = {most - 1} works"
    return "each role needs one; another qos or account may allow them"


def _one_job(limit: Limit, name: str, role: Role, job: JobSection) -> Iterator[Finding]:
    if limit.time_limit_s is not None and job.time_limit_s > limit.time_limit_s:
        most = clock(limit.time_limit_s)
        yield Finding(
            "error", f"launcher.{role}.time_limit = {job.time_limit} is over what {name} allows: {most} works"
        )
    wanted = _resources(job, job.nodes if role == "trainer" else 1)
    for what, most in limit.per_job.items():
        if (asked := wanted.get(what, 0)) > most:
            yield Finding("error", f"the {role}'s job asks for {what}={asked:g}, but {name} allows {most:g} a job")


def _together(limit: Limit, name: str, jobs: Mapping[Role, JobSection]) -> Iterator[Need | Finding]:
    for what, most in limit.together.items():
        wanted = sum(_resources(job, job.nodes).get(what, 0) for job in jobs.values())
        yield Need(f"{what}, {name}", f"{wanted:g}", f"{most:g}")
        if wanted > most:
            roles = " and ".join(jobs)
            yield Finding("error", f"{roles} ask for {what}={wanted:g}, but {name} allows {most:g} at once")


def _resources(job: JobSection, nodes: int) -> Mapping[str, int]:
    """By Slurm's own names; memory in GB."""
    return {
        "cpu": nodes * job.cpus,
        "node": nodes,
        "mem": nodes * job.memory_gb,
        "gres/gpu": nodes * job.gpus,
    } | ({f"gres/gpu:{job.gpu_type}": nodes * job.gpus} if job.gpu_type else {})


def _gpus_of(partition: Partition, gpu_type: str | None) -> int:
    return sum(partition.gpus.values()) if gpu_type is None else partition.gpus.get(gpu_type, 0)
