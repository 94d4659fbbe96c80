"""Build: a definition becomes a SIF file in its place, and an entry of the lock.

Built on node-local disk, made reproducible, moved to its place as a whole: what can be seen there is complete.
"""

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.scratch import scratch
from skyrl_stack.sif import apptainer
from skyrl_stack.sif.certificates import certificates
from skyrl_stack.sif.definition import Definition
from skyrl_stack.sif.lock import LOCK, ImagesLock, LockedImage, sha256
from skyrl_stack.sif.normal import normalise

NAMES = ("runtime", "trainer")
ROOM_GB: Mapping[str, int] = {"runtime": 3, "trainer": 12, "gpu": 25}
"Disk that a build takes at most, by the largest of its dependency groups."
FILE_BOOTSTRAPS = ("localimage", "oci-archive", "docker-archive")
DIGEST_ARGUMENT = "DEFINITION"
"By which an image says what it was made from."
DEBIAN, SBOM = "/opt/manifest/debian.txt", "/opt/manifest/python.cdx.json"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Builder:
    """Builds the images of the checkout at `root` into the directory `output`."""

    root: Path
    output: Path
    say: Say
    python: Path | None = None
    "A Python 3.12 to put into images whose base has none; else uv fetches one."

    @property
    def lock_file(self) -> Path:
        return self.root / LOCK

    def build(self, name: str, arguments: Mapping[str, str]) -> LockedImage:
        """Build the image, unless it is there and made of the same inputs.

        Args:
            name: one of `NAMES`.
            arguments: build arguments that differ from the definition's own.

        Raises:
            SetupError: it could not be built; nothing half-made is in its place.
        """
        definition = Definition.of(name, self.root)
        for complaint in definition.complaints():
            raise SetupError(complaint)
        complete = _complete(definition, arguments)
        lock, digest = ImagesLock.read(self.lock_file), definition.digest(self.root)
        version, result = apptainer.require(), self.output / f"{name}.sif"
        environment = sha256(self.root / "uv.lock")
        known = lock.images.get(name)
        if known and known.inputs == (digest, environment, complete, version) and result.is_file():
            self.say(f"{result}: made of the same inputs; checking it")
            if known.describes(result):
                return known
        with scratch("build") as tmp:
            _require_room(name, complete.get("GROUPS", ""), tmp)
            built = self._make(definition, complete | {DIGEST_ARGUMENT: digest}, tmp)
            debian, sbom = apptainer.read(built, DEBIAN, SBOM)
            image = LockedImage(
                definition=digest,
                environment=environment,
                arguments=complete,
                base=_base_digest(self.root, complete, debian),
                debian=_hash(debian),
                sbom=_hash(sbom),
                result=sha256(built),
                size_bytes=built.stat().st_size,
                apptainer=version,
            )
            _place(built, result)
        lock.with_image(name, image).write(self.lock_file)
        return image

    def _make(self, definition: Definition, arguments: Mapping[str, str], tmp: Path) -> Path:
        built = tmp / f"{definition.path.stem}.sif"
        context = tmp / "context"
        _fill_context(context, self.python)
        self.output.mkdir(parents=True, exist_ok=True)
        apptainer.build(
            definition.path,
            built,
            log=self.output / f"{built.stem}.log",
            context=context,
            wheels=_wheels(),
            arguments=arguments,
            root=self.root,
            tmp=tmp,
            say=self.say,
        )
        normalise(built)
        return built


def _complete(definition: Definition, arguments: Mapping[str, str]) -> dict[str, str]:
    """All build arguments of the definition.

    Raises:
        SetupError: it has no argument of that name, or a base that may change under its name.
    """
    unknown = set(arguments) - set(definition.arguments)
    if unknown:
        raise SetupError(
            f"{definition.path}: has no build argument {', '.join(sorted(unknown))}; "
            f"it has {', '.join(definition.arguments)}"
        )
    complete = {**definition.arguments, **arguments}
    complete.pop(DIGEST_ARGUMENT, None)
    if complete["BOOTSTRAP"] == "docker" and "@sha256:" not in complete["FROM"]:
        raise SetupError(f"{complete['FROM']}: a tag may change; name the base by digest, NAME@sha256:…")
    return complete


def _base_digest(root: Path, arguments: Mapping[str, str], debian: str) -> str:
    if arguments["BOOTSTRAP"] == "docker":
        return arguments["FROM"].partition("@sha256:")[2]
    return sha256(root / arguments["FROM"]) if arguments["BOOTSTRAP"] in FILE_BOOTSTRAPS else _hash(debian)


def _fill_context(context: Path, python: Path | None) -> None:
    """What the build may need of this machine, and the image shall not keep: certificates, proxies, a Python."""
    (context / "wheels").mkdir(parents=True)
    if bundle := certificates():
        shutil.copyfile(bundle, context / "ca.pem")
    proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in proxies.items()]
    settings = context / "env"
    settings.touch(mode=0o600)  # a proxy's address may hold a password
    settings.write_text("".join(lines))
    if python:
        left_out = shutil.ignore_patterns("__pycache__", "site-packages", "test")
        shutil.copytree(python, context / "python", symlinks=True, ignore=left_out)


def _wheels() -> Path:
    """The cache of this user's uv: what .venv was made of is there, and so is what a build that failed has fetched."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    wheels = Path(os.environ.get("UV_CACHE_DIR") or caches / "uv").absolute()
    wheels.mkdir(parents=True, exist_ok=True)
    return wheels


def _place(built: Path, result: Path) -> None:
    result.parent.mkdir(parents=True, exist_ok=True)
    draft = result.with_name(f".{result.name}.{os.getpid()}")
    try:
        shutil.copyfile(built, draft)
        draft.chmod(0o755)
        draft.replace(result)
    except OSError as error:
        raise SetupError(f"{result}: cannot be written ({error.strerror})") from error
    finally:
        draft.unlink(missing_ok=True)


def _require_room(name: str, groups: str, tmp: Path) -> None:
    needed_gb = max((ROOM_GB.get(group, 0) for group in groups.split()), default=0)
    free_gb = shutil.disk_usage(tmp).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"{tmp.parent}: {free_gb:.1f} GB free, and building {name}.sif takes up to {needed_gb} GB; "
            "set TMPDIR to a node-local directory with more room"
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
