"""Own: a source distribution or a git checkout that the user names, as a project that the factory can take."""

import gzip
import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from pathlib import Path

from skyrl_stack.errors import ProfileError
from skyrl_stack.factory.catalogue import Artifact, Project, runner_wheels
from skyrl_stack.factory.repository import git
from skyrl_stack.records import write_atomic

PKG_INFO = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def own_project(
    place: Path, *, sources: Sequence[str], tests: Sequence[str], wheels: Sequence[Path], downloads: Path
) -> Project:
    """The project at `place`, an sdist or a git checkout whose HEAD is meant. Its files are put into `downloads`.

    `sources` and `tests` are patterns below its top; `wheels`, pure Python, are what the tests need besides pytest.

    Raises:
        ProfileError: it is neither, or a pattern finds nothing.
        SetupError: git is missing or refused.
    """
    sdist = _archive(place) if place.is_dir() else _read(place)
    name, version, license_ = _identity(sdist, place)
    _require_found(sdist, place, {"sources": sources, "tests": tests})
    return Project(
        name=name,
        version=version,
        license=license_,
        sdist=_stored(f"{name}-{version}.tar.gz", name, sdist, downloads),
        sources=tuple(sources),
        tests=tuple(tests),
        wheels=(*runner_wheels(), *(_stored(wheel.name, wheel.name, _read(wheel), downloads) for wheel in wheels)),
    )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ProfileError(f"{file}: {error.strerror}") from error


def _archive(checkout: Path) -> bytes:
    """HEAD as an sdist; the same bytes for the same commit. What is not committed is not in it."""
    name = re.sub(r"[^a-z0-9]+", "-", checkout.resolve().name.lower()).strip("-") or "project"
    version = f"0+{git(checkout, 'rev-parse', '--short=10', 'HEAD').strip()}"
    prefix = f"{name}-{version}/"
    done = subprocess.run(
        ["git", "archive", f"--prefix={prefix}", "HEAD"], cwd=checkout, capture_output=True, check=True
    )
    made = io.BytesIO(done.stdout)
    with tarfile.open(fileobj=made, mode="a") as tar:
        if f"{prefix}PKG-INFO" not in tar.getnames():
            entry = tarfile.TarInfo(f"{prefix}PKG-INFO")
            content = PKG_INFO.format(name=name, version=version).encode()
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(made.getvalue(), mtime=0)


def _identity(sdist: bytes, place: Path) -> tuple[str, str, str]:
    with _open(sdist, place) as tar:
        entry = next((entry for entry in tar if re.fullmatch(r"[^/]+/PKG-INFO", entry.name)), None)
        file = tar.extractfile(entry) if entry else None
        if file is None:
            raise ProfileError(f"{place}: neither a git checkout nor a source distribution (no PKG-INFO at its top)")
        said = BytesHeaderParser().parse(file)
    name = re.sub(r"[-_.]+", "-", said["Name"]).lower()
    return name, said["Version"], said.get("License-Expression") or said.get("License") or "unknown"


def _require_found(sdist: bytes, place: Path, patterns: dict[str, Sequence[str]]) -> None:
    with _open(sdist, place) as tar:
        files = [Path(name.partition("/")[2]) for name in tar.getnames()]
    for option, globs in patterns.items():
        for pattern in globs:
            if not any(file.match(pattern) for file in files):
                raise ProfileError(f"--{option} {pattern}: no such file in {place}")


def _open(sdist: bytes, place: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=io.BytesIO(sdist))
    except tarfile.TarError as error:
        raise ProfileError(f"{place}: not a source distribution: {error}") from error


def _stored(file: str, project: str, data: bytes, downloads: Path) -> Artifact:
    """In the place where a download of it would be, so that it is never downloaded."""
    digest = hashlib.sha256(data).hexdigest()
    name = f"own-{digest[:16]}-{file}"
    downloads.mkdir(parents=True, exist_ok=True)
    write_atomic(downloads / name, data)
    return Artifact(project=project, file=name, sha256=digest)
