"""Breaks tests: puts a failing statement first into every test function of the files that it is given.

Not part of the stack: it runs in a sandbox, by whatever Python 3 is there, and says which tests it broke.
"""

import ast
import sys
from pathlib import Path


def python_files(places):
    for place in map(Path, places):
        if place.is_dir():
            yield from sorted(place.rglob("*.py"))
        elif place.suffix == ".py" and place.is_file():
            yield place


def tests_in(node, classes=()):
    """(Class.name, function) of every test below `node`; those in functions are none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from tests_in(child, (*classes, child.name))
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if child.name.startswith("test"):
                yield ".".join((*classes, child.name)), child
        else:
            yield from tests_in(child, classes)  # tests that are defined under a condition


def is_docstring(statement):
    value = getattr(statement, "value", None)
    text = type(value).__name__ == "Str" or isinstance(
        getattr(value, "value", None), str
    )  # before Python 3.8, or since
    return isinstance(statement, ast.Expr) and text


def break_function(function, lines):
    """Whether a statement that fails could be put first. `lines` are bytes, for that is what columns count."""
    body = function.body[1:] if is_docstring(function.body[0]) else function.body
    if not body:
        return False
    decorators = [each.lineno for each in getattr(body[0], "decorator_list", ())]
    row = min([body[0].lineno, *decorators]) - 1
    line = lines[row]
    indentation = line[: len(line) - len(line.lstrip())]
    if decorators or not line[: body[0].col_offset].strip():
        lines[row] = indentation + b"assert False\n" + line
    else:
        lines[row] = line[: body[0].col_offset] + b"assert False; " + line[body[0].col_offset :]
    return True


def break_file(path):
    source = path.read_bytes()
    lines = source.splitlines(True)
    found = sorted(tests_in(ast.parse(source)), key=lambda test: test[1].lineno, reverse=True)
    broken = [name for name, function in found if break_function(function, lines)]
    path.write_bytes(b"".join(lines))
    return broken


if __name__ == "__main__":
    for path in python_files(sys.argv[1:]):
        try:
            for name in break_file(path):
                print("broken:", str(path) + "::" + name)
        except (SyntaxError, ValueError) as error:
            print("not broken:", path, error)
