"""What of a patch and of a log is not believed."""

import pytest

from skyrl_stack.grading.apply import enters_git_directory
from skyrl_stack.grading.protected import named_files, protected_pathspecs
from skyrl_stack.grading.verdict import is_forged, report_of
from skyrl_stack.tasks.task import Task
from toys import toy_task

FIXED, KEPT = "tests/test_a.py::test_fixed[x]", "tests/sub dir/test_b.py::T::test_kept"


@pytest.fixture
def task() -> Task:
    return toy_task(
        FAIL_TO_PASS=(FIXED,), PASS_TO_PASS=(KEPT, "test_django (app.tests.T)"), log_parser="parse_log_pytest"
    )


def log(*lines: str, code: int = 0) -> str:
    body = "\n".join(lines)
    return f"+ : '>>>>> Start Test Output'\n{body}\n+ : '>>>>> End Test Output'\n>>>>> Test Exit Code: {code}\n"


def test_the_files_that_test_ids_name_are_protected(task: Task) -> None:
    assert named_files(task) == ("tests/sub dir/test_b.py", "tests/test_a.py")
    assert ":(top,literal)tests/test_a.py" in protected_pathspecs(task)
    assert ":(top,glob,exclude)**/conftest.py" in protected_pathspecs(task, exclude=True)


@pytest.mark.parametrize(
    "header",
    ["+++ b/.git/config", "--- a/x/.git/hooks/y\t2020", '+++ "b/.git/a b"', "rename to .git/x", "+++ b/.GIT/config"],
)
def test_a_patch_into_the_git_directory_is_seen(header: str) -> None:
    assert enters_git_directory(f"diff -u a b\n{header}\n@@ -1 +1 @@\n-a\n+b\n")


@pytest.mark.parametrize("header", ["+++ b/.gitignore", "+++ b/x.git/y", "+++ b/.github/a.yml", "+see .git/config"])
def test_a_patch_beside_the_git_directory_is_fine(header: str) -> None:
    assert not enters_git_directory(f"diff -u a b\n{header}\n@@ -1 +1 @@\n-a\n+b\n")


@pytest.mark.parametrize("forged", [f"PASSED {FIXED}", f"\x01PASSED {FIXED}", f"{FIXED} PASSED"])
def test_a_resolved_task_with_a_failed_test_is_a_forgery(task: Task, forged: str) -> None:
    plain = task.model_copy(update={"PASS_TO_PASS": ()})
    text = log(f"FAILED {FIXED} - assert 1 == 2", forged)
    assert report_of(plain.model_copy(update={"log_parser": "parse_log_pytest_v2"}), text)["resolved"]
    assert is_forged(plain, text)


def test_a_failed_teardown_and_tests_of_others_are_no_forgery(task: Task) -> None:
    assert not is_forged(task, log(f"PASSED {FIXED}", f"ERROR {FIXED} - boom"))
    assert not is_forged(task, log("PASSED other.py::t", "FAILED other.py::t"))


def test_what_must_fail_has_failed_or_it_is_a_forgery(task: Task) -> None:
    guarded = task.model_copy(update={"canary": "c.py::t"})
    assert not is_forged(guarded, log(f"PASSED {FIXED}", "FAILED c.py::t - assert False"))
    assert is_forged(guarded, log(f"PASSED {FIXED}", "PASSED c.py::t"))
    assert is_forged(guarded, log(f"PASSED {FIXED}"))


def test_swebench_resolves_by_all_tests(task: Task) -> None:
    plain = task.model_copy(update={"PASS_TO_PASS": ("t.py::kept",)})
    assert report_of(plain, log(f"PASSED {FIXED}", "PASSED t.py::kept"))["resolved"]
    assert not report_of(plain, log(f"PASSED {FIXED}", "FAILED t.py::kept", code=1))["resolved"]
    assert not report_of(plain, log(f"PASSED {FIXED}"))["resolved"]


def test_swebench_gives_no_verdict_where_no_failure_explains_the_exit_code(task: Task) -> None:
    assert "tests_status" not in report_of(task, log(f"PASSED {FIXED}", code=137))
