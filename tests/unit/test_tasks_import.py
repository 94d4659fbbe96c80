"""Rows with the true columns of each data set become tasks, and what cannot be graded is dropped with its reason."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from skyrl_stack.tasks.diff import diff_of, reverse_diff
from skyrl_stack.tasks.evaluation import specification
from skyrl_stack.tasks.imports import import_tasks
from skyrl_stack.tasks.parts import split_tasks
from skyrl_stack.tasks.recipe import files_of
from skyrl_stack.tasks.source import read_hub
from skyrl_stack.tasks.task import Task, TaskError, read_tasks

SOUND, BUGGY = "def f():\n    return 1\n", "def f():\n    return 2\n"
FIX, BUG = diff_of("pkg/a.py", BUGGY, SOUND), diff_of("pkg/a.py", SOUND, BUGGY)
TESTS = diff_of("tests/test_a.py", "import a\n", "import a\nx = 1\n") + diff_of("tests/test_b.py", None, "y = 1\n")
BENCH = {
    "repo": "pallets/flask",
    "instance_id": "pallets__flask-5014",
    "base_commit": "7ee9ceb71e868944a46e1ff00b506772a53a4f1d",
    "patch": FIX,
    "test_patch": TESTS,
    "problem_statement": "Require a non-empty name for Blueprints",
    "hints_text": "",
    "created_at": "2023-03-04T18:36:21Z",
    "version": "2.3",
    "FAIL_TO_PASS": '["tests/test_a.py::test_one"]',
    "PASS_TO_PASS": '["tests/test_a.py::test_two", "tests/test_a.py::test_p[a b]"]',
    "environment_setup_commit": "182ce3dd15dfa3537391c3efaf9c3ff407d134d4",
}
LISTS = {"FAIL_TO_PASS": ["tests/test_a.py::test_one"], "PASS_TO_PASS": ["tests/test_a.py::test_two"]}
GYM = {key: value for key, value in BENCH.items() if key != "environment_setup_commit"} | LISTS
EXTRA = BENCH | LISTS | {"meta": {"failed_lite_validators": ["x"], "has_test_patch": True, "is_lite": False}}
REBENCH = EXTRA | {
    "repo": "someone/something",
    "instance_id": "someone__something-1",
    "docker_image": "swerebench/sweb.eval.x86_64.someone_1776_something-1",
    "install_config": {"test_cmd": "pytest -rA --color=no", "log_parser": "parse_log_pytest_v2", "pre_install": None},
}
SMITH = {
    "instance_id": "oauthlib__oauthlib.1fd52536.combine_file__09vlzwgc",
    "patch": BUG,
    "image_name": "jyangballin/swesmith.x86_64.oauthlib_1776_oauthlib.1fd52536",
    "repo": "swesmith/oauthlib__oauthlib.1fd52536",
    "problem_statement": "f gives 2",
} | LISTS
R2E = {
    "repo_name": "aiohttp",
    "docker_image": "namanjain12/aiohttp_final:f0d74880deec8fcd982bce639c93c5e130d41654",
    "commit_hash": "f0d74880deec8fcd982bce639c93c5e130d41654",
    "parsed_commit_content": json.dumps(
        {
            "file_diffs": [
                {"header": {"file": {"path": path}}, "old_file_content": old, "new_file_content": new}
                for path, old, new in (("pkg/a.py", BUGGY, SOUND), ("tests/test_a.py", "", "x = 1\n"))
            ]
        }
    ),
    "execution_result_content": "x" * 1000,
    "prompt": "…",
    "problem_statement": "[ISSUE]\nf gives 2\n[/ISSUE]",
    "expected_output_json": json.dumps({"test_one": "PASSED", "TestB.test_two": "FAILED"}),
    "modified_files": ["pkg/a.py"],
    "num_non_test_files": 1,
}
ROWS = {
    "SWE-bench": BENCH,
    "SWE-Gym": GYM,
    "SWE-bench-extra": EXTRA,
    "SWE-rebench": REBENCH,
    "SWE-smith": SMITH,
    "R2E-Gym": R2E,
}


def imported(tmp_path: Path, *rows: dict[str, Any], kind: str = "parquet") -> list[Task]:
    source = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), source)
    else:
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    import_tasks(str(source), tmp_path / "tasks.jsonl")
    return list(read_tasks(tmp_path / "tasks.jsonl"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", ROWS)
def test_each_data_set_becomes_tasks_that_swebench_takes(tmp_path: Path, name: str, kind: str) -> None:
    (task,) = imported(tmp_path, ROWS[name], kind=kind)
    assert (task.model_extra or {})["data_set"] == name
    assert task.patch == FIX
    assert task.has_history
    script = specification(task.model_dump(mode="json")).eval_script
    assert "SWEBENCH_TEST_EXIT_CODE=$?" in script
    assert subprocess.run(["bash", "-n"], input=script.encode()).returncode == 0


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("SWE-bench", "docker.io/swebench/sweb.eval.x86_64.pallets_1776_flask-5014:latest"),
        ("SWE-Gym", "docker.io/xingyaoww/sweb.eval.x86_64.pallets_s_flask-5014:latest"),
        ("SWE-rebench", "docker.io/swerebench/sweb.eval.x86_64.someone_1776_something-1"),
        ("SWE-smith", "docker.io/jyangballin/swesmith.x86_64.oauthlib_1776_oauthlib.1fd52536"),
        ("R2E-Gym", "docker.io/namanjain12/aiohttp_final:f0d74880deec8fcd982bce639c93c5e130d41654"),
    ],
)
def test_images_are_named_as_each_data_set_names_them(tmp_path: Path, name: str, image: str) -> None:
    assert imported(tmp_path, ROWS[name])[0].image == image


def test_the_image_of_an_older_row_of_swe_smith_is_named_as_the_registry_does(tmp_path: Path) -> None:
    older = SMITH | {"image_name": "swesmith.x86_64.oauthlib__oauthlib.1fd52536"}
    assert imported(tmp_path, older)[0].image == imported(tmp_path, SMITH)[0].image


def test_a_recipe_of_the_row_is_kept(tmp_path: Path) -> None:
    recipe = {"image": "ghcr.io/a/b:1", "eval_script": "#!/bin/bash\ntrue", "log_parser": "parse_log_flask"}
    (task,) = imported(tmp_path, BENCH | recipe | {"eval_type": "fail_only"})
    assert (task.image, task.eval_script, task.log_parser) == tuple(recipe.values())
    assert task.eval_type == "fail_only"


def test_what_a_row_says_of_its_tests_is_run(tmp_path: Path) -> None:
    (task,) = imported(tmp_path, REBENCH)
    assert "\npytest -rA --color=no tests/test_a.py tests/test_b.py test_must_fail.py\n" in task.eval_script
    assert task.log_parser == "parse_log_pytest_v2"


def test_django_and_mypy_name_their_tests_in_their_own_way(tmp_path: Path) -> None:
    patch = diff_of("tests/forms/test_x.py", "a\n", "b\n") + diff_of("tests/data.json", "a\n", "b\n")
    (task,) = imported(tmp_path, BENCH | {"repo": "django/django", "test_patch": patch})
    assert "--parallel 1 forms.test_x\n" in task.eval_script
    cases = diff_of("test-data/unit/check.test", "[case old]\n", "[case old]\n[case new]\n")
    (task,) = imported(tmp_path, GYM | {"repo": "python/mypy", "test_patch": cases})
    assert "pytest -n0 -rA -k 'old or new'\n" in task.eval_script


def test_where_pytest_runs_the_tests_one_more_must_fail(tmp_path: Path) -> None:
    (task,) = imported(tmp_path, BENCH | {"eval_script": ": '>>>>> Start Test Output'\npytest -rA a.py\n: 'x'\n"})
    assert task.eval_script.splitlines()[2] == "pytest -rA a.py test_must_fail.py"
    assert task.canary == "test_must_fail.py::test_must_fail"
    (django,) = imported(tmp_path, BENCH | {"repo": "django/django"})
    assert django.canary == ""


def test_the_bug_of_swe_smith_is_set_up_and_its_fix_is_the_way_back(tmp_path: Path) -> None:
    (task,) = imported(tmp_path, SMITH)
    assert BUG.rstrip() in task.setup
    assert task.patch == FIX


def test_r2e_hides_its_tests_and_keeps_their_statuses(tmp_path: Path) -> None:
    (task,) = imported(tmp_path, R2E)
    assert task.instance_id == "aiohttp__f0d74880deec"
    assert task.expected_output == {"test_one": "PASSED", "TestB.test_two": "FAILED"}
    assert "/r2e_tests" in task.hidden
    assert task.problem_statement == "f gives 2"


def test_lists_are_read_however_they_are_written(tmp_path: Path) -> None:
    (task,) = imported(tmp_path, GYM | {"FAIL_TO_PASS": "['a::b']", "PASS_TO_PASS": '["c::d"]'})
    assert (task.FAIL_TO_PASS, task.PASS_TO_PASS) == (("a::b",), ("c::d",))


def test_ids_that_no_reader_finds_are_taken_out(tmp_path: Path) -> None:
    assert imported(tmp_path, BENCH)[0].PASS_TO_PASS == ("tests/test_a.py::test_two",)
    django = BENCH | {"repo": "django/django", "FAIL_TO_PASS": '["test_x (forms.T)"]'}
    assert imported(tmp_path, django)[0].FAIL_TO_PASS == ("test_x (forms.T)",)


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        BENCH | {"instance_id": "no-fix", "patch": ""},
        BENCH | {"instance_id": "blank", "FAIL_TO_PASS": '["tests/a.py::t[a b]"]'},
        BENCH | {"instance_id": "pallets__flask-5014"},
        BENCH | {"instance_id": "a b"},
        BENCH | {"instance_id": "commit", "base_commit": "main"},
        BENCH | {"instance_id": "parser", "log_parser": "parse_log_none"},
        BENCH | {"instance_id": "list", "FAIL_TO_PASS": "[1"},
        {"question": "?"},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in [BENCH, *wrong]) + "{\n3\n")
    tally = import_tasks(str(source), tmp_path / "tasks.jsonl")
    assert tally.kept == 1
    reasons = tally.dropped
    assert reasons["patch: no fix in it"] == ["no-fix"]
    assert reasons["no test that the fix makes pass (FAIL_TO_PASS)"] == ["blank"]
    assert reasons["its instance_id came before"] == ["pallets__flask-5014"]
    assert reasons["base_commit: no commit's hash"] == ["commit"]
    assert reasons["log_parser: swebench has no parse_log_none"] == ["parser"]
    assert sum(map(len, reasons.values())) == 10
    assert next(tally.lines()) == "11 rows read, 1 tasks written"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("absent.parquet", "no such file"),
        ("here", r"no train\*"),
        ("notes.txt", "neither"),
        ("torn.parquet", "parquet"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(TaskError, match=said):
        import_tasks(str(tmp_path / source), tmp_path / "tasks.jsonl")
    assert not (tmp_path / "tasks.jsonl").exists()


def test_a_file_that_breaks_off_in_the_middle_is_one_line_and_no_target(tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    rows = [BENCH | {"instance_id": str(number), "hints_text": random.randbytes(500).hex()} for number in range(400)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source, row_group_size=40)
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 30_000] = b"\xff" * 30_000
    source.write_bytes(data)
    with pytest.raises(TaskError, match=r"rows.parquet: damaged after row \d+: [^\n]*$"):
        import_tasks(str(source), tmp_path / "tasks.jsonl")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("name", ROWS)
def test_a_column_of_another_kind_drops_its_row_and_no_other(tmp_path: Path, name: str) -> None:
    """Each column of each data set in turn, and half a character, which JSON can hold and UTF-8 cannot."""
    row = ROWS[name]
    odd = [row | {column: value} for column in row for value in (None, 1.5, {"a": None}, [None], "[1", "\ud800")]
    source, target = tmp_path / "rows.jsonl", tmp_path / "tasks.jsonl"
    lines = [json.dumps(each).encode() for each in (*odd, row | {"instance_id": "last", "commit_hash": "1" * 40})]
    source.write_bytes(b"\n\n".join([b"caf\xe9", b"[1", *lines]))
    tally = import_tasks(str(source), target, dropped=tmp_path / "dropped.txt")
    assert list(read_tasks(target))[-1].instance_id in ("last", "aiohttp__111111111111")
    report = (tmp_path / "dropped.txt").read_text().splitlines()
    assert f"{source}:1\tnot UTF-8" in report
    assert f"{source}:3\tnot JSON: Expecting ',' delimiter" in report
    assert len(report) + tally.kept == len(odd) + 3
    assert all(line.replace("\t", " ").isprintable() for line in report)


def test_nothing_to_keep_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    imported(tmp_path, BENCH)
    with pytest.raises(TaskError, match="no task in it; dropped 1: patch: no fix"):
        imported(tmp_path, BENCH | {"patch": ""})
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["rows.parquet", "tasks.jsonl"]
    assert len(list(read_tasks(tmp_path / "tasks.jsonl"))) == 1


def test_a_directory_is_read_part_by_part(tmp_path: Path) -> None:
    for part, name in (("train-0", "a"), ("train-1", "b"), ("test-0", "c")):
        row = BENCH | {"instance_id": name}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"{part}.parquet")
    import_tasks(str(tmp_path), tmp_path / "tasks.jsonl")
    assert [task.instance_id for task in read_tasks(tmp_path / "tasks.jsonl")] == ["a", "b"]


def test_a_data_set_as_the_hub_has_it_is_streamed(tmp_path: Path) -> None:
    """No Hub is in reach: the same package reads a copy of a data set from a directory."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([R2E, R2E | {"commit_hash": "f" * 40}]), file)
    rows = [row for _, row in read_hub(str(tmp_path), "train")]
    assert [row["commit_hash"] for row in rows] == [R2E["commit_hash"], "f" * 40]
    assert "execution_result_content" not in rows[0]
    with pytest.raises(TaskError, match="does not give split test"):
        list(read_hub(str(tmp_path), "test"))


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """240 MB of columns that are read, and as many of those that are not, all in one row group."""
    source = tmp_path / "rows.parquet"
    parts = [pyarrow.Table.from_pylist([large_row(30 * part + number) for number in range(30)]) for part in range(20)]
    pyarrow.parquet.write_table(pyarrow.concat_tables(parts), source)
    code = (
        "import re; from skyrl_stack.tasks import imports; imports._parsers(); import pyarrow.parquet\n"
        "status = imports.Path('/proc/self/status')\n"  # what getrusage tells begins with the peak of the parent
        "peak = lambda: int(re.search('VmHWM:\\\\s+(.*) kB', status.read_text())[1]) // 1024\n"
        f"before = peak(); imports.import_tasks({str(source)!r}, imports.Path({str(tmp_path / 'tasks.jsonl')!r}))\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 180


def large_row(number: int) -> dict[str, Any]:
    lines = [random.randbytes(500).hex() for _ in range(200)]
    old, new = "\n".join([*lines, "x = 1"]), "\n".join([*lines, "x = 2"])
    diff = {"header": {"file": {"path": "pkg/a.py"}}, "old_file_content": old, "new_file_content": new}
    return R2E | {
        "commit_hash": f"{number:012x}",
        "parsed_commit_content": json.dumps({"file_diffs": [diff]}),
        "execution_result_content": "x" * 400_000,
    }


def test_a_reversed_diff_is_the_way_back() -> None:
    old, new = "a\nb\nc\nd\ne\n", "a\nB\nB\nd\ne"
    assert reverse_diff(diff_of("x", old, new)) == diff_of("x", new, old)
    assert reverse_diff(diff_of("x", None, new)) == diff_of("x", new, None)
    assert reverse_diff(diff_of("x", "-- a\n", "++ a\n")) == diff_of("x", "++ a\n", "-- a\n")
    two = diff_of("x", old, new) + diff_of("y", new, None)
    assert reverse_diff(reverse_diff(two)) == two


def test_files_of_a_patch() -> None:
    assert files_of(TESTS) == (["tests/test_a.py"], ["tests/test_b.py"])


def test_parts_are_stable_disjoint_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    (one,) = imported(tmp_path, BENCH)
    tasks = [one.model_copy(update={"instance_id": f"t-{n}", "repo": f"r/{n % 7}"}) for n in range(70)]

    def parts(order: list[Task], by: str) -> tuple[set[str], set[str], set[str]]:
        file.write_text("".join(f"{task.model_dump_json()}\n" for task in order))
        train, held = (list(read_tasks(path)) for path in split_tasks(file, holdout=0.3, by=by, seed=1))
        shared = {task.repo for task in train} & {task.repo for task in held}
        return {task.instance_id for task in train}, {task.instance_id for task in held}, shared

    train, held, shared = parts(tasks, "task")
    assert shared
    assert train | held == {task.instance_id for task in tasks}
    assert not train & held
    assert parts(tasks[::-1], "task")[:2] == (train, held)
    assert parts(tasks, "repo")[2] == set()
    with pytest.raises(TaskError, match="would be empty"):
        split_tasks(file, holdout=0.0001, by="task", seed=1)
