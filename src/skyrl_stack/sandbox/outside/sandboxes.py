"""Sandboxes of a Podman that is already there, behind a socket: for a runtime that may not make namespaces itself.

It serves whoever may write to the socket, under its own configuration, with its own store of images. What ends its
sandboxes with their runtime is in `containers.py`; what was killed between two steps of a start, `sweep` finds
by the private directory, which names the socket.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.api import LABEL, PodmanApi, Refused
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.engine_sandboxes import Common, EngineSandboxes
from skyrl_stack.sandbox.isolation import Rung
from skyrl_stack.sandbox.limits import of_shell
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.outside.containers import SocketContainers, attached
from skyrl_stack.sandbox.outside.images import SocketImages
from skyrl_stack.sandbox.outside.lifeline import Size, process_1
from skyrl_stack.sandbox.storage import make_private_directory, name_socket, remove_private_directory

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


class SocketSandboxes(EngineSandboxes):
    """Sandboxes of a Podman behind a socket. None is ever adopted: a server's death closes their lifelines."""

    backbone = "Podman's service"

    def __init__(self, launch_id: str, socket: Path, **common: Unpack[Common]) -> None:
        super().__init__(launch_id, **common)
        self.socket = socket

    @property
    def is_alive(self) -> bool:
        """See `EngineSandboxes.is_alive`."""
        return self._is_open and self._api.is_alive

    @property
    def last_words(self) -> str:
        """Its log is elsewhere."""
        return f"nobody listens at {self.socket}"

    async def _prepare(self, name: str, spec: SandboxSpec) -> EngineSandbox:
        workdir = await self._workdir(spec.image)
        return EngineSandbox(
            self._containers,
            name,
            _Asked([], self._request(name, spec), {}, spec.workdir or workdir),
            limits=self._containers,
            preamble=of_shell(spec.model_copy(update={"pids": None})),  # counted by user: of all sandboxes at once
            output_limit=self.output_limit,
        )

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `ApiImages.save`."""
        self._require_open()
        return await self._images.save(references, self._directory)

    async def _absent(self, references: Sequence[str]) -> list[str]:
        return await self._images.lacking(references)

    async def _bring(self, reference: str) -> None:
        await self._images.bring(reference)

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

    async def _begin(self) -> None:
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        api = PodmanApi(self.socket)
        try:
            self._service = _Service(api.call("GET", "/info"))
            self.rung = self._service.rung
            self.rung.require(self._least_isolation)
            api.remove_launch(self.launch_id)  # what a server before this one was just starting when it died
            self._directory = make_private_directory(self.launch_id, self.run_directory, owner=self._store.owner)
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

    async def _end(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        try:
            self._api.remove_launch(self.launch_id)
        except (OSError, Refused) as error:
            LOG.warning("sandboxes at %s could not be removed; they end with us: %s", self.socket, error)
        self._api.close()
        remove_private_directory(self._directory)
