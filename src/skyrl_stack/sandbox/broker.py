"""The broker: makes the containers of a cell, and hands their streams and files to the server as open descriptors.

    server ──one request per connection──▶ broker (root of the cell's namespaces) ──▶ crun ──▶ sandboxes
           ◀──answer and descriptors─────

Bytes of commands and files pass between the server and the sandbox alone, with nobody in between. It is a process
of its own in the cell, where it may do what only the cell's root may; it imports Python's own library alone.
"""

import argparse
import ctypes
import json
import os
import select
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from skyrl_stack.node import end_with_parent
from skyrl_stack.sandbox.cgroups import enter_cell
from skyrl_stack.sandbox.container import Container, Layers, Refused
from skyrl_stack.sandbox.entering import run_in_cell
from skyrl_stack.sandbox.seccomp import Filters
from skyrl_stack.sandbox.syscalls import leave_session_keyring

_PR_SET_CHILD_SUBREAPER = 36
_EXIT_PATIENCE_S = 2.0

Reply = tuple[dict[str, Any], list[int]]
"An answer, and descriptors that go with it and are then closed here."


class Broker:
    """All containers of one cell. Its public methods are the requests."""

    def __init__(self, runtime: Sequence[str], state: Path, cgroup: Path | None) -> None:
        self._runtime = (*runtime, "--root", str(state))
        self._cgroup = cgroup
        self._layers = Layers()
        self._filters = Filters(state)
        self._containers: dict[str, Container] = {}
        self._removed: set[str] = set()
        self._children: dict[int, int | None] = {}
        "Exit codes of processes that we have started; None while they run."
        self._reaping = threading.Lock()

    def create(self, id: str, layers: list[str], config: dict[str, Any], files: dict[str, str], workdir: str) -> Reply:
        """Start a container."""
        container = Container(id, self._runtime, self._cgroup / id if self._cgroup else None)
        with container.lock:
            self._containers[id] = container
            if id in self._removed:
                raise Refused("gone", f"sandbox {id} was removed")
            container.start(self._layers.links(layers), self._filters.add(config), files, workdir)
            self._filters.learn(config, id)
        self._adopt(container.pid)
        return {"pid": container.pid, "upper": str(Path(id, "upper").absolute())}, []

    def execute(self, id: str, process: dict[str, Any]) -> Reply:
        """Start a process; with its id come its stdin, stdout, stderr and a pidfd."""
        container = self._get(id)
        pipes = [os.pipe(), os.pipe(), os.pipe()]
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        try:
            pid = container.execute(process, theirs)
        except BaseException:
            _close(ours)
            raise
        finally:
            _close(theirs)
        life = os.pidfd_open(pid)
        self._adopt(pid)
        return {"pid": pid}, [*ours, life]

    def exit_code(self, pid: int) -> Reply:
        """How a process ended, as a shell would say it; None if it has not."""
        deadline = time.monotonic() + _EXIT_PATIENCE_S
        while True:
            self.reap()
            if self._children.get(pid) is not None or time.monotonic() > deadline:
                return {"code": self._children.pop(pid, None)}, []
            time.sleep(0.01)

    def is_running(self, id: str) -> Reply:
        return {"running": id in self._containers and self._containers[id].is_running}, []

    def open(self, id: str, path: str, write: bool) -> Reply:
        """Open a regular file."""
        return {}, [self._get(id).open(path, write=write)]

    def kill(self, id: str, pid: int, marker: str) -> Reply:
        """Kill a shell and all that came of it."""
        self._get(id).kill(pid, marker)
        return {}, []

    def signal(self, id: str, number: int) -> Reply:
        """Signal all processes but process 1."""
        self._get(id).signal(number)
        return {}, []

    def remove(self, id: str) -> Reply:
        """End a container. Idempotent."""
        container = self._containers.get(id)
        if container is None:
            self._removed.add(id)
            return {}, []
        with container.lock:
            container.remove()
        self._containers.pop(id, None)
        return {}, []

    def _get(self, id: str) -> Container:
        if id not in self._containers:
            raise Refused("gone", f"sandbox {id} is gone")
        return self._containers[id]

    def _adopt(self, pid: int) -> None:
        with self._reaping:
            self._children[pid] = None
        self.reap()

    def reap(self) -> None:
        """Take the exit codes of children that ended: process 1 of a container cannot end before.

        By id, because the OCI runtime itself is waited for where it was called.
        """
        with self._reaping:
            for pid in [pid for pid, code in list(self._children.items()) if code is None]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    self._children[pid] = code if code >= 0 else 128 - code


class _Request(socketserver.StreamRequestHandler):
    """One request, one answer."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        line = self.rfile.readline()
        if not line:
            return
        request = json.loads(line)
        descriptors: list[int] = []
        try:
            call: Callable[..., Reply] = getattr(self.server.broker, request.pop("call"))
            answer, descriptors = call(**request)
        except Refused as error:
            answer = {"error": error.kind, "detail": str(error)}
        except OSError as error:
            answer = {"error": "failed", "detail": str(error)}
        try:
            socket.send_fds(self.request, [json.dumps(answer).encode() + b"\n"], descriptors)
        except OSError:  # the caller is gone
            pass
        finally:
            _close(descriptors)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, path: str, broker: Broker) -> None:
        self.broker = broker
        super().__init__(path, _Request)

    def handle_error(self, request: object, client_address: object) -> None:
        traceback.print_exc()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _serve(directory: Path, path: str, runtime: str, cgroup: Path | None) -> None:
    """Answer requests in this process, until standard input ends or its parent does."""
    end_with_parent(signal.SIGKILL)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the OCI runtime starts becomes ours when that ends
    directory.mkdir(mode=0o700)
    os.chdir(directory)
    os.umask(0o022)
    with suppress(OSError):  # where there are no keyrings, there is none to see
        leave_session_keyring()
    broker = Broker([runtime], directory / "state", cgroup)
    server = _Server(path, broker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # The signal itself goes to the thread that called the OCI runtime, and would not wake this one.
    dead, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([0, dead], [], [])
        if 0 in ready and not os.read(0, 4096):
            return
        if dead in ready:
            os.read(dead, 4096)
            broker.reap()


def main() -> int:
    """The program's entry point. Its standard input is its lifeline."""
    parser = argparse.ArgumentParser(prog="skyrl_stack.sandbox.broker")
    parser.add_argument("--helper", type=int, required=True, help="process id of the cell's namespaces helper")
    parser.add_argument("--runtime", required=True, help="path of crun or runc")
    parser.add_argument("--directory", type=Path, required=True, help="for the sandboxes; is made")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--cgroup", type=Path, help="of the launch; those of sandboxes lie below it")
    arguments = parser.parse_args()
    if arguments.cgroup:
        enter_cell(arguments.cgroup)
    serve = partial(_serve, arguments.directory, arguments.socket, arguments.runtime, arguments.cgroup)
    return run_in_cell(arguments.helper, serve)


if __name__ == "__main__":
    sys.exit(main())
