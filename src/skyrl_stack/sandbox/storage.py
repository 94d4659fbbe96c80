"""Where sandboxes keep files on a node: one private directory per launch, and the cache that outlives launches.

    <tmp>/skyrl-<id>/        mode 0700, of the user that is root in the cell
    ├── owner.json           who made it, so that `sweep` can tell the dead from the living
    ├── podman.sock          Podman's API
    ├── outside.json         or where it is, if it is not ours; no more files then
    ├── cgroup.json          which cgroup holds the sandboxes to their sizes, where one does
    ├── config/              Podman's own configuration
    └── storage/, run/, …    containers; nothing of them is shared with another launch

Node-local on purpose: overlay mounts, locks and sockets do not live on NFS or Lustre.
"""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox import namespaces
from skyrl_stack.scratch import PREFIX, Owner, read_owner

CACHE_VARIABLE = "SKYRL_CACHE"
IMAGES_VARIABLE = "SKYRL_IMAGES"
_OUTSIDE = "outside.json"
_CGROUP = "cgroup.json"
_SOCKET_PATH_LIMIT = 60  # of 108 bytes; Podman's own sockets lie deeper than ours


def private_root() -> Path:
    """Where private directories lie: the node's temporary directory, or /tmp where that is too deep for a socket."""
    chosen = Path(tempfile.gettempdir())
    return chosen if len(bytes(chosen)) <= _SOCKET_PATH_LIMIT else Path("/tmp")


def make_private_directory(launch_id: str, run_directory: str = "", *, owner: int | None = None) -> Path:
    """Make the private directory of `launch_id`, owned by this process until it is removed.

    Or by the process `owner`, our keeper: then there may be one already, of a server that died as it began or ended.

    Raises:
        SetupError: it exists, or there is no place for it.
    """
    path = private_root() / f"{PREFIX}{launch_id}"
    me = Owner.process(owner or os.getpid(), launch_id, run_directory)
    if me.pid != os.getpid() and read_owner(path) == me:
        remove_private_directory(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.mkdir(mode=0o700)
        me.sign(draft)
        if os.geteuid() == 0:
            os.chown(draft, *namespaces.id_map().root)
        draft.rename(path)  # what can be seen has an owner
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise SetupError(f"{path}: cannot make it ({error.strerror}); set TMPDIR to a node-local directory") from error
    return path


def name_socket(path: Path, socket: Path) -> None:
    """Say in a private directory whose Podman has the launch's containers."""
    (path / _OUTSIDE).write_text(json.dumps({"socket": str(socket)}))


def named_socket(path: Path) -> Path | None:
    """What `name_socket` said."""
    return _named(path / _OUTSIDE, "socket")


def name_cgroup(path: Path, group: Path) -> None:
    """Say in a private directory which cgroup is the launch's."""
    (path / _CGROUP).write_text(json.dumps({"cgroup": str(group)}))


def named_cgroup(path: Path) -> Path | None:
    """What `name_cgroup` said."""
    return _named(path / _CGROUP, "cgroup")


def _named(file: Path, key: str) -> Path | None:
    """What a file of ours names. One of another user says nothing: it could name a thing of ours."""
    try:
        return Path(json.loads(file.read_bytes())[key]) if file.lstat().st_uid == os.geteuid() else None
    except (OSError, ValueError):
        return None


def remove_tree(path: Path) -> None:
    """Remove all below `path` that can be removed, as can what is this user's own, whatever its modes say."""
    shutil.rmtree(path, ignore_errors=True)
    if not path.exists():
        return
    for folder, names, _ in os.walk(path):
        for name in names:
            if not Path(folder, name).is_symlink():
                with suppress(OSError):  # another's
                    Path(folder, name).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def remove_private_directory(path: Path) -> None:
    """Remove all below `path`. Its files may belong to sub-ids, which only their user namespace can remove.

    Raises:
        SetupError: something would not go.
    """
    remove_tree(path)
    if not path.exists():
        return
    _, said = namespaces.run("rm", "-rf", "--one-file-system", path)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise SetupError(f"{path}: cannot be removed: {said}")


def cache_dir() -> Path:
    """The cache that outlives launches: `SKYRL_CACHE`, else /var/cache for root, else XDG's.

    Root's sandboxes run as another user, who must be able to reach the images in it: /root is closed to that user.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        path = Path(chosen).expanduser().absolute()
    elif os.geteuid() == 0:
        path = Path("/var/cache/skyrl-stack")
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skyrl-stack"
    path.mkdir(parents=True, exist_ok=True)
    return path


def site_images() -> Path:
    """Where task images lie for all nodes, by digest: `SKYRL_IMAGES`, else in the cache."""
    chosen = os.environ.get(IMAGES_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else cache_dir() / "oci"
