"""The manifest of a task file, and what training does with it."""

import asyncio
from pathlib import Path

import pytest

from skyrl_stack.errors import ProfileError, SetupError
from skyrl_stack.launch.plan.findings import Plan
from skyrl_stack.launch.plan.plan import plan
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.profile import Profile
from skyrl_stack.tasks.diff import diff_of
from skyrl_stack.tasks.manifest import (
    Check,
    Standing,
    Verification,
    digest_of,
    manifest_of,
    require_verified,
    standing,
    verified_tasks,
)
from skyrl_stack.tasks.task import Task, TaskError
from skyrl_stack.verification.checks import why_not
from skyrl_stack.verification.tampers import TAMPERS, files_to_read, tampered
from skyrl_stack.verification.verify import verify_tasks


def task(name: str = "a", **columns: object) -> Task:
    return Task.model_validate(
        {
            "instance_id": name,
            "repo": "r",
            "version": "1",
            "base_commit": "0",
            "image": "i",
            "problem_statement": "p",
            "patch": diff_of("pkg/a.py", "x = 2\n", "x = 1\n"),
            "FAIL_TO_PASS": ["tests/test_a.py::test_x"],
            "eval_script": "",
            "log_parser": "parse_log_pytest",
            **columns,
        }
    )


def written(file: Path, tasks: list[Task], verdicts: dict[str, bool]) -> None:
    file.write_text("".join(f"{one.model_dump_json()}\n" for one in tasks))
    lines = [
        Verification(instance_id=one.instance_id, digest=digest_of(one), accepted=verdicts[one.instance_id], checks=())
        for one in tasks
        if one.instance_id in verdicts
    ]
    manifest_of(file).write_text("".join(f"{line.model_dump_json()}\n" for line in lines))


def test_verify_says_where_it_cannot_write_before_it_fetches_an_image(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    written(file, [task()], {})
    manifest_of(file).unlink()
    manifest_of(file).mkdir()
    with pytest.raises(SetupError, match=r"t\.manifest\.jsonl: Is a directory; what is found is written beside"):
        asyncio.run(verify_tasks(file, repeats=1, at_once=1, timeout_s=1, say=print))


def test_an_empty_file_is_not_verified(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.touch()
    with pytest.raises(TaskError, match=r"t\.jsonl: no task in it"):
        asyncio.run(verify_tasks(file, repeats=1, at_once=1, timeout_s=1, say=print))


def test_a_task_that_changed_is_unverified_again(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    written(file, [task("a"), task("b"), task("c")], {"a": True, "b": False})
    assert standing(file) == Standing(accepted=1, quarantined=1, unverified=1)
    changed = [task("a", eval_script="exit 0"), task("b"), task("c")]
    file.write_text("".join(f"{one.model_dump_json()}\n" for one in changed))
    assert standing(file) == Standing(accepted=0, quarantined=1, unverified=2)


def test_the_last_word_counts_and_a_torn_line_is_none(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    written(file, [task("a")], {"a": False})
    with manifest_of(file).open("a") as manifest:
        line = Verification(instance_id="a", digest=digest_of(task("a")), accepted=True, checks=())
        manifest.write(f"{line.model_dump_json()}\n{line.model_dump_json()[:40]}")
    assert [found.accepted for _, found in verified_tasks(file) if found] == [True]


def test_training_refuses_what_nobody_verified() -> None:
    with pytest.raises(ProfileError, match=r"2 of 5 tasks are not verified.*tasks verify t.jsonl.*--unverified"):
        require_verified(Path("t.jsonl"), Standing(3, 0, 2), unverified=False)
    require_verified(Path("t.jsonl"), Standing(3, 0, 2), unverified=True)
    with pytest.raises(ProfileError, match="no task to train on; 2 are quarantined"):
        require_verified(Path("t.jsonl"), Standing(0, 2, 0), unverified=True)


def test_a_launch_refuses_it_too_or_says_so_loudly() -> None:
    def planned(unverified: bool) -> Plan:
        given = {"file": "t.jsonl", "unverified": unverified}
        profile = Profile.model_validate({"name": "x", "tasks": given})
        return plan(profile, Survey(standing=Standing(1, 0, 1)))

    with pytest.raises(ProfileError, match="1 of 2 tasks are not verified"):
        planned(unverified=False).require_fit()
    (warning,) = [finding for finding in planned(unverified=True).findings if finding.text.startswith("UNVERIFIED")]
    assert warning.level == "warning"


def test_made_tasks_need_no_manifest() -> None:
    plan(Profile(name="x"), Survey()).require_fit()


def checks(**resolved: list[bool]) -> list[Check]:
    return [
        Check(name=name, resolved=one, reason="Resolved" if one else "TestsFailed")
        for name, all_of_them in resolved.items()
        for one in all_of_them
    ]


def test_what_is_accepted() -> None:
    assert why_not(checks(gold=[True, True], noop=[False])) == ""
    assert why_not(checks(gold=[False])) == "gold: TestsFailed"
    assert why_not(checks(gold=[True, False])) == "flaky: gold is TestsFailed once in 2"
    assert why_not(checks(gold=[True], noop=[True], exit=[False], hook=[True])) == "resolved by: noop, hook"


def test_tampers_are_patches_of_the_files_that_a_task_has() -> None:
    one = task()
    assert files_to_read(one) == ("tests/test_a.py", "conftest.py", "pkg/a.py")
    patches = tampered(one, {"tests/test_a.py": "def test_x(): assert 0\n", "conftest.py": None, "pkg/a.py": "x = 2"})
    assert tuple(patches) == TAMPERS
    assert all(patch.startswith("diff --git a/") for patch in patches.values())
    assert "new file mode" in patches["conftest hook"]
    other = tampered(task(patch=diff_of("a.c", "x\n", "y\n")), {"tests/test_a.py": None, "conftest.py": "x\n"})
    assert tuple(other) == ("conftest hook",)
