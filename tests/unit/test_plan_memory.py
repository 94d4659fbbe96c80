"""Memory, time and disk of a step: known models, verl's own defaults, and what grows with what."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from skyrl_stack.launch.plan.gpus import GIB, gpu_of
from skyrl_stack.launch.plan.memory import Memory, estimate
from skyrl_stack.launch.plan.model import Shape, read_shape
from skyrl_stack.launch.plan.options import DEFAULTS, Options, options_of
from skyrl_stack.launch.plan.steptime import step_time
from skyrl_stack.profile import load_profile

PROFILES = Path(__file__).parents[2] / "profiles"
SMALL, LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-14B"
H100 = 80 * GIB
OPTIONS = Options(
    gpus=8,
    shards=8,
    weight_bytes=4,
    offload_weights=False,
    offload_optimizer=False,
    offload_all=False,
    checkpointing=True,
    fused=False,
    micro_tokens=8192,
    log_prob_tokens=8192,
    tensor_parallel=2,
    utilization=0.5,
    batched_tokens=8192,
    sequences=256,
)


def shape(name: str) -> Shape:
    found = read_shape(name)
    assert found
    return found


def memory(name: str = LARGE, **changes: object) -> Memory:
    return estimate(shape(name), replace(OPTIONS, **changes), H100)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "published"), [(SMALL, 494_032_768), (LARGE, 14_768_307_200)])
def test_parameters_are_those_that_the_models_publish(name: str, published: int) -> None:
    assert shape(name).parameters == pytest.approx(published, rel=1e-5)


def test_a_mixture_multiplies_a_token_with_a_few_experts() -> None:
    table = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32}
    table |= {"num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
    table |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    mixture = Shape.model_validate(table)
    assert mixture.parameters == pytest.approx(30.5e9, rel=0.01)
    assert mixture.active_parameters == pytest.approx(3.3e9, rel=0.03)


def test_what_is_assumed_of_verl_is_what_verl_does() -> None:
    verl = find_spec("verl")
    assert verl and verl.origin
    config = yaml.safe_load((Path(verl.origin).parent / "trainer/config/_generated_ppo_trainer.yaml").read_text())
    for name, assumed in DEFAULTS.items():
        value = config
        for part in name.split("."):
            value = value[part]
        assert value == assumed, name


def test_fsdp_keeps_sixteen_bytes_a_parameter_over_its_shards() -> None:
    one, eight = memory(gpus=1, shards=1), memory()
    assert one.update - eight.update == pytest.approx(16 * 7 / 8 * shape(LARGE).parameters)
    assert eight.resident == pytest.approx(12 / 8 * shape(LARGE).parameters)
    assert memory(offload_weights=True, offload_optimizer=True).resident == 0
    assert memory(offload_all=True).update < eight.update


def test_logits_are_most_of_a_long_update_and_the_fused_kernel_has_none() -> None:
    tokens = 8192
    assert memory().logits == 8 * tokens * 151936
    assert memory(fused=True).logits == 8 * 512 * 151936
    twice = memory(micro_tokens=2 * tokens).update - memory().update
    assert twice == pytest.approx(tokens * (8 * 151936 + 2 * 40 * 5120))


def test_the_cache_is_what_vllms_share_leaves() -> None:
    half, more = memory(), memory(utilization=0.6)
    assert more.vllm - half.vllm == pytest.approx(0.1 * H100)
    assert (more.kv_tokens - half.kv_tokens) * shape(LARGE).kv_bytes_per_token / 2 == pytest.approx(
        0.1 * H100, rel=0.01
    )
    assert memory(utilization=0.1).kv_tokens == 0


def test_options_are_those_of_the_launch_and_the_profile_wins() -> None:
    options = options_of(load_profile(PROFILES / "dev.toml", ["model.context_tokens=4096"]))
    assert (options.gpus, options.micro_tokens, options.utilization, options.tensor_parallel) == (1, 16_384, 0.5, 1)
    verl_options = [
        "actor.use_dynamic_bsz=true",
        "actor.ppo_max_token_len_per_gpu=20000",
        "model.use_fused_kernels=true",
    ]
    sets = [f"trainer.verl.actor_rollout_ref.{option}" for option in verl_options]
    options = options_of(load_profile(PROFILES / "dev.toml", sets))
    assert (options.micro_tokens, options.log_prob_tokens, options.fused) == (20000, 20000, True)


@pytest.mark.parametrize(
    ("name", "memory_gb", "size"),
    [
        ("nvidia_h100_80gb_hbm3", None, 80),
        ("nvidia_a100_3g.20gb", None, 20),
        ("a100", None, 40),
        ("a100", 80, 80),
        ("h200", None, 141),
        ("", 24, 24),
    ],
)
def test_a_gpu_by_its_name(name: str, memory_gb: float | None, size: int) -> None:
    gpu = gpu_of(name, memory_gb)
    assert gpu and gpu.memory == pytest.approx(size * GIB, rel=0.02)


def test_an_unknown_gpu_is_not_guessed() -> None:
    assert gpu_of("banana") is None
    gpu = gpu_of("banana", 24)
    assert gpu and gpu.flops is None
    assert step_time(load_profile(PROFILES / "dev.toml"), shape(SMALL), OPTIONS, memory(SMALL), gpu) is None


def test_a_step_takes_longer_with_more_episodes_and_less_with_more_gpus() -> None:
    gpu = gpu_of("h100")
    assert gpu

    def total(*overrides: str, gpus: int = 8) -> float:
        profile = load_profile(PROFILES / "dev.toml", overrides)
        times = step_time(profile, shape(LARGE), replace(OPTIONS, gpus=gpus), memory(), gpu)
        assert times and times[0].total < times[1].total
        return times[1].total

    assert total("trainer.tasks_per_step=8") > 1.5 * total()
    assert total(gpus=16) < total()
