"""What verl is told: pure functions of the profile and the run directory."""

import json
from pathlib import Path

import pytest

from skyrl_stack.profile import Profile, TrainerSection, load_profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer import options


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory.create(tmp_path, Profile(name="local"))
    publish(made.launch_file, Launch())
    return made


def test_sizes_and_paths_of_the_profile_reach_verl(directory: RunDirectory, tmp_path: Path) -> None:
    trainer = TrainerSection(steps=7, tasks_per_step=3, rollouts_per_task=5, learning_rate=0.25, save_every=2)
    told = options.verl_options(Profile(name="local", trainer=trainer), directory, ray_dir=tmp_path)
    assert told["trainer.total_training_steps"] == 7
    assert told["data.train_batch_size"] == told["actor_rollout_ref.actor.ppo_mini_batch_size"] == 3
    assert told["actor_rollout_ref.rollout.n"] == 5
    assert told["actor_rollout_ref.actor.optim.lr"] == 0.25
    assert told["trainer.save_freq"] == 2
    assert told["trainer.default_local_dir"] == str(directory.checkpoints)
    assert told["ray_kwargs.ray_init._temp_dir"] == str(tmp_path)


def test_the_cpu_plays_no_part_on_a_gpu(directory: RunDirectory, tmp_path: Path) -> None:
    profile = Profile(name="gpu", trainer=TrainerSection(device="cuda"))
    told = options.verl_options(profile, directory, ray_dir=tmp_path)
    assert told["actor_rollout_ref.rollout.name"] == "vllm"
    assert "trainer.device" not in told
    assert told["actor_rollout_ref.actor.ppo_max_token_len_per_gpu"] == 16_384
    assert "VERL_PLATFORM" not in options.environment(profile, directory, token_file=tmp_path, run_id="r", users={})


def test_the_users_table_wins_nested_or_dotted(directory: RunDirectory, tmp_path: Path) -> None:
    table = {"trainer.save_freq": 9, "actor_rollout_ref": {"actor": {"optim": {"lr": 0.5}}}}
    profile = Profile(name="local", trainer=TrainerSection(verl=table))
    told = options.verl_options(profile, directory, ray_dir=tmp_path)
    assert told["trainer.save_freq"] == 9
    assert told["actor_rollout_ref.actor.optim.lr"] == 0.5
    assert set(options.users_options(profile)) == {"trainer.save_freq", "actor_rollout_ref.actor.optim.lr"}


def test_wandb_is_offline_until_its_own_variables_say_otherwise(directory: RunDirectory, tmp_path: Path) -> None:
    def environment(**users: str) -> dict[str, str]:
        return options.environment(directory.profile(), directory, token_file=tmp_path, run_id="run", users=users)

    assert environment()["WANDB_MODE"] == "offline"
    assert environment()["WANDB_RUN_ID"] == "run"
    assert "WANDB_DIR" not in environment(WANDB_DIR="/elsewhere")
    online = environment(WANDB_API_KEY="secret")
    assert "WANDB_MODE" not in online
    assert "secret" not in online.values()


def test_the_agent_loop_that_verl_is_told_exists(directory: RunDirectory) -> None:
    (loop,) = json.loads(json.dumps(options.agent_loop_config(directory)))
    module, _, name = loop["_target_"].rpartition(".")
    source = Path(options.__file__).parents[2] / f"{module.replace('.', '/')}.py"
    assert f"class {name}(" in source.read_text()
    assert loop["name"] == options.AGENT_LOOP


def test_all_ranks_of_all_nodes_train(directory: RunDirectory, tmp_path: Path) -> None:
    overrides = ["launcher.trainer.nodes=2", "launcher.trainer.gpus=4", "trainer.tensor_parallel=2"]
    profile = load_profile(Path(__file__).parents[2] / "profiles" / "dev.toml", overrides)
    told = options.verl_options(profile, directory, ray_dir=tmp_path, address="10.0.0.1")
    assert (told["trainer.nnodes"], told["trainer.n_gpus_per_node"]) == (2, 4)
    assert told["actor_rollout_ref.rollout.tensor_model_parallel_size"] == 2
    assert told["actor_rollout_ref.rollout.agent.num_workers"] == 2
    assert told["ray_kwargs.ray_init.num_gpus"] == 4
    assert told["ray_kwargs.ray_init.num_cpus"] >= 3 * 4 + 4  # verl's bundles take 3 a GPU
    assert told["ray_kwargs.ray_init._node_ip_address"] == "10.0.0.1"


def test_the_ranks_meet_by_our_module(directory: RunDirectory, tmp_path: Path) -> None:
    told = options.environment(directory.profile(), directory, token_file=tmp_path, run_id="r", users={})
    from skyrl_stack.trainer.rendezvous import METHOD

    assert told["DIST_INIT_METHOD"] == METHOD
    assert METHOD.startswith("skyrl") and "skyrl_stack.trainer.rendezvous" in told["VERL_USE_EXTERNAL_MODULES"]
