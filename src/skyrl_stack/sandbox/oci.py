"""What the OCI runtime is told about a sandbox: what Podman would tell it, for an image that Podman has.

Podman describes one container of each kind (network, user) in full; that container never runs. The description of a
sandbox is that one, with the image's file system, variables and directory, and a name of its own. So isolation -
capabilities, seccomp, masked paths, namespaces - is Podman's, whichever version of it the node has.
"""

import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.api import PodmanApi
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.podman_config import find_program

_INIT = "/run/skyrl-init"
DEFAULTS = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "xterm"}
_SHARED_MEMORY = {
    "destination": "/dev/shm",
    "type": "tmpfs",
    "source": "shm",
    "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
}
_ROOTS = ("", "0", "root", "0:0", "root:root")


@dataclass(frozen=True)
class Description:
    """All that a container is made of."""

    layers: list[str]
    "Directories of the image's layers, topmost first."
    config: dict[str, Any]
    "The OCI runtime's config.json; paths in it that are not absolute lie in the bundle."
    files: dict[str, str]
    "Files of the bundle that the config mounts: /etc/hosts and the like."
    workdir: str
    "Must exist."

    def process(self, argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        """Another process of the container."""
        process = self.config["process"]
        variables = [f"{name}={value}" for name, value in environment.items()]
        return {**process, "args": argv, "env": [*process["env"], *variables]}

    def of_processes(self) -> "Description":
        """As little of it as gives the same further processes of a container that is there."""
        return Description([], {"process": self.config.get("process")}, {}, self.workdir)


@dataclass(frozen=True)
class _Image:
    """What of an image a sandbox depends on."""

    layers: list[str]
    environment: dict[str, str]
    workdir: str
    user: str


class NoSuchImage(SetupError):
    """Podman has no image of this name."""


@dataclass(frozen=True)
class _Pattern:
    """Podman's description of a container that never ran, and the files that it mounts."""

    config: dict[str, Any]
    files: dict[str, str]
    name: str

    def describe(self, identifier: str, image: _Image, spec: SandboxSpec) -> Description:
        own = dict(pair.split("=", 1) for pair in self.config["process"]["env"])
        home = "/root" if image.user in _ROOTS else own["HOME"]
        ours = {"container": "podman", "HOME": home, "HOSTNAME": identifier}
        environment = {**DEFAULTS, **ours, **image.environment, **spec.environment}
        process = {
            **self.config["process"],
            "args": [_INIT, "-P"],
            "cwd": "/",
            "env": [f"{name}={value}" for name, value in environment.items()],
        }
        return Description(
            layers=image.layers,
            config={**self.config, "process": process, "hostname": identifier},
            files={name: text.replace(self.name, identifier) for name, text in self.files.items()},
            workdir=spec.workdir or image.workdir,
        )


class Patterns:
    """Podman's descriptions, one of each kind, made when they are first needed. For threads.

    What an image is, is asked once for as long as no name in `image_stores` can have moved.
    """

    def __init__(self, image_stores: Sequence[Path]) -> None:
        self._indices = [store / "overlay-images/images.json" for store in image_stores]
        self._images: dict[str, tuple[list[int], _Image]] = {}
        self._patterns: dict[tuple[str, str], _Pattern] = {}
        self._making = threading.Lock()

    def describe(self, api: PodmanApi, identifier: str, spec: SandboxSpec) -> Description:
        """What a sandbox of the name `identifier` is made of.

        Raises:
            NoSuchImage: Podman does not have it.
            Refused: it cannot make a container of it.
            OSError: Podman is gone.
        """
        image = self._image(api, spec.image)
        # A user's name means what the image says; root is the same everywhere.
        kind = (spec.network, "" if image.user in _ROOTS else spec.image)
        with self._making:
            if kind not in self._patterns:
                self._patterns[kind] = _pattern(api, spec)
        return self._patterns[kind].describe(identifier, image, spec)

    def _image(self, api: PodmanApi, reference: str) -> _Image:
        written = [index.stat().st_mtime_ns for index in self._indices if index.exists()]
        known = self._images.get(reference)
        if known is None or known[0] != written:
            known = self._images[reference] = (written, _inspect(api, reference))
        return known[1]


def _inspect(api: PodmanApi, reference: str) -> _Image:
    found = api.image(reference)
    if found is None:
        raise NoSuchImage("Podman has no image of this name")
    config, data = found["Config"], found["GraphDriver"]["Data"]
    below = data.get("LowerDir", "")
    return _Image(
        layers=[data["UpperDir"], *below.split(":")] if below else [data["UpperDir"]],
        environment=dict(pair.split("=", 1) for pair in config.get("Env") or ()),
        workdir=config.get("WorkingDir") or "/",
        user=config.get("User") or "",
    )


def _pattern(api: PodmanApi, spec: SandboxSpec) -> _Pattern:
    """Have Podman prepare a container, read what it would tell the runtime, and remove it."""
    name = f"pattern-{secrets.token_hex(6)}"
    init = {"type": "bind", "source": find_program("catatonit"), "destination": _INIT, "options": ["ro"]}
    request = {
        "image": spec.image,
        "name": name,
        "hostname": name,
        "command": [_INIT, "-P"],
        "entrypoint": [],
        "mounts": [init],
        "netns": {"nsmode": spec.network},
    }
    api.call("POST", "/containers/create", request)
    try:
        api.call("POST", f"/containers/{name}/init")
        return _read_pattern(Path(api.call("GET", f"/containers/{name}/json")["OCIConfigPath"]), name)
    finally:
        api.remove(name)


def _read_pattern(file: Path, name: str) -> _Pattern:
    config = json.loads(file.read_bytes())
    files: dict[str, str] = {}
    mounts = []
    for mount in config["mounts"]:
        source = Path(mount.get("source") or "")
        if mount["destination"] == "/dev/shm":
            mounts.append(_SHARED_MEMORY)
        elif mount["type"] == "bind" and source.parent.name == "userdata":
            files[source.name] = source.read_text()
            mounts.append({**mount, "source": source.name})
        else:
            mounts.append(mount)
    return _Pattern({**config, "root": {"path": "root"}, "mounts": mounts, "annotations": {}}, files, name)
