"""Verdict: what a log of the tests says about a task, by swebench's own grader."""

from typing import Any

from skyrl_stack.tasks.evaluation import log_file, specification
from skyrl_stack.tasks.task import Task


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
