"""What a sandbox *is*: the protocol that every backend and the client over HTTP must pass.

`tests/contract/` runs one suite against each implementation; caller code cannot tell them apart.
"""

from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field


class SandboxSpec(BaseModel):
    """What to start. Sizes of `None` mean "no limit of ours"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1)
    "Image reference, passed to Podman verbatim."
    workdir: str | None = "/testbed"
    "Directory in which a new shell starts; must exist in the image. None is the image's own."
    environment: dict[str, str] = Field(default_factory=dict)
    "Variables added to those of the image."
    cpus: float | None = Field(default=None, gt=0)
    memory_mb: int | None = Field(default=None, ge=16)
    pids: int | None = Field(default=None, ge=16)
    "Processes and threads."
    disk_mb: int | None = Field(default=None, ge=16)
    "What it may write, beyond its image."
    wall_s: float | None = Field(default=None, gt=0)
    "Seconds after its start at which it is removed, whatever runs in it; calls then raise SandboxExpired."
    network: Literal["none", "host"] = "none"
    lease_s: float = Field(default=600.0, gt=0)
    "Seconds without any call after which the sandbox is removed: a client that died leaves nothing."


class Excess(BaseModel):
    """A size of the sandbox that was exceeded: everything in it was killed for that."""

    model_config = ConfigDict(frozen=True)

    resource: Literal["memory", "processes", "disk"]
    used: int
    "MiB; for processes their number, threads included."
    allowed: int

    def __str__(self) -> str:
        unit = "processes" if self.resource == "processes" else f"MiB of {self.resource}"
        return f"{self.used} {unit} in use, {self.allowed} allowed"


class CommandResult(BaseModel):
    """Outcome of one command. A non-zero exit code and a timeout are results, not errors."""

    model_config = ConfigDict(frozen=True)

    exit_code: int
    "The command's own; 124 when it timed out, as timeout(1) says it."
    stdout: str
    "UTF-8, undecodable bytes replaced. Capped: the middle is cut and the cut says how much."
    stderr: str
    timed_out: bool = False
    truncated_bytes: int = 0
    "Bytes cut out of stdout and stderr together."
    duration_s: float = 0.0
    excess: Excess | None = None
    "What the sandbox used too much of since the command before, in any of its shells."


class FileMissing(Exception):
    """`read_file` on a path that does not exist or is not a regular file. A result, not a loss."""


READ_LIMIT_MB = 64


class FileTooLarge(FileMissing):
    """`read_file` on one of more than READ_LIMIT_MB, lest a sandbox fill the memory of who reads what it made."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: larger than {READ_LIMIT_MB} MiB")


class Sandbox(Protocol):
    """One container of one episode."""

    id: str

    async def run(
        self, command: str, *, timeout_s: float = 60.0, shell: str = "main", cwd: str | None = None
    ) -> CommandResult:
        """Run `command` by /bin/bash in the persistent shell named `shell`.

        Working directory and environment last from call to call of one shell. On timeout the whole
        process group is killed and the shell goes on where the last finished command left it.

        Raises:
            SandboxLost: the sandbox is gone.
            SandboxExpired: its wall time was over; so for all that follows.
            ValueError: a NUL byte in `command`, or a timeout that is not positive.
        """
        ...

    async def read_file(self, path: str) -> bytes:
        """Content of the file at the absolute `path`.

        Raises:
            FileMissing: no such regular file, or (FileTooLarge) more than READ_LIMIT_MB of it.
            SandboxLost: the sandbox is gone.
        """
        ...

    async def write_file(self, path: str, data: bytes) -> None:
        """Create or replace the file at the absolute `path`; parents are made, its mode is kept.

        Raises:
            SandboxLost: the sandbox is gone.
        """
        ...

    async def pause(self) -> None:
        """Stop all that runs in the sandbox where it is. Time limits go on, and no other call is made before `resume`.

        Raises:
            SandboxLost: the sandbox is gone.
        """
        ...

    async def resume(self) -> None:
        """Let all that was stopped go on.

        Raises:
            SandboxLost: the sandbox is gone.
        """
        ...

    async def stop(self) -> None:
        """Remove the sandbox and all it holds. Idempotent; never raises for one already gone."""
        ...


class SandboxProvider(Protocol):
    """Starts sandboxes: Podman itself, or the runtime server through its client."""

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox; when this returns a command can be run in it.

        Raises:
            SandboxStartFailed: the image is missing or Podman refused.
            RuntimeUnavailable: the runtime server cannot be reached.
        """
        ...
