"""Plan: does the profile fit where it is to run? Asked before anything is submitted.

`plan` is pure: a profile and what `survey` saw of the site, to findings. An error names the nearest value that
works, and refuses the launch: Slurm itself accepts a job that can never start, and lets it wait for ever.
"""

import difflib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from skyrl_stack.errors import ProfileError, SlurmRefused, SlurmUnreachable
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.client import Partition
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import Role
from skyrl_stack.site import JobSection, SlurmLauncher, clock
from skyrl_stack.tasks.manifest import Standing, require_verified, standing
from skyrl_stack.trainer.ranks import misfits

CHECKPOINT_BYTES_PER_PARAMETER = 12
"Weights and Adam's two moments in float32, of which verl's FSDP checkpoint consists."


@dataclass(frozen=True)
class Finding:
    """One thing that somebody who launches should know."""

    level: Literal["error", "warning", "note"]
    text: str


@dataclass(frozen=True)
class Site:
    """What was seen of the place where the run is to be."""

    partitions: Sequence[Partition] | None = None
    "None where Slurm did not say."
    free_bytes: int | None = None
    "On the file system of `run.root`."
    parameters: int | None = None
    "Of the model; None where its weights are not here yet."
    standing: Standing | None = None
    "Of the tasks of `tasks.file`; None where tasks are made, which measures each as it is made."


def survey(profile: Profile) -> Site:
    """Look at the site that `profile` means to use."""
    partitions = None
    if profile.launcher.kind == "slurm":
        try:
            partitions = client.partitions()
        except (SlurmUnreachable, SlurmRefused):
            partitions = None
    root = next(
        folder for folder in (profile.run.root.absolute(), *profile.run.root.absolute().parents) if folder.exists()
    )
    tasks = standing(profile.tasks.file) if profile.tasks.file else None
    return Site(partitions, shutil.disk_usage(root).free, _parameters(Path(profile.model.path)), tasks)


def plan(profile: Profile, site: Site) -> list[Finding]:
    """What speaks against the profile, errors first."""
    launcher = profile.launcher
    findings = [*_tasks(profile, site), *_episodes(profile), *_ranks(profile, site), *_disk(profile, site)]
    if isinstance(launcher, SlurmLauncher):
        findings += _jobs(profile, launcher)
        if site.partitions is None:
            findings.append(Finding("note", "Slurm does not say what its partitions offer; they are not checked"))
        else:
            findings += _partition("runtime", launcher.runtime, site.partitions)
            findings += _partition("trainer", launcher.trainer, site.partitions)
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


def require_fit(findings: Iterable[Finding]) -> None:
    """Refuse what cannot work.

    Raises:
        ProfileError: the first error.
    """
    for finding in findings:
        if finding.level == "error":
            raise ProfileError(finding.text)


def _tasks(profile: Profile, site: Site) -> Iterator[Finding]:
    file, found = profile.tasks.file, site.standing
    if file is None or found is None:
        return
    try:
        require_verified(file, found, unverified=profile.tasks.unverified)
    except ProfileError as error:
        yield Finding("error", str(error))
    if found.unverified and profile.tasks.unverified:
        yield Finding(
            "warning",
            f"UNVERIFIED: {found.unverified} of the {sum(found)} tasks of {file} were never verified; their "
            "rewards may be noise, or be had by cheating",
        )


def _episodes(profile: Profile) -> Iterator[Finding]:
    trainer, runtime = profile.trainer, profile.runtime
    per_step = trainer.tasks_per_step * trainer.rollouts_per_task
    if trainer.concurrent_episodes > per_step:
        yield Finding(
            "warning",
            f"trainer.concurrent_episodes = {trainer.concurrent_episodes}, but a step has {per_step} episodes "
            f"(tasks_per_step × rollouts_per_task): {per_step} is as fast",
        )
    if profile.sandboxes > trainer.concurrent_episodes:
        nodes = f" on each of {profile.runtime_nodes} nodes" if profile.runtime_nodes > 1 else ""
        yield Finding(
            "warning",
            f"runtime.max_sandboxes = {runtime.max_sandboxes}{nodes}, but {trainer.concurrent_episodes} episodes at "
            f"once (trainer.concurrent_episodes) use one each",
        )


def _disk(profile: Profile, site: Site) -> Iterator[Finding]:
    if site.parameters is None or site.free_bytes is None:
        yield Finding("note", "the model's weights are not here, so its checkpoints' size is not checked")
        return
    saves = -(-profile.trainer.steps // profile.trainer.save_every)
    one = site.parameters * CHECKPOINT_BYTES_PER_PARAMETER
    if saves * one <= site.free_bytes:
        return
    fitting = site.free_bytes // one
    remedy = f"trainer.save_every = {-(-profile.trainer.steps // fitting)} fits" if fitting else "free some space"
    yield Finding(
        "error",
        f"{saves} checkpoints of {_gb(one)} do not fit the {_gb(site.free_bytes)} free for run.root: {remedy}",
    )


def _jobs(profile: Profile, launcher: SlurmLauncher) -> Iterator[Finding]:
    runtime, trainer = launcher.runtime, launcher.trainer
    if runtime.time_limit_s < trainer.time_limit_s:
        yield Finding(
            "error",
            f"launcher.runtime.time_limit = {runtime.time_limit} ends before the trainer's {trainer.time_limit} does: "
            f"at least {trainer.time_limit} works",
        )
    if runtime.gpus:
        yield Finding("warning", f"launcher.runtime.gpus = {runtime.gpus}: the runtime uses none")
    yield from _sandbox_memory(profile, runtime)


def _ranks(profile: Profile, site: Site) -> Iterator[Finding]:
    job = profile.launcher.trainer if isinstance(profile.launcher, SlurmLauncher) else None
    offered = {
        name
        for partition in site.partitions or ()
        if job and partition.name == job.partition
        for name in partition.gpus
    }
    gpu_types = {job.gpu_type} if job and job.gpu_type else offered
    yield from (Finding("error", text) for text in misfits(profile, gpu_types))
    if job and job.gpus and profile.trainer.device == "cpu":
        yield Finding("warning", f"launcher.trainer.gpus = {job.gpus}, but trainer.device = 'cpu' leaves them idle")


def _sandbox_memory(profile: Profile, job: JobSection) -> Iterator[Finding]:
    """A job that uses more memory than it asked for is killed, and every sandbox with it."""
    runtime = profile.runtime
    if runtime.memory_mb is None or runtime.max_sandboxes * runtime.memory_mb <= job.memory_gb * 1024:
        return
    fitting = job.memory_gb * 1024 // runtime.memory_mb
    needed_gb = -(-runtime.max_sandboxes * runtime.memory_mb // 1024)
    yield Finding(
        "error",
        f"runtime.max_sandboxes = {runtime.max_sandboxes} of {runtime.memory_mb} MB may use more than "
        f"launcher.runtime.memory_gb = {job.memory_gb}: {needed_gb} works"
        + (f", or max_sandboxes = {fitting}" if fitting * job.nodes >= profile.trainer.concurrent_episodes else ""),
    )


def _partition(role: Role, job: JobSection, partitions: Sequence[Partition]) -> Iterator[Finding]:
    key = f"launcher.{role}"
    offered = [partition for partition in partitions if partition.name == job.partition]
    if not offered:
        names = sorted({partition.name for partition in partitions})
        close = difflib.get_close_matches(job.partition, names, n=1)
        there_are = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
        yield Finding("error", f"{key}.partition = {job.partition!r}: no such partition here; {there_are}")
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


def _gpus_of(partition: Partition, gpu_type: str | None) -> int:
    return sum(partition.gpus.values()) if gpu_type is None else partition.gpus.get(gpu_type, 0)


def _parameters(model: Path) -> int | None:
    """Parameters of a model directory, from the headers of its safetensors files."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else []
    if not files:
        return None
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
