"""Rows: turns a bug and what its tests said into a task with the columns that swebench grades."""

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from skyrl_stack.factory.candidates import Candidate
from skyrl_stack.factory.catalogue import Project
from skyrl_stack.factory.effects import Effect
from skyrl_stack.factory.repository import MOMENT
from skyrl_stack.profile import Help
from skyrl_stack.tasks.diff import changed_lines, diff_of
from skyrl_stack.tasks.task import REPOSITORY, Task

REQUIREMENTS = "/opt/requirements"
CANARY = "test_must_fail.py"
LOG_PARSER = "parse_log_pytest_v2"
SHOWN_TESTS = 5

EVAL_SCRIPT = """\
#!/bin/bash
set -uxo pipefail
cd {repository}
git checkout {commit} -- {files}
echo 'def test_must_fail(): assert False' > {canary}
export PYTHONPATH={requirements} PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 TZ=UTC LC_ALL=C.UTF-8
: '>>>>> Start Test Output'
python3 -P -m pytest -rA --tb=no -q -p no:cacheprovider -o addopts= -o pythonpath='. src' {arguments} {canary}
: '>>>>> End Test Output'
"""
# -P and a PYTHONPATH without the repository: its files cannot stand in for pytest or for sitecustomize. It comes
# onto the path by pytest's own option, when pytest is loaded and captures what imported code prints. The last test
# must fail: where it does not, the code under test has changed how tests are judged.

STATEMENTS: dict[Help, str] = {
    "place": """\
Some tests of {name} {version} fail: {functions} in `{file}`, or something that it relies on, misbehaves.

Failing tests:
{tests}

The repository is at {repository}. Fix the library, not the tests, so that these tests pass and no other test breaks.\
""",
    "tests": """\
Some tests of {name} {version} fail:
{tests}

The repository is at {repository}. Find the cause in the library and fix it there, not in the tests. No other test may
break.""",
    "symptom": """\
{name} {version} does not always do what its documentation and its tests say. The repository is at {repository}. Find
out what is wrong, and fix the library so that its whole test suite passes.""",
}
"By what they give away."


def eval_script(project: Project, files: Sequence[str], commit: str) -> str:
    """The script that runs the project's tests, with the test files as they are in `commit`. Idempotent."""
    return EVAL_SCRIPT.format(
        repository=REPOSITORY,
        requirements=REQUIREMENTS,
        commit=commit,
        files=shlex.join(files),
        canary=CANARY,
        arguments=shlex.join([*project.options, *files]),
    )


def fix_of(candidate: Candidate) -> str:
    """The gold patch: from the buggy file to the sound one."""
    return diff_of(candidate.file, candidate.buggy, candidate.sound)


def recipe(project: Project, *, files: Sequence[str], commit: str, image: str) -> dict[str, Any]:
    """The columns that say how the tests are run: enough to run them, before there is a task."""
    return {
        "instance_id": f"pypi__{project.name}-{project.version}",
        "repo": f"pypi/{project.name}",
        "version": project.version,
        "base_commit": commit,
        "image": image,
        "eval_script": eval_script(project, files, commit),
        "log_parser": LOG_PARSER,
        "eval_type": "pass_and_fail",
        "canary": f"{CANARY}::test_must_fail",
        "FAIL_TO_PASS": (),
        "PASS_TO_PASS": (),
    }


def make_row(
    project: Project, candidate: Candidate, effect: Effect, how: Mapping[str, Any], level: Help = "place"
) -> Task:
    """The task of one bug; `how` is the recipe of its repository, `level` what its statement gives away."""
    patch = fix_of(candidate)
    columns = {
        **how,
        "instance_id": f"{how['instance_id']}.{hashlib.sha256(patch.encode()).hexdigest()[:10]}",
        "environment_setup_commit": how["base_commit"],
        "problem_statement": STATEMENTS[level].format(
            name=project.name,
            version=project.version,
            functions=" and ".join(f"`{function}`" for function in candidate.functions),
            file=candidate.file,
            tests=_listed(effect.fail_to_pass),
            repository=REPOSITORY,
        ),
        "hints_text": "",
        "created_at": MOMENT,
        "patch": patch,
        "test_patch": "",
        "FAIL_TO_PASS": effect.fail_to_pass,
        "PASS_TO_PASS": effect.pass_to_pass,
        "license": project.license,
        "strategy": candidate.strategy,
        "mutation": candidate.kind,
        "help": level,
        "measured": _measured(candidate, effect, patch),
    }
    return Task.model_validate(columns)


def _measured(candidate: Candidate, effect: Effect, patch: str) -> dict[str, float]:
    """What makes a task hard, as far as it can be measured without a model."""
    failing = len(effect.fail_to_pass)
    return {
        "changed_lines": changed_lines(patch),
        "functions": len(candidate.functions),
        "file_lines": candidate.buggy.count("\n"),
        "failing_tests": failing,
        "failing_share": round(failing / (failing + len(effect.pass_to_pass)), 4),
    }


def _listed(tests: Sequence[str]) -> str:
    lines = [f"- {test}" for test in tests[:SHOWN_TESTS]]
    if len(tests) > SHOWN_TESTS:
        lines.append(f"- and {len(tests) - SHOWN_TESTS} more")
    return "\n".join(lines)
