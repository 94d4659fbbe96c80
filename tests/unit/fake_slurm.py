"""Slurm's commands as scripts on PATH: for what a real Slurm cannot be made to say on demand."""

from pathlib import Path


class FakeSlurm:
    """Scripts by name, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answers(self, program: str, body: str) -> None:
        """Let `program` note its arguments and then do `body`."""
        script = self.folder / program
        script.write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >> {self.folder}/calls\n{body}\n')
        script.chmod(0o755)

    def is_idle(self) -> None:
        """Let it be a cluster with the partition `test` of one node, and no job."""
        self.answers("sinfo", "echo 'test|6:00:00|16|64000|(null)|1'")
        self.answers("scontrol", "echo 'PartitionName=test MaxNodes=UNLIMITED QoS=N/A'")
        self.answers("squeue", "echo '{\"jobs\": []}'")

    @property
    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.is_file() else []


_PROFILE = """
name = "{name}"
[launcher]
kind = "slurm"
[launcher.runtime]
partition = "test"
time_limit = "1:00:00"
cpus = 2
memory_gb = 8
[launcher.trainer]
partition = "test"
time_limit = "1:00:00"
cpus = 2
memory_gb = 8
"""


def profile_of_two_jobs(name: str) -> str:
    """TOML of a small profile in the partition `test`."""
    return _PROFILE.format(name=name)
