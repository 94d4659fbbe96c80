"""The other nodes of the trainer's job: how they are started, and what is said of them."""

from pathlib import Path

import pytest

from skyrl_stack.errors import SetupError
from skyrl_stack.node import PYTHON_VARIABLE
from skyrl_stack.profile import Profile, load_profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer import options
from skyrl_stack.trainer.join import ray_command
from skyrl_stack.trainer.nodes import missing, own_address, srun_command

PROFILES = Path(__file__).parents[2] / "profiles"


def dev(*overrides: str) -> Profile:
    return load_profile(PROFILES / "dev.toml", overrides)


def test_one_step_holds_ray_on_all_nodes_but_the_first(tmp_path: Path) -> None:
    command = srun_command(tmp_path, others=3, cpus=8, head="10.0.0.1:6379")
    step = command[: command.index("-m")]
    assert {"--overlap", "--relative=1", "--nodes=3", "--ntasks=3", "--cpus-per-task=8"} < set(step)
    assert "--kill-on-bad-exit=1" in step
    assert command[-2:] == [f"--run-dir={tmp_path}", "--head=10.0.0.1:6379"]


def test_in_an_image_the_step_starts_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/opt/bin/apptainer exec --bind '/a b' trainer.sif python")
    command = srun_command(tmp_path, others=1, cpus=8, head="10.0.0.1:6379")
    program = command.index("/opt/bin/apptainer")
    given = ["/opt/bin/apptainer", "exec", "--bind", "/a b", "trainer.sif", "python"]
    assert command[program : command.index("-m")] == given


def test_ray_on_another_node_is_what_it_is_on_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu7")
    profile = dev("launcher.trainer.nodes=2", "launcher.trainer.gpus=4")
    directory = RunDirectory.create(tmp_path, profile)
    publish(directory.launch_file, Launch())
    told = options.verl_options(profile, directory, ray_dir=Path("/tmp/private/r"))
    command = ray_command("10.0.0.1:6379", told)
    assert {"--address=10.0.0.1:6379", "--node-name=gpu7", "--temp-dir=/tmp/private/r", "--num-gpus=4"} < set(command)
    for name in ("num_cpus", "object_store_memory"):
        assert f"--{name.replace('_', '-')}={told[options.RAY_INIT + name]}" in command
    assert {"--min-worker-port=0", "--max-worker-port=0"} < set(command)  # Ray's own are the same for every job


def test_nodes_that_are_missing_are_named() -> None:
    assert missing(["gpu2", "gpu3", "gpu4"], ["10.0.0.1", "gpu3"]) == "2 of 3 other nodes (gpu2, gpu4)"


def test_the_address_is_that_of_the_interface() -> None:
    assert own_address(dev()) is None
    assert own_address(dev("launcher.network.interface=lo")) == "127.0.0.1"
    with pytest.raises(SetupError, match=r"launcher.network.interface = 'ib7': none with an IPv4 address on .*lo"):
        own_address(dev("launcher.network.interface=ib7"))
