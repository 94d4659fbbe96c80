"""verl's options that decide about memory and time, as a launch of the profile would set them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer.options import verl_options

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
DEFAULTS: dict[str, Any] = {  # verl 0.9.1's own, of what the launch leaves as it is
    f"{ACTOR}.fsdp_config.fsdp_size": -1,
    f"{ACTOR}.fsdp_config.model_dtype": "fp32",
    f"{ACTOR}.fsdp_config.param_offload": False,
    f"{ACTOR}.fsdp_config.optimizer_offload": False,
    f"{ACTOR}.fsdp_config.offload_policy": False,
    f"{ACTOR}.ulysses_sequence_parallel_size": 1,
    f"{ACTOR}.use_dynamic_bsz": False,
    f"{ACTOR}.ppo_max_token_len_per_gpu": 16384,
    f"{MODEL}.enable_gradient_checkpointing": True,
    f"{MODEL}.use_fused_kernels": False,
    f"{ROLLOUT}.gpu_memory_utilization": 0.5,
    f"{ROLLOUT}.max_num_batched_tokens": 8192,
    f"{ROLLOUT}.max_num_seqs": 256,
}


@dataclass(frozen=True)
class Options:
    """What `memory.estimate` needs to know."""

    gpus: int
    "Of the whole trainer: the ranks."
    shards: int
    weight_bytes: int
    "Of one trained parameter."
    offload_weights: bool
    "While vLLM works."
    offload_optimizer: bool
    offload_all: bool
    "For good: FSDP2's own offload policy."
    checkpointing: bool
    fused: bool
    micro_tokens: int
    "Tokens of one micro-batch of the update, on one GPU."
    log_prob_tokens: int
    tensor_parallel: int
    utilization: float
    batched_tokens: int
    sequences: int
    colocated: bool = True

    @property
    def replicas(self) -> int:
        """Copies of the policy that generate."""
        return max(1, self.gpus // self.tensor_parallel)


def options_of(profile: Profile) -> Options:
    """The options of a launch of `profile`."""
    given = DEFAULTS | verl_options(profile, RunDirectory(Path("plan")), ray_dir=Path("plan"))
    fsdp = f"{ACTOR}.fsdp_config"
    gpus = given["trainer.nnodes"] * given["trainer.n_gpus_per_node"]
    context = profile.model.context_tokens
    per_gpu = -(-context // given[f"{ACTOR}.ulysses_sequence_parallel_size"])
    dynamic = given[f"{ACTOR}.use_dynamic_bsz"] and max(given[f"{ACTOR}.ppo_max_token_len_per_gpu"], per_gpu)
    return Options(
        gpus=gpus,
        shards=given[f"{fsdp}.fsdp_size"] if given[f"{fsdp}.fsdp_size"] > 0 else gpus,
        weight_bytes=4 if given[f"{fsdp}.model_dtype"] in ("fp32", "float32") else 2,
        offload_weights=given[f"{fsdp}.param_offload"],
        offload_optimizer=given[f"{fsdp}.optimizer_offload"],
        offload_all=given[f"{fsdp}.offload_policy"],
        checkpointing=given[f"{MODEL}.enable_gradient_checkpointing"],
        fused=given[f"{MODEL}.use_fused_kernels"],
        micro_tokens=dynamic or per_gpu * given[f"{ACTOR}.ppo_micro_batch_size_per_gpu"],
        log_prob_tokens=dynamic or per_gpu * given[f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu"],
        tensor_parallel=given[f"{ROLLOUT}.tensor_model_parallel_size"],
        utilization=given[f"{ROLLOUT}.gpu_memory_utilization"],
        batched_tokens=given[f"{ROLLOUT}.max_num_batched_tokens"],
        sequences=given[f"{ROLLOUT}.max_num_seqs"],
    )
