"""Isolation: what keeps sandboxes apart from the node and from each other, as far as this node allows it.

    full         users, processes, files and network of a sandbox are its own
    shared-uid   all its users are one, whoever launched: /etc/subuid gives that user no others
    no-netns     it has the node's network: an agent reaches the internet and every service of the cluster
    weak         it is the launching user, in an instance of Apptainer (`sandbox/apptainer/`): what keeps it from the
                 user's files is its mount namespace alone, and from the user's processes its pid namespace

A profile names the least that it takes (`runtime.isolation`). On each rung a sandbox has its own processes and mounts
under an unprivileged user, and the kernel ends it with its runtime: what gives less is not on the ladder.
"""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass

from skyrl_stack.errors import SetupError
from skyrl_stack.runtime_section import Isolation
from skyrl_stack.sandbox.namespaces import id_map

LOG = logging.getLogger(__name__)
LADDER: tuple[Isolation, ...] = ("full", "shared-uid", "no-netns", "weak")
"The best first."
_MAKE_NETWORK = "import os; os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)"


@dataclass(frozen=True)
class Rung:
    """Where on the ladder a node is."""

    isolation: Isolation
    reasons: tuple[str, ...]
    "Why it is not higher, each with the way up."

    def __str__(self) -> str:
        return f"isolation {self.isolation}{''.join(f'; {reason}' for reason in self.reasons)}"

    @property
    def has_networks(self) -> bool:
        """Whether a sandbox surely can have a network of its own."""
        return self.isolation in ("full", "shared-uid")

    def require(self, least: Isolation) -> None:
        """Refuse a node that gives less.

        Raises:
            SetupError: with what is missing, and the key that takes it as it is.
        """
        if LADDER.index(self.isolation) > LADDER.index(least):
            raise SetupError(
                f"this node gives sandboxes no more than {self}; runtime.isolation = {least!r} asks for more, "
                f"--set runtime.isolation={self.isolation} takes it as it is"
            )


def probe() -> Rung:
    """Try what this node allows the caller."""
    isolation, reasons = LADDER[0], []
    if id_map().is_single:
        isolation = "shared-uid"
        reasons.append(
            f"uid {os.geteuid()} has no sub-ids: an administrator gives them by `usermod --add-subuids "
            f"100000-165535 --add-subgids 100000-165535 {os.geteuid()}` and newuidmap"
        )
    tried = subprocess.run([sys.executable, "-S", "-c", _MAKE_NETWORK], capture_output=True, check=False)
    if tried.returncode:
        isolation = "no-netns"
        reasons.append("no network namespaces: an administrator allows them by `sysctl user.max_net_namespaces=65536`")
    return Rung(isolation, tuple(reasons))
