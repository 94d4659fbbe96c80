"""Real verl on the CPU: groups that lost episodes, a run that loses all, a killed run and its resumption.

Only the episodes are not ours: `losing_loop` stands where the agent loop would, so no sandbox is needed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_stack.launch.processes import survivors
from skyrl_stack.node import LAUNCH_VARIABLE
from skyrl_stack.profile import ModelSection, Profile, TrainerSection
from skyrl_stack.records import Endpoint, Launch, publish
from skyrl_stack.report import read_metrics
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer.checkpoints import steps_done
from toys import toy_task

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]

ANY = -1
STARTED_S, ENDED_S = 300.0, 20.0
TASKS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skyrl_stack.trainer.tiny import network

    path = tmp_path_factory.mktemp("model")
    tokenizer = network.train_tokenizer(["task 1 of a few tasks"])
    tokenizer.save_pretrained(path)
    network.new_network(tokenizer, context_tokens=256, seed=0).save_pretrained(path)
    return path


def make_run(root: Path, model: Path, *, lose: list[list[int]], hold_step: int = 0, **trainer: Any) -> RunDirectory:
    loop_file = root / "loop.yaml"
    verl = {
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(loop_file),
        "trainer.rollout_data_dir": str(root / "samples"),
        **trainer.pop("verl", {}),
    }
    profile = Profile(
        name="verl",
        model=ModelSection(path=str(model), context_tokens=256),
        trainer=TrainerSection(tasks_per_step=2, rollouts_per_task=4, verl=verl, **trainer),
    )
    directory = RunDirectory.create(root, profile)
    loop = {
        "name": "skyrl_episode",
        "_target_": "losing_loop.LosingLoop",
        "run_directory": str(directory.path),
        "lose": lose,
        "hold_step": hold_step,
        "hold_until": str(root / "go"),
    }
    loop_file.write_text(json.dumps([loop]))
    names = {f"task-{index}": f"task {index}" for index in range(TASKS)}  # instance id, problem and image
    tasks = (toy_task(instance_id=each, problem_statement=name, image=name) for each, name in names.items())
    directory.tasks_file.write_text("".join(f"{task.model_dump_json()}\n" for task in tasks))
    return directory


def start(directory: RunDirectory, *arguments: str) -> subprocess.Popen[bytes]:
    """A launch of the trainer, as the launcher would; as far as it can see, the runtime is up."""
    launch = Launch()
    publish(directory.launch_file, launch)
    endpoint = Endpoint(launch_id=launch.launch_id, url="http://127.0.0.1:9", token="unused")
    publish(directory.endpoint_file("runtime"), endpoint, mode=0o600)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), LAUNCH_VARIABLE: launch.launch_id}
    with directory.log("trainer").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "skyrl_stack.trainer", "--run-dir", str(directory.path), *arguments],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def await_(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.2)


def log_of(directory: RunDirectory) -> str:
    return directory.log("trainer").read_text(errors="replace")


def assert_nothing_left(directory: RunDirectory) -> None:
    launch_id = directory.launch().launch_id
    await_(lambda: not survivors(launch_id), ENDED_S, "the end of every process of the launch")


def private_directories(directory: RunDirectory) -> list[Path]:
    return list(Path("/tmp").glob(f"skyrl-{directory.launch().launch_id}-*"))


def tasks_of(directory: RunDirectory, step: int) -> Counter[str]:
    """How many samples of each task verl trained on in `step`, verl's own padding apart."""
    file = directory.path.parent / "samples" / f"{step}.jsonl"
    return Counter(json.loads(line)["input"] for line in file.read_text().splitlines() if "task" in line)


def test_lost_episodes_are_no_samples_and_a_killed_run_goes_on_in_order(tmp_path: Path, model: Path) -> None:
    # Of whatever task comes, session 3 is lost in step 1; of task 0 all sessions are lost, always.
    lose = [[1, ANY, 3], [ANY, 0, ANY]]
    directory = make_run(tmp_path, model, lose=lose, hold_step=3, steps=3)
    killed = start(directory)
    announced: set[str] = set()

    def two_steps() -> bool:
        announced.update(directory.upcoming())
        return killed.poll() is not None or 2 in read_metrics(directory)

    # A step is told after it is saved; the third does not begin.
    await_(two_steps, 600, "two steps")
    assert steps_done(directory.checkpoints) == 2
    assert killed.poll() is None, log_of(directory)[-3000:]
    killed.kill()
    killed.wait()
    assert_nothing_left(directory)
    assert not private_directories(directory)

    (tmp_path / "go").touch()
    resumed = start(directory, "--resume")
    assert resumed.wait(600) == 0, log_of(directory)[-3000:]
    assert_nothing_left(directory)
    assert not private_directories(directory)

    seen = read_metrics(directory)
    assert sorted(seen) == [1, 2, 3]
    for values in seen.values():
        assert values["actor/grad_norm"] > 0
        assert values["training/rollout_probs_diff_max"] < 1e-4
    trained = [tasks_of(directory, step) for step in (1, 2, 3)]
    assert list(trained[0].values()) == [3, 3]  # without the lost session, and nothing in its place
    assert list(trained[1].values()) == [4, 4]
    assert all("task 0" not in tasks for tasks in trained)
    assert {*trained[0], *trained[1]} <= announced
    first_epoch = {f"task {index}" for index in range(1, TASKS)}
    assert first_epoch - set(trained[0]) - set(trained[1]) <= set(trained[2])  # what was left of it came next
    assert len(list((directory.verl / "wandb").glob("offline-run-*"))) == 2
    assert len({file.name.rpartition("-")[2] for file in (directory.verl / "wandb").glob("offline-run-*")}) == 1


def test_episodes_go_on_over_an_update_where_the_profile_lets_them(tmp_path: Path, model: Path) -> None:
    lose = [[1, ANY, 3], [ANY, 0, ANY]]
    # As on a GPU: rows that hold several sequences.
    rows = {
        "actor_rollout_ref.model.use_remove_padding": True,
        "+actor_rollout_ref.model.override_config.attn_implementation": "packed",
    }
    directory = make_run(tmp_path, model, lose=lose, steps=3, save_every=2, mode="colocate_async", verl=rows)
    assert start(directory).wait(600) == 0, log_of(directory)[-3000:]
    assert_nothing_left(directory)

    seen = read_metrics(directory)
    assert sorted(seen) == [1, 2, 3]
    assert all(values["actor/grad_norm"] > 0 for values in seen.values())
    # A step's worth of groups is always ahead, and was sampled before the update.
    assert seen[1]["training/off_policy/trajectory_staleness/max"] == 0
    assert seen[2]["training/off_policy/trajectory_staleness/max"] == 1
    trained = [tasks_of(directory, step) for step in (1, 2, 3)]
    assert list(trained[0].values()) == [3, 3]
    assert all("task 0" not in tasks for tasks in trained)
    assert (directory.checkpoints / "global_step_2" / "transfer_queue").exists()  # a resumed run goes on with them


def test_a_run_that_only_loses_stops_with_the_cause(tmp_path: Path, model: Path) -> None:
    directory = make_run(tmp_path, model, lose=[[ANY, ANY, ANY]], steps=1, max_consecutive_failures=12)
    assert start(directory).wait(600) == 1
    failure = directory.failure()
    assert failure is not None
    assert "16 episodes in a row failed; the last: SandboxLost: sandbox of (1, " in failure.cause
    assert log_of(directory).rstrip().splitlines()[-1].startswith("trainer: 16 episodes in a row failed")
    assert not read_metrics(directory)
    assert_nothing_left(directory)


def test_sigterm_ends_everything_in_bounded_time(tmp_path: Path, model: Path) -> None:
    directory = make_run(tmp_path, model, lose=[], hold_step=1, steps=1)
    trainer = start(directory)
    await_(lambda: "ready to fit" in log_of(directory) or trainer.poll() is not None, STARTED_S, "verl's start")
    trainer.send_signal(signal.SIGTERM)
    assert trainer.wait(ENDED_S) == 128 + signal.SIGTERM
    assert_nothing_left(directory)
    assert not private_directories(directory)
    assert directory.failure() is None
    heartbeat = directory.heartbeat("trainer")
    assert heartbeat is not None
    assert heartbeat.state == "ended"


def test_a_finished_run_says_so(tmp_path: Path, model: Path) -> None:
    directory = make_run(tmp_path, model, lose=[], steps=2)
    (directory.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    assert start(directory, "--resume").wait(60) == 0
    assert log_of(directory).splitlines() == ["trainer: all 2 steps are done; raise trainer.steps to train on"]


def test_a_misspelt_option_of_verl_is_one_line(tmp_path: Path, model: Path) -> None:
    directory = make_run(tmp_path, model, lose=[], verl={"trainer.sav_freq": 1})
    assert start(directory).wait(120) == 1
    last = log_of(directory).rstrip().splitlines()[-1]
    assert last == "trainer: trainer.verl: verl has no option trainer.sav_freq; write +trainer.sav_freq to add one"
    assert not private_directories(directory)
