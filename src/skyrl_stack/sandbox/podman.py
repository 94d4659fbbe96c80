"""Sandboxes of Podman: the contract over a cell that is this launch's own."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import NoReturn, Self

from podman import PodmanClient
from podman.errors import APIError, NotFound

from skyrl_stack.errors import SandboxExpired, SandboxLost, SandboxStartFailed
from skyrl_stack.profile import Isolation
from skyrl_stack.sandbox import files
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.contract import CommandResult, SandboxSpec
from skyrl_stack.sandbox.isolation import Rung, probe
from skyrl_stack.sandbox.limits import Limits, of_shell
from skyrl_stack.sandbox.podman_config import find_program
from skyrl_stack.sandbox.service import PodmanService
from skyrl_stack.sandbox.shell import KILLED, KILLER, Shell
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory

LOG = logging.getLogger(__name__)
LABEL = "skyrl.launch"
_INIT = "/run/skyrl-init"
_CONTROL_TIMEOUT_S = 20.0
_SAVE_TIMEOUT_S = 1800.0


class PodmanSandbox:
    """A container. Its process 1 does nothing but reap, so that a `kill -9 -1` in it leaves it alive."""

    def __init__(
        self,
        service: PodmanService,
        identifier: str,
        workdir: str | None,
        *,
        limits: Limits,
        preamble: str,
        output_limit: int,
    ) -> None:
        self.id = identifier
        self._service = service
        self._workdir = workdir or "."  # where Podman starts a process in that container
        self._limits = limits
        self._preamble = preamble
        self._output_limit = output_limit
        self._shells: dict[str, Shell] = {}
        self._expiry: asyncio.Task[None] | None = None
        self._expired = ""
        self._control = Shell(service, identifier, "control", workdir="/", output_limit=4096, kill=self._unkillable)

    async def run(
        self, command: str, *, timeout_s: float = 60.0, shell: str = "main", cwd: str | None = None
    ) -> CommandResult:
        """See `Sandbox.run`."""
        if "\0" in command or "\0" in (cwd or ""):
            raise ValueError("a command holds no NUL byte")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s = {timeout_s}: must be positive")
        if shell not in self._shells:
            self._shells[shell] = self._shell(shell)
        with self._unless_expired():
            try:
                result = await self._shells[shell].run(command, timeout_s=timeout_s, cwd=cwd)
            except RuntimeError as error:
                if excess := self._limits.excess(self.id):  # the shell was killed with all else, as it began
                    return CommandResult(exit_code=KILLED, stdout="", stderr="", excess=excess)
                await self._give_up(f"has no shell any more: {error}")
        excess = self._limits.excess(self.id)
        return result.model_copy(update={"excess": excess}) if excess else result

    async def open(self, wall_s: float | None = None) -> None:
        """Start the shell for commands, and the one that can still kill when nothing can be started any more."""
        if wall_s:
            self._expiry = asyncio.create_task(self._expire(wall_s))
        self._shells["main"] = self._shell("main")
        await asyncio.gather(self._shells["main"].open(), self._control.open())

    async def read_file(self, path: str) -> bytes:
        """See `Sandbox.read_file`."""
        with self._unless_expired():
            return await self._on_files(lambda client: files.read(client, self.id, path))

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        with self._unless_expired():
            await self._on_files(lambda client: files.write(client, self.id, path, data))

    async def pause(self) -> None:
        """Stop every process of the sandbox where it is. By signal: a rootless Podman may lack the freezer."""
        await self._signal("STOP")

    async def resume(self) -> None:
        """Let every process of the sandbox go on."""
        await self._signal("CONT")

    async def is_running(self) -> bool:
        return await self._service.is_running(self.id)

    async def stop(self) -> None:
        """See `Sandbox.stop`."""

        def remove(client: PodmanClient) -> None:
            parameters = {"force": True, "timeout": 0, "v": True}
            client.api.delete(f"/containers/{self.id}", params=parameters).raise_for_status()

        try:
            await self._service.call(remove)
        except (NotFound, SandboxLost):
            pass
        except (APIError, OSError) as error:
            LOG.warning("sandbox %s could not be removed; it goes with the run: %s", self.id, error)
        for shell in (*self._shells.values(), self._control):
            shell.close()
        self._limits.forget(self.id)
        if self._expiry and not self._expired:
            self._expiry.cancel()

    def _shell(self, name: str) -> Shell:
        return Shell(
            self._service,
            self.id,
            f"shell-{name}",
            workdir=self._workdir,
            preamble=self._preamble,
            output_limit=self._output_limit,
            kill=self._kill,
        )

    async def _kill(self, pid: int, marker: str) -> None:
        """End a shell and all that came of it, through the control shell."""
        script = f"{KILLER}\n__skyrl_kill {pid} {quote(marker)}"
        try:
            result = await self._control.run(script, timeout_s=_CONTROL_TIMEOUT_S)
        except RuntimeError as error:
            await self._give_up(f"has no room for a shell that could kill: {error}")
        if result.exit_code:
            await self._give_up("does not let its processes be killed")

    async def _unkillable(self, _pid: int, _marker: str) -> None:
        await self._give_up("does not answer")

    async def _give_up(self, reason: str) -> NoReturn:
        """Remove a sandbox that is out of control, before it takes what the others need."""
        await self.stop()
        raise SandboxLost(f"sandbox {self.id} {reason}")

    async def _expire(self, wall_s: float) -> None:
        await asyncio.sleep(wall_s)
        self._expired = f"sandbox {self.id} was removed at the end of its {wall_s:g} s"
        await self.stop()

    @contextmanager
    def _unless_expired(self) -> Iterator[None]:
        """A sandbox that is lost because its time is over is said to be that."""
        try:
            yield
        except SandboxLost as error:
            if self._expired:
                raise SandboxExpired(self._expired) from error
            raise

    async def _signal(self, name: str) -> None:
        """To all but process 1 and the sender."""
        await self._control.run(f"builtin kill -{name} -1 2>/dev/null; :", timeout_s=_CONTROL_TIMEOUT_S)

    async def _on_files[T](self, function: Callable[[PodmanClient], T]) -> T:
        if not await self.is_running():  # Podman would serve the files of a container that ended, too
            raise SandboxLost(f"sandbox {self.id} is gone")
        try:
            return await self._service.call(function)
        except NotFound as error:
            raise SandboxLost(f"sandbox {self.id} is gone") from error
        except APIError as error:
            raise ValueError(f"Podman refused: {error.explanation or error}") from error


class PodmanSandboxes:
    """Starts sandboxes while the block runs; when it ends nothing of them is left.

    `places` is how many sandboxes there will be at most: a limit on processes holds for all of them together.
    """

    def __init__(
        self,
        launch_id: str,
        *,
        image_stores: Sequence[Path],
        run_directory: str = "",
        output_limit: int = 256 * 1024,
        places: int = 4,
        isolation: Isolation = "shared-uid",
    ) -> None:
        self.launch_id = launch_id
        self.run_directory = run_directory
        self.image_stores = tuple(image_stores)
        self.output_limit = output_limit
        self.places = places
        self.least_isolation: Isolation = isolation
        self.rung: Rung | None = None
        "What this node gives, once the block runs."
        self._directory: Path | None = None
        self._cell: Cell | None = None
        self._service: PodmanService | None = None
        self._limits: Limits | None = None

    async def __aenter__(self) -> Self:
        helper = await asyncio.to_thread(self._open)
        self._limits = await Limits.start(helper)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        limits, self._limits = self._limits, None
        if limits:
            await limits.close()
        await asyncio.to_thread(self._close)

    async def reopen(self) -> None:
        """Begin anew after Podman's service died, with no sandbox."""
        await asyncio.to_thread(self._close)
        await asyncio.to_thread(self._open)

    @property
    def is_alive(self) -> bool:
        """Whether Podman's service still is, and what keeps its sandboxes to their sizes."""
        return bool(self._cell and self._cell.is_alive and self._limits and self._limits.is_alive)

    @property
    def last_words(self) -> str:
        """What Podman's service said last."""
        return self._cell.last_words if self._cell else ""

    async def start(self, spec: SandboxSpec) -> PodmanSandbox:
        """See `SandboxProvider.start`."""
        if self._service is None or self._limits is None:
            raise SandboxStartFailed("the provider is closed")
        limits = self._limits
        if self.rung and not self.rung.has_networks:
            spec = spec.model_copy(update={"network": "host"})
        name = f"sandbox-{secrets.token_hex(6)}"
        sandbox = PodmanSandbox(
            self._service,
            name,
            spec.workdir,
            limits=limits,
            preamble=of_shell(spec, self.places),
            output_limit=self.output_limit,
        )
        try:
            pid, upper = await self._service.call(lambda client: self._create(client, name, spec))
            limits.watch(name, pid, upper, spec)
            await sandbox.open(spec.wall_s)
        except BaseException as error:
            await asyncio.shield(sandbox.stop())
            if not isinstance(error, Exception):
                raise
            reason = getattr(error, "explanation", None) or error
            raise SandboxStartFailed(f"{spec.image}: {' '.join(str(reason).split())}") from error
        return sandbox

    async def save_images(self, references: Sequence[str]) -> Path:
        """An archive of images, for a node that lacks them, with what layers they share once. The caller removes it.

        Raises:
            SandboxStartFailed: Podman refused; an image may be missing.
            SandboxLost: Podman itself is gone.
        """
        if self._service is None or self._directory is None:
            raise SandboxLost("the provider is closed")
        archive = self._directory / f"images-{secrets.token_hex(4)}.tar"
        try:
            await self._service.call(lambda client: _save(client, references, archive))
        except BaseException as error:
            archive.unlink(missing_ok=True)
            if not isinstance(error, APIError):
                raise
            raise SandboxStartFailed(f"cannot save images: {' '.join(str(error.explanation).split())}") from error
        return archive

    def _create(self, client: PodmanClient, name: str, spec: SandboxSpec) -> tuple[int, str]:
        """Its process 1, and the directory that takes what it writes; both as the cell sees them."""
        container = client.containers.create(
            spec.image,
            name=name,
            command=[_INIT, "-P"],
            entrypoint=[],
            environment=spec.environment,
            labels={LABEL: self.launch_id},
            mounts=[{"type": "bind", "source": find_program("catatonit"), "target": _INIT, "read_only": True}],
            network_mode=spec.network,
            **({"working_dir": spec.workdir} if spec.workdir else {}),
        )
        container.start()
        container.reload()
        return container.attrs["State"]["Pid"], container.attrs["GraphDriver"]["Data"]["UpperDir"]

    def _open(self) -> int:
        """Start the cell; returns the process that holds its namespaces."""
        self.rung = probe()
        self.rung.require(self.least_isolation)
        LOG.info("%s", self.rung)
        self._directory = make_private_directory(self.launch_id, self.run_directory)
        try:
            self._cell = Cell(self._directory, image_stores=[path for path in self.image_stores if path.is_dir()])
            self._cell.start()
        except BaseException:
            self._close()
            raise
        self._service = PodmanService(self._cell)
        return self._cell.helper

    def _close(self) -> None:
        service, self._service = self._service, None
        cell, self._cell = self._cell, None
        directory, self._directory = self._directory, None
        if service:
            service.close()
        if cell:
            cell.stop()
        if directory:
            remove_private_directory(directory)


def _save(client: PodmanClient, references: Sequence[str], archive: Path) -> None:
    parameters = {"references": list(references), "format": "docker-archive"}
    answer = client.api.get("/images/export", params=parameters, stream=True, timeout=_SAVE_TIMEOUT_S)
    try:
        answer.raise_for_status()
        with archive.open("wb") as file:
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
    finally:
        answer.close()
