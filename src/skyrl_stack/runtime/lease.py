"""One lease: a sandbox, its address and key, and when it ends."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from skyrl_stack.runtime.commands import Commands
from skyrl_stack.runtime.wire import RuntimeInfo, StartRequest
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.keeping import Store

KEPT = "lease"
"Below this key leases are kept, by the id of the sandbox, each with its port."


@dataclass(eq=False)
class Lease:
    """A sandbox that is somebody's for a while."""

    request: StartRequest
    sandbox: EngineSandbox
    listener: asyncio.Server
    host: str
    port: int
    duration_s: float
    store: Store
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    status: Literal["running", "paused"] = "running"

    def __post_init__(self) -> None:
        self.commands = Commands(self.sandbox, self.in_use)
        self._calls = 0
        self._deadline = time.monotonic() + self.duration_s
        self._kept: object = None

    @property
    def id(self) -> str:
        return self.sandbox.id

    @property
    def session_id(self) -> str:
        return self.request.session_id

    @property
    def client(self) -> str | None:
        """Without whom it ends, whatever its duration; None where the whole runtime ends with its one trainer."""
        return self.request.client

    @property
    def is_over(self) -> bool:
        """Whether nobody called for `duration_s`. A call under way keeps it, however long it takes."""
        return not self._calls and time.monotonic() > self._deadline

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the lease while the block runs, and for its duration from then on."""
        self._calls += 1
        self.keep()
        try:
            yield
        finally:
            self._calls -= 1
            self._deadline = time.monotonic() + self.duration_s

    def keep(self) -> None:
        """Put away what a server after this one needs, if that is new; to be called often, for calls move the end."""
        state = {"status": self.status, "ends_at": None if self._calls else self._deadline}
        if state == self._kept or not self.listener.is_serving():
            return
        self._kept = state
        record = {**state, "key": self.key, "request": self.request.model_dump(mode="json")}
        self.store.put(f"{KEPT}/{self.id}", record, [place.fileno() for place in self.listener.sockets])

    def go_on(self, record: Mapping[str, Any]) -> None:
        """Be what a server before this one put away. The call that was under way then has just ended."""
        self.key, self.status = record["key"], record["status"]
        self._deadline = record["ends_at"] or self._deadline

    def close(self) -> None:
        """Answer nobody any more."""
        self.listener.close()
        self.store.drop(f"{KEPT}/{self.id}")

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(
            runtime_id=self.id,
            session_id=self.session_id,
            url=f"http://{self.host}:{self.port}",
            session_api_key=self.key,
            status=self.status,
        )
