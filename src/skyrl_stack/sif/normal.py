"""A SIF file's own bookkeeping, made a function of its content: the same objects give the same bytes.

Apptainer writes a random id and the time of the build into the header and into each object's descriptor. Source of the
layout: the SIF specification, github.com/apptainer/sif, `pkg/sif/sif.go`.
"""

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO

from skyrl_stack.errors import SetupError

_HEADER_BYTES, _MAGIC = 128, slice(32, 41)
_ID, _TIMES, _TABLE = slice(48, 64), 64, 80
_DESCRIPTOR_BYTES, _USED, _DATA, _STAMPS = 585, 4, 17, 41
_BLOCK = 1 << 20


def normalise(path: Path, *, epoch: int = 0) -> None:
    """Set the id to a hash of the objects, all times to `epoch` (seconds since 1970), all owners to root. In place.

    Raises:
        SetupError: `path` is not a SIF file.
    """
    with path.open("r+b") as file:
        header = bytearray(file.read(_HEADER_BYTES))
        if len(header) < _HEADER_BYTES or header[_MAGIC] != b"SIF_MAGIC":
            raise SetupError(f"{path}: not a SIF file")
        _, count, table_at, *_ = struct.unpack_from("<6q", header, _TABLE)
        file.seek(table_at)
        table = bytearray(file.read(_DESCRIPTOR_BYTES * count))
        objects = hashlib.sha256()
        for start in range(0, len(table), _DESCRIPTOR_BYTES):
            if table[start + _USED]:
                _add_object(objects, file, *struct.unpack_from("<2q", table, start + _DATA))
                struct.pack_into("<4q", table, start + _STAMPS, epoch, epoch, 0, 0)
        header[_ID] = objects.digest()[:16]
        struct.pack_into("<2q", header, _TIMES, epoch, epoch)
        file.seek(0)
        file.write(header)
        file.seek(table_at)
        file.write(table)


def _add_object(digest: "hashlib._Hash", file: BinaryIO, offset: int, size: int) -> None:
    file.seek(offset)
    while size > 0:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise SetupError("the SIF file is cut short")
        digest.update(block)
        size -= len(block)
