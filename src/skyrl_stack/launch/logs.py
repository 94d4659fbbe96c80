"""Logs: what both roles print, merged line by line, with the role in front."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skyrl_stack.launch.runs import ROLES, look
from skyrl_stack.run_directory import Role, RunDirectory

POLL_S = 0.5
STATE_POLL_S = 15.0


@dataclass
class Tail:
    """The growing logs of one run, of all its launches."""

    directory: RunDirectory
    _read: dict[Path, int] = field(default_factory=dict)
    "Bytes of each log that were read."

    def skip_to_last(self, lines: int) -> None:
        """Leave out all but the last lines of each log."""
        for _, log in self._logs():
            content = log.read_bytes()
            kept = b"".join(content.splitlines(keepends=True)[-lines:]) if lines else b""
            self._read[log] = len(content) - len(kept)

    def new_lines(self, *, unfinished: bool = False) -> Iterator[tuple[Role, str]]:
        """Lines that have come since the last call; a line without its end waits, unless `unfinished`."""
        for role, log in self._logs():
            with log.open("rb") as stream:
                stream.seek(self._read.get(log, 0))
                content = stream.read()
            if not unfinished:
                content = content[: content.rfind(b"\n") + 1]
            self._read[log] = self._read.get(log, 0) + len(content)
            for line in content.decode(errors="replace").splitlines():
                yield role, line

    def _logs(self) -> Iterator[tuple[Role, Path]]:
        for role in ROLES:
            for log in self.directory.role_logs(role):
                yield role, log


def print_logs(directory: RunDirectory, *, last: int, follow: bool) -> None:
    """Print the last lines of each log, and if told to follow, what comes until the run is over."""
    tail = Tail(directory)
    tail.skip_to_last(last)
    next_look = 0.0
    while follow:
        _print(tail.new_lines())
        if time.monotonic() > next_look:
            if look([directory])[0].is_over:
                break
            next_look = time.monotonic() + STATE_POLL_S
        time.sleep(POLL_S)
    _print(tail.new_lines(unfinished=True))


def _print(lines: Iterator[tuple[Role, str]]) -> None:
    for role, line in lines:
        print(f"{role:<7} | {line}", flush=True)
