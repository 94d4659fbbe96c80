"""Mutations: every bug of one line that can be put into a source file, found by its syntax tree; see also `blocks`."""

import ast
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from skyrl_stack.factory.calls import call_replacements
from skyrl_stack.factory.operators import Edit, replacements


@dataclass(frozen=True)
class Mutation:
    """One place of a file, changed."""

    line: int
    "Counted from 1."
    text: str
    "What the lines become, with their line ends."
    function: str
    "Qualified name of the function around it."
    kind: str
    lines: int = 1
    "How many lines are replaced."


def mutations(source: str) -> list[Mutation]:
    """All slips in operators, constants and conditions, in the order of the text. Not every one compiles."""
    return _of_lines(source, replacements)


def call_mutations(source: str) -> list[Mutation]:
    """All slips in calls, in the order of the text."""
    return _of_lines(source, call_replacements)


def _of_lines(source: str, finder: Callable[[ast.AST], Iterator[Edit]]) -> list[Mutation]:
    lines = lines_of(source)
    found = {
        Mutation(edit.line, _splice(lines[edit.line - 1], edit.start, edit.end, edit.text), function, edit.kind)
        for node, function in in_functions(ast.parse(source))
        for edit in finder(node)
    }
    return sorted(found, key=lambda mutation: (mutation.line, mutation.kind, mutation.text))


def apply(source: str, *made: Mutation) -> str:
    """`source` with the mutations in it, which do not overlap."""
    lines = lines_of(source)
    for mutation in sorted(made, key=lambda mutation: -mutation.line):
        lines[mutation.line - 1 : mutation.line - 1 + mutation.lines] = [mutation.text]
    return "".join(lines)


def compiles(source: str) -> bool:
    try:
        compile(source, "<mutation>", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def lines_of(source: str) -> list[str]:
    """Lines with their ends, as `ast` counts them: `str.splitlines` would also split at a form feed."""
    return io.StringIO(source, newline="").readlines()


def in_functions(
    node: ast.AST, scope: tuple[str, ...] = (), inside: bool = False, *, functions_too: bool = False
) -> Iterator[tuple[ast.AST, str]]:
    """Nodes in functions, and with `functions_too` the functions, with the function's qualified name.

    Only what runs in a test is worth breaking.
    """
    for child in ast.iter_child_nodes(node):
        inner = (scope, inside)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = ((*scope, child.name), True)
            if functions_too:
                yield child, ".".join(inner[0])
        elif isinstance(child, ast.ClassDef):
            inner = ((*scope, child.name), inside)
        elif inside:
            yield child, ".".join(scope)
        yield from in_functions(child, *inner, functions_too=functions_too)


def _splice(line: str, start: int, end: int, text: str) -> str:
    """Replace a span; the syntax tree counts UTF-8 bytes."""
    raw = line.encode()
    return (raw[:start] + text.encode() + raw[end:]).decode()
