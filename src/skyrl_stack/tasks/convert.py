"""Convert: a row of each data set that is known, with its traps, to the one row shape that is graded."""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from skyrl_stack.tasks.diff import diff_of, reverse_diff
from skyrl_stack.tasks.recipe import eval_script, eval_script_of_files, recipe_of, with_canary
from skyrl_stack.tasks.task import EXACT, REPOSITORY, TaskError

Row = Mapping[str, Any]
Columns = dict[str, Any]
KEPT = ("hints_text", "created_at", "difficulty", "environment_setup_commit", "license_name")
"Columns that are taken over where a row has them."
TEXTS = frozenset(
    {"instance_id", "repo", "repo_name", "base_commit", "commit_hash", "image_name", "docker_image", "patch"}
    | {"test_patch", "problem_statement", "parsed_commit_content", "expected_output_json"}
)
SMITH_COMMAND = "pytest --disable-warnings --color=no --tb=no -rA -p no:cacheprovider"
SMITH_SETUP = """\
cd {repository}
git -c safe.directory='*' apply - <<'END_OF_BUG'
{bug}
END_OF_BUG
git -c safe.directory='*' -c user.name=skyrl-stack -c user.email=tasks@localhost commit --quiet --all --message=bug
"""
HIDDEN_IN_R2E = ("/r2e_tests", f"{REPOSITORY}/r2e_tests", f"{REPOSITORY}/run_tests.sh", "/root/r2e_tests")
R2E_SCRIPT = """\
#!/bin/bash
set -uxo pipefail
cd /testbed
[ -d r2e_tests ] && [ ! -L r2e_tests ] || { rm -rf r2e_tests; cp -r /r2e_tests r2e_tests; }
echo 'def test_must_fail(): assert False' > r2e_tests/test_must_fail.py
: '>>>>> Start Test Output'
bash run_tests.sh
: '>>>>> End Test Output'
rm -f r2e_tests/test_must_fail.py
"""
R2E_CANARY = "test_must_fail"


def data_set_of(row: Row) -> str:
    """The name of the data set whose columns `row` has.

    Raises:
        TaskError: none that is known.
    """
    has = row.keys()
    if {"canary", "expected_output"} <= has:
        raise TaskError("already a task of ours: use the file as it is")
    for name, columns in _COLUMNS.items():
        if columns <= has:
            return name
    raise TaskError(f"columns of no data set that is known: {', '.join(sorted(has)[:12])}")


def convert(row: Row) -> Columns:
    """The columns of a task.

    Raises:
        TaskError: the row lacks what a task is made of; says what.
    """
    name = data_set_of(row)
    for column in TEXTS & row.keys():
        if not isinstance(row[column], str | None):
            raise TaskError(f"{column}: not text")
    columns = _CONVERTERS[name](row)
    if not columns.get("canary"):
        columns["eval_script"], columns["canary"] = with_canary(columns["eval_script"])
    return {**{key: row[key] for key in KEPT if row.get(key)}, **columns, "data_set": name}


def _swe(row: Row, image: str) -> Columns:
    """Rows of SWE-bench's shape, with or without the recipe that its newer releases carry."""
    recipe = recipe_of(row["repo"])
    test_patch = row.get("test_patch") or ""
    script = row.get("eval_script") or ""
    if not script and not test_patch:
        raise TaskError("neither eval_script nor test_patch: nothing to grade by")
    return {
        "instance_id": row["instance_id"],
        "repo": row["repo"],
        "version": str(row.get("version") or ""),
        "base_commit": row["base_commit"],
        "image": row.get("image") or image,
        "problem_statement": row["problem_statement"],
        "patch": row["patch"],
        "test_patch": test_patch,
        "FAIL_TO_PASS": _names(row, "FAIL_TO_PASS"),
        "PASS_TO_PASS": _names(row, "PASS_TO_PASS"),
        "eval_script": script or eval_script(recipe, base_commit=row["base_commit"], test_patch=test_patch),
        "log_parser": row.get("log_parser") or recipe.parser,
        "eval_type": row.get("eval_type") or "pass_and_fail",
        "has_history": True,
    }


def _swe_bench(row: Row) -> Columns:
    return _swe(row, f"docker.io/swebench/sweb.eval.x86_64.{_dashed(row, '_1776_')}:latest")


def _swe_gym(row: Row) -> Columns:
    return _swe(row, f"docker.io/xingyaoww/sweb.eval.x86_64.{_dashed(row, '_s_')}:latest")


def _swe_rebench(row: Row) -> Columns:
    """Rows that say how they were installed, and with that how their tests are run."""
    said = row.get("install_config") or {}
    said = json.loads(said) if isinstance(said, str) else said
    image = row.get("docker_image") or row.get("image_name")
    image = image or f"swerebench/sweb.eval.x86_64.{_dashed(row, '_1776_')}:latest"
    columns = _swe(row, _full(image))
    recipe = recipe_of(row["repo"])
    commands = said.get("test_cmd")
    if commands and not row.get("eval_script"):
        command = commands if isinstance(commands, str) else " ".join(commands)
        recipe = recipe.model_copy(update={"command": command, "names": "files"})
        columns["eval_script"] = eval_script(recipe, base_commit=row["base_commit"], test_patch=columns["test_patch"])
    columns["log_parser"] = row.get("log_parser") or said.get("log_parser") or recipe.parser
    return columns


def _swe_smith(row: Row) -> Columns:
    """Its `patch` is the bug, and its images hold the sound repository: the bug is put in, and the fix takes it out."""
    bug, image = row["patch"], row["image_name"]
    if "/" not in image:  # older rows leave out whose it is, and write it as Docker Hub does not take it
        image = f"jyangballin/{image.replace('__', '_1776_')}"
    tests = [*_names(row, "FAIL_TO_PASS"), *_names(row, "PASS_TO_PASS")]
    files = sorted({test.partition("::")[0] for test in tests if "::" in test})
    return {
        "instance_id": row["instance_id"],
        "repo": row["repo"],
        "version": "",
        "base_commit": "HEAD",
        "image": _full(image),
        "problem_statement": row["problem_statement"],
        "patch": reverse_diff(bug),
        "FAIL_TO_PASS": _names(row, "FAIL_TO_PASS"),
        "PASS_TO_PASS": _names(row, "PASS_TO_PASS"),
        "eval_script": eval_script_of_files(SMITH_COMMAND, files),
        "log_parser": "parse_log_pytest_v2",
        "setup": SMITH_SETUP.format(repository=REPOSITORY, bug=bug.rstrip()),
        "has_history": True,
    }


def _r2e_gym(row: Row) -> Columns:
    """Rows without id, fix and lists of tests: all are in two columns of JSON."""
    commit = row["commit_hash"]
    expected = json.loads(row["expected_output_json"])
    if not expected or not all(isinstance(status, str) for status in expected.values()):
        raise TaskError("expected_output_json: no statuses of tests")
    return {
        "instance_id": f"{row['repo_name']}__{commit[:12]}",
        "repo": row["repo_name"],
        "version": commit,
        "base_commit": "HEAD",
        "image": _full(row["docker_image"]),
        "problem_statement": re.sub(r"^\s*\[ISSUE\]\s*|\s*\[/ISSUE\]\s*$", "", row["problem_statement"] or ""),
        "patch": _fix_of_commit(json.loads(row["parsed_commit_content"])),
        "eval_script": R2E_SCRIPT,
        "log_parser": EXACT,
        "canary": R2E_CANARY,
        "expected_output": expected,
        "hidden": HIDDEN_IN_R2E,
        "has_history": True,
    }


def _fix_of_commit(commit: Mapping[str, Any]) -> str:
    """The part of a commit that is no test. Source: R2E-Gym, commit_models: ParsedCommit.get_patch."""
    diffs = []
    for entry in commit["file_diffs"]:
        path = entry["header"]["file"]["path"]
        parts = path.split("/")
        if "tests" in parts or "test" in parts or re.match(r"test_|.*_test\.py$|tests?\.py$", parts[-1]):
            continue
        diffs.append(diff_of(path, entry.get("old_file_content") or None, entry.get("new_file_content") or None))
    return "".join(diffs)


def _names(row: Row, column: str) -> list[str]:
    """Ids of tests, which data sets hold as a list, as JSON, or as Python's own writing of a list."""
    value = row.get(column) or []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = ast.literal_eval(value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TaskError(f"{column}: not a list of test ids")
    return value


def _full(image: str) -> str:
    """With the registry, which data sets leave out and Podman would ask for."""
    registry, slash, _ = image.partition("/")
    return image if slash and (registry == "localhost" or {".", ":"} & set(registry)) else f"docker.io/{image}"


def _dashed(row: Row, separator: str) -> str:
    """An id as it stands in the name of its image."""
    return row["instance_id"].replace("__", separator).lower()


_SWE_BENCH = frozenset({"instance_id", "repo", "base_commit", "patch", "problem_statement", "FAIL_TO_PASS"})
_COLUMNS: dict[str, frozenset[str]] = {
    "R2E-Gym": frozenset({"docker_image", "commit_hash", "parsed_commit_content", "expected_output_json"}),
    "SWE-rebench": _SWE_BENCH | {"install_config"},
    "SWE-bench-extra": _SWE_BENCH | {"meta", "environment_setup_commit"},
    "SWE-bench": _SWE_BENCH | {"environment_setup_commit"},
    "SWE-Gym": _SWE_BENCH,
    "SWE-smith": (_SWE_BENCH | {"image_name"}) - {"base_commit"},
}
"Columns that tell a data set; the first whose columns are all there."
_CONVERTERS: dict[str, Callable[[Row], Columns]] = {
    "R2E-Gym": _r2e_gym,
    "SWE-smith": _swe_smith,
    "SWE-rebench": _swe_rebench,
    "SWE-bench-extra": _swe_rebench,
    "SWE-bench": _swe_bench,
    "SWE-Gym": _swe_gym,
}
