"""Base image: Debian with python3, git and patch: pulled, or made of packages where no registry is reachable."""

import asyncio
import hashlib
import os
import platform
import re
import secrets
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox import namespaces
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from skyrl_stack.scratch import scratch

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
        try:
            return await _pull(store, PULLED, pulled, say)
        except SetupError as error:
            say(f"base image: {error}")
    else:
        say(f"base image: no way to {PULLED}")
    return await _bootstrap(store, bootstrapped, say)


async def _pull(store: ImageStore, reference: str, name: str, say: Say) -> str:
    """The image of a registry, or of the store itself, and the tools that it lacks."""
    if await store.has(name):
        return name
    if not await store.has(reference):
        say(f"base image: pulling {reference}")
        await store.pull(reference)
    with scratch("base") as context:
        (context / "Containerfile").write_text(TOOLS.format(reference=reference))
        await store.build(context, name, network="host")
    return name


async def _bootstrap(store: ImageStore, name: str, say: Say) -> str:
    if await store.has(name):
        return name
    if shutil.which("mmdebstrap") is None:
        raise SetupError(
            "no base image for tasks: install mmdebstrap (and debian-archive-keyring where this is not Debian), "
            "or name an image that can be pulled in tasks.base_image"
        )
    if namespaces.id_map().is_single:
        raise SetupError(
            "no base image for tasks: making one needs sub-ids (an administrator gives them by `usermod "
            "--add-subuids 100000-165535 --add-subgids 100000-165535 USER`, and installs uidmap), or name an image "
            "that can be pulled in tasks.base_image"
        )
    say("base image: making one of Debian packages, by mmdebstrap")
    directory = make_private_directory(secrets.token_hex(8))
    try:
        tar = directory / "base.tar"
        await _mmdebstrap(directory, tar)
        await store.import_rootfs(tar, name, changes=("CMD /bin/bash",))
    finally:
        await asyncio.to_thread(remove_private_directory, directory)
    return name


async def _mmdebstrap(directory: Path, tar: Path) -> None:
    """As root of private namespaces, which any user can be, and which end at once with this process."""
    suite, sources = _suite()
    exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD]
    options = ["--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", *exclude]
    argv = ("env", f"TMPDIR={directory}", f"HOME={directory}", "mmdebstrap", *options, suite, tar, *sources)
    process = await asyncio.create_subprocess_exec(
        *namespaces.command(*argv), stdin=PIPE, stdout=DEVNULL, stderr=PIPE, start_new_session=True
    )
    assert process.stdin and process.stderr
    try:
        said = await asyncio.wait_for(process.stderr.read(), BOOTSTRAP_TIMEOUT_S)
    except TimeoutError as error:
        raise SetupError(f"mmdebstrap took more than {BOOTSTRAP_TIMEOUT_S:.0f} s: is its mirror in reach?") from error
    finally:
        process.stdin.close()  # the lifeline: kills what still runs
        await process.wait()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise SetupError(f"mmdebstrap failed: {lines[-1]}; `mmdebstrap {suite} /dev/null` says more")


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
