"""Files of a sandbox of a Podman elsewhere, by the archive API: Podman reads and writes them in the sandbox's mounts.

Not by `exec`: a program of the sandbox would say what a file holds, and each exec leaves a `conmon` for a while.
"""

import json
import os
import shutil
import tarfile
import tempfile
import time
from base64 import b64decode
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from skyrl_stack.sandbox.api import PodmanApi, Refused
from skyrl_stack.sandbox.contract import FileMissing

_NOT_REGULAR = "not a regular file"
_STAT = "X-Docker-Container-Path-Stat"
_PIECE = 1 << 20
_GO_LINK = 1 << 27
_GO_TYPE = _GO_LINK | 1 << 31 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19
"Directory, device, pipe, socket, character device, irregular. Source: Go's io/fs.ModeType."


@dataclass(frozen=True)
class _Place:
    """Where a path leads, and what is there: permissions and kind as Go's FileMode; None where nothing is."""

    path: PurePosixPath
    mode: int | None

    @property
    def is_other(self) -> bool:
        return self.mode is not None and bool(self.mode & _GO_TYPE)


class SocketFiles:
    """Files of the containers that were made through `api`; for threads."""

    def __init__(self, api: PodmanApi) -> None:
        self._api = api

    def read(self, container: str, path: str) -> int:
        """A descriptor of a copy of the regular file at `path`.

        Raises:
            FileMissing: there is none, or something else is there.
            OSError: Podman is gone.
        """
        place = self._find(container, path)
        if place.mode is None or place.is_other:
            raise FileMissing(f"{path}: {'no such file' if place.mode is None else _NOT_REGULAR}")
        try:
            with self._api.stream("GET", _archive(container), path=str(place.path)) as answer:
                return _unpack(answer)
        except (Refused, tarfile.TarError) as error:
            raise FileMissing(f"{path}: {error}") from error

    def write(self, container: str, path: str, data: BinaryIO) -> None:
        """Create or replace a file by all that `data` holds; Podman makes root its owner.

        Raises:
            FileMissing: something else is there, or it cannot be written.
            OSError: Podman is gone.
        """
        place = self._find(container, path)
        if place.is_other:
            raise FileMissing(f"{path}: {_NOT_REGULAR}")
        try:
            with tempfile.TemporaryFile() as archive:
                _pack(data, place, archive)
                self._api.call("PUT", _archive(container), archive, path=str(place.path.parent), pause="false")
        except Refused as error:
            raise FileMissing(f"{path}: {error}") from error

    def _find(self, container: str, path: str) -> _Place:
        """Where `path` leads; Podman follows links in the container's mount namespace."""
        target = PurePosixPath(path)
        found = self._stat(container, target)
        if found.mode is not None and found.mode & _GO_LINK:  # which is there, whatever is where it leads
            return self._stat(container, found.path)
        return found

    def _stat(self, container: str, path: PurePosixPath) -> _Place:
        """What is at `path`. Of a link: where it leads in the end, and the mode of the link."""
        try:
            with self._api.stream("HEAD", _archive(container), path=str(path)) as answer:
                said = answer.headers[_STAT]
        except Refused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            said = error.headers.get(_STAT)
        if said is None:
            return _Place(path, None)
        found = json.loads(b64decode(said))
        return _Place(PurePosixPath(found["linkTarget"]), found["mode"])


def _archive(container: str) -> str:
    return f"/containers/{container}/archive"


def _unpack(archive: IO[bytes]) -> int:
    """A descriptor of the one file of an archive.

    Raises:
        TarError: there is none.
    """
    with tarfile.open(fileobj=archive, mode="r|") as tar, tempfile.TemporaryFile() as copy:
        member = tar.next()
        content = tar.extractfile(member) if member else None
        if content is None:
            raise tarfile.ReadError("Podman's answer holds no file")
        shutil.copyfileobj(content, copy, _PIECE)
        copy.seek(0)
        return os.dup(copy.fileno())


def _pack(data: BinaryIO, place: _Place, archive: IO[bytes]) -> None:
    """Make of `data` an archive of one file."""
    entry = tarfile.TarInfo(place.path.name)
    entry.mode = 0o644 if place.mode is None else place.mode & 0o777
    entry.mtime = time.time()
    begin = data.tell()
    entry.size = data.seek(0, os.SEEK_END) - begin
    data.seek(begin)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry, data)
    archive.seek(0)
