"""Status: what a run is doing, and which runs there are, as text for a terminal."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from skyrl_stack.errors import RunDirectoryError
from skyrl_stack.launch.runs import ROLES, Run, all_runs, look, use_it
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.jobs import Job
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.records import Heartbeat
from skyrl_stack.report import read_episodes
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.site import clock

WATCH_S = 5.0


def print_status(directory: RunDirectory) -> None:
    """Print the state of one run."""
    print("\n".join(status_lines(_with_accounts(look([directory])[0]))))


def watch_status(directory: RunDirectory) -> None:
    """Show the state of one run until it is over."""
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            run = _with_accounts(look([directory])[0])
            live.update(Text("\n".join(status_lines(run))), refresh=True)
            if run.is_over:
                return
            time.sleep(WATCH_S)


def status_lines(run: Run) -> Iterator[str]:
    """One fact a line: jobs, handshake, progress, the last error."""
    yield f"run        {run.directory.path}"
    started = f", launched {_ago(run.launch.started_at)} ago" if run.launch else ""
    yield f"state      {run.state}{started} (profile {run.profile.name}, {run.profile.launcher.kind})"
    if run.launch is None:
        return
    for role in ROLES if run.profile.runtime.urls else run.profile.roles:
        yield f"{role:<10} {', '.join(_role_facts(run, role)) or 'no sign of it yet'}"
        yield from _instances(run, role)
    if options := use_it(run.directory) if run.profile.run.runtime_only and not run.is_over else []:
        yield f"use it by  {' '.join(options)}"
    if "trainer" in run.profile.roles:
        yield from _progress(run)
    if run.failure:
        yield f"error      {run.failure.role}: {run.failure.cause}"


def _progress(run: Run) -> Iterator[str]:
    episodes = list(read_episodes(run.directory))
    lost = sum(episode.error is not None for episode in episodes)
    yield f"episodes   {len(episodes)} finished{f', {lost} of them lost to infrastructure' if lost else ''}"
    last = f"; the last: {run.steps[-1].one_line()}" if run.steps else ""
    yield f"steps      {run.steps[-1].number if run.steps else 0} of {run.profile.trainer.steps}{last}"


def print_runs(root: Path) -> None:
    """Print a line for each run below `root`.

    Raises:
        RunDirectoryError: there is none.
    """
    runs = look(all_runs(root))
    if not runs:
        raise RunDirectoryError(f"{root}: no run there; launch one first")
    Console(width=None if Console().is_terminal else 160).print(runs_table(runs))


def runs_table(runs: Iterable[Run]) -> Table:
    """A row a run, the oldest first."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "profile", "state", "step", "reward", "jobs", "error"):
        table.add_column(column, overflow="fold")
    for run in runs:
        jobs = " ".join(f"{job.id}:{job.state}" for job in (run.jobs or {}).values())
        done = run.steps[-1].number if run.steps else 0
        steps = f"{done}/{run.profile.trainer.steps}" if "trainer" in run.profile.roles else ""
        reward = f"{run.steps[-1].reward_mean:.2f}" if run.steps else ""
        error = Text(run.failure.cause if run.failure else "")
        table.add_row(run.directory.path.name, run.profile.name, run.state, steps, reward, jobs, error)
    return table


def _role_facts(run: Run, role: Role) -> Iterator[str]:
    if job := (run.jobs or {}).get(role):
        yield from _job_facts(job)
    elif role not in run.profile.roles:
        yield "of another launch"
    elif run.is_slurm:
        yield "Slurm does not answer" if run.jobs is None else "no job in the queue"
    heartbeats = run.directory.heartbeats(role)
    if len(heartbeats) == 1:
        yield from _sign_of_life(run, role, *heartbeats.items())
    elif heartbeats:
        yield f"{sum(heartbeat.state == 'ready' for heartbeat in heartbeats.values())} of {len(heartbeats)} nodes ready"


def _instances(run: Run, role: Role) -> Iterator[str]:
    """A line for each node of a role that has several."""
    heartbeats = run.directory.heartbeats(role)
    if len(heartbeats) > 1:
        for instance in sorted(heartbeats):
            facts = _sign_of_life(run, role, (instance, heartbeats[instance]))
            yield f"  node {instance:<4} on {heartbeats[instance].host}, {', '.join(facts)}"


def _sign_of_life(run: Run, role: Role, sign: tuple[int, Heartbeat]) -> Iterator[str]:
    instance, heartbeat = sign
    yield f"{heartbeat.state} {_ago(heartbeat.at)} ago"
    if heartbeat.restart:
        yield f"started again {heartbeat.restart} times"
    if run.is_over:
        return
    if load := heartbeat.load:
        waiting = f", {load.waiting} wait for one" if load.waiting else ""
        yield f"{load.alive} of {load.capacity} sandboxes in use{waiting}"
    if endpoint := run.directory.endpoints(role).get(instance):
        yield f"at {endpoint.url}"
        if endpoint.isolation:
            yield f"isolation {endpoint.isolation}"


def _job_facts(job: Job, now: Callable[[], float] = time.time) -> Iterator[str]:
    reason = f" ({job.reason})" if job.reason else ""
    node = f" on {job.node}" if job.node else ""
    yield f"job {job.id} {job.state}{reason}{node}"
    if job.more_waiting:
        yield f"{job.more_waiting} more of its array wait"
    if job.state == "PENDING" and job.starts_at:
        yield f"expected to start {datetime.fromtimestamp(job.starts_at):%d %b %H:%M}"
    if job.state == "RUNNING":
        yield f"{clock(max(0, now() - job.starts_at))} of {clock(job.time_limit_s)}"


def _with_accounts(run: Run) -> Run:
    """With what accounting says of jobs that the queue has forgotten."""
    if not run.is_slurm or not run.launch or run.jobs:
        return run
    names: dict[str, Role] = {job_name(role, run.launch.launch_id): role for role in ROLES}
    jobs = {names[name]: job for name, job in client.accounted(names).items()}
    return replace(run, jobs=jobs) if jobs else run


def _ago(moment: float) -> str:
    seconds = max(0, time.time() - moment)
    return f"{seconds:.0f} s" if seconds < 120 else clock(seconds)
