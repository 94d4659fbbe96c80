"""One-line bugs: what is found, that only one line changes, and that the seed alone decides the order."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_stack.factory.blocks import branch_mutations, statement_mutations
from skyrl_stack.factory.candidates import Candidate, candidates
from skyrl_stack.factory.catalogue import Project, catalogue
from skyrl_stack.factory.mutation import apply, call_mutations, compiles, lines_of, mutations
from skyrl_stack.factory.rows import fix_of

SOURCE = '''\
"""A module."""
LIMIT = 3


class Box:
    def area(self, width, höhe=2):
        """Area, 10 at most."""
        if width < 0 and höhe:
            return None
        return "é" + str(width * höhe)

    def empty(self):
        if not self.area(1):
            return True
        return (1) + (2)
'''


def found(source: str) -> set[tuple[str, str]]:
    lines = lines_of(source)
    return {(lines[bug.line - 1].strip(), bug.text.strip()) for bug in mutations(source)}


def test_operators_constants_and_conditions_of_functions_are_broken() -> None:
    assert found(SOURCE) == {
        ("def area(self, width, höhe=2):", "def area(self, width, höhe=3):"),
        ("if width < 0 and höhe:", "if width <= 0 and höhe:"),
        ("if width < 0 and höhe:", "if width < 1 and höhe:"),
        ("if width < 0 and höhe:", "if width < 0 or höhe:"),
        ('return "é" + str(width * höhe)', 'return "é" + str(width // höhe)'),
        ("if not self.area(1):", "if self.area(1):"),
        ("if not self.area(1):", "if not self.area(2):"),
        ("return True", "return False"),
        ("return (1) + (2)", "return (2) + (2)"),
        ("return (1) + (2)", "return (1) + (3)"),
    }


def test_a_bug_names_the_function_it_is_in() -> None:
    assert {bug.function for bug in mutations(SOURCE)} == {"Box.area", "Box.empty"}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_exactly_one_line_changes_and_the_rest_keeps_its_bytes(ending: str) -> None:
    source = SOURCE.replace("\n", ending).replace("LIMIT = 3", "LIMIT = 3\f")
    for bug in mutations(source):
        before, after = lines_of(source), lines_of(apply(source, bug))
        assert [number for number, pair in enumerate(zip(before, after, strict=True), 1) if len(set(pair)) == 2] == [
            bug.line
        ]
        ast.parse(apply(source, bug))


def test_what_does_not_compile_is_seen() -> None:
    assert compiles("x = 1\n")
    assert not compiles("x = = 1\n")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[tuple[Project, Path]]:
    (tmp_path / "inflection").mkdir()
    (tmp_path / "inflection" / "box.py").write_text(SOURCE)
    yield catalogue()["inflection"], tmp_path


def listed(project: tuple[Project, Path], seed: int) -> list[Candidate]:
    return list(candidates(*project, seed))


def test_the_seed_decides_the_order(project: tuple[Project, Path]) -> None:
    assert listed(project, 1) == listed(project, 1)
    assert listed(project, 1) != listed(project, 2)
    assert set(listed(project, 1)) == set(listed(project, 2))


def test_no_function_comes_again_before_every_other_came(project: tuple[Project, Path]) -> None:
    first, second = listed(project, 5)[:2]
    assert {*first.functions, *second.functions} == {"Box.area", "Box.empty"}


def test_the_fix_is_the_diff_back(project: tuple[Project, Path]) -> None:
    bug = next(bug for bug in listed(project, 0) if bug.mutations[0].text.strip() == "return False")
    assert fix_of(bug).splitlines() == [
        "diff --git a/inflection/box.py b/inflection/box.py",
        "--- a/inflection/box.py",
        "+++ b/inflection/box.py",
        "@@ -11,5 +11,5 @@",
        " ",
        "     def empty(self):",
        "         if not self.area(1):",
        "-            return False",
        "+            return True",
        "         return (1) + (2)",
    ]


CALLS = """\
def f(a, b):
    x = min(a, b)
    return x.lstrip(a, b) if a.b.startswith(x) else g(a, 1)
"""


def test_calls_are_mistaken_for_their_neighbours_and_arguments_are_swapped() -> None:
    assert {bug.text.strip() for bug in call_mutations(CALLS)} == {
        "x = max(a, b)",
        "x = min(b, a)",
        "return x.rstrip(a, b) if a.b.startswith(x) else g(a, 1)",
        "return x.lstrip(b, a) if a.b.startswith(x) else g(a, 1)",
        "return x.lstrip(a, b) if a.b.endswith(x) else g(a, 1)",
    }


BLOCKS = """\
def f(a):
    if a:
        return 1
    if a > 2:
        a = 3
        b = [
            4,
        ]
    elif a > 5:
        a += 6
    else:
        g(a)
    return a
"""


def test_branches_are_left_out() -> None:
    whole, other = branch_mutations(BLOCKS)
    assert apply(BLOCKS, whole) == BLOCKS.replace("    if a:\n        return 1\n", "    pass\n")
    assert apply(BLOCKS, other) == BLOCKS.replace("    elif a > 5:\n        a += 6\n", "")


def test_statements_are_left_out_or_swapped() -> None:
    found = {apply(BLOCKS, bug) for bug in statement_mutations(BLOCKS)}
    first, second = "        a = 3\n", "        b = [\n            4,\n        ]\n"
    assert found == {
        BLOCKS.replace(first + second, second + first),
        BLOCKS.replace(second, "        pass\n"),
        BLOCKS.replace("        a += 6\n", "        pass\n"),
        BLOCKS.replace("        g(a)\n", "        pass\n"),
    }


def test_two_bugs_are_in_one_file_and_two_functions(tmp_path: Path) -> None:
    (tmp_path / "box.py").write_text(SOURCE)
    project = catalogue()["inflection"].model_copy(update={"sources": ("box.py",)})
    made = list(candidates(project, tmp_path, 0, ("pair",)))
    assert made
    for candidate in made:
        assert set(candidate.functions) == {"Box.area", "Box.empty"}
        assert fix_of(candidate).count("\n-") == 3  # and the header's
    both = list(candidates(project, tmp_path, 0, ("line", "pair")))
    assert [candidate.strategy for candidate in both[:2]] == ["line", "pair"]
    assert len({candidate.buggy for candidate in both}) == len(both)
