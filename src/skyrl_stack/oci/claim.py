"""Claims: who of several nodes fetches a blob. Made by renames alone, so that they hold on NFS and Lustre.

    drafts/<name>/            the claim; there is one, since it comes by renaming a directory that is not empty
    ├── owner                 its times change while the owner lives; without this file anybody may go on
    └── <token>               what is fetched so far, under the owner's own name: a slow owner that was given up
                              writes into nothing that counts

A claim saves downloads and decides nothing else: what is published was checked by its digest.
"""

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT_S = 5.0
SILENCE_S = 90.0
"On the reader's own clock. NFS may show old times for a minute."
_POLL_S = 0.5


class Claim:
    """The right to write `draft`, which may hold the beginning of it already."""

    def __init__(self, place: Path, token: str) -> None:
        self.place = place
        self.draft = place / token
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """Show that the owner lives; to be called often."""
        if time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            with suppress(OSError):
                (self.place / "owner").touch()


@contextmanager
def claimed(place: Path, is_done: Callable[[], bool], waiting: Callable[[], None]) -> Iterator[Claim | None]:
    """The claim on `place` while the block runs, or None once somebody else has done what it was for.

    A block that ends well is to have moved the draft away. After one that does not, the next owner goes on with it.
    """
    token = secrets.token_hex(8)
    claim = _acquire(place, token, is_done, waiting)
    try:
        yield claim
    except BaseException:
        with suppress(OSError):
            (place / "owner").unlink()
        raise
    if claim:
        shutil.rmtree(place, ignore_errors=True)


def _acquire(place: Path, token: str, is_done: Callable[[], bool], waiting: Callable[[], None]) -> Claim | None:
    seen, seen_at, said = _sign(place), time.monotonic(), False
    while not is_done():
        if _make(place, token):
            return Claim(place, token)
        sign = _sign(place)
        if sign != seen:
            seen, seen_at = sign, time.monotonic()
        if (sign is None or time.monotonic() - seen_at > SILENCE_S) and _take_over(place, token):
            return Claim(place, token)
        if not said:
            waiting()
            said = True
        time.sleep(_POLL_S)
    return None


def _sign(place: Path) -> tuple[int, int] | None:
    """What changes while the owner lives; None without an owner."""
    with suppress(OSError):
        state = (place / "owner").stat()
        return state.st_ino, state.st_mtime_ns
    return None


def _make(place: Path, token: str) -> bool:
    mine = place.with_name(f".{place.name}.{token}")
    mine.mkdir(parents=True)
    (mine / "owner").touch()
    (mine / token).touch()
    try:
        mine.rename(place)
    except OSError:  # it is there, and not empty
        shutil.rmtree(mine, ignore_errors=True)
        return False
    return True


def _take_over(place: Path, token: str) -> bool:
    """Make a claim without a living owner mine, with what it holds: moved aside, so that one of several gets it."""
    mine = place.with_name(f".{place.name}.{token}")
    try:
        place.rename(mine)
        old = max((path for path in mine.iterdir() if path.name != "owner"), key=lambda path: path.stat().st_size)
        shutil.copyfile(old, mine / token)  # a new file: the old owner may have its own open
        old.unlink()
        (mine / "owner").unlink(missing_ok=True)
        (mine / "owner").touch()
        mine.rename(place)
    except (OSError, ValueError):
        shutil.rmtree(mine, ignore_errors=True)
        return False
    return True
