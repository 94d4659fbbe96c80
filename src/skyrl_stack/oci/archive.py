"""Archives: images of the site's store in one file, for a site that no registry reaches.

An archive is a tar of an OCI layout (OCI image specification 1.1), as Podman and skopeo write and read it, too. What
several of its images share is in it once.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.manifest import LAYOUT, Descriptor, Manifest, layout_index, read_manifest
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore, StoredImage
from skyrl_stack.records import draft_of

_BLOBS = "blobs/sha256"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_PIECE = 1 << 22
_HOW = "an archive is written by `skyrl-stack images save`, `podman save --format oci-archive` or skopeo"


class _Index(BaseModel):
    manifests: tuple[Descriptor, ...]


def save(images: Iterable[StoredImage], store: SiteStore, path: Path) -> None:
    """Write the archive `path`, which appears when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    images = list(images)
    index = layout_index((image.blobs[0], str(image.reference)) for image in images)
    with draft_of(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (("oci-layout", LAYOUT), ("index.json", index)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name in ("blobs", _BLOBS):  # Apptainer unpacks no file whose directory was not told
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for digest in dict.fromkeys(blob.digest for image in images for blob in image.blobs):
            blob = store.blob(digest)
            entry = tarfile.TarInfo(f"{_BLOBS}/{blob.name}")
            entry.size = blob.stat().st_size
            with blob.open("rb") as data:
                tar.addfile(entry, data)


def load(path: Path, store: SiteStore, *, name: str | None = None) -> list[StoredImage]:
    """Add the images of the archive `path`, of which one may be given its `name`; what is there already is not copied.

    Raises:
        SetupError: it is no archive, is damaged, or does not say what its images are called. Nothing is half-written.
    """
    with _opened(path) as tar:
        archive = _Archive(path, tar)
        named = archive.images(name)
        return [archive.load(reference, top, store) for reference, top in named]


class _Archive:
    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        self._path = path
        self._tar = tar
        self._members = {member.name.removeprefix("./"): member for member in tar.getmembers()}

    def images(self, name: str | None) -> list[tuple[Reference, Descriptor]]:
        """The images, and what they are called."""
        try:
            entries = _Index.model_validate_json(self._read("index.json")).manifests
        except ValidationError as error:
            raise self._failure(f"its index.json cannot be read; {_HOW}") from error
        if name and len(entries) > 1:
            raise self._failure(f"--name is for an archive of one image, and it has {len(entries)}")
        return [(Reference.parse(name or self._name(entry)), entry) for entry in entries]

    def load(self, reference: Reference, top: Descriptor, store: SiteStore) -> StoredImage:
        manifests = [self._manifest(top)]
        if manifests[0].is_index:
            manifests.append(self._manifest(manifests[0].children[0]))
        for manifest in manifests:
            store.add_manifest(manifest)
        for blob in manifests[-1].children:
            if not store.has_blob(blob):
                with draft_of(store.blob(blob.digest)) as draft:
                    for piece in self._pieces(blob):
                        draft.write(piece)
        return store.publish(reference, manifests[0])

    def _name(self, entry: Descriptor) -> str:
        names = [text for key in _NAMES if "/" in (text := (entry.annotations or {}).get(key, ""))]
        if not names:  # skopeo writes a mere tag, if anything
            raise self._failure("it does not say what its image is called: add --name REGISTRY/REPOSITORY:TAG")
        return names[0]

    def _manifest(self, descriptor: Descriptor) -> Manifest:
        return read_manifest(b"".join(self._pieces(descriptor)), descriptor.mediaType)

    def _pieces(self, blob: Descriptor) -> Iterator[bytes]:
        """What a blob holds; ends in an error where that is not what its digest says."""
        hashed = sha256()
        with self._open(f"{_BLOBS}/{blob.digest.removeprefix('sha256:')}") as file:
            while piece := file.read(_PIECE):
                hashed.update(piece)
                yield piece
        if f"sha256:{hashed.hexdigest()}" != blob.digest:
            raise self._failure(f"damaged: something else is in it for {blob.digest}")

    def _read(self, member: str) -> bytes:
        with self._open(member) as file:
            return file.read()

    def _open(self, member: str) -> Any:
        file = self._tar.extractfile(self._members[member]) if member in self._members else None
        if file is None:
            raise self._failure(f"it lacks {member}; {_HOW}")
        return file

    def _failure(self, reason: str) -> SetupError:
        return SetupError(f"{self._path}: {reason}")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise SetupError(f"{path}: not a tar, or it is cut off ({error}); {_HOW}") from error
