"""Real verl on the CPU: what becomes of groups that lost episodes, of a run that loses all, and of a resumed run."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skyrl_stack.profile import ModelSection, Profile, TrainerSection
from skyrl_stack.run_directory import Endpoint, Launch, RunDirectory, publish
from skyrl_stack.tasks.task import Task

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

EVERY = -1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skyrl_stack.trainer.tiny import network

    path = tmp_path_factory.mktemp("model")
    tokenizer = network.train_tokenizer(["task 1 of a few tasks"])
    tokenizer.save_pretrained(path)
    network.new_network(tokenizer, context_tokens=256, seed=0).save_pretrained(path)
    return path


def make_run(root: Path, model: Path, *, lose: list[list[int]], **trainer: Any) -> RunDirectory:
    """A run whose episodes are those of `losing_loop`; the runtime is up as far as the trainer can see."""
    loop = [{"name": "skyrl_episode", "_target_": "losing_loop.LosingLoop", "lose": lose}]
    loop_file = root / "loop.yaml"
    loop_file.write_text(json.dumps(loop))
    verl = {
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(loop_file),
        "trainer.rollout_data_dir": str(root / "samples"),
    }
    profile = Profile(
        name="groups",
        model=ModelSection(path=str(model), context_tokens=256),
        trainer=TrainerSection(tasks_per_step=2, rollouts_per_task=4, verl=verl, **trainer),
    )
    directory = RunDirectory.create(root, profile)
    directory.tasks_file.write_text("".join(f"{task(index).model_dump_json()}\n" for index in range(6)))
    start_launch(directory)
    return directory


def start_launch(directory: RunDirectory) -> None:
    launch = Launch()
    publish(directory.launch_file, launch)
    endpoint = Endpoint(launch_id=launch.launch_id, url="http://127.0.0.1:9", token="unused")
    publish(directory.endpoint_file("runtime"), endpoint, mode=0o600)


def task(index: int) -> Task:
    return Task(
        instance_id=f"task-{index}",
        repo="a/b",
        version="1",
        base_commit="0" * 40,
        image="none",
        problem_statement=f"task {index}",
        patch="",
        FAIL_TO_PASS=("t",),
        PASS_TO_PASS=(),
        eval_script="",
        log_parser="parse_log_pytest_v2",
    )


def train(directory: RunDirectory, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-m", "skyrl_stack.trainer", "--run-dir", str(directory.path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
    )


def metrics(directory: RunDirectory) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    return {line["step"]: line["data"] for line in lines}


def samples(directory: RunDirectory, step: int) -> list[dict[str, Any]]:
    file = directory.path.parent / "samples" / f"{step}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def order_of(directory: RunDirectory, step: int) -> set[str]:
    return {sample["input"] for sample in samples(directory, step)}


def test_lost_episodes_are_no_samples_and_a_resumed_run_keeps_the_order(tmp_path: Path, model: Path) -> None:
    # Of whatever task comes, session 3 is lost in step 1; of task 0 all sessions are lost, always.
    lose = [[1, EVERY, 3], [EVERY, 0, EVERY]]
    directory = make_run(tmp_path, model, lose=lose, steps=3)

    first = train(directory)

    assert first.returncode == 0, first.stderr[-3000:]
    seen = metrics(directory)
    assert list(seen) == [1, 2, 3]
    assert sorted(Counter(sample["input"] for sample in samples(directory, 1)).values()) == [3, 3]
    assert all("task 0" not in sample["input"] for step in seen for sample in samples(directory, step))
    assert sum(step.get("training/rollout_failure/evicted_samples", 0) for step in seen.values()) >= 1
    for step in seen.values():
        assert step["actor/grad_norm"] > 0
        assert step["training/rollout_probs_diff_max"] < 1e-3
