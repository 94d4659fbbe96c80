"""Batch scripts: their text, that bash takes it, and that no value of a profile is ever code."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from skyrl_stack.launch.slurm.render import render
from skyrl_stack.profile import RunSection
from skyrl_stack.run_directory import Role
from skyrl_stack.site import JobSection, NetworkSection, SlurmLauncher

GOLDEN = Path(__file__).parent / "slurm"
ROLES: list[Role] = ["runtime", "trainer"]
LAUNCHER = SlurmLauncher(
    account="some_lab",
    modules=("cuda/12.9.1-fasrc01",),
    environment={"HTTPS_PROXY": "http://proxy:3128"},
    bind=("/n/holylfs06", "/n/data:/data:ro"),
    scratch=Path("/scratch"),
    runtime=JobSection(partition="test", time_limit="6:00:00", cpus=16, memory_gb=32, qos="short"),
    trainer=JobSection(
        partition="gpu_test",
        time_limit="0-05:30:00",
        cpus=8,
        memory_gb=48,
        gpus=1,
        gpu_type="nvidia_a100_3g.20gb",
        constraint="a100&holyndr",
    ),
)


def script(role: Role, launcher: SlurmLauncher = LAUNCHER, workdir: Path = Path("/home/me"), **how: str | bool) -> str:
    directory = workdir / ".skyrl_jobs/20270101-000000_dev"
    how = {"python": "/home/me/.venv/bin/python"} | how
    return render(
        role, launcher, RunSection(), launch_id="0123456789abcdef", run_directory=directory, workdir=workdir, **how
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ROLES)
def test_text(role: Role) -> None:
    assert script(role, resume=True) == (GOLDEN / f"{role}.sbatch").read_text()


def test_without_requeue_slurm_is_told_so() -> None:
    run = RunSection(requeue=False, notice_s=77)
    where = {"run_directory": Path("/r"), "workdir": Path("/w")}
    text = render("trainer", LAUNCHER, run, launch_id="0123456789abcdef", **where)
    assert "#SBATCH --no-requeue\n" in text and "#SBATCH --requeue" not in text
    assert "#SBATCH --signal=B:USR1@77\n" in text


@pytest.mark.parametrize("role", ROLES)
def test_optional_lines_are_left_out_and_bash_takes_the_rest(role: Role) -> None:
    job = JobSection(partition="p", time_limit="1:00:00", cpus=1, memory_gb=1)
    text = script(role, SlurmLauncher(runtime=job, trainer=job))
    assert not re.search(r"account|qos|constraint|gres|module|TMPDIR|APPTAINER|--resume", text)
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_nodes_of_the_trainer_are_one_job_and_those_of_the_runtime_are_not() -> None:
    job = JobSection(partition="p", time_limit="1:00:00", cpus=1, memory_gb=1, nodes=3)
    launcher = SlurmLauncher(runtime=job, trainer=job)
    assert "#SBATCH --nodes=1\n" in script("runtime", launcher)
    assert "#SBATCH --nodes=3\n" in script("trainer", launcher)


def test_values_reach_the_role_as_they_are(tmp_path: Path) -> None:
    """A working directory, a variable and an interpreter full of what a shell would act on."""
    nasty = "a 'b' \"c\" $(touch owned) `touch owned` $HOME; touch owned\n#"
    workdir = tmp_path / nasty.replace("\n", "")
    workdir.mkdir()
    python = workdir / "python $X"
    python.write_text('#!/bin/sh\nprintf "%s|" "$NASTY" "$PWD" "$@"\n')
    python.chmod(0o755)
    job = LAUNCHER.runtime
    launcher = SlurmLauncher(runtime=job, trainer=job, environment={"NASTY": nasty})
    text = script("trainer", launcher, workdir=workdir, python=str(python))
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, cwd=tmp_path, env=dict(os.environ))
    values = done.stdout.split("|")
    assert values[:2] == [nasty, str(workdir)], done.stderr
    assert values[5:7] == ["--run-dir", str(workdir / ".skyrl_jobs/20270101-000000_dev")]
    assert not list(tmp_path.rglob("owned"))


def test_the_network_is_the_trainers_and_the_sites_own_variables_win() -> None:
    network = NetworkSection(fabric="infiniband", interface="ib0")
    launcher = LAUNCHER.model_copy(update={"network": network, "environment": {"NCCL_SOCKET_IFNAME": "^lo"}})
    assert "NCCL_" not in script("runtime", launcher.model_copy(update={"environment": {}}))
    text = script("trainer", launcher)
    assert "export NCCL_NET=IB\n" in text and "export GLOO_SOCKET_IFNAME=ib0\n" in text
    assert "export NCCL_SOCKET_IFNAME='^lo'\n" in text and "=ib0" not in text.replace("GLOO_SOCKET_IFNAME=ib0", "")


def test_the_trainer_is_one_job_of_all_its_nodes_and_the_runtime_a_job_for_each() -> None:
    several = {role: LAUNCHER.job(role).model_copy(update={"nodes": 4}) for role in ROLES}
    launcher = LAUNCHER.model_copy(update=several)
    assert "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=1\n" in script("trainer", launcher)
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n" in script("runtime", launcher)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "test\n#SBATCH --uid=0"),
        ("partition", "a b"),
        ("qos", "x --wrap=y"),
        ("constraint", 'a" --uid=0'),
        ("time_limit", "6 hours"),
        ("time_limit", "6:00"),
    ],
)
def test_what_would_reach_an_sbatch_line_has_a_pattern(key: str, value: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        JobSection.model_validate(LAUNCHER.runtime.model_dump() | {key: value})


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "db_password"])
def test_secrets_are_refused_in_a_profile(name: str) -> None:
    with pytest.raises(ValueError, match="looks like a secret: export it in the shell that launches"):
        SlurmLauncher.model_validate(LAUNCHER.model_dump() | {"environment": {name: "x"}})
