"""Trees: images of the site's store as directories of this node, for Apptainer has no layers to share.

    <cache>/trees/<reference>/root          all that is in the image, this user's own
    <cache>/trees/<reference>/image.json    what it says of its environment and directory

One that can be seen is complete. All writers of a node take turns.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore, StoredImage
from skyrl_stack.sandbox.apptainer.program import environment
from skyrl_stack.sandbox.locks import locked
from skyrl_stack.sandbox.storage import cache_dir, remove_tree, site_images
from skyrl_stack.sandbox.supply import how_to_have, stored
from skyrl_stack.sandbox.syscalls import open_in_root
from skyrl_stack.sif.apptainer import reason

STREAMS = "/.skyrl"
"Where a sandbox finds what its process 1 reads."
_MOUNTED = ("dev", "proc", "etc", "tmp", STREAMS.lstrip("/"))
_HOSTS = b"127.0.0.1 localhost\n::1 localhost\n"


@dataclass(frozen=True)
class Tree:
    """An image of which copies are made."""

    root: Path
    environment: Mapping[str, str]
    workdir: str


class Trees:
    """The trees below `path`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_dir() / "trees"

    def find(self, reference: str) -> Tree | None:
        """The tree of an image, if it is there; a reference may be no name at all."""
        try:
            folder = self.path / Reference.parse(reference).file_name
            said = json.loads((folder / "image.json").read_bytes())
        except (OSError, SetupError):
            return None
        return Tree(folder / "root", said["environment"], said["workdir"])

    def bring(self, reference: str) -> None:
        """Make the tree of an image of the site's store.

        Raises:
            SetupError: the site does not have it, or Apptainer cannot unpack it.
        """
        image = stored(reference)
        if image is None:
            raise SetupError(how_to_have(reference))
        folder = self.path / image.reference.file_name
        with locked(self.path.with_suffix(".lock")):
            if folder.is_dir():
                return
            draft = self.path / ".draft"
            remove_tree(draft)
            draft.mkdir(parents=True)
            try:
                _unpack(image, draft)
                draft.rename(folder)
            finally:
                remove_tree(draft)
        SiteStore(site_images()).use(image.reference)


def _unpack(image: StoredImage, folder: Path) -> None:
    site, root = SiteStore(site_images()), folder / "root"
    # fix-perms: whatever else its modes say, the user can read, copy and remove it
    command = ["apptainer", "-s", "build", "--sandbox", "--fix-perms", "--disable-cache"]
    done = subprocess.run(
        [*command, str(root), f"oci:{site.layout(image.reference)}"],
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"cannot unpack it to {folder}: {reason(done.stderr.splitlines(), folder)}")
    for name in _MOUNTED:
        (root / name).mkdir(exist_ok=True)
    _name_localhost(root)
    said: dict[str, Any] = json.loads(site.blob(image.config.digest).read_bytes()).get("config") or {}
    variables = dict(pair.split("=", 1) for pair in said.get("Env") or ())
    known = {"environment": variables, "workdir": said.get("WorkingDir") or "/"}
    (folder / "image.json").write_text(json.dumps(known))


def _name_localhost(root: Path) -> None:
    """Images leave /etc/hosts to whoever runs them."""
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        with os.fdopen(open_in_root(descriptor, "/etc/hosts", os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            if not file.read().strip():
                file.write(_HOSTS)
    finally:
        os.close(descriptor)
