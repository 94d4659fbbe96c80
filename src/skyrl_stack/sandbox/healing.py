"""Healing: what a power cut, a scratch purge or another Podman did to a node's image store, undone before it is opened.

Nothing else of Podman's state outlives a launch: its run root, locks, database and pause process are the launch's own.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.storage import remove_private_directory

_LISTS = ("overlay-images/images.json", "overlay-layers/layers.json", "overlay-layers/volatile-layers.json")
_ASIDE = ".damaged-"
_ASIDE_S = 86_400.0


def heal_store(path: Path) -> str | None:
    """Make the image store at `path` usable, with its lock held; one line where something had to be done.

    A damaged store is put aside, for sandboxes that run on its layers, and removed a day later.
    """
    # Podman's database of containers insists on the run directory of the last writer, which is gone.
    shutil.rmtree(path / "libpod", ignore_errors=True)
    for file in path.glob("db.sql*"):  # Podman 5's
        file.unlink()
    _remove_old(path)
    try:
        missing = [layer for layer in _layers(path) if not (path / "overlay" / layer / "link").is_file()]
    except ValueError as error:
        return _put_aside(path, str(error))
    return _put_aside(path, f"{len(missing)} layers are gone, such as {missing[0]}") if missing else None


def _layers(path: Path) -> Iterator[str]:
    """Ids of the layers that the store's lists name.

    Raises:
        ValueError: a list cannot be read; says which.
    """
    for name in _LISTS:
        file = path / name
        if not file.exists():
            continue
        try:
            entries = [str(entry["id"]) for entry in json.loads(file.read_bytes()) or ()]
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{name} cannot be read") from error
        if "layers" in file.name:
            yield from entries


def _put_aside(path: Path, reason: str) -> str:
    aside = path.with_name(f"{path.name}{_ASIDE}{time.time():.0f}")
    path.rename(aside)
    return f"healed: image store {path}: {reason}; begun anew, images are fetched or made again"


def _remove_old(path: Path) -> None:
    for aside in path.parent.glob(f"{path.name}{_ASIDE}*"):
        if time.time() - float(aside.name.rpartition("-")[2]) > _ASIDE_S:
            with suppress(SetupError):
                remove_private_directory(aside)
