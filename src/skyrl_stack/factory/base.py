"""Base image: Debian with python3, git and patch: pulled, or made of packages where no registry is reachable."""

import asyncio
import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.images import ImageStore

PULLED = "docker.io/library/python:3.12-slim-bookworm"
DEBOOTSTRAP = "debootstrap"
PACKAGES = ("python3", "python-is-python3", "git", "patch", "ca-certificates")
UNREAD = ("doc", "info", "locale", "man")
"Directories of /usr/share that nobody reads in a sandbox."
DEFAULT_SUITE = "bookworm"
CONNECT_TIMEOUT_S = 5.0
BOOTSTRAP_TIMEOUT_S = 900.0

TOOLS = """\
FROM {reference}
RUN for tool in python3 git patch; do command -v $tool || missing=1; done; [ -z "$missing" ] || \\
    (apt-get update && apt-get install -y --no-install-recommends python3 git patch && rm -rf /var/lib/apt/lists/*)
"""

Say = Callable[[str], None]


async def ensure_base(store: ImageStore, wanted: str, say: Say) -> str:
    """Reference, in the store, of the base image that the profile wants; it is made if it is missing.

    Raises:
        SetupError: it cannot be made; says what to install.
    """
    bootstrapped = f"localhost/skyrl-stack/base:debian-{_suite()[0]}"
    pulled = _name_of(PULLED if wanted in ("auto", DEBOOTSTRAP) else wanted)
    if wanted == DEBOOTSTRAP:
        return await _bootstrap(store, bootstrapped, say)
    if wanted != "auto":
        return await _pull(store, wanted, pulled, say)
    for reference in (pulled, bootstrapped):
        if await store.has(reference):
            return reference
    if await asyncio.to_thread(_is_reachable, PULLED):
        return await _pull(store, PULLED, pulled, say)
    say(f"base image: no way to {PULLED}, making one of Debian packages")
    return await _bootstrap(store, bootstrapped, say)


async def _pull(store: ImageStore, reference: str, name: str, say: Say) -> str:
    """The image of a registry, or of the store itself, and the tools that it lacks."""
    if await store.has(name):
        return name
    if not await store.has(reference):
        say(f"base image: pulling {reference}")
        await store.pull(reference)
    with tempfile.TemporaryDirectory() as context:
        (Path(context) / "Containerfile").write_text(TOOLS.format(reference=reference))
        await store.build(Path(context), name, network="host")
    return name


async def _bootstrap(store: ImageStore, name: str, say: Say) -> str:
    if await store.has(name):
        return name
    if shutil.which("mmdebstrap") is None:
        raise SetupError(
            "no base image for tasks: install mmdebstrap (and debian-archive-keyring where this is not Debian), "
            "or name an image that can be pulled in tasks.base_image"
        )
    say("base image: mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="skyrl-base-") as directory:
        tar = Path(directory) / "base.tar"
        await asyncio.to_thread(_mmdebstrap, tar)
        await store.import_rootfs(tar, name, changes=("CMD /bin/bash",))
    return name


def _mmdebstrap(tar: Path) -> None:
    suite, sources = _suite()
    exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD]
    options = ["--variant=minbase", f"--include={','.join(PACKAGES)}", *exclude]
    try:
        subprocess.run(
            ["mmdebstrap", "--quiet", *options, suite, str(tar), *map(str, sources)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=BOOTSTRAP_TIMEOUT_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error).strip().splitlines()
        raise SetupError(f"mmdebstrap failed: {said[-1]}; `mmdebstrap {suite} /dev/null` says more") from error


def _suite() -> tuple[str, list[Path]]:
    """The release to make, and the list that says where from: a Debian host's own, for it names a mirror in reach."""
    known = platform.freedesktop_os_release() if Path("/etc/os-release").is_file() else {}
    candidates = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
    sources = [path for path in candidates if path.is_file() and path.stat().st_size]
    if known.get("ID") == "debian" and sources:
        return known.get("VERSION_CODENAME", DEFAULT_SUITE), sources[:1]
    return DEFAULT_SUITE, []


def _is_reachable(reference: str) -> bool:
    """Whether the registry's machine answers; Podman itself would try for minutes. A proxy is taken to know it."""
    if os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        return True
    host = reference.split("/")[0].replace("docker.io", "registry-1.docker.io")
    try:
        socket.create_connection((host, 443), timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _name_of(reference: str) -> str:
    readable = re.sub(r"[^a-z0-9.]+", "-", reference.rpartition("/")[2].lower()).strip("-.")
    return f"localhost/skyrl-stack/base:{readable}-{hashlib.sha256((reference + TOOLS).encode()).hexdigest()[:8]}"
