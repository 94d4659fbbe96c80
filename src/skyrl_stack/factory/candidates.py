"""Candidates: the mutations of a project in the order in which the factory tries them, decided by the seed alone."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skyrl_stack.factory.catalogue import Project
from skyrl_stack.factory.mutation import Mutation, apply, compiles, mutations


@dataclass(frozen=True)
class Candidate:
    """A file of the project with one bug in it."""

    file: str
    "Relative to the repository."
    sound: str
    buggy: str
    mutation: Mutation


def candidates(project: Project, root: Path, seed: int) -> Iterator[Candidate]:
    """All that compile. Shuffled, then dealt out so that no function comes twice before every other came once."""
    found = [
        (path.relative_to(root).as_posix(), source, mutation)
        for path, source in _sources(project, root)
        for mutation in mutations(source)
    ]
    random.Random(f"{seed} {project.name} {project.version}").shuffle(found)
    for file, source, mutation in _spread(found):
        buggy = apply(source, mutation)
        if buggy != source and compiles(buggy):
            yield Candidate(file=file, sound=source, buggy=buggy, mutation=mutation)


def suite_files(project: Project, root: Path) -> tuple[str, ...]:
    """The files that the tests of the project are in, relative to `root`."""
    return tuple(sorted({path.relative_to(root).as_posix() for glob in project.tests for path in root.glob(glob)}))


def _sources(project: Project, root: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted({path for glob in project.sources for path in root.glob(glob)}):
        yield path, path.read_bytes().decode()


def _spread(found: list[tuple[str, str, Mutation]]) -> list[tuple[str, str, Mutation]]:
    """Stable sort by how often the function has already come."""
    seen: Counter[tuple[str, str]] = Counter()
    rounds: list[int] = []
    for file, _, mutation in found:
        rounds.append(seen[file, mutation.function])
        seen[file, mutation.function] += 1
    return [found[index] for index in sorted(range(len(found)), key=rounds.__getitem__)]
