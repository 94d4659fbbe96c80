"""Mutations: every one-line bug that can be put into a source file, found by its syntax tree."""

import ast
import io
from collections.abc import Iterator
from dataclasses import dataclass

from skyrl_stack.factory.operators import replacements


@dataclass(frozen=True)
class Mutation:
    """One line of a file, changed."""

    line: int
    "Counted from 1."
    text: str
    "What the line becomes, with its line end."
    function: str
    "Qualified name of the function around it."
    kind: str


def mutations(source: str) -> list[Mutation]:
    """All mutations of `source`, in the order of the text. Not every one compiles: see `compiles`."""
    lines = lines_of(source)
    found = {
        Mutation(edit.line, _splice(lines[edit.line - 1], edit.start, edit.end, edit.text), function, edit.kind)
        for node, function in _in_functions(ast.parse(source))
        for edit in replacements(node)
    }
    return sorted(found, key=lambda mutation: (mutation.line, mutation.kind, mutation.text))


def apply(source: str, mutation: Mutation) -> str:
    """`source` with the bug in it."""
    lines = lines_of(source)
    lines[mutation.line - 1] = mutation.text
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


def _in_functions(node: ast.AST, scope: tuple[str, ...] = (), inside: bool = False) -> Iterator[tuple[ast.AST, str]]:
    """Nodes of functions, with the function's qualified name: only what runs in a test is worth breaking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _in_functions(child, (*scope, child.name), inside=True)
        elif isinstance(child, ast.ClassDef):
            yield from _in_functions(child, (*scope, child.name), inside)
        else:
            if inside:
                yield child, ".".join(scope)
            yield from _in_functions(child, scope, inside)


def _splice(line: str, start: int, end: int, text: str) -> str:
    """Replace a span; the syntax tree counts UTF-8 bytes."""
    raw = line.encode()
    return (raw[:start] + text.encode() + raw[end:]).decode()
