"""Records and error names on the wire: the OpenHands runtime API, and what ours adds to it.

Bodies keep unknown fields out of the way: OpenHands sends several that mean nothing here (`command`, `run_as_user`).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from skyrl_stack.errors import RuntimeUnavailable, SandboxExpired, SandboxLost, SandboxStartFailed
from skyrl_stack.records import Load
from skyrl_stack.sandbox.contract import CommandResult, Excess, FileMissing

API_KEY = "X-API-Key"
"Header of the control plane."
SESSION_KEY = "X-Session-API-Key"
"Header of one sandbox's data plane."


class NotRight(ValueError):
    """The request is wrong; its text says what and why."""


class Conflict(ValueError):
    """The request is right, but not in the present state."""


class Unknown(LookupError):
    """No such sandbox, session or command."""


class Full(RuntimeUnavailable):
    """No place became free in time."""


STATUSES: dict[type[Exception], int] = {
    NotRight: 400,
    Unknown: 404,
    FileMissing: 404,
    SandboxExpired: 408,
    Conflict: 409,
    SandboxLost: 410,
    SandboxStartFailed: 422,
    Full: 503,
    RuntimeUnavailable: 503,
}
ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in STATUSES}
"What a client raises for the `error` in a body; any other name is a RuntimeUnavailable."


Variable = Annotated[str, StringConstraints(pattern=r"^[^=\x00]+$")]
"Name of an environment variable."


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


ClientId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
"A name that a trainer of another launch gives itself."


class Health(Load):
    """What a runtime is, and how full."""

    status: Literal["ok"] = "ok"
    version: str
    "Of skyrl-stack."
    isolation: str
    "What keeps its sandboxes apart from its node: a rung of `sandbox/isolation.py`."
    oldest_wait_s: float = 0.0
    "Of the starts that wait for a place."


class ImageNames(_Body):
    references: tuple[str, ...]


class StartRequest(_Body):
    image: str = Field(min_length=1)
    session_id: str = Field(min_length=1, max_length=200)
    working_dir: str | None = None
    "OpenHands always sends `/` and means nothing by it: it stands for the image's own."
    workdir: str | None = None
    "Ours: taken as it is, and before `working_dir`."
    environment: dict[Variable, str] = Field(default_factory=dict)
    client: ClientId | None = None
    "Whose sandbox it is: it ends when no sign of life of that client comes any more."
    lease_s: float | None = Field(default=None, gt=0)
    wait_s: float | None = Field(default=None, gt=0)
    "How long to wait for a place, `runtime.start_timeout_s` at most."
    cpus: float | None = Field(default=None, gt=0)
    memory_mb: int | None = Field(default=None, ge=16, le=1 << 24)
    pids: int | None = Field(default=None, ge=16, le=1 << 22)
    disk_mb: int | None = Field(default=None, ge=16, le=1 << 24)
    wall_s: float | None = Field(default=None, gt=0)
    network: Literal["none", "host"] | None = None

    @property
    def directory(self) -> str | None:
        """Where shells start; None is the image's own directory."""
        return self.workdir or (None if self.working_dir in ("", "/") else self.working_dir)


class RuntimeRequest(_Body):
    runtime_id: str


class RuntimeInfo(_Body):
    """Answer of /start and /sessions."""

    runtime_id: str
    session_id: str
    url: str
    "Base of the data plane. It has no path: APIRemoteWorkspace could not use it then."
    session_api_key: str = Field(repr=False)
    status: Literal["running", "paused"]
    pod_status: Literal["ready"] = "ready"
    restart_count: int = 0
    restart_reasons: tuple[str, ...] = ()


class BashRequest(_Body):
    command: str
    timeout: float = Field(default=300.0, gt=0, le=86_400)
    cwd: str | None = None
    shell: str = Field(default="main", max_length=100)


class BashOutput(_Body):
    """How a command ended: OpenHands' event, and the fields of `CommandResult` that it lacks."""

    kind: Literal["BashOutput"] = "BashOutput"
    id: str
    command_id: str
    order: int = 0
    timestamp: str
    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False
    truncated_bytes: int = 0
    duration_s: float = 0.0
    excess: Excess | None = None

    def result(self) -> CommandResult:
        return CommandResult(**{name: getattr(self, name) for name in CommandResult.model_fields})
