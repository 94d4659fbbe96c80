"""Broken tests: every form of a test function fails at once, and whoever passes such a test is found out."""

import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_stack.grading import break_tests
from skyrl_stack.grading.control import control_of, passed_although_broken
from skyrl_stack.tasks.task import EXACT, Task

FORMS = b'''\
"""A module."""
import functools, unittest


def test_plain():
    pass


def test_on_one_line(): pass


def test_with_a_docstring():
    """Says
    what."""
    for _ in ():
        pass


def test_that_begins_with_a_decorated_function():
    @functools.cache
    def inner(): ...


def test_\xc3\xa9_on_one_line(x="\xc3\xa9"): y = "\xc3\xa9"; pass


def test_of_continued_lines(
    x=1,
    y="""
no code""",
):
\ttext = """
    no code"""\r
\twith open("/dev/null"): pass


class TestOuter(unittest.TestCase):
    def test_method(self):
        # a comment
        return None

    class TestInner:
        async def test_coroutine(self):
            return 1

    def helper(self):
        return 2


if True:
    def test_under_a_condition():
        return
'''
BROKEN = [
    "test_plain",
    "test_on_one_line",
    "test_with_a_docstring",
    "test_that_begins_with_a_decorated_function",
    "test_é_on_one_line",
    "test_of_continued_lines",
    "TestOuter.test_method",
    "TestOuter.TestInner.test_coroutine",
    "test_under_a_condition",
]


def test_every_form_of_a_test_fails_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_bytes(FORMS)
    (folder / "bad.py").write_text("def test_x(:\n")
    (folder / "data.txt").write_text("def test_x(): pass\n")
    argv = [sys.executable, "-I", break_tests.__file__, "tests", "tests/absent.py", "tests/data.txt"]
    said = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(said[1:]) == sorted(f"broken: tests/test_a.py::{name}" for name in BROKEN)
    assert said[0].startswith("not broken: tests/bad.py")
    module: dict[str, object] = {}
    exec(compile((folder / "test_a.py").read_bytes(), "test_a.py", "exec"), module)
    outer = module["TestOuter"]
    for name in BROKEN:
        owner, _, function = name.rpartition(".")
        found = module[name] if not owner else getattr(outer if owner == "TestOuter" else outer.TestInner, function)  # type: ignore[union-attr]
        with pytest.raises(AssertionError):
            run(found, bool(owner))
    assert outer("helper").helper() == 2  # type: ignore[operator]


def run(function: object, is_method: bool) -> None:
    made = function(*([None] if is_method else []))  # type: ignore[operator]
    if hasattr(made, "send"):
        made.send(None)


def task(parser: str, *ids: str, **columns: object) -> Task:
    script = "cd /testbed\n: '>>>>> Start Test Output'\npytest\n: '>>>>> End Test Output'\n"
    return Task.model_validate(
        {
            "instance_id": "t",
            "repo": "a/b",
            "version": "1",
            "base_commit": "0",
            "image": "image",
            "problem_statement": "wrong",
            "patch": "",
            "FAIL_TO_PASS": ids,
            "eval_script": script,
            "log_parser": parser,
            **columns,
        }
    )


def logs(broken: list[str], *lines: str) -> tuple[str, str]:
    """Of the breaking, and of the run, in which lines about the former count for nothing."""
    text = ["+ : '>>>>> Start Test Output'", *lines, "+ : '>>>>> End Test Output'", ">>>>> Test Exit Code: 1"]
    return "".join(f"broken: {name}\n" for name in broken), "\n".join(["broken: t/c.py::T.test_y", *text, ""])


@pytest.mark.parametrize(
    ("parser", "test", "broken", "lines"),
    [
        ("parse_log_pytest", "t/a.py::T::test_x[1.5-a]", "t/a.py::T.test_x", ("PASSED {}", "FAILED t/b.py::o - x")),
        ("parse_log_django", "test_x (app.tests.T)", "tests/app/tests.py::T.test_x", ("{} ... ok", "o (b.B) ... FAIL")),
        ("parse_log_django", "test_x (a.T.test_x)", "tests/a/tests.py::T.test_x", ("{} ... ok", "o (b.B) ... FAIL")),
        ("parse_log_sympy", "test_x", "sympy/tests/test_a.py::test_x", ("{} ok", "test_o F")),
    ],
)
def test_who_passes_a_broken_test_is_found_out(parser: str, test: str, broken: str, lines: tuple[str, str]) -> None:
    mine, (passed, failed) = task(parser, test), lines
    assert passed_although_broken(mine, *logs([broken], passed.format(test), failed)) == [test]
    assert passed_although_broken(mine, *logs(["t/c.py::T.test_y"], passed.format(test), failed)) == []
    assert passed_although_broken(mine, *logs([broken], failed)) == []
    assert passed_although_broken(mine, "broken: x::y\n", "nothing") is None
    assert passed_although_broken(mine, "", logs([broken], passed.format(test), failed)[1]) is None


def test_exact_matches_are_controlled_too() -> None:
    mine = task(EXACT, expected_output={"T.test_x[1.5]": "PASSED", "test_y": "FAILED"})
    summary = "=========================== short test summary info ============================"
    broken = ["r2e_tests/test_1.py::T.test_x", "r2e_tests/test_1.py::test_y"]
    honest = logs(broken, summary, "FAILED r2e_tests/test_1.py::T::test_x[1.5]", "FAILED r2e_tests/test_1.py::test_y")
    forged = logs(broken, summary, "PASSED r2e_tests/test_1.py::T::test_x[1.5]", "FAILED r2e_tests/test_1.py::test_y")
    assert passed_although_broken(mine, *honest) == []
    assert passed_although_broken(mine, *forged) == ["T.test_x[1.5]"]


def test_the_tests_are_broken_where_they_are_when_they_run() -> None:
    mine = task("parse_log_pytest", "t/a b.py::test_x")
    control = control_of(mine, mine.eval_script)
    assert control
    assert "'t/a b.py'" in control.breaking and "Start Test Output" not in control.breaking
    assert control.running.index("tar --extract") < control.running.index(">>>>> Start Test Output")
    for script in control:
        assert subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True).stderr == b""
    assert control_of(mine, "pytest\n") is None
    assert control_of(task("parse_log_sympy", "test_x"), mine.eval_script) is None  # nobody says where it is
