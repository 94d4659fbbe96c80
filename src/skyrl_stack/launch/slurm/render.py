"""Pure: from a profile and a launch to the text of its two batch scripts. The templates are slurm/*.sbatch.j2.

What reaches an `#SBATCH` line has a pattern in the profile; what reaches the shell passes `quote`.
"""

import shlex
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from skyrl_stack.launch.slurm.network import network_environment
from skyrl_stack.profile import RunSection
from skyrl_stack.run_directory import JOB_LOGS, Role
from skyrl_stack.site import SlurmLauncher


def job_name(role: Role, launch_id: str) -> str:
    """The key by which a role's job is known: unlike a job id it is never given to another job."""
    return f"{role}-{launch_id}"


def render(
    role: Role,
    launcher: SlurmLauncher,
    run: RunSection,
    *,
    launch_id: str,
    run_directory: Path,
    workdir: Path,
    resume: bool = False,
    python: str = sys.executable,
) -> str:
    """The batch script of `role`. Relative paths of the profile are those of `workdir`, as they are locally."""
    arguments = [role, "--run-dir", str(run_directory), *(["--resume"] if resume and role == "trainer" else [])]
    return (
        _templates()
        .get_template(f"{role}.sbatch.j2")
        .render(
            name=job_name(role, launch_id),
            job=launcher.job(role),
            nodes=launcher.trainer.nodes if role == "trainer" else 1,  # each node of the runtime is a job of its own
            account=launcher.account,
            modules=launcher.modules,
            environment=_environment(launcher, role),
            requeue=run.is_requeued,
            notice_s=run.notice_s,
            log=JOB_LOGS[role],
            launch_id=launch_id,
            workdir=str(workdir),
            command=[python, "-m", "skyrl_stack.launch.slurm.job", *arguments],
        )
    )


def _environment(launcher: SlurmLauncher, role: Role) -> dict[str, str]:
    scratch = {"TMPDIR": str(launcher.scratch)} if launcher.scratch else {}
    bind = {"APPTAINER_BIND": ",".join(launcher.bind)} if launcher.bind else {}
    network = network_environment(launcher.network) if role == "trainer" else {}
    return scratch | bind | network | launcher.environment


@cache
def _templates() -> Environment:
    """Read as package data: slurm/ of a checkout and of a wheel are both found there, by way of a link."""
    folder = files(__package__) / "templates"
    texts = {file.name: file.read_text() for file in folder.iterdir() if file.name.endswith(".j2")}
    environment = Environment(
        loader=DictLoader(texts),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: `quote` is what makes a value safe
    )
    environment.filters["quote"] = _quote
    return environment


def _quote(value: Any) -> str:
    return shlex.quote(str(value))
