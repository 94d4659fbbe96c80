"""Rows for verl, checkpoints found, and episodes handed over as samples."""

from pathlib import Path

import pyarrow.parquet
import pytest

from skyrl_stack.errors import ProfileError
from skyrl_stack.tasks.task import Task
from skyrl_stack.trainer.checkpoints import repair_marker, steps_done
from skyrl_stack.trainer.dataset import write_rows
from toys import toy_task


def task(number: int) -> Task:
    return toy_task(instance_id=f"task-{number}", problem_statement=f"problem {number}", patch="the gold patch")


def test_rows_keep_the_order_and_carry_no_gold(tmp_path: Path) -> None:
    file = tmp_path / "verl" / "tasks.parquet"
    write_rows([task(number) for number in (2, 0, 1)], file, tasks_per_step=3)
    rows = pyarrow.parquet.read_table(file).to_pylist()
    assert [row["instance_id"] for row in rows] == ["task-2", "task-0", "task-1"]
    assert [row["extra_info"]["index"] for row in rows] == [0, 1, 2]
    assert b"gold" not in file.read_bytes()


def test_same_tasks_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file in files:
        write_rows([task(0), task(1)], file, tasks_per_step=1)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_step_needs_its_tasks(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"tasks_per_step = 2.*1 tasks"):
        write_rows([task(0)], tmp_path / "rows.parquet", tasks_per_step=2)


def test_only_a_complete_checkpoint_counts(tmp_path: Path) -> None:
    (tmp_path / "global_step_3").mkdir()
    assert steps_done(tmp_path) == 0
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2")
    assert steps_done(tmp_path) == 2


@pytest.mark.parametrize("cut", ["", " "])
def test_a_marker_that_a_full_disk_cut_short_is_written_again(tmp_path: Path, cut: str) -> None:
    for step in (9, 10):
        (tmp_path / f"global_step_{step}").mkdir()
        (tmp_path / f"global_step_{step}" / "data.pt").touch()
    (tmp_path / "global_step_11").mkdir()  # was being written
    marker = tmp_path / "latest_checkpointed_iteration.txt"
    marker.write_text(cut)
    assert steps_done(tmp_path) == 10
    repair_marker(tmp_path)
    assert marker.read_text() == "10"
