"""The contract for those who may do less than root: users with and without sub-ids, and one without networks."""

import os
import pwd
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import join, quote
from tempfile import TemporaryDirectory

import pytest

from lanes import cannot_run
from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.isolation import Rung

pytestmark = [pytest.mark.podman, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CONTRACT = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract"]
OWN = "not client and not socket and not weak and not sif"
"Sandboxes of this process's own Podman."
WITHOUT_NETWORKS = ["unshare", "--map-root-user", "sh", "-c"]
WITHOUT_NETWORKS += ['echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh"]
# What an ordinary user cannot reach, such as a Python below /root, is put in its place in a mount namespace of its own.
OPEN = """
set -e
mount -t tmpfs tmpfs /mnt
number=0
for path in {needed}; do mkdir "/mnt/$((++number))"; mount --bind "$path" "/mnt/$number"; done
for path in {closed}; do mount -t tmpfs -o mode=0755 tmpfs "$path"; done
number=0
for path in {needed}; do number=$((number + 1)); mkdir -p "$path"; mount --bind "/mnt/$number" "$path"; done
cd {root}
setpriv --reuid={user} --regid={group} --init-groups --inh-caps=-all env -i {environment} {command}
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="u", dir="/tmp", ignore_cleanup_errors=True) as home:  # sockets want short paths
        yield Path(home)


def contract_as(user: str, home: Path, only: str, *, by: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the contract as `user`, with a home and a cache of its own; `by` is a program that runs it."""
    if os.geteuid() != 0:
        cannot_run("needs root, to become another user")
    entry = pwd.getpwnam(user)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    needed = [Path(sys.base_prefix), Path(sysconfig.get_paths()["purelib"]).parents[2], ROOT]
    closed = {up for path in needed for up in path.parents if not up.stat().st_mode & 0o001}
    script = OPEN.format(
        needed=join(map(str, dict.fromkeys(needed))),
        closed=join(map(str, sorted(closed)[:1])),
        root=quote(str(ROOT)),
        user=entry.pw_uid,
        group=entry.pw_gid,
        environment=f"PATH={os.environ['PATH']} HOME={home} TMPDIR={home} SKYRL_CACHE={home}/cache CI=1",
        command=join([*by, *CONTRACT, "-k", only]),
    )
    return subprocess.run(
        ["unshare", "--mount", "--propagation=private", "bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("user", ["skyrl-builder", "nobody"], ids=["with sub-ids", "without sub-ids"])
def test_the_contract_holds_for_an_ordinary_user(user: str, home: Path) -> None:
    done = contract_as(user, home, OWN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert not list(home.glob("skyrl-*"))


def test_the_contract_holds_without_network_namespaces(home: Path) -> None:
    done = contract_as("nobody", home, f"{OWN} and (streams or come_back or neighbour)", by=WITHOUT_NETWORKS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_node_that_gives_less_is_refused_with_the_way_out() -> None:
    rung = Rung("no-netns", ("no network namespaces: ask",))
    rung.require("no-netns")
    rung.require("weak")
    for least in ("full", "shared-uid"):
        with pytest.raises(SetupError, match=r"no network namespaces: ask.* --set runtime.isolation=no-netns"):
            rung.require(least)
    with pytest.raises(SetupError, match=r"no Podman; .*--set runtime.isolation=weak"):
        Rung("weak", ("no Podman",)).require("no-netns")
