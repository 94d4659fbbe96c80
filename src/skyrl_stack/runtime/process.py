"""The server's process: serves sandboxes until the run ends.

Its parent is the keeper (`keeper.py`), which starts it again where it dies; then it goes on with what it finds there.
"""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from skyrl_stack.errors import PeerLost, SandboxLost, StackError
from skyrl_stack.presence import Presence
from skyrl_stack.profile import RunSection
from skyrl_stack.records import Endpoint, publish, read_if_there
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.keeper import CRASHED
from skyrl_stack.runtime.server import Served, serving
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.api import Refused
from skyrl_stack.sandbox.engine_sandboxes import EngineSandboxes
from skyrl_stack.sandbox.keeping import KeeperStore
from skyrl_stack.sandbox.providers import sandboxes_of
from skyrl_stack.sandbox.sweep import make_room

LOG = logging.getLogger("skyrl_stack.runtime")
_WATCH_INTERVAL_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DEATHS = 3
"So often may Podman die within _DEATHS_WITHIN_S."
_DEATHS_WITHIN_S = 600.0


class Runtime:
    """One runtime, from its first heartbeat, or from where a server before this one died, to its last."""

    def __init__(self, directory: RunDirectory, store: KeeperStore) -> None:
        self.directory = directory
        self._store = store
        found = store.take("runtime")
        self._token: str | None = found and found.data["token"]
        self._stop = asyncio.Event()
        self._lost: str | None = None
        self._deaths: list[float] = []
        "When Podman died, of late."
        self._trainer: int | None = found and found.data["trainer"]
        "Which start of the trainer the sandboxes are for; None while it is away."
        self._announced: tuple[str, ...] = ()

    async def run(self) -> None:
        """Serve until a signal, the trainer's end or a loss.

        Raises:
            PeerLost: the trainer or the launcher is gone without having ended.
            SandboxLost: Podman's service died too often, or this server.
            SystemExit: by a signal.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # what we were told since our birth, we hear now

        def lost(reason: str) -> None:
            self._lost = reason
            loop.call_soon_threadsafe(self._stop.set)

        with Presence(self.directory, "runtime", "trainer", lost) as presence:
            await self._serve(presence)
            trainer = self.directory.heartbeat("trainer")
            if self._lost and not (trainer and trainer.state == "ended"):
                raise PeerLost(self._lost)
            if not self._lost:
                raise SystemExit(0)

    async def _serve(self, presence: Presence) -> None:
        if not self._store.deaths and (healed := await asyncio.to_thread(make_room)):
            LOG.warning(healed)
        profile, me = self.directory.profile(), presence.me
        token = self._token = self._token or self._new_token(profile.run)
        self._remember()
        endpoint_file = self.directory.endpoint_file("runtime", me.instance)
        name = f"{me.launch_id}-{me.instance}.{me.restart}"  # Slurm may put two instances on one node
        provider = sandboxes_of(profile.runtime, name, run_directory=str(self.directory.path), store=self._store)
        server = serving(
            provider,
            _placed(profile.runtime),
            token,
            tasks_file=self.directory.tasks_file,
            client_timeout_s=profile.run.peer_timeout_s,
            store=self._store,
        )
        async with provider as sandboxes, server as served:
            endpoint = Endpoint(**me.model_dump(), url=served.url, token=token, isolation=sandboxes.isolation)
            publish(endpoint_file, endpoint, mode=0o600)
            try:
                presence.ready(served.load)
                LOG.info("ready at %s, for %d sandboxes", served.url, profile.runtime.max_sandboxes)
                await self._until_stopped_or_crashed(sandboxes, served)
                LOG.info("stopping: %s", self._lost or "asked to")
            finally:
                if read_if_there(endpoint_file, Endpoint) == endpoint:
                    endpoint_file.unlink(missing_ok=True)

    def _new_token(self, run: RunSection) -> str:
        return self.directory.api_key_file.read_text() if run.runtime_only else secrets.token_urlsafe(32)

    def _remember(self) -> None:
        self._store.put("runtime", {"token": self._token, "trainer": self._trainer})

    async def _until_stopped_or_crashed(self, sandboxes: EngineSandboxes, served: Served) -> None:
        """What nobody foresaw ends this process at once, and not its sandboxes: the next server has them."""
        if self._store.is_last:
            raise SandboxLost(f"the server died {self._store.deaths} times, the last time by {self._store.died}")
        try:
            await self._until_stopped(sandboxes, served)
        except StackError:
            raise
        except Exception:
            LOG.exception("the server met with what nobody foresaw")
            os._exit(CRASHED)

    async def _until_stopped(self, sandboxes: EngineSandboxes, served: Served) -> None:
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), _WATCH_INTERVAL_S)
            except TimeoutError:
                if not sandboxes.is_alive:
                    await self._revive(sandboxes, served)
                await self._drop_what_is_left(served)
                await self._announce(sandboxes)

    async def _revive(self, sandboxes: EngineSandboxes, served: Served) -> None:
        """Begin anew after what sandboxes need died: they died with it, and so do their leases.

        Raises:
            SandboxLost: it dies again and again.
        """
        now, words = time.monotonic(), sandboxes.last_words
        self._deaths = [died for died in self._deaths if now - died < _DEATHS_WITHIN_S] + [now]
        if len(self._deaths) > _DEATHS:
            raise SandboxLost(f"{sandboxes.backbone} died {len(self._deaths)} times: {words}")
        await served.end_all()
        await sandboxes.reopen()
        self._announced = ()
        LOG.warning(
            "healed: %s died (%s) and its sandboxes with it; it was started again", *(sandboxes.backbone, words)
        )

    async def _drop_what_is_left(self, served: Served) -> None:
        """A trainer that left, or was started again, does not call for its old sandboxes; their places are needed."""
        heartbeat = self.directory.heartbeat("trainer")
        trainer = None if heartbeat is None or heartbeat.state == "left" else heartbeat.restart
        if self._trainer is not None and trainer != self._trainer:
            await served.end_all()
        if trainer != self._trainer:
            self._trainer = trainer
            self._remember()

    async def _announce(self, sandboxes: EngineSandboxes) -> None:
        """Have ready what the trainer's next steps will need. Where Podman fails, those sandboxes will say why."""
        upcoming = self.directory.upcoming()
        if upcoming != self._announced:
            self._announced = upcoming
            with suppress(SandboxLost, Refused):
                await sandboxes.announce(upcoming)


def _placed(section: RuntimeSection) -> RuntimeSection:
    """With the name of this node, where the profile leaves it to Slurm which one that is."""
    return section.model_copy(update={"host": socket.gethostname()}) if section.host == "node" else section


def main() -> int:
    """The process's entry point; 1 and one line on standard error when it fails."""
    parser = argparse.ArgumentParser(prog="skyrl_stack.runtime", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--keeper", type=int, required=True, help="descriptor of the keeper's socket")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        store = KeeperStore.handed_over(arguments.keeper)
        asyncio.run(Runtime(RunDirectory.open(arguments.run_dir), store).run())
    except StackError as error:
        print(f"runtime: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
