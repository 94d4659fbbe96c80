"""Catalogue: the projects that tasks are made from, pinned by hash; the first step of the factory."""

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from skyrl_stack.errors import ProfileError

RUNNER = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
"What every project's tests need: pytest and what it imports."


class Entry(BaseModel):
    """Base of what `catalogue.toml` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Artifact(Entry):
    """One file of a package index."""

    project: str
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Project(Entry):
    """One release of a project whose sdist ships its tests."""

    name: str
    version: str
    license: str
    sdist: Artifact
    sources: tuple[str, ...] = Field(min_length=1)
    tests: tuple[str, ...] = Field(min_length=1)
    options: tuple[str, ...] = ()
    wheels: tuple[Artifact, ...]


def runner_wheels() -> tuple[Artifact, ...]:
    """pytest and what it imports."""
    wheels = _wheels()
    return tuple(wheels[name] for name in RUNNER)


@cache
def catalogue() -> dict[str, Project]:
    """All projects by name."""
    table, wheels = _table(), _wheels()
    projects: dict[str, Project] = {}
    for name, entry in table["projects"].items():
        required = (*RUNNER, *entry.pop("requires", ()))
        sdist = Artifact(project=name, **entry.pop("sdist"))
        projects[name] = Project(name=name, sdist=sdist, wheels=tuple(wheels[wheel] for wheel in required), **entry)
    return projects


def _wheels() -> dict[str, Artifact]:
    return {name: Artifact(project=name, **entry) for name, entry in _table()["wheels"].items()}


def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("catalogue.toml").read_text())


def choose(names: Iterable[str]) -> list[Project]:
    """The projects called `names`, in that order.

    Raises:
        ProfileError: one of them is not in the catalogue.
    """
    known = catalogue()
    missing = [name for name in names if name not in known]
    if missing:
        raise ProfileError(f"tasks.projects: no project {missing[0]}; there are {', '.join(sorted(known))}")
    return [known[name] for name in dict.fromkeys(names)]
