"""images.lock: what each image was made from and what came out, so that a SIF file can be told from a stranger."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skyrl_stack.errors import SetupError
from skyrl_stack.run_directory import publish

LOCK = Path("containers/images.lock")


class LockedImage(BaseModel):
    """One image. All hashes are SHA-256, in hex."""

    model_config = ConfigDict(frozen=True)

    definition: str
    "Of the definition file and of all that it copies."
    environment: str
    "Of uv.lock, which holds the hash of every wheel."
    arguments: dict[str, str]
    "Build arguments, the base and the package snapshot among them."
    base: str
    "Digest of the base: of its manifest, of its file, or, where it is made of packages, of their list."
    debian: str
    "Of the list of Debian packages in the image."
    sbom: str
    "Of the CycloneDX list of Python packages in the image."
    result: str
    "Of the SIF file."
    signed: str | None = None
    "Of the same file with a signature in it. A signature holds a time: none is made twice."
    size_bytes: int = Field(ge=0)
    apptainer: str
    "Version that built it."

    @property
    def inputs(self) -> tuple[object, ...]:
        """What decides about the result."""
        return self.definition, self.environment, self.arguments, self.apptainer

    def describes(self, file: Path) -> bool:
        return sha256(file) in (self.result, self.signed)


class ImagesLock(BaseModel):
    """The file; `images` is by the name of the image."""

    images: dict[str, LockedImage] = {}

    @classmethod
    def read(cls, path: Path) -> "ImagesLock":
        """The lock at `path`; an empty one where there is no file.

        Raises:
            SetupError: it is damaged.
        """
        if not path.is_file():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise SetupError(f"{path}: damaged ({str(error).splitlines()[0]}); restore it, or build again") from error

    def with_image(self, name: str, image: LockedImage) -> "ImagesLock":
        return ImagesLock(images=dict(sorted((self.images | {name: image}).items())))

    def write(self, path: Path) -> None:
        publish(path, self)

    def verify(self, name: str, file: Path) -> LockedImage:
        """The entry that `file` is the result of.

        Raises:
            SetupError: the lock does not know the image, or `file` is another one.
        """
        locked = self.images.get(name)
        if locked is None:
            raise SetupError(f"{file}: the lock knows no image {name}; run `skyrl-stack images build {name}`")
        if not file.is_file():
            raise SetupError(f"{file}: missing; run `skyrl-stack images build {name}`")
        if not locked.describes(file):
            raise SetupError(
                f"{file}: not the image that the lock describes; run `skyrl-stack images build {name}`, "
                "or launch with --allow-unlocked"
            )
        return locked


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
