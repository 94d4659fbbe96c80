"""What is in the site's store: lines for people, and which images nobody uses."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore, StoredImage

_DAY_S = 86_400.0


def store_lines(store: SiteStore) -> Iterator[str]:
    """A line for each image, then what the store takes of its file system, and what that and quotas leave."""
    for image in store.images():
        days = max(0.0, (time.time() - image.used_at) / _DAY_S)
        yield f"{image.reference}  {image.size / 1e6:.0f} MB  {image.digest[:23]}…  used {days:.0f} days ago"
    usage = store.usage()
    inodes = "" if usage.left.files is None else f", {usage.left.files} inodes"
    yield (
        f"{store.path}: {usage.blobs} blobs, {usage.size / 1e9:.2f} GB, shared layers once; "
        f"free: {usage.left.bytes / 1e9:.1f} GB{inodes}"
    )


def images_of(files: Iterable[Path]) -> list[str]:
    """The images that task files name, each once.

    Raises:
        SetupError: a line is not a task; names it.
    """
    found: dict[str, None] = {}
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except OSError as error:
            raise SetupError(f"{file}: {error.strerror}") from error
        for number, line in enumerate(lines, 1):
            try:
                found[str(json.loads(line)["image"])] = None
            except (ValueError, LookupError, TypeError) as error:
                raise SetupError(f"{file}:{number}: not a task with an image") from error
    return list(found)


def stored(store: SiteStore, images: Iterable[str]) -> list[StoredImage]:
    """Those images, each once.

    Raises:
        SetupError: none are named, or the store lacks one; names it.
    """
    wanted = list(dict.fromkeys(map(Reference.parse, images)))
    if not wanted:
        raise SetupError("no image is named: write their names, or --tasks FILE")
    found = {reference: store.find(reference) for reference in wanted}
    lacking = [str(reference) for reference, image in found.items() if image is None]
    if lacking:
        raise SetupError(f"{lacking[0]}: not in {store.path}; `skyrl-stack images pull {lacking[0]}` fetches it")
    return [image for image in found.values() if image]


def unused(store: SiteStore, *, days: float, keep: Iterable[str]) -> list[StoredImage]:
    """Images that no node has loaded for so long, and that are not to be kept."""
    kept = {str(Reference.parse(image)) for image in keep}
    since = time.time() - days * _DAY_S
    return [image for image in store.images() if image.used_at < since and str(image.reference) not in kept]
