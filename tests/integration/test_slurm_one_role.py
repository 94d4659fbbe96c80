"""Two launches of one role each on a real Slurm: a runtime that serves on, and a trainer that cannot go on without."""

import pytest
from slurm_site import DEV, SMALL, Site

from skyrl_stack.launch import processes
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import read_tasks

pytestmark = [pytest.mark.slurm, pytest.mark.podman, pytest.mark.timeout(300)]


def launch(site: Site, *options: str) -> tuple[RunDirectory, str]:
    """The run, and what was printed."""
    values = SMALL | {"run.peer_timeout_s": "10"}
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    done = site.skyrl("launch", str(DEV), *sets, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return site.newest(), done.stdout


def test_a_trainer_uses_a_runtime_of_another_launch_and_ends_without_it(site: Site) -> None:
    serving, printed = launch(site, "--runtime-only")
    assert "trainer: job" not in printed and str(serving.api_key_file) in printed
    site.wait_until_ready(serving, "runtime")
    status = site.skyrl("status", str(serving.path)).stdout
    options = next(line for line in status.splitlines() if line.startswith("use it by")).split()[3:]
    assert options[0] == "--runtime-url" and options[2:] == ["--api-key-file", str(serving.api_key_file)]

    using, printed = launch(site, *options)
    assert "runtime: job" not in printed and "trainer: job" in printed
    site.wait(lambda: using.heartbeats("runtime"), 120, "the runtime in the trainer's directory", using)
    assert list(read_tasks(using.tasks_file)) == list(read_tasks(serving.tasks_file))
    assert "runtime    of another launch, ready" in site.skyrl("status").stdout

    assert site.skyrl("stop", str(serving.path)).returncode == 0
    site.wait(lambda: site.job(using, "trainer").has_ended, 90, "the end of the trainer", using)
    failure = using.failure()
    assert failure and "the runtime has been silent for" in failure.cause
    for run in (serving, using):
        site.wait(lambda run=run: not processes.survivors(run.launch().launch_id), 20, "no process left", run)
    key = serving.api_key_file.read_bytes()
    told = [file for run in (serving, using) for file in run.path.rglob("*") if file.is_file()]
    assert {file.parent.name for file in told if key in file.read_bytes()} == {serving.path.name}
