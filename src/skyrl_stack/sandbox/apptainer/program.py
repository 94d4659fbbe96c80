"""Apptainer as sandboxes call it: what it is told, and what it can do on this node.

Its own configuration of the user, and the user's variables for it, count for nothing: they could show a sandbox more.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.node import LAUNCH_VARIABLE, LAUNCHER_VARIABLE
from skyrl_stack.sandbox.namespaces import require_user_namespaces
from skyrl_stack.sif.apptainer import last, require

_OPTIONS = (
    *("--containall", "--no-home", "--no-privs", "--writable", "--pwd", "/"),
    *("--no-init", "--no-eval", "--no-umask"),
    # Of /sys the user may have cgroups, and could end all that is in them. /tmp is the image's, for the node's own
    # would be 64 MiB.
    *("--no-mount", "sys,tmp,home,hostfs,bind-paths"),
)
_NO_NETWORK = ("--net", "--network", "none")
_PROBED = ("/bin", "/usr", "/lib", "/lib64")
"Of the node, in the place of an image."
_PASSED_ON = ("HOME", "PATH", "LANG", LAUNCH_VARIABLE, LAUNCHER_VARIABLE)
_PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Apptainer:
    """How this node's Apptainer makes a sandbox."""

    program: str
    is_unprivileged: bool
    "It makes user namespaces, and is not set-uid."
    has_networks: bool = True

    def __str__(self) -> str:
        network = "no network" if self.has_networks else "the node's network, for Apptainer may make none"
        return f"{self.program} {'in user namespaces' if self.is_unprivileged else 'set-uid'}, {network}"

    def command(self, tree: Path, *argv: str, name: str, binds: Mapping[str, str], own_network: bool) -> list[str]:
        """The argv that runs `argv` as process 1 of a sandbox whose file system is `tree`.

        `binds` are paths of the node by what they are in the sandbox; such a path may end in `:ro`.
        """
        command = [self.program, "-s", "exec", *_OPTIONS, "--hostname", name]
        if self.is_unprivileged:
            command.append("--userns")
        if own_network:
            command += _NO_NETWORK
        for place, source in binds.items():
            path, colon, mode = source.partition(":")
            command += ["--bind", f"{path}:{place}{colon}{mode}"]
        return [*command, str(tree), *argv]


def environment(directory: Path) -> dict[str, str]:
    """All the variables that Apptainer is started with; it may write to `directory`."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**kept, "APPTAINER_CONFIGDIR": str(directory), "APPTAINER_TMPDIR": str(directory)}


def probe(directory: Path) -> Apptainer:
    """Try what this node's Apptainer can do, in `directory`.

    Raises:
        SetupError: it can run no sandbox, or none that would be less than its user.
    """
    require()
    if os.geteuid() == 0:
        raise SetupError(
            "a sandbox of Apptainer runs as the user who launches, which root must not be: launch as another"
        )
    try:
        require_user_namespaces()
        unprivileged = True
    except SetupError:
        unprivileged = False
    apptainer = Apptainer(str(shutil.which("apptainer")), unprivileged)
    if said := _try(apptainer, directory, own_network=True):
        apptainer = Apptainer(apptainer.program, unprivileged, has_networks=False)
        if _try(apptainer, directory, own_network=False):
            raise SetupError(f"apptainer can run no sandbox here: {said}")
    return apptainer


def _try(apptainer: Apptainer, directory: Path, *, own_network: bool) -> str:
    """What it says where it fails."""
    tree = directory / "probe"
    shown = [path for path in map(Path, _PROBED) if path.is_dir()]
    for path in (*shown, Path("/proc"), Path("/dev"), Path("/etc")):
        (tree / path.name).mkdir(parents=True, exist_ok=True)
    binds = {str(path): f"{path.resolve()}:ro" for path in shown}
    command = apptainer.command(tree, "/bin/bash", "-c", ":", name="probe", binds=binds, own_network=own_network)
    try:
        tried = subprocess.run(
            command,
            env=environment(directory),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {_PROBE_TIMEOUT_S:g} s"
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return last(tried.stderr.splitlines()) if tried.returncode else ""
