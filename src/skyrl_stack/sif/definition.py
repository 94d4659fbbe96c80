"""A definition file: its text ⇄ what it copies, what it may do to the machine that builds it.

spython's parser knows Docker alone and trips over `{{ }}`; the format is small. Source: Apptainer's "Definition Files".
"""

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skyrl_stack.errors import SetupError

COVERS = ("mount -t tmpfs tmpfs /tmp", "mount -t tmpfs tmpfs /var/tmp")
"How a %post has to begin: Apptainer binds the host's /tmp and /var/tmp there, read and write."
_SECTION = re.compile(r"^%(\w+)(.*)$")
_HEADER = re.compile(r"^(\w+)\s*:\s*(.*?)\s*$")
_IGNORED = ("__pycache__", ".git")


@dataclass
class Stage:
    """One `Bootstrap:` of a definition, and the sections below it by name."""

    header: dict[str, str] = field(default_factory=dict)
    sections: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A parsed definition file."""

    path: Path
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, image: str, root: Path) -> "Definition":
        """The definition of an image in the checkout at `root`. Raises as `read` does."""
        return cls.read(root / "containers" / f"{image}.def")

    @classmethod
    def read(cls, path: Path) -> "Definition":
        """Parse `path`.

        Raises:
            SetupError: it is missing, or is no definition file.
        """
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SetupError(f"{path}: cannot be read ({error})") from error
        stages = tuple(_stages(lines))
        if not stages or not all("bootstrap" in stage.header for stage in stages):
            raise SetupError(f"{path}: not a definition file (it does not begin with `Bootstrap:`)")
        return cls(path, stages)

    @property
    def arguments(self) -> Mapping[str, str]:
        """Build arguments and their defaults."""
        lines = [line for stage in self.stages for line in stage.sections.get("arguments", ())]
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def sources(self) -> list[str]:
        """What it copies from the directory that it is built in."""
        lines = [line for stage in self.stages for line in stage.sections.get("files", ())]
        return [shlex.split(line)[0] for line in lines]

    def complaints(self) -> list[str]:
        """What it could do to the machine that builds it, a line each; empty for a good one."""
        found = []
        for stage in self.stages:
            if "setup" in stage.sections:
                found.append(f"{self.path}: %setup runs outside of the image; do it in %post")
            commands = stage.sections.get("post", [])
            if commands and tuple(commands[: len(COVERS)]) != COVERS:
                found.append(f"{self.path}: %post sees the host's /tmp; begin it with `{'` and `'.join(COVERS)}`")
        return found

    def digest(self, root: Path) -> str:
        """SHA-256 over the definition and every file below `root` that it copies, by name and content.

        Raises:
            SetupError: it copies what is not there.
        """
        whole = hashlib.sha256(self.path.read_bytes())
        for source in self.sources:
            for file in _files(root / source):
                whole.update(f"\0{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
        return whole.hexdigest()


def _stages(lines: list[str]) -> Iterator[Stage]:
    stage: Stage | None = None
    section: list[str] | None = None
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        header, opened = _HEADER.match(line), _SECTION.match(line)
        if header and header[1].lower() == "bootstrap":
            if stage:
                yield stage
            stage, section = Stage(), None
        if stage is None:
            return
        if opened:
            section = stage.sections.setdefault(opened[1], [])
        elif section is not None:
            section.append(text)
        elif header:
            stage.header[header[1].lower()] = header[2]
    if stage:
        yield stage


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SetupError(f"{path}: missing, and the definition copies it; build from the top of a checkout")
    below = (file for file in path.rglob("*") if file.is_file() and not set(file.parts).intersection(_IGNORED))
    return sorted(below)
