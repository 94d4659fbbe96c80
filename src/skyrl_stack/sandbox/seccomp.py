"""Seccomp filters of a cell's containers, each translated once. Imports Python's alone.

crun translates the profile of every container that it starts, in a third of the CPU time of a start, although all have
the profile of Podman. It leaves the filter beside the container's state, and takes one that it is given, as an
annotation: crun(1). What does not know the annotation, runc for one, translates the profile as before.
"""

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_ANNOTATION = "run.oci.seccomp_bpf_data"


class Filters:
    """The filters that were made so far, by their profiles. `state` is where the OCI runtime keeps its containers."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._made: dict[str, str] = {}

    def add(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config of a container, with its filter where that is known."""
        if made := self._made.get(_profile(config)):
            return {**config, "annotations": {**config.get("annotations", {}), _ANNOTATION: made}}
        return config

    def learn(self, config: Mapping[str, Any], container: str) -> None:
        """Keep what the OCI runtime made of the profile of `container`, which runs."""
        profile = _profile(config)
        if profile not in self._made:
            with suppress(FileNotFoundError):
                made = (self._state / container / "seccomp.bpf").read_bytes()
                self._made[profile] = base64.b64encode(made).decode()


def _profile(config: Mapping[str, Any]) -> str:
    return json.dumps(config["linux"].get("seccomp"))
