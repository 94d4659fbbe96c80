"""Candidates: the bugs of a project in the order in which the factory tries them, decided by the seed alone."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from skyrl_stack.factory.blocks import branch_mutations, statement_mutations
from skyrl_stack.factory.catalogue import Project
from skyrl_stack.factory.mutation import Mutation, apply, call_mutations, compiles, mutations
from skyrl_stack.profile import Strategy

FINDERS: dict[Strategy, Callable[[str], list[Mutation]]] = {
    "line": mutations,
    "call": call_mutations,
    "branch": branch_mutations,
    "block": statement_mutations,
    "pair": mutations,
}
Found = tuple[str, str, tuple[Mutation, ...]]
"File, its text, and the mutations that make one bug."


@dataclass(frozen=True)
class Candidate:
    """A file of the project with a bug in it, or with two."""

    file: str
    "Relative to the repository."
    sound: str
    buggy: str
    mutations: tuple[Mutation, ...]
    strategy: Strategy = "line"

    @property
    def functions(self) -> tuple[str, ...]:
        """Qualified names of the functions that misbehave."""
        return tuple(dict.fromkeys(mutation.function for mutation in self.mutations))

    @property
    def kind(self) -> str:
        return "+".join(mutation.kind for mutation in self.mutations)


def candidates(
    project: Project, root: Path, seed: int, strategies: Sequence[Strategy] = ("line",)
) -> Iterator[Candidate]:
    """All that compile, the strategies by turns; none comes twice."""
    seen: set[tuple[str, str]] = set()
    for turn in zip_longest(*(_of_strategy(project, root, seed, strategy) for strategy in strategies)):
        for candidate in turn:
            if candidate and (candidate.file, candidate.buggy) not in seen:
                seen.add((candidate.file, candidate.buggy))
                yield candidate


def suite_files(project: Project, root: Path) -> tuple[str, ...]:
    """The files that the tests of the project are in, relative to `root`."""
    return tuple(sorted({path.relative_to(root).as_posix() for glob in project.tests for path in root.glob(glob)}))


def _of_strategy(project: Project, root: Path, seed: int, strategy: Strategy) -> Iterator[Candidate]:
    """Shuffled, then dealt out so that no function comes twice before every other came once."""
    found: list[Found] = [
        (path.relative_to(root).as_posix(), source, (mutation,))
        for path, source in _sources(project, root)
        for mutation in FINDERS[strategy](source)
    ]
    key = f"{seed} {project.name} {project.version}"
    random.Random(key if strategy == "line" else f"{key} {strategy}").shuffle(found)
    if strategy == "pair":
        found = list(_pairs(found))
    for file, source, made in _spread(found):
        buggy = apply(source, *made)
        if buggy != source and compiles(buggy):
            yield Candidate(file=file, sound=source, buggy=buggy, mutations=made, strategy=strategy)


def _pairs(found: Sequence[Found]) -> Iterator[Found]:
    """Neighbours of one file, in the order given, that are in different functions."""
    waiting: dict[str, Mutation] = {}
    for file, source, (mutation,) in found:
        other = waiting.pop(file, None)
        if other is None or other.function == mutation.function:
            waiting[file] = mutation
        else:
            yield file, source, (other, mutation)


def _sources(project: Project, root: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted({path for glob in project.sources for path in root.glob(glob)}):
        yield path, path.read_bytes().decode()


def _spread(found: list[Found]) -> list[Found]:
    """Stable sort by how often the function has already come."""
    seen: Counter[tuple[str, str]] = Counter()
    rounds: list[int] = []
    for file, _, (first, *_) in found:
        rounds.append(seen[file, first.function])
        seen[file, first.function] += 1
    return [found[index] for index in sorted(range(len(found)), key=rounds.__getitem__)]
