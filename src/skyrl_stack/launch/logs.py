"""Logs: what both roles print on all their nodes, merged line by line, with who said it in front."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skyrl_stack.launch.runs import ROLES, look
from skyrl_stack.run_directory import RunDirectory

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

    def new_lines(self, *, unfinished: bool = False) -> Iterator[tuple[str, str]]:
        """Who said it, and what has come since the last call; a line without its end waits, unless `unfinished`.

        It is the role that says it, or, where the role had several jobs, the job as its logs are named.
        """
        for source, log in self._logs():
            with log.open("rb") as stream:
                stream.seek(self._read.get(log, 0))
                content = stream.read()
            if not unfinished:
                content = content[: content.rfind(b"\n") + 1]
            self._read[log] = self._read.get(log, 0) + len(content)
            for line in content.decode(errors="replace").splitlines():
                yield source, line

    def _logs(self) -> Iterator[tuple[str, Path]]:
        """All that there are by now: a node that joins later brings its own."""
        for role in ROLES:
            logs = self.directory.role_logs(role)
            has_one_job = len({log.stem for log in logs}) == 1
            for log in logs:
                yield (role if has_one_job else log.stem), log


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


def _print(lines: Iterator[tuple[str, str]]) -> None:
    for source, line in lines:
        print(f"{source:<7} | {line}", flush=True)
