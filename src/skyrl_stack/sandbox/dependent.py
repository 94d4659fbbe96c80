"""A process that lives as long as its lifeline: the pipe that is its standard input."""

import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class Dependent:
    """A program of ours that ends when every copy of its lifeline is closed, as the death of all who hold one does.

    `lifeline` and `life`, a pidfd, belong to this object; a keeper may hold copies of them for who comes after us.
    """

    def __init__(self, pid: int, lifeline: int, life: int) -> None:
        self.pid = pid
        self.descriptors = (lifeline, life)
        self._child: subprocess.Popen[bytes] | None = None
        "None where a server before this one started it."

    @classmethod
    def start(
        cls, argv: Sequence[str], *, log: Path, environment: Mapping[str, str], directory: Path | None = None
    ) -> Self:
        """Start a program, which adds to `log` what it says."""
        theirs, lifeline = os.pipe()
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(
                    argv,
                    stdin=theirs,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    cwd=directory,
                    start_new_session=True,  # a Ctrl-C is for the server, which then ends it in order
                )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(theirs)
        started = cls(child.pid, lifeline, os.pidfd_open(child.pid))
        started._child = child
        return started

    @property
    def is_alive(self) -> bool:
        return not self._has_ended(0)

    def end(self) -> None:
        """Close the lifeline, and wait for what nobody else holds it for."""
        lifeline, life = self.descriptors
        os.close(lifeline)
        self._has_ended(None)
        os.close(life)
        if self._child:
            self._child.wait()

    def _has_ended(self, timeout_ms: int | None) -> bool:
        poll = select.poll()
        poll.register(self.descriptors[1], select.POLLIN)
        return bool(poll.poll(timeout_ms))
