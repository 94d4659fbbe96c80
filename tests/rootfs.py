"""A root file system of this machine's own programs: an image for tests, without a distribution and in a second."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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


def write_archive(rootfs: Path, reference: str, archive: Path) -> None:
    """Write what `podman save --format oci-archive` would of an image of one layer, the tar `rootfs`."""
    layer = rootfs.read_bytes()
    settings = {"Env": ["HOME=/root"], "WorkingDir": "/testbed"}
    layers = {"type": "layers", "diff_ids": [_digest(layer)]}
    config = _json({"architecture": "amd64", "os": "linux", "config": settings, "rootfs": layers})
    kind = "application/vnd.oci.image"
    parts = [_descriptor(f"{kind}.config.v1+json", config), _descriptor(f"{kind}.layer.v1.tar", layer)]
    manifest = _json({"schemaVersion": 2, "config": parts[0], "layers": parts[1:]})
    top = _descriptor(f"{kind}.manifest.v1+json", manifest)
    top["annotations"] = {"org.opencontainers.image.ref.name": reference}
    files = {f"blobs/sha256/{_digest(blob)[7:]}": blob for blob in (layer, config, manifest)}
    files |= {"oci-layout": _json({"imageLayoutVersion": "1.0.0"})}
    files |= {"index.json": _json({"schemaVersion": 2, "manifests": [top]})}
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _libraries(binary: Path) -> list[Path]:
    """What the dynamic loader needs for `binary`, itself included."""
    said = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    return [Path(word) for line in said.splitlines() for word in line.split() if word.startswith("/")]
