"""Verdict: what a log of the tests says about a task: swebench's own grader, or R2E-Gym's exact match."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from skyrl_stack.grading.exact import exact_statuses, is_contradictory
from skyrl_stack.tasks.evaluation import log_file, specification
from skyrl_stack.tasks.task import Task


class Tally(BaseModel):
    """How many of the tests of one kind are as they must be."""

    model_config = ConfigDict(frozen=True)

    passed: int = 0
    total: int = 0


class Verdict(BaseModel):
    """What the tests said."""

    model_config = ConfigDict(frozen=True)

    resolved: bool
    forged: bool
    "By the log the task is resolved, but the log is not believed."
    fail_to_pass: Tally
    pass_to_pass: Tally = Tally()


def judge(task: Task, log: str) -> Verdict | None:
    """The verdict of one log, or None where it shows no results."""
    return _by_exact_match(task, log) if task.expected_output else _by_swebench(task, log)


def _by_swebench(task: Task, log: str) -> Verdict | None:
    report = report_of(task, log)
    if "tests_status" not in report:  # swebench found no results that it trusts
        return None
    forged = report["resolved"] and is_forged(task, log)
    return Verdict(
        resolved=report["resolved"] and not forged,
        forged=forged,
        fail_to_pass=_tally(report["tests_status"]["FAIL_TO_PASS"]),
        pass_to_pass=_tally(report["tests_status"]["PASS_TO_PASS"]),
    )


def _tally(cases: dict[str, list[str]]) -> Tally:
    return Tally(passed=len(cases["success"]), total=len(cases["success"]) + len(cases["failure"]))


def _by_exact_match(task: Task, log: str) -> Verdict | None:
    statuses = exact_statuses(task, log)
    if statuses is None:
        return None
    canary = statuses.pop(task.canary, None) if task.canary else "FAILED"
    matches = statuses == task.expected_output
    forged = matches and (canary != "FAILED" or is_contradictory(log))
    as_expected = sum(statuses.get(name) == status for name, status in task.expected_output.items())
    return Verdict(
        resolved=matches and not forged,
        forged=forged,
        fail_to_pass=Tally(passed=as_expected, total=len(task.expected_output)),
    )


def report_of(task: Task, log: str) -> dict[str, Any]:
    """swebench's report of one log. Slow the first time, as `specification` says."""
    from swebench.harness.grading import get_eval_report

    prediction = {"instance_id": task.instance_id, "model_name_or_path": "policy", "model_patch": "applied"}
    spec = specification(task.model_dump(mode="json"))
    with log_file(log) as path:
        report = get_eval_report(spec, prediction, str(path), include_tests_status=True)
    return report[task.instance_id]


def is_forged(task: Task, log: str) -> bool:
    """Whether a log by which swebench resolves the task is the patch's own work.

    Tests and the code that they test share a process, so a patch can print better lines than pytest's when that
    process ends, for of two lines about a test swebench believes the last; or it can make pytest pass every test,
    the one that must fail too. Not seen: code that knows which tests to spare, or seeks out pytest's own stdout.
    """
    lines = (line.removeprefix("FAILED ") for line in log.splitlines() if line.startswith("FAILED "))
    failed = {line.split(" - ", 1)[0].strip() for line in lines}
    contradictory = not failed.isdisjoint((*task.FAIL_TO_PASS, *task.PASS_TO_PASS))
    return contradictory or bool(task.canary and task.canary not in failed)
