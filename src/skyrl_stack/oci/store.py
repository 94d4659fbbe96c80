"""The site's store of task images, on the cluster's file system: what one node fetched, every node has.

    $SKYRL_IMAGES, else oci/ in the cache
    ├── blobs/sha256/<hex>            layers, configurations and manifests, each once for all images
    ├── images/<reference>/           an OCI layout of each image: index.json, oci-layout, blobs -> ../../blobs
    └── drafts/<hex>/                 what is being fetched

A blob appears by rename when its digest was checked, an image when all its blobs are there. So Podman, skopeo and
Apptainer can read an image as `oci:STORE/images/<reference>`.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.manifest import LAYOUT, Descriptor, Manifest, layout_index, read_manifest
from skyrl_stack.oci.reference import Reference
from skyrl_stack.records import write_atomic
from skyrl_stack.room import Room, room

STORE_VARIABLE = "SKYRL_IMAGES"
_HALF_DONE_S = 24 * 3600.0
"A blob without an image that is younger may be part of one that is being fetched."


@dataclass(frozen=True)
class StoredImage:
    """An image of which all blobs are there."""

    reference: Reference
    digest: str
    config: Descriptor
    "Says what its containers are started with."
    blobs: tuple[Descriptor, ...]
    used_at: float
    "Seconds since the epoch."

    @property
    def size(self) -> int:
        """Bytes, as compressed by the registry; layers that other images have, too, included."""
        return sum(blob.size for blob in self.blobs)


@dataclass(frozen=True)
class Usage:
    """What a store takes, and what is left for it."""

    blobs: int
    size: int
    left: Room


class SiteStore:
    """The store at `path`. Any number of processes of any number of nodes may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs/sha256"
        self._images = path / "images"
        self.drafts = path / "drafts"

    def blob(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def layout(self, reference: Reference) -> Path:
        """The directory of an image, an OCI layout."""
        return self._images / reference.file_name

    def has_blob(self, descriptor: Descriptor) -> bool:
        with suppress(OSError):
            return self.blob(descriptor.digest).stat().st_size == descriptor.size
        return False

    def find(self, reference: Reference) -> StoredImage | None:
        """The image, if all of it is here."""
        return self._read(self.layout(reference))

    def images(self) -> Iterator[StoredImage]:
        """All images, by name."""
        for folder in sorted(self._images.glob("[!.]*")):
            if image := self._read(folder):
                yield image

    def add_manifest(self, manifest: Manifest) -> None:
        """Keep a manifest as the blob that it is."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        write_atomic(self.blob(manifest.descriptor.digest), manifest.content)

    def publish(self, reference: Reference, manifest: Manifest) -> StoredImage:
        """Give the image, all blobs of which are here, its name."""
        folder = self.layout(reference)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "oci-layout", LAYOUT)
        with suppress(FileExistsError):
            (folder / "blobs").symlink_to("../../blobs")
        write_atomic(folder / "index.json", layout_index([(manifest.descriptor, str(reference))]))
        image = self.find(reference)
        if image is None:
            raise SetupError(f"{folder}: not complete; is `skyrl-stack images gc` running?")
        return image

    def use(self, reference: Reference) -> None:
        """Note that the image is in use, for `gc`."""
        with suppress(OSError):
            os.utime(self.layout(reference) / "index.json")

    def remove(self, reference: Reference) -> None:
        """Take an image's name away; `gc` takes its blobs."""
        folder = self.layout(reference)
        (folder / "index.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def remove_unused_blobs(self) -> tuple[int, int]:
        """Remove blobs that no image has, and drafts that nobody goes on with; (files, bytes)."""
        used = {blob.digest for image in self.images() for blob in image.blobs}
        old = [path for path in (*_files(self._blobs), *_files(self.drafts)) if _is_old(path)]
        count = size = 0
        for path in old:
            if path.parent == self._blobs and f"sha256:{path.name}" in used:
                continue
            with suppress(OSError):
                state = path.stat()
                path.unlink()
                count, size = count + 1, size + state.st_size
        for folder in self.drafts.glob("*"):
            with suppress(OSError):
                folder.rmdir()
        return count, size

    def usage(self) -> Usage:
        sizes = [path.stat().st_size for path in _files(self._blobs)]
        return Usage(len(sizes), sum(sizes), room(self.path))

    def _read(self, folder: Path) -> StoredImage | None:
        try:
            index = folder / "index.json"
            top = Descriptor.model_validate(json.loads(index.read_bytes())["manifests"][0])
            blobs, used_at = [top], index.stat().st_mtime
            manifest = read_manifest(self.blob(top.digest).read_bytes(), top.mediaType)
            if manifest.is_index:
                child = manifest.children[0]
                blobs.append(child)
                manifest = read_manifest(self.blob(child.digest).read_bytes(), child.mediaType)
            blobs.extend(manifest.children)
        except (OSError, SetupError, ValueError, LookupError):
            return None
        if not all(self.has_blob(blob) for blob in blobs):
            return None
        return StoredImage(Reference.of_file_name(folder.name), top.digest, manifest.children[0], tuple(blobs), used_at)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _is_old(path: Path) -> bool:
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > _HALF_DONE_S
    return False
