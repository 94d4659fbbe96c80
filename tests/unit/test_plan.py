"""Plan: what does not fit is found before anything is submitted, with the nearest value that does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyrl_stack.errors import ProfileError
from skyrl_stack.launch.plan.plan import plan
from skyrl_stack.launch.plan.survey import Survey, survey
from skyrl_stack.launch.slurm.client import Partition
from skyrl_stack.launch.slurm.jobs import Job
from skyrl_stack.launch.slurm.limits import Limit
from skyrl_stack.profile import Profile, load_profile

PROFILES = Path(__file__).parents[2] / "profiles"
HOURS = 3600.0
FASRC = Survey(
    partitions=[
        Partition("test", 12 * HOURS, 112, 1_000_000, {}, nodes=12),
        Partition("gpu_test", 12 * HOURS, 64, 487_000, {"nvidia_a100_1g.5gb": 16}, nodes=12),
        Partition("gpu_test", 12 * HOURS, 64, 487_000, {"nvidia_a100_3g.20gb": 8}, nodes=12),
    ],
    free_bytes=10**12,
    parameters=5 * 10**8,
)


def dev(*overrides: str) -> Profile:
    return load_profile(PROFILES / "dev.toml", overrides)


def texts(profile: Profile, site: Survey = FASRC, level: str = "error") -> list[str]:
    return [finding.text for finding in plan(profile, site).findings if finding.level == level]


def test_the_shipped_profile_fits_its_site() -> None:
    assert plan(dev(), FASRC).findings == []
    plan(dev(), FASRC).require_fit()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["launcher.runtime.time_limit=5:00:00"], "ends before the trainer's 6:00:00 does: at least 6:00:00 works"),
        (["launcher.trainer.gpus=0"], "launcher.trainer.gpus = 0: trainer.device = 'cuda' trains on GPUs, so 1 works"),
        (["launcher.trainer.gpus=4"], "NCCL does not connect slices of one GPU, so 1 works"),
        (["launcher.trainer.nodes=3"], "trainer.tasks_per_step = 3 works"),
        (["runtime.memory_mb=8192"], "launcher.runtime.memory_gb = 32: 64 works"),
        (["runtime.max_sandboxes=40"], "memory_gb = 32: 40 works, or max_sandboxes = 32"),
        (["launcher.trainer.partition=gpu-test"], "no such partition here; did you mean gpu_test?"),
        (["launcher.trainer.partition=zzz"], "no such partition here; there are: gpu_test, test"),
        (["launcher.runtime.time_limit=3-00:00:00"], "is over what test allows: 12:00:00 works"),
        (["launcher.trainer.cpus=65"], "launcher.trainer.cpus = 65: a node of gpu_test has 64 at most"),
        (["launcher.runtime.memory_gb=1000"], "launcher.runtime.memory_gb = 1000: a node of test has 976 at most"),
        (["launcher.trainer.gpu_type=h100"], "a node of gpu_test has 0 of type h100 at most"),
        (["trainer.save_every=1", "trainer.steps=300"], "300 checkpoints of 6.0 GB do not fit the 1.0 TB"),
    ],
)
def test_what_can_never_work_is_an_error_with_what_does(overrides: list[str], said: str) -> None:
    found = texts(dev(*overrides))
    assert len(found) == 1 and said in found[0]
    with pytest.raises(ProfileError, match=r"launcher|checkpoints|trainer"):
        plan(dev(*overrides), FASRC).require_fit()


def test_the_remedy_for_a_full_disk_fits() -> None:
    crowded = ["trainer.save_every=1", "trainer.steps=300"]
    assert texts(dev(*crowded))[0].endswith("trainer.save_every = 2 fits")
    assert texts(dev(*crowded, "trainer.save_every=2")) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.concurrent_episodes=32", "runtime.max_sandboxes=32"], "a step has 16 episodes"),
        (["runtime.max_sandboxes=16"], "8 episodes at once"),
        (["trainer.device=cpu"], "leaves them idle"),
    ],
)
def test_what_is_a_waste_is_a_warning(overrides: list[str], said: str) -> None:
    assert texts(dev(*overrides)) == []
    assert said in texts(dev(*overrides), level="warning")[0]


def test_what_is_not_known_is_said_and_refuses_nothing() -> None:
    notes = texts(dev("launcher.trainer.partition=zzz"), Survey(), level="note")
    assert ["not checked" in note for note in notes] == [True, True]
    assert texts(dev("launcher.trainer.partition=zzz"), Survey()) == []


def test_an_unlimited_partition_takes_any_time() -> None:
    unlimited = Survey(partitions=[Partition("test", None, 112, 10**6, {}), FASRC.partitions[1]])  # type: ignore[index]
    assert texts(dev("launcher.runtime.time_limit=30-00:00:00"), unlimited) == []


def test_an_array_is_no_longer_than_the_site_allows() -> None:
    site = replace(FASRC, array_size=8)
    nodes = ["trainer.concurrent_episodes=8", "runtime.max_sandboxes=1"]
    assert texts(dev("launcher.runtime.nodes=8", *nodes), site) == []
    [said] = texts(dev("launcher.runtime.nodes=9", *nodes), site)
    assert said == "launcher.runtime.nodes = 9: an array has 8 tasks at most here: 8 works"


@pytest.mark.parametrize(
    ("tasks", "level", "said"),
    [
        (2, None, ""),
        (3, "error", "2 jobs, but QOS normal allows 5 submitted at once and 4 of yours are in the queue: squeue --me"),
    ],
)
def test_jobs_in_the_queue_count_against_its_limits_task_by_task(tasks: int, level: str | None, said: str) -> None:
    queued = [
        Job("7_[1-9]", "mine", "PENDING", partition="test", qos="normal", tasks=tasks),
        Job("7_0", "mine", "RUNNING", partition="test", qos="normal"),
        Job("9", "elsewhere", "PENDING", partition="test", qos="high", tasks=50),
    ]
    site = replace(FASRC, limits=[Limit("qos", "normal", submit=5)], queued=queued)
    assert texts(dev(), site) == ([said] if level else [])


def test_jobs_that_run_let_the_next_wait() -> None:
    queued = [Job("7", "mine", "RUNNING", partition="test", account="lab")]
    site = replace(FASRC, limits=[Limit("association", "lab", jobs=2, is_default=True)], queued=queued)
    assert texts(dev(), site) == []
    [said] = texts(dev(), site, level="warning")
    assert said == "account lab lets 2 jobs run at once, and 1 of yours do: this run waits"


def test_parameters_are_counted_in_the_models_own_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for number, shape in enumerate(([10, 20], [5])):
        header: dict[str, Any] = {"__metadata__": {}, "w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}}
        text = json.dumps(header).encode()
        (model / f"{number}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    profile = load_profile(PROFILES / "local.toml", [f"model.path={model}", f"run.root={tmp_path}/a/b"])
    site = survey(profile)
    assert site.parameters == 205
    assert site.free_bytes and site.partitions is None
