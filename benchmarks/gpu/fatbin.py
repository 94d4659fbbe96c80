"""CUDA libraries hold device code for many GPUs; blank that of all others, and the file compresses to a fifth.

A fatbin is a header (magic, version, header size, size of what follows) and entries (kind, version, header size,
payload size, …, architecture at byte 28), as `cuobjdump --list-elf` lists them. Sizes and places stay the same.
"""

import struct
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER_BYTES = 16
MACHINE_CODE = 2
"Kind of an entry; 1 is PTX, which the driver would compile."


def keep_architecture(library: Path, architecture: int) -> int:
    """Fill the code of other architectures than `architecture`, as 90 for sm_90, with zeros; returns how many bytes."""
    data = bytearray(library.read_bytes())
    blanked = position = 0
    while (position := data.find(MAGIC, position)) >= 0:
        header_bytes, size = struct.unpack_from("<6xHQ", data, position)
        if header_bytes != HEADER_BYTES or position + size > len(data):
            position += len(MAGIC)  # these bytes by chance
            continue
        entry, position = position + HEADER_BYTES, position + HEADER_BYTES + size
        while entry < position:
            kind, entry_header, payload = struct.unpack_from("<H2xIQ", data, entry)
            (of,) = struct.unpack_from("<I", data, entry + 28)
            start = entry + entry_header
            if (kind, of) != (MACHINE_CODE, architecture):
                data[start : start + payload] = bytes(payload)
                blanked += payload
            entry = start + payload
    library.write_bytes(data)
    return blanked
