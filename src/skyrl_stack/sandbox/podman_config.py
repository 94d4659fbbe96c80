"""Podman's configuration for one cell: nothing of the machine's or the user's own configuration is used."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.node import LAUNCH_VARIABLE, LAUNCHER_VARIABLE
from skyrl_stack.sandbox.namespaces import IdMap, outermost

HYBRID_CGROUPS = Path("/sys/fs/cgroup/unified")
_LIBEXEC = ("/usr/libexec/podman", "/usr/local/libexec/podman", "/usr/lib/podman", "/usr/local/lib/podman")
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_PYTHONS = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")  # for the helper, where Python is not installed as usual
_PASSED_ON = ("LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", LAUNCH_VARIABLE, LAUNCHER_VARIABLE)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_INSECURE_BUT_LOCAL = {"default": [{"type": "insecureAcceptAnything"}]}


def require_podman() -> str:
    """Check that Podman and what it calls is installed; returns the OCI runtime, `crun` or `runc`.

    `crun` first: it starts a container in a third of the CPU time.

    Raises:
        SetupError: one line saying what to install.
    """
    missing = [name for name in ("podman", "conmon", "catatonit") if find_program(name) is None]
    runtime = next((name for name in ("crun", "runc") if find_program(name)), None)
    if runtime is None:
        missing.append("crun")
    if missing:
        install = (
            "dnf install podman crun shadow-utils" if shutil.which("dnf") else "apt-get install podman crun uidmap"
        )
        raise SetupError(f"not installed: {', '.join(missing)}; run `{install} catatonit` as an administrator")
    return str(runtime)


def write_config(
    directory: Path, *, runtime: str, graphroot: Path, ids: IdMap, registries: Mapping[str, str]
) -> dict[str, str]:
    """Write the files below `directory`; returns the whole environment that Podman is started with."""
    config = directory / "home/.config/containers"
    run, scratch = directory / "run", directory / "scratch"
    for path in (config, run, scratch):
        path.mkdir(parents=True, exist_ok=True)
    for path in (run, scratch, directory / "home", graphroot):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(path, *ids.root)
    (config / "containers.conf").write_text(_containers_conf(runtime, run))
    (config / "storage.conf").write_text('[storage]\ndriver = "overlay"\n')
    (config / "registries.conf").write_text(_registries_conf(registries))
    (config / "policy.json").write_text(json.dumps(_INSECURE_BUT_LOCAL))
    return {
        **{name: os.environ[name] for name in (*_PASSED_ON, *_PROXIES, *_PYTHONS) if name in os.environ},
        "PATH": _path(),
        "HOME": str(directory / "home"),
        "TMPDIR": str(scratch),
        "XDG_RUNTIME_DIR": str(run),
        "XDG_CONFIG_HOME": str(directory / "home/.config"),
        "CONTAINERS_CONF": str(config / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(config / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(config / "registries.conf"),
        # Podman finds itself root of a user namespace, as after its own re-exec: rootless, and without the pause
        # process by which it would otherwise join other invocations.
        "_CONTAINERS_USERNS_CONFIGURED": "done",
        "_CONTAINERS_ROOTLESS_UID": str(ids.root[0] or outermost("uid")),  # 0 would mean: not rootless
        "_CONTAINERS_ROOTLESS_GID": str(ids.root[1] or outermost("gid")),
        "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
    }


def _path() -> str:
    """PATH with the directories of administrators, where runc lies, which users' PATH may lack."""
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join([*known, *(path for path in _SBIN if path not in known)])


def find_program(name: str) -> str | None:
    """Path of a program that Podman calls."""
    return shutil.which(name, path=os.pathsep.join([_path(), *_LIBEXEC]))


def _containers_conf(runtime: str, run: Path) -> str:
    return f"""\
[containers]
netns = "none"
log_driver = "none"                  # process 1 of a sandbox says nothing
http_proxy = false                   # the host's proxy is not the sandbox's business
init_path = "{find_program("catatonit")}"
[engine]
runtime = "{runtime}"
tmp_dir = "{run}/libpod"
cgroup_manager = "cgroupfs"          # no systemd is needed
events_logger = "none"
lock_type = "file"                   # the default, shared memory, is one for all Podmans of a user
exit_command_delay = 1               # seconds that an exec's conmon stays afterwards; the default is 300
stop_timeout = 0
"""


def _registries_conf(registries: Mapping[str, str]) -> str:
    """Source: containers-registries.conf(5)."""
    tables = (f'[[registry]]\nprefix = "{name}"\nlocation = "{location}"\n' for name, location in registries.items())
    return "unqualified-search-registries = []\n" + "".join(tables)


def storage_options(graphroot: Path, runroot: Path, image_stores: Sequence[Path], ids: IdMap) -> list[str]:
    """Options and not storage.conf: a rootless Podman does not take its roots, nor then anything else, from there."""
    options = [f"overlay.imagestore={path}" for path in image_stores]
    if ids.is_single:
        options.append("overlay.ignore_chown_errors=true")  # images of many users, in a cell that has one
    words = ["--root", str(graphroot), "--runroot", str(runroot), "--storage-driver", "overlay"]
    return words + [word for option in options for word in ("--storage-opt", option)]
