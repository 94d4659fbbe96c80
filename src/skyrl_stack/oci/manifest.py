"""Manifests: what an image consists of. Sources: OCI image specification 1.1, Docker image manifest version 2.2."""

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skyrl_stack.errors import SetupError

INDICES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
IMAGES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'
"What says that a directory or a tar is an OCI layout: its file `oci-layout`."
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Descriptor(BaseModel):
    """A blob, by what it is and what it holds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    mediaType: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int = Field(ge=0)
    platform: dict[str, Any] | None = None
    annotations: dict[str, str] | None = None

    @property
    def is_runnable_here(self) -> bool:
        """Whether it is an image for Linux on this machine's processor."""
        machine = _MACHINES.get(platform.machine(), platform.machine())
        wanted = self.platform or {}
        return wanted.get("os") == "linux" and wanted.get("architecture") == machine


class _Content(BaseModel):
    """The parts of a manifest of either kind."""

    mediaType: str | None = None
    manifests: tuple[Descriptor, ...] = ()
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """An image, or an index of the images of several platforms."""

    descriptor: Descriptor
    content: bytes
    children: tuple[Descriptor, ...]
    "Configuration and layers of an image; of an index the image of this machine's platform."

    @property
    def is_index(self) -> bool:
        return self.descriptor.mediaType in INDICES


def read_manifest(content: bytes, media_type: str | None = None) -> Manifest:
    """Read a manifest; `media_type` is what a registry said it is.

    Raises:
        SetupError: it is none, or there is no image for this machine in it.
    """
    try:
        parts = _Content.model_validate_json(content)
    except ValidationError as error:
        raise SetupError(f"not an image's manifest: {str(error).splitlines()[0]}") from error
    kind = parts.mediaType or media_type or (INDICES[0] if parts.manifests else IMAGES[0])
    digest = f"sha256:{sha256(content).hexdigest()}"
    descriptor = Descriptor(mediaType=kind, digest=digest, size=len(content))
    if kind in INDICES:
        fitting = [child for child in parts.manifests if child.is_runnable_here]
        if not fitting:
            raise SetupError(f"there is no image for linux on {platform.machine()}")
        return Manifest(descriptor, content, (fitting[0],))
    if kind not in IMAGES or parts.config is None:
        raise SetupError(f"a manifest of a kind that is not known: {kind}")
    return Manifest(descriptor, content, (parts.config, *parts.layers))


def layout_index(images: Iterable[tuple[Descriptor, str]]) -> bytes:
    """`index.json` of an OCI layout that holds images under their names."""
    entries = [
        descriptor.model_dump(exclude_none=True) | {"annotations": {"org.opencontainers.image.ref.name": name}}
        for descriptor, name in images
    ]
    return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
