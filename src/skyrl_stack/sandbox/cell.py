"""The cell: Podman's API service in private namespaces, so that nothing of a run can outlive it.

    this process ──lifeline──▶ namespaces helper ──▶ process 1 ──▶ podman system service: images
                 ──lifeline──▶ broker, which joins these namespaces ──▶ OCI runtime ──▶ sandboxes

Whatever ends this process, the kernel then kills all that is to the right of it and undoes its mounts. Only files
stay, in the launch's private directory. Of a runtime, its keeper holds the lifelines too, for the next server.
"""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from podman import PodmanClient

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox import namespaces
from skyrl_stack.sandbox.dependent import Dependent
from skyrl_stack.sandbox.podman_config import (
    HYBRID_CGROUPS,
    find_program,
    require_podman,
    storage_options,
    write_config,
)

START_TIMEOUT_S = 30.0


class Cell:
    """Podman's service over `graphroot`, alive while the block runs.

    `directory` is the launch's private directory; images are also read from `image_stores`. `registries`
    says where a registry's name leads to, if not to itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        graphroot: Path | None = None,
        image_stores: Sequence[Path] = (),
        registries: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.graphroot = graphroot or directory / "storage"
        self.image_stores = tuple(image_stores)
        self.registries = dict(registries or {})
        self.socket = directory / "podman.sock"
        self.log = directory / "podman.log"
        self.runtime = ""
        "Path of the OCI runtime, once it was started; `environment` is what it and Podman run in."
        self.environment: dict[str, str] = {}
        self.process: Dependent | None = None
        "The helper; one that a server before this one started may be put here in place of `start`."

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the service and wait until it answers.

        Raises:
            SetupError: a part of Podman is missing or it did not start; says what to install, or the log's last line.
        """
        runtime = require_podman()
        ids = namespaces.id_map()
        # crun refuses a machine that has cgroups of both versions; it does not look behind a mount.
        hide = (HYBRID_CGROUPS,) if runtime == "crun" and HYBRID_CGROUPS.is_dir() else ()
        self.runtime = find_program(runtime) or runtime
        self.environment = write_config(
            self.directory, runtime=runtime, graphroot=self.graphroot, ids=ids, registries=self.registries
        )
        # Below the directory that it starts in: Podman takes 50 characters for this, of which it makes no socket here.
        storage = storage_options(self.graphroot, Path("run/storage"), self.image_stores, ids)
        service = ("podman", *storage, "system", "service", "--time=0", f"unix://{self.socket}")
        argv = namespaces.command(*service, hide=hide)
        self.process = Dependent.start(argv, log=self.log, environment=self.environment, directory=self.directory)
        try:
            self._await_socket(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything in the cell; when this returns no process and no mount of it is left. Idempotent."""
        process, self.process = self.process, None
        if process:
            process.end()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive

    @property
    def helper(self) -> int:
        """The process outside that holds the cell's namespaces, and dies with them."""
        assert self.process, "the cell is not open"
        return self.process.pid

    @property
    def last_words(self) -> str:
        """The last line of the service's log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def client(self, timeout_s: float = 60.0) -> PodmanClient:
        """A new podman-py client, to be closed; one per thread, for its session is not thread-safe."""
        return PodmanClient(base_url=f"unix://{self.socket}", timeout=timeout_s)

    def _await_socket(self, process: Dependent) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as trial:
                try:
                    return trial.connect(str(self.socket))
                except OSError:
                    pass
            if not process.is_alive:
                break
            time.sleep(0.01)
        raise SetupError(f"Podman's service did not start: {self.last_words}")
