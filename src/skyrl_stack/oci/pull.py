"""Pulling: an image from its registry into the site's store; each blob once for all nodes, on from where it broke."""

import shutil
import time
from hashlib import sha256
from pathlib import Path

import httpx

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.claim import Claim, claimed
from skyrl_stack.oci.manifest import Descriptor, Manifest
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.registry import Registry, Say
from skyrl_stack.oci.store import SiteStore, StoredImage
from skyrl_stack.room import NO_ROOM, room

_TRIES = 5


def pull(reference: Reference, store: SiteStore, say: Say) -> StoredImage:
    """The image, fetched if the store lacks it. A tag that the store has is not looked up again.

    Raises:
        SetupError: one line; what was fetched is kept for the next try, and nothing is half-written.
    """
    if image := store.find(reference):
        return image
    try:
        with Registry(reference, say) as registry:
            manifest = _manifests(registry, reference, store)
            lacking = [blob for blob in dict.fromkeys(manifest[-1].children) if not store.has_blob(blob)]
            _require_room(reference, store, lacking)
            size = sum(blob.size for blob in lacking)
            say(f"{reference}: {len(lacking)} of {len(manifest[-1].children)} blobs to fetch, {size / 1e6:.0f} MB")
            for blob in lacking:
                _fetch(registry, reference, blob, store, say)
        return store.publish(reference, manifest[0])
    except OSError as error:
        reason = "no room or quota is left" if error.errno in NO_ROOM else error.strerror
        raise SetupError(f"cannot pull {reference}: {store.path}: {reason}") from error


def _manifests(registry: Registry, reference: Reference, store: SiteStore) -> list[Manifest]:
    """The manifest that the reference names and, where that is an index, the one of the image in it."""
    manifests = [registry.manifest(reference.version)]
    if manifests[0].is_index:
        manifests.append(registry.manifest(manifests[0].children[0].digest))
    for manifest in manifests:
        store.add_manifest(manifest)
    return manifests


def _require_room(reference: Reference, store: SiteStore, lacking: list[Descriptor]) -> None:
    needed, free = sum(blob.size for blob in lacking), room(store.path).bytes
    if needed > free:
        raise SetupError(
            f"cannot pull {reference}: it needs {needed / 1e6:.0f} MB of {store.path}, where {free / 1e6:.0f} MB are "
            "free: `skyrl-stack images gc` removes what is not used"
        )


def _fetch(registry: Registry, reference: Reference, blob: Descriptor, store: SiteStore, say: Say) -> None:
    target = store.blob(blob.digest)
    place = store.drafts / target.name
    short = target.name[:12]
    with claimed(
        place, lambda: store.has_blob(blob), lambda: say(f"{reference}: waiting for {short}, which is being fetched")
    ) as claim:
        if claim is None:
            return
        try:
            _download(registry, reference, blob, claim, say)
            claim.draft.replace(target)
        except OSError as error:
            if error.errno in NO_ROOM:
                shutil.rmtree(place, ignore_errors=True)  # it would keep others from writing, too
            if not store.has_blob(blob):  # by somebody who took this owner for dead
                raise


def _download(registry: Registry, reference: Reference, blob: Descriptor, claim: Claim, say: Say) -> None:
    """Fill the draft, from where it ends, and check it. A connection that breaks is made again."""
    for number in range(1, _TRIES + 1):
        try:
            _receive(registry, blob, claim)
        except httpx.HTTPError as error:
            if number == _TRIES:
                raise SetupError(f"cannot pull {reference}: the connection broke {number} times: {error}") from error
            say(f"{reference}: the connection broke ({type(error).__name__}); going on")
            time.sleep(min(2**number, 10))
        else:
            break
    if _digest(claim.draft, claim) != blob.digest:
        claim.draft.write_bytes(b"")
        raise SetupError(f"cannot pull {reference}: the registry sent something else for {blob.digest}")


def _receive(registry: Registry, blob: Descriptor, claim: Claim) -> None:
    have = claim.draft.stat().st_size
    if have == blob.size:
        return
    with registry.blob(blob.digest, have, claim.beat) as (start, pieces), claim.draft.open("r+b") as file:
        file.truncate(start)
        file.seek(start)
        for piece in pieces:
            claim.beat()
            file.write(piece)


def _digest(path: Path, claim: Claim) -> str:
    hashed = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            claim.beat()
            hashed.update(piece)
    return f"sha256:{hashed.hexdigest()}"
