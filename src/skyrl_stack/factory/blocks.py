"""Blocks: bugs of whole statements: a branch that is missing, a statement that is, two in the wrong order."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from skyrl_stack.factory.mutation import Mutation, in_functions, lines_of


def branch_mutations(source: str) -> list[Mutation]:
    """Every `if` without its case: the whole of one that has no other branch, or an `elif`."""
    lines = lines_of(source)
    found = []
    for node, function in in_functions(ast.parse(source)):
        if not isinstance(node, ast.If) or lines[node.lineno - 1].lstrip().startswith("elif"):
            continue
        if not node.orelse:
            found.append(_without(lines, node.lineno, _end(node), function, "removed-branch", passing=True))
        elif isinstance(other := node.orelse[0], ast.If) and lines[other.lineno - 1].lstrip().startswith("elif"):
            found.append(_without(lines, other.lineno, _end(other.body[-1]), function, "removed-branch"))
    return found


def statement_mutations(source: str) -> list[Mutation]:
    """Every two neighbouring statements in the wrong order, and every one of several lines, or of effect, left out."""
    lines = lines_of(source)
    found = []
    for node, function in in_functions(ast.parse(source), functions_too=True):
        for body in _bodies(node):
            found += _swapped(lines, body, function)
            found += [
                _without(lines, one.lineno, _end(one), function, "removed-statement", passing=True)
                for one in body
                if isinstance(one, ast.AugAssign | ast.Delete) or _is_call(one) or (_is_simple(one) and _spans(one))
            ]
    return found


def _swapped(lines: list[str], body: list[ast.stmt], function: str) -> Iterator[Mutation]:
    for one, other in pairwise(body):
        if _is_simple(one) and _is_simple(other) and other.lineno == _end(one) + 1:
            first, second = lines[one.lineno - 1 : _end(one)], lines[other.lineno - 1 : _end(other)]
            if second[-1].endswith("\n"):
                text = "".join(second + first)
                yield Mutation(one.lineno, text, function, "swapped-statements", len(first) + len(second))


def _without(lines: list[str], first: int, last: int, function: str, kind: str, *, passing: bool = False) -> Mutation:
    """Without the lines; `pass` in their place where they may have been all there was."""
    line = lines[first - 1]
    indent = line[: len(line) - len(line.lstrip())]
    return Mutation(first, f"{indent}pass\n" if passing else "", function, kind, last - first + 1)


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        body = getattr(node, name, None)
        if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
            yield body


def _is_simple(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AugAssign) or _is_call(node)


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _spans(node: ast.stmt) -> bool:
    return _end(node) > node.lineno


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno
