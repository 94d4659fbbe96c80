"""Operators: what one syntax node may be turned into, each a plausible slip of a programmer."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

BINARY: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
COMPARE: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
BOOLEAN: dict[type[ast.boolop], tuple[str, str]] = {ast.And: ("and", "or"), ast.Or: ("or", "and")}


@dataclass(frozen=True)
class Edit:
    """A span of one line and its new text. Columns are UTF-8 bytes, as `ast` counts them."""

    line: int
    start: int
    end: int
    text: str
    kind: str


def replacements(node: ast.AST) -> Iterator[Edit]:
    """The edits that `node` allows."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY and not _is_text(left):
            yield from _between(left, right, BINARY[type(op)], "arithmetic")
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARE:
            yield from _between(left, right, COMPARE[type(op)], "comparison")
        case ast.BoolOp(op=op, values=[left, right]):
            yield from _between(left, right, BOOLEAN[type(op)], "boolean")
        case ast.Constant(value=bool() as value):
            yield from _instead(node, str(not value), "constant")
        case ast.Constant(value=int() as value):
            yield from _instead(node, str(value + 1), "off-by-one")
        case ast.If(test=test):
            yield from _negated(test)


def _is_text(node: ast.expr) -> bool:
    """`"%s" % x` and `"=" * 3` with another operator only raise TypeError: no bug anybody would write."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _between(left: ast.expr, right: ast.expr, symbols: tuple[str, str], kind: str) -> Iterator[Edit]:
    """Swap the operator that stands between two operands on one line.

    Only blanks and the operator may stand there: of operands in parentheses the tree does not tell the exact place.
    """
    if left.end_lineno == right.lineno and left.end_col_offset is not None:
        old, new = symbols
        gap = right.col_offset - left.end_col_offset
        if gap == len(old) + 2:
            yield Edit(right.lineno, left.end_col_offset, right.col_offset, f" {new} ", kind)


def _instead(node: ast.expr, text: str, kind: str) -> Iterator[Edit]:
    if node.lineno == node.end_lineno and node.end_col_offset is not None:
        yield Edit(node.lineno, node.col_offset, node.end_col_offset, text, kind)


def _negated(test: ast.expr) -> Iterator[Edit]:
    """`if x` becomes `if not x`, and the reverse, where precedence asks for no parentheses."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name() | ast.Attribute() | ast.Call() as operand):
            if test.lineno == operand.lineno:
                yield Edit(test.lineno, test.col_offset, operand.col_offset, "", "negation")
        case ast.Name() | ast.Attribute() | ast.Call():
            yield Edit(test.lineno, test.col_offset, test.col_offset, "not ", "negation")
