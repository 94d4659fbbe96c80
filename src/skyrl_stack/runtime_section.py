"""The `[runtime]` section of a profile: how many sandboxes there are and what each may use, or whose are used."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from skyrl_stack.section import Section

Isolation = Literal["full", "shared-uid", "no-netns", "weak"]
RuntimeUrl = Annotated[str, StringConstraints(pattern=r"^http://[^\s/@?#]+:\d+$")]


class RuntimeSection(Section):
    host: str = "127.0.0.1"
    "Address to listen on, and that the trainer connects to; `node` is the name of the node that the runtime is on."
    max_sandboxes: int = Field(default=4, ge=1, le=4096)
    "Sandboxes alive at once on one node, so `launcher.runtime.nodes` times as many in all; further starts wait."
    start_timeout_s: float = Field(default=120.0, gt=0)
    "How long a start waits for a place and for Podman."
    lease_s: float = Field(default=300.0, ge=5)
    "A sandbox that nobody called for this long is removed."
    memory_mb: int | None = Field(default=1024, ge=16)
    "Of one sandbox, as all sizes. Where it is exceeded all that runs in the sandbox is killed, and the policy is told."
    cpus: float | None = Field(default=1.0, gt=0)
    "One that takes more is confined to as many CPUs, rounded up, until it is calm again."
    pids: int | None = Field(default=256, ge=16)
    "Processes and threads."
    disk_mb: int | None = Field(default=10_240, ge=16)
    "What it writes beyond its image."
    wall_s: float | None = Field(default=None, gt=0)
    "Seconds after its start at which a sandbox is removed, whatever runs in it: its episode ends as TimedOut."
    network: Literal["none", "host"] = "none"
    isolation: Isolation = "shared-uid"
    "The least that a node may give its sandboxes, see `sandbox/isolation.py`; one that gives less is refused."
    podman_socket: Path | None = None
    "Of a Podman that is there already, which starts the sandboxes: for nodes where the runtime may make no namespaces."
    output_limit_kb: int = Field(default=256, ge=4, le=65536)
    "Bytes of one command's stdout and of its stderr that are kept, in KiB."
    urls: tuple[RuntimeUrl, ...] = ()
    "Runtimes of another launch, which runs already (`run.runtime_only`): use them and start none. `http://host:port`."
    api_key_file: Path | None = None
    "Holds the key of all `urls`; nobody else may read it."

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if bool(self.urls) != bool(self.api_key_file):
            lacking = "api_key_file (--api-key-file)" if self.urls else "urls (--runtime-url)"
            raise ValueError(f"urls and api_key_file belong together: add {lacking}")
        return self

    @model_validator(mode="after")
    def _has_one_kind_of_sandboxes(self) -> Self:
        if self.podman_socket and not self.podman_socket.is_absolute():
            raise ValueError(f"podman_socket = {self.podman_socket}: must be an absolute path, the same on every node")
        if self.podman_socket and self.urls:
            raise ValueError("podman_socket is for a runtime of this launch, urls uses others: only one of them works")
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        """What of this a `SandboxSpec` says of one sandbox."""
        return self.model_dump(include={"memory_mb", "cpus", "pids", "disk_mb", "wall_s", "network"})
