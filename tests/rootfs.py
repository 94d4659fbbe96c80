"""A root file system of this machine's own programs: an image for tests, without a distribution and in a second."""

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

DIRECTORIES = ("dev", "etc", "proc", "root", "run", "sys", "testbed", "tmp", "var")
CHANGES = ("WORKDIR /testbed", "ENV HOME=/root")
"What an image of it says beside."
SHELL_PROGRAMS = (
    *("bash", "cat", "chmod", "env", "git", "head", "id", "ln", "ls", "mkdir", "mkfifo", "mv", "rm", "seq", "setsid"),
    *("sleep", "stat", "tail", "touch", "tr", "true", "wc"),
)


def build_rootfs(tar: Path, programs: Iterable[str] = SHELL_PROGRAMS) -> str:
    """Write the tar; returns a name for its content."""
    files = {Path("/bin/bash"), Path("/bin/sh")}
    for program in programs:
        found = shutil.which(program, path="/usr/bin:/bin:/usr/sbin")
        assert found, f"this machine has no {program}"
        files.add(Path(found))
    for binary in list(files):
        files.update(_libraries(binary))
    digest = hashlib.sha256()
    with tarfile.open(tar, "w") as archive:
        for name in DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        accounts = {"etc/passwd": b"root:x:0:0:root:/root:/bin/bash\n", "etc/group": b"root:x:0:\n"}
        contents = accounts | {str(path).lstrip("/"): path.read_bytes() for path in files}
        for name, data in sorted(contents.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
            digest.update(name.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def _libraries(binary: Path) -> list[Path]:
    """What the dynamic loader needs for `binary`, itself included."""
    said = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    return [Path(word) for line in said.splitlines() for word in line.split() if word.startswith("/")]
