"""Files of a sandbox, by the archives of Podman's API: they need nothing in the image, not even a shell.

They reach what lies in the container's file system, and not what is mounted in it: /proc, /sys, /dev/shm.
"""

import base64
import io
import tarfile
import time
from pathlib import PurePosixPath
from typing import Any

from podman import PodmanClient
from podman.errors import NotFound
from pydantic import BaseModel

from skyrl_stack.sandbox.contract import FileMissing

SIZE_LIMIT = 512 * 1024 * 1024
"Bytes of one file."
_GO_NOT_REGULAR = 0x8F280000
"Bits of Go's os.FileMode that a regular file has not."


class _Stat(BaseModel):
    """Podman's description of a path."""

    size: int
    mode: int
    linkTarget: str = ""

    @property
    def is_regular(self) -> bool:
        return not self.mode & _GO_NOT_REGULAR


def read(client: PodmanClient, container: str, path: str) -> bytes:
    """Content of a regular file.

    Raises:
        FileMissing: there is none at `path`.
        NotFound: there is no such container.
        ValueError: the path is not absolute, or the file is larger than SIZE_LIMIT.
    """
    found = _stat(client, container, path)
    if found is None or not found[1].is_regular:
        raise FileMissing(f"{path}: not a regular file")
    target, stat = found
    if stat.size > SIZE_LIMIT:
        raise ValueError(f"{path}: {stat.size} bytes; at most {SIZE_LIMIT} can be read")
    answer = client.api.get(f"/containers/{container}/archive", params={"path": target}, stream=True)
    try:
        answer.raise_for_status(not_found=NotFound)
        with tarfile.open(fileobj=answer.raw, mode="r|") as archive:
            for member in archive:
                if content := archive.extractfile(member):
                    return content.read()
    finally:
        answer.close()
    raise FileMissing(f"{path}: not a regular file")


def write(client: PodmanClient, container: str, path: str, data: bytes) -> None:
    """Create or replace a regular file; an existing one keeps its mode, and a link is followed.

    Raises:
        NotFound: there is no such container.
        ValueError: the path is not absolute, or something that is not a regular file is there.
    """
    found = _stat(client, container, path)
    if found and not found[1].is_regular:
        raise ValueError(f"{path}: exists and is not a regular file")
    target = PurePosixPath(found[0] if found else path)
    entry = tarfile.TarInfo(target.name)
    entry.size = len(data)
    entry.mtime = time.time()
    entry.mode = found[1].mode & 0o777 if found else 0o644
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(data))
    answer = client.api.put(
        f"/containers/{container}/archive",
        params={"path": str(target.parent)},
        data=archive.getvalue(),
        headers={"Content-Type": "application/x-tar"},
    )
    answer.raise_for_status(not_found=NotFound)


def _stat(client: PodmanClient, container: str, path: str) -> tuple[str, _Stat] | None:
    """(path with links followed, description), or None where nothing is."""
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ValueError(f"{path!r}: not the absolute path of a file")
    for _ in range(40):
        answer: Any = client.api.head(f"/containers/{container}/archive", params={"path": path})
        if answer.status_code == 404:
            client.api.get(f"/containers/{container}/json").raise_for_status()  # which of the two is not there?
            return None
        answer.raise_for_status()
        described = base64.urlsafe_b64decode(answer.headers["X-Docker-Container-Path-Stat"])
        stat = _Stat.model_validate_json(described)
        if stat.linkTarget in ("", path):
            return path, stat
        path = stat.linkTarget
    return None
