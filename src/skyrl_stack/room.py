"""Room: what a file system has left for this user, by statvfs(3), and by the quotas that a cluster sets.

Whichever is least counts: on most clusters' file systems the quota is what a user meets first. Quotas of the user and
the user's group are told by quota(1) for ext4, XFS and NFS, and by lfs-quota(1) for Lustre.
"""

import errno
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"By which a write says so, without the file's name."
_TIMEOUT_S = 10.0
_KIB = 1024
_NUMBER = re.compile(r"[\[(]?(\d+)[\])]?\*?")
"As Lustre brackets what a server did not confirm, and both star what is over."


@dataclass(frozen=True)
class Room:
    """What is left. None is not limited, or not counted."""

    bytes: int
    files: int | None = None

    def within(self, bytes: int | None, files: int | None) -> "Room":
        """The room that a quota leaves of this."""
        known = [count for count in (self.files, files) if count is not None]
        return Room(self.bytes if bytes is None else min(self.bytes, bytes), min(known, default=None))


def room(path: Path) -> Room:
    """What is left where `path` is, or will be."""
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    status = os.statvfs(place)
    left = Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)
    for bytes, files in _quotas(place):
        left = left.within(bytes, files)
    return left


def _quotas(place: Path) -> Iterator[tuple[int | None, int | None]]:
    """What each quota there leaves: (bytes, files)."""
    mount = next(parent for parent in (place, *place.parents) if parent.is_mount())
    told = _say("quota", "--user", "--group", "--no-wrap", "--raw-grace", "--quiet-refuse", f"--filesystem={mount}")
    lines = told.splitlines()
    for kind, number in (("-u", os.geteuid()), ("-g", os.getegid())):
        lines.append(" ".join(_say("lfs", "quota", "-q", kind, str(number), str(place)).split()))  # it wraps
    for line in lines:
        # The file system; then, of KiB and of files each: used, soft limit, hard limit, grace.
        words = line.split()
        if len(words) == 9 and (used := _number(words[1])) is not None:
            yield _left(used, words[2:4], _KIB), _left(_number(words[5]) or 0, words[6:8], 1)


def _left(used: int, limits: Sequence[str], unit: int) -> int | None:
    """The hard limit counts, or the soft one where that is all; 0 is none."""
    soft, hard = map(_number, limits)
    limit = hard or soft
    return max(0, limit - used) * unit if limit else None


def _number(word: str) -> int | None:
    found = _NUMBER.fullmatch(word)
    return int(found[1]) if found else None


def _say(*argv: str) -> str:
    """What a tool prints; nothing where there is none, or it does not answer. Its exit code is no error of its own."""
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S).stdout
    return ""
