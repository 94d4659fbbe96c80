"""What verl is told, as a table of its own option names, and the environment that its processes run in.

verl's defaults stand unless a line here has a reason. The profile's `[trainer.verl]` table comes last and wins.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer.checkpoints import steps_done
from skyrl_stack.trainer.ranks import Ranks, agent_workers

AGENT_LOOP = "skyrl_episode"
"Name under which verl finds our agent loop; `agent_loop_file` says what it is."
RAY_INIT = "ray_kwargs.ray_init."
"What verl hands to `ray.init` on the first node; the others are started with the same."
Options = dict[str, Any]

_OBJECT_STORE_BYTES = 512 << 20
_CPUS, _CPUS_PER_RANK = 12, 4
"Logical ones, for Ray to count: verl's actors sleep most of the time, and too few would let them wait for ever."
_MICRO_BATCH = 4
_ROW_TOKENS = 16_384
"With fewer, an H100 waits for Python: 4,096 at a time take twice as long."


def verl_options(profile: Profile, directory: RunDirectory, *, ray_dir: Path, address: str | None = None) -> Options:
    """Options of verl's `ppo_trainer` config by dotted name. `address` is this node's, where Ray must not choose it."""
    options = (
        _data(profile, directory)
        | _algorithm(profile)
        | _rollout(profile, directory)
        | _run(profile, directory)
        | _ray(profile, ray_dir, address)
    )
    options |= _cpu() if profile.trainer.device == "cpu" else _cuda(profile)
    return options | users_options(profile)


def users_options(profile: Profile) -> Options:
    """The profile's `[trainer.verl]` by dotted name."""
    return dict(_flat(profile.trainer.verl))


def agent_loop_file(directory: RunDirectory) -> Path:
    return directory.verl / "agent_loop.yaml"


def agent_loop_config(directory: RunDirectory) -> list[dict[str, Any]]:
    """Content of `agent_loop_file`: what verl instantiates for each episode. (JSON is YAML.)"""
    return [
        {
            "name": AGENT_LOOP,
            "_target_": "skyrl_stack.trainer.agent_loop.EpisodeLoop",
            "run_directory": str(directory.path),
        }
    ]


def environment(
    profile: Profile, directory: RunDirectory, *, token_file: Path, run_id: str, users: Mapping[str, str]
) -> dict[str, str]:
    """Variables for verl, Ray and W&B; those of W&B that are among the `users` stay as they are."""
    ours = {
        "RAY_AUTH_MODE": "token",  # a cluster that runs code for whoever connects, on a machine with other users
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody moves in when a node ends
        # A node that is lost is one after five checks, each of which may take as long as the pause before it.
        "RAY_health_check_failure_threshold": "5",
        "RAY_health_check_period_ms": str(round(profile.run.peer_timeout_s * 100)),
        "RAY_health_check_timeout_ms": str(round(profile.run.peer_timeout_s * 100)),
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it would end the process before our clean-up
        "TOKENIZERS_PARALLELISM": "false",
        "VERL_FILE_LOGGER_PATH": str(directory.metrics_file),
        "VERL_USE_EXTERNAL_MODULES": "skyrl_stack.trainer.rendezvous,skyrl_stack.trainer.packed",
        "DIST_INIT_METHOD": "skyrl://",  # rendezvous.py, which cannot be imported before this is set
    }
    if profile.trainer.device == "cpu":
        ours |= {
            "VERL_USE_EXTERNAL_MODULES": f"{ours['VERL_USE_EXTERNAL_MODULES']},skyrl_stack.trainer.cpu.plugin",
            "VERL_PLATFORM": "cpu",
            "VERL_ENGINE_DEVICE": "cuda",  # the name under which verl's FSDP engine is registered
            "OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8)),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait for each other leave the cores to the sandboxes
        }
    else:
        ours |= {
            "VLLM_NO_USAGE_STATS": "1",
            # It is for top-p and top-k, which we leave alone, and would be compiled on the node.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }
    offline = {} if {"WANDB_API_KEY", "WANDB_BASE_URL"} & users.keys() else {"WANDB_MODE": "offline"}
    wandb = offline | {
        "WANDB_DIR": str(directory.verl),
        "WANDB_RUN_ID": run_id,
        "WANDB_RESUME": "allow",
        "WANDB_SILENT": "true",
    }
    return ours | {name: value for name, value in wandb.items() if name not in users}


def _data(profile: Profile, directory: RunDirectory) -> Options:
    context = profile.model.context_tokens
    return {
        "data.train_files": str(directory.verl / "tasks.parquet"),
        "data.val_files": str(directory.verl / "tasks.parquet"),
        "data.train_batch_size": profile.trainer.tasks_per_step,
        "data.seed": profile.trainer.seed,
        "data.return_raw_chat": True,
        "data.filter_overlong_prompts": False,  # the agent builds its prompt itself
        "data.dataloader_num_workers": 0,
        "data.max_prompt_length": context,
        "data.max_response_length": context,
    }


def _algorithm(profile: Profile) -> Options:
    actor = "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": "grpo",
        f"{actor}.optim.lr": profile.trainer.learning_rate,
        f"{actor}.ppo_mini_batch_size": profile.trainer.tasks_per_step,
        f"{actor}.ppo_micro_batch_size_per_gpu": _MICRO_BATCH,
        f"{actor}.use_kl_loss": False,
        f"{actor}.strategy": "fsdp2",
        f"{actor}.data_loader_seed": profile.trainer.seed,
    }


def _rollout(profile: Profile, directory: RunDirectory) -> Options:
    rollout, sampler = "actor_rollout_ref.rollout", "trainer.v1.sampler"
    return {
        "actor_rollout_ref.model.path": str(directory.model),
        f"{rollout}.name": "vllm",
        f"{rollout}.tensor_model_parallel_size": profile.trainer.tensor_parallel,
        f"{rollout}.n": profile.trainer.rollouts_per_task,
        # verl saves no state of the rollout servers: a resumed run must not draw the noise of its first steps again.
        f"{rollout}.seed": profile.trainer.seed + steps_done(directory.checkpoints),
        f"{rollout}.max_model_len": profile.model.context_tokens,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": _MICRO_BATCH,
        f"{rollout}.agent.num_workers": agent_workers(profile),
        f"{rollout}.agent.default_agent_loop": AGENT_LOOP,
        f"{rollout}.agent.agent_loop_config_path": str(agent_loop_file(directory)),
        "reward.num_workers": 0,  # the episode brings its reward
        "trainer.v1.trainer_mode": profile.trainer.mode,
        f"{sampler}.sync_refill_failed_groups": True,
        f"{sampler}.custom_sampler.path": "pkg://skyrl_stack.trainer.groups",
        f"{sampler}.custom_sampler.name": "GroupBuffer" if profile.trainer.mode == "sync" else "AsyncGroupBuffer",
        f"{sampler}.sampler_kwargs.run_directory": str(directory.path),
    }


def _run(profile: Profile, directory: RunDirectory) -> Options:
    ranks = Ranks.of(profile)
    return {
        "trainer.project_name": profile.trainer.project,
        "trainer.experiment_name": directory.path.name,
        "trainer.logger": ["console", "file", "wandb"],
        "trainer.nnodes": ranks.nodes,
        "trainer.n_gpus_per_node": ranks.per_node,
        "trainer.total_training_steps": profile.trainer.steps,
        "trainer.total_epochs": profile.trainer.steps,  # an epoch has a step at least, so this never ends it early
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": profile.trainer.save_every,
        "trainer.default_local_dir": str(directory.checkpoints),
        "trainer.resume_mode": "auto",
    }


def _ray(profile: Profile, ray_dir: Path, address: str | None) -> Options:
    ranks = Ranks.of(profile)
    return {
        f"{RAY_INIT}_node_ip_address": address,
        f"{RAY_INIT}_temp_dir": str(ray_dir),
        f"{RAY_INIT}include_dashboard": False,
        f"{RAY_INIT}object_store_memory": _OBJECT_STORE_BYTES,
        # Ray would count the GPUs of the machine, or miss that a GPU has slices. On the CPU they are logical.
        f"{RAY_INIT}num_gpus": ranks.per_node,
        f"{RAY_INIT}num_cpus": _CPUS + _CPUS_PER_RANK * ranks.per_node,
        # The default of 8 storage units, a CPU each, may wait for ever.
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    }


def _cuda(profile: Profile) -> Options:
    """Sequences packed into long rows: no padding, and the same peak of memory at any mixture (see `packed.py`).

    The logits of a large vocabulary would take most of the memory; the fused kernel makes them piece by piece.
    """
    model, actor, rollout = (f"actor_rollout_ref.{part}" for part in ("model", "actor", "rollout"))
    row = max(profile.model.context_tokens, _ROW_TOKENS)
    return {
        f"{model}.override_config.attn_implementation": "packed",
        f"{model}.use_remove_padding": True,
        f"{model}.use_fused_kernels": True,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": row,
        f"{rollout}.log_prob_use_dynamic_bsz": True,
        f"{rollout}.log_prob_max_token_len_per_gpu": row,
    }


def _cpu() -> Options:
    """Full precision, in which rollout and trainer agree exactly."""
    return {
        "trainer.device": "cpu",
        "actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.rollout.name": "transformers",
        "actor_rollout_ref.rollout.dtype": "float32",
        "actor_rollout_ref.rollout.free_cache_engine": False,
        "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": "fp32",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "actor_rollout_ref.model.use_remove_padding": False,
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of a table that may be nested: TOML reads `a.b = 1` as a table in a table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
