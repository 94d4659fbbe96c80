"""Let an x86-64 program that was built with glibc 2.38 run on an older one: `older_glibc.py FILE...`, in place.

glibc 2.38 gave strtol and its kin a second name, for C23's binary literals. A program whose only newer imports are
those runs as well with the first name: the symbol's name is entered nine bytes later, behind `__isoc23_`, and its
version becomes that of the first name. Anything else is refused.
"""

import struct
import sys
from pathlib import Path

RENAMED = {b"__isoc23_strtol", b"__isoc23_strtoul", b"__isoc23_strtoll", b"__isoc23_strtoull"}
NEW, OLD = b"GLIBC_2.38", b"GLIBC_2.2.5"


def main(paths: list[str]) -> int:
    for path in map(Path, paths):
        path.write_bytes(patched(path))
    return 0


def patched(path: Path) -> bytes:
    elf = bytearray(path.read_bytes())
    if elf[:6] != b"\x7fELF\x02\x01":
        sys.exit(f"{path}: not a program of 64 bits")
    sections = _sections(elf)
    if b".gnu.version_r" not in sections:
        return bytes(elf)
    names = sections[b".dynstr"][0]
    needs = list(_needed_versions(elf, sections[b".gnu.version_r"][0]))
    new = [(at, index) for at, index, name in needs if _text(elf, names + name) == NEW]
    old = next((name for _, _, name in needs if _text(elf, names + name) == OLD), None)
    if not new:
        return bytes(elf)
    if old is None:
        sys.exit(f"{path}: needs {NEW.decode()}, and nothing of {OLD.decode()}")
    _rename_symbols(path, elf, sections, {index for _, index in new})
    for at, _ in new:
        struct.pack_into("<I", elf, at, _hash(OLD))
        struct.pack_into("<I", elf, at + 8, old)
    return bytes(elf)


def _rename_symbols(path: Path, elf: bytearray, sections: dict[bytes, tuple[int, int]], versions: set[int]) -> None:
    symbols, size = sections[b".dynsym"]
    for number in range(size // 24):
        (version,) = struct.unpack_from("<H", elf, sections[b".gnu.version"][0] + 2 * number)
        if version & 0x7FFF not in versions:
            continue
        (name,) = struct.unpack_from("<I", elf, symbols + 24 * number)
        text = _text(elf, sections[b".dynstr"][0] + name)
        if text not in RENAMED:
            sys.exit(f"{path}: {text.decode()} of {NEW.decode()} has no older name")
        struct.pack_into("<I", elf, symbols + 24 * number, name + len(b"__isoc23_"))


def _sections(elf: bytearray) -> dict[bytes, tuple[int, int]]:
    """(offset, size) of each section by name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + size * number) for number in range(count)]
    return {_text(elf, rows[names][4] + row[0]): (row[4], row[5]) for row in rows}


def _needed_versions(elf: bytearray, at: int):
    """(offset of the record, index, offset of its name) of each version of a library that is needed."""
    while True:
        _, count, _, first, following = struct.unpack_from("<HHIII", elf, at)
        record = at + first
        for _ in range(count):
            _, _, index, name, step = struct.unpack_from("<IHHII", elf, record)
            yield record, index, name
            record += step
        if not following:
            return
        at += following


def _text(elf: bytearray, at: int) -> bytes:
    return bytes(elf[at : elf.index(0, at)])


def _hash(name: bytes) -> int:
    """The System V ABI's hash of a symbol's name."""
    value = 0
    for letter in name:
        value = (value << 4) + letter
        high = value & 0xF0000000
        value = (value ^ (high >> 24)) & ~high if high else value
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
