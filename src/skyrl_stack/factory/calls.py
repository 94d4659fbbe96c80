"""Calls: the slips that put the wrong call, or its arguments in the wrong order, where a right one stood."""

import ast
from collections.abc import Iterator

from skyrl_stack.factory.operators import Edit

NEIGHBOURS = (
    ("min", "max"),
    ("any", "all"),
    ("startswith", "endswith"),
    ("lstrip", "rstrip"),
    ("upper", "lower"),
    ("find", "rfind"),
    ("split", "rsplit"),
    ("partition", "rpartition"),
    ("floor", "ceil"),
    ("keys", "values"),
    ("union", "intersection"),
    ("append", "extend"),
    ("popleft", "pop"),
    ("isdigit", "isalpha"),
    ("match", "search"),
)
"Calls that are mistaken for each other."
_OTHER = {one: other for pair in NEIGHBOURS for one, other in (pair, pair[::-1])}


def call_replacements(node: ast.AST) -> Iterator[Edit]:
    """The edits that `node` allows."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name) as function) if name in _OTHER:
            yield from _renamed(function, name)
    match node:
        case ast.Call(args=[first, second], keywords=[]) if _swappable(first, second):
            assert second.end_col_offset is not None
            text = f"{ast.unparse(second)}, {ast.unparse(first)}"
            yield Edit(first.lineno, first.col_offset, second.end_col_offset, text, "swapped-arguments")


def _renamed(function: ast.expr, name: str) -> Iterator[Edit]:
    if function.end_lineno is not None and function.end_col_offset is not None:
        start = function.end_col_offset - len(name.encode())
        yield Edit(function.end_lineno, start, function.end_col_offset, _OTHER[name], "swapped-call")


def _swappable(first: ast.expr, second: ast.expr) -> bool:
    on_one_line = first.lineno == first.end_lineno == second.lineno == second.end_lineno
    kinds = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
    return on_one_line and isinstance(first, kinds) and isinstance(second, kinds)
