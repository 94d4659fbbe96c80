"""Sandboxes of a Podman that is already there, behind a socket: for a runtime that may not make namespaces itself.

It serves whoever may write to the socket, under its own configuration, with its own store of images. What ends its
sandboxes with their runtime is in `containers.py`; what was killed between two steps of a start, `sweep` finds
by the private directory, which names the socket.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skyrl_stack.errors import SandboxLost, SandboxStartFailed, SetupError
from skyrl_stack.runtime_section import Isolation
from skyrl_stack.sandbox.api import LABEL, PodmanApi, Refused
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox, opened, start_failed
from skyrl_stack.sandbox.isolation import Rung
from skyrl_stack.sandbox.limits import of_shell
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.outside.containers import SocketContainers, attached
from skyrl_stack.sandbox.outside.images import SocketImages
from skyrl_stack.sandbox.outside.lifeline import Size, process_1
from skyrl_stack.sandbox.storage import make_private_directory, name_socket, remove_private_directory
from skyrl_stack.sandbox.supply import Supply, on_site

LOG = logging.getLogger(__name__)
_CPU_PERIOD_US = 100_000
_AFTER_WALL_S = 60
"By when Podman itself ends what should have been ended."


class _Asked(Description):
    """`config` is what Podman is asked for."""

    def process(self, argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        return attached(argv, environment)


@dataclass(frozen=True)
class _Service:
    """The Podman that answers, as it describes itself."""

    info: Mapping[str, Any]

    @property
    def rung(self) -> Rung:
        """Where its sandboxes are on the ladder."""
        host = self.info["host"]
        if not host["security"]["rootless"]:
            return Rung(
                "shared-uid", ("this Podman runs as root, so a sandbox's root is the node's: run one rootless",)
            )
        if sum(part["size"] for part in host["idMappings"]["uidmap"] or ()) > 1:
            return Rung("full", ())
        return Rung("shared-uid", ("the user of this Podman has no sub-ids: see `usermod --add-subuids`",))

    @property
    def controllers(self) -> set[str]:
        """By which cgroups it can limit a sandbox: a rootless one needs version 2, and what was delegated to it."""
        host = self.info["host"]
        if host["security"]["rootless"] and host["cgroupVersion"] != "v2":
            return set()
        return {"cpu", "memory", "pids"} & set(host.get("cgroupControllers") or ())

    def limits(self, spec: SandboxSpec) -> dict[str, Any]:
        """The sizes of a sandbox as Podman enforces them."""
        limits: dict[str, Any] = {}
        if spec.memory_mb and "memory" in self.controllers:
            limits["memory"] = {"limit": spec.memory_mb << 20, "swap": spec.memory_mb << 20}
        if spec.pids and "pids" in self.controllers:
            limits["pids"] = {"limit": spec.pids}
        if spec.cpus and "cpu" in self.controllers:
            limits["cpu"] = {"quota": int(spec.cpus * _CPU_PERIOD_US), "period": _CPU_PERIOD_US}
        return limits

    def watched(self, spec: SandboxSpec) -> list[Size]:
        """The sizes of which process 1 can see in its cgroups that they were exceeded."""
        limits = self.limits(spec)
        sizes: dict[str, Size] = {"memory": "memory", "pids": "processes"}
        return [size for name, size in sizes.items() if name in limits]

    def __str__(self) -> str:
        names = {"memory": "memory", "pids": "processes", "cpu": "cpus"}
        enforced = [name for key, name in names.items() if key in self.controllers]
        left = [name for name in (*names.values(), "disk") if name not in enforced]
        return (
            f"Podman {self.info['version']['Version']}, which enforces {', '.join(enforced) or 'no size'} "
            f"and not {', '.join(left)}"
        )


class SocketSandboxes:
    """Starts sandboxes while the block runs; when it ends nothing of them is left. See `PodmanSandboxes`."""

    backbone = "Podman's service"

    def __init__(
        self,
        launch_id: str,
        socket: Path,
        *,
        run_directory: str = "",
        output_limit: int = 256 * 1024,
        isolation: Isolation = "shared-uid",
        owner: int | None = None,
    ) -> None:
        self.launch_id = launch_id
        self.adopted: dict[str, EngineSandbox] = {}
        "See `PodmanSandboxes`. There are never any: the server's death closed their lifelines."
        self._owner = owner
        self.socket = socket
        self.run_directory = run_directory
        self.output_limit = output_limit
        self.least_isolation: Isolation = isolation
        self.rung: Rung | None = None
        self._starting = asyncio.Semaphore(2 * (os.cpu_count() or 1))
        self._directory: Path | None = None
        self._supply = Supply(lambda reference: self._images.bring(reference))

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._supply.close()
        await asyncio.to_thread(self._end)

    async def reopen(self) -> None:
        """Begin anew after Podman's service died; the sandboxes died with it."""
        await self._supply.close()
        await asyncio.to_thread(self._end)
        await asyncio.to_thread(self._begin)

    @property
    def is_alive(self) -> bool:
        """Whether Podman's service is."""
        return self._directory is not None and self._api.is_alive

    @property
    def isolation(self) -> str:
        """See `PodmanSandboxes.isolation`."""
        return self.rung.isolation if self.rung else ""

    @property
    def last_words(self) -> str:
        """Its log is elsewhere."""
        return f"nobody listens at {self.socket}"

    async def start(self, spec: SandboxSpec) -> EngineSandbox:
        """See `SandboxProvider.start`."""
        if self._directory is None:
            raise SandboxStartFailed("the provider is closed")
        name = f"sandbox-{secrets.token_hex(6)}"
        try:
            workdir = await self._workdir(spec.image)
        except (Refused, SetupError) as error:
            raise start_failed(spec, error) from error
        sandbox = EngineSandbox(
            self._containers,
            name,
            _Asked([], self._request(name, spec), {}, spec.workdir or workdir),
            limits=self._containers,
            preamble=of_shell(spec.model_copy(update={"pids": None})),  # counted by user: of all sandboxes at once
            output_limit=self.output_limit,
        )
        return await opened(sandbox, spec, self._starting)

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `PodmanSandboxes.save_images`."""
        if self._directory is None:
            raise SandboxLost("the provider is closed")
        return await self._images.save(references, self._directory)

    async def lacking_images(self, references: Sequence[str]) -> list[str]:
        """See `PodmanSandboxes.lacking_images`."""
        if self._directory is None:
            raise SandboxLost("the provider is closed")
        absent = await self._images.lacking(references)
        there = await on_site(absent)
        return [reference for reference in absent if reference not in there]

    async def announce(self, references: Sequence[str]) -> None:
        """See `PodmanSandboxes.announce`."""
        if self._directory:
            absent = await self._images.lacking(references)
            self._supply.announce(await on_site(absent))

    async def _workdir(self, reference: str) -> str:
        """The directory of an image, which Podman takes from the site's store where it lacks it."""
        image = await self._images.find(reference)
        if image is None:
            await self._supply.need(reference)
            image = await self._images.find(reference)
        return (image and image["Config"].get("WorkingDir")) or "/"

    def _request(self, name: str, spec: SandboxSpec) -> dict[str, Any]:
        """What Podman is asked for. Source: its API, `SpecGenerator`."""
        request: dict[str, Any] = {
            "name": name,
            "hostname": name,
            "image": spec.image,
            "labels": {LABEL: self.launch_id},
            "entrypoint": process_1(self._service.watched(spec)),
            "command": [],
            "stdin": True,
            "remove": True,
            "env": spec.environment,
            "httpproxy": False,
            "netns": {"nsmode": spec.network},
            "image_volume_mode": "ignore",
            "log_configuration": {"driver": "none"},
            "resource_limits": self._service.limits(spec),
        }
        if spec.workdir:
            request["work_dir"] = spec.workdir
        if spec.wall_s:
            request["timeout"] = int(spec.wall_s) + _AFTER_WALL_S
        return request

    def _begin(self) -> None:
        api = PodmanApi(self.socket)
        try:
            self._service = _Service(api.call("GET", "/info"))
            self.rung = self._service.rung
            self.rung.require(self.least_isolation)
            api.remove_launch(self.launch_id)  # what a server before this one was just starting when it died
            self._directory = make_private_directory(self.launch_id, self.run_directory, owner=self._owner)
        except OSError as error:
            api.close()
            raise SetupError(
                f"runtime.podman_socket = {self.socket}: no Podman answers ({error.strerror or error}); start it by "
                f"`podman system service --time=0 unix://{self.socket}`"
            ) from error
        except BaseException:
            api.close()
            raise
        name_socket(self._directory, self.socket)
        self._api = api
        self._containers, self._images = SocketContainers(api), SocketImages(api)
        LOG.info("sandboxes are of the Podman behind %s; %s; %s", self.socket, self.rung, self._service)

    def _end(self) -> None:
        directory, self._directory = self._directory, None
        if directory is None:
            return
        try:
            self._api.remove_launch(self.launch_id)
        except (OSError, Refused) as error:
            LOG.warning("sandboxes at %s could not be removed; they end with us: %s", self.socket, error)
        self._api.close()
        remove_private_directory(directory)
