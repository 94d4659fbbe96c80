"""A shared file system with stale caches, between two directories: what is written in one is seen late in the other.

Each file is late by another time, so a new one may be seen before an older one; what is seen is complete, as after a
rename. It stands where NFS with attribute caching would, which a machine without a file server cannot be made to show.
"""

import contextlib
import random
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LOOK_EVERY_S = 0.2


@contextlib.contextmanager
def lagging(one: Path, other: Path) -> Iterator["Lag"]:
    """Inside the block each directory follows the other; at first at once, then as late as `Lag.up_to_s` says."""
    staging = one.with_name(f".{one.name}-on-the-way")
    staging.mkdir()
    lag, ended = Lag(one, other, staging), threading.Event()

    def follow() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            lag.look()

    thread = threading.Thread(target=follow, name="lagging", daemon=True)
    thread.start()
    try:
        yield lag
    finally:
        ended.set()
        thread.join()


_State = tuple[int, int, int]


@dataclass
class Lag:
    one: Path
    other: Path
    staging: Path
    "On the same file system as both."
    up_to_s: float = 0.0
    _seen: dict[Path, _State | None] = field(default_factory=dict)
    "What each path was when it was last looked at, or was put there by us."
    _due: dict[Path, float] = field(default_factory=dict)
    "When the other side gets what is at this path then."

    def look(self) -> None:
        now = time.monotonic()
        for side, far in ((self.one, self.other), (self.other, self.one)):
            there = {path: _state(path) for path in side.rglob("*")}
            gone = {path for path in self._seen if path.is_relative_to(side)} - there.keys()
            for path in [*there, *gone]:
                state = there.get(path)
                if state != self._seen.get(path):
                    self._seen[path] = state
                    is_folder = state is not None and stat.S_ISDIR(state[0])
                    self._due.setdefault(path, now if is_folder else now + random.uniform(0, self.up_to_s))
            for path in [path for path, due in self._due.items() if due <= now and path.is_relative_to(side)]:
                del self._due[path]
                with contextlib.suppress(FileNotFoundError):  # it is changing; what it becomes is seen the next time
                    self._show(path, far / path.relative_to(side))

    def _show(self, path: Path, place: Path) -> None:
        state = _state(path)
        if state is None:
            place.unlink(missing_ok=True)
        elif stat.S_ISDIR(state[0]):
            place.mkdir(exist_ok=True)
            place.chmod(stat.S_IMODE(state[0]))
        else:
            draft = self.staging / "draft"
            shutil.copy2(path, draft, follow_symlinks=False)
            draft.replace(place)
        self._seen[place] = _state(place)


def _state(path: Path) -> _State | None:
    """Of a folder, only what it is; of a file, what a change would change."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return (info.st_mode, 0, 0) if stat.S_ISDIR(info.st_mode) else (info.st_mode, info.st_mtime_ns, info.st_ino)
