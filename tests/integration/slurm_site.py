"""What a person has on a login node of a private Slurm, and what drills ask of a run there."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm_cluster import Cluster

from skyrl_stack.launch import processes
from skyrl_stack.launch.slurm.jobs import Job, by_name, read_jobs
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.run_directory import Role, RunDirectory

DEV = Path(__file__).parents[2] / "profiles" / "dev.toml"
COMMAND = str(Path(sys.executable).with_name("skyrl-stack"))
ROLES: tuple[Role, Role] = ("runtime", "trainer")
SMALL = {
    "tasks.projects": '["inflection"]',
    "tasks.per_project": "2",
    "runtime.max_sandboxes": "4",
    "agent.max_steps": "8",
    "model.path": "tiny",
    "model.context_tokens": "2048",
    "trainer.device": "cpu",
    "trainer.steps": "2",
    "trainer.tasks_per_step": "2",
    "trainer.concurrent_episodes": "4",
    "trainer.learning_rate": "1e-4",
    "trainer.save_every": "1",
    "launcher.scratch": "/tmp",
    "launcher.environment.PYTHONPATH": str(Path(__file__).with_name("slow_torch")),
    "launcher.runtime.cpus": "4",
    "launcher.runtime.memory_gb": "8",
    "launcher.trainer.cpus": "4",
    "launcher.trainer.memory_gb": "8",
}


WITH_VERL = {"launcher__environment__PYTHONPATH": ""}
"For a launch whose trainer is to train."


@dataclass
class Site:
    """What a person has on a login node: a working directory, the command, and Slurm's own commands."""

    cluster: Cluster
    workplace: Path

    def skyrl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.workplace,
            env=self.cluster.environment,
            text=True,
            capture_output=True,
            timeout=150,
        )

    def launch(self, **overrides: str) -> RunDirectory:
        done = self.try_launch(**overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.newest()

    def try_launch(self, **overrides: str) -> subprocess.CompletedProcess[str]:
        values = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        return self.skyrl("launch", str(DEV), *sets)

    def newest(self) -> RunDirectory:
        return RunDirectory.latest(self.workplace / ".skyrl_jobs")

    def job(self, directory: RunDirectory, role: Role) -> Job:
        name = job_name(role, directory.launch().launch_id)
        return by_name(read_jobs(self.cluster.run("squeue", "--json", "--states=all")))[name]

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str, directory: RunDirectory) -> float:
        """Wait for `condition`; returns how long that took, and fails with the roles' logs."""
        start = time.monotonic()
        while not condition():
            logs = [f"{log.name}: {log.read_text()[-2000:]}" for role in ROLES for log in directory.role_logs(role)]
            assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s: {what}\n" + "\n".join(logs)
            time.sleep(0.5)
        return time.monotonic() - start

    def wait_until_both_ended(self, directory: RunDirectory, timeout_s: float = 60) -> None:
        def ended() -> bool:
            return all(self.job(directory, role).has_ended for role in ROLES)

        self.wait(ended, timeout_s, "the end of both jobs", directory)
        self.wait(lambda: not processes.survivors(directory.launch().launch_id), 10, "no process left", directory)
        assert not list(Path("/tmp").glob(f"skyrl-{directory.launch().launch_id}*"))

    def stop(self, directory: RunDirectory) -> None:
        """Stop the newest run, which is that of `directory`, and see that nothing of it is left."""
        assert self.skyrl("stop").returncode == 0
        self.wait_until_both_ended(directory)

    def wait_until_ready(
        self, directory: RunDirectory, role: Role, *, state: str = "ready", timeout_s: float = 120
    ) -> None:
        def is_there() -> bool:
            heartbeat = directory.heartbeat(role)
            return bool(heartbeat and heartbeat.state == state)

        self.wait(is_there, timeout_s, f"the {role} {state}", directory)

    def wait_until_started(
        self, directory: RunDirectory, role: Role, *, restart: int = 0, timeout_s: float = 120
    ) -> None:
        """Until the role runs, after so many restarts by Slurm; the runtime, until it serves."""

        def is_there() -> bool:
            heartbeat = directory.heartbeat(role)
            here = heartbeat and heartbeat.is_alive and heartbeat.restart == restart
            return bool(here and (role == "trainer" or heartbeat.state == "ready"))

        self.wait(is_there, timeout_s, f"the {role} after restart {restart}", directory)

    def wait_until_both_started(self, directory: RunDirectory) -> None:
        for role in ROLES:
            self.wait_until_started(directory, role)


def role_processes(directory: RunDirectory, role: Role, module: str = "") -> list[int]:
    """The processes of `role` itself, or of its `module`: not its batch script, nor what it started."""
    named = [b"-m", (module or f"skyrl_stack.{role}").encode(), *([role.encode()] if module else [])]
    commands = {
        process: Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        for process in processes.survivors(directory.launch().launch_id)
    }
    found = [process for process, command in commands.items() if command[1 : 1 + len(named)] == named]
    assert found
    return found
