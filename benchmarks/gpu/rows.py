"""What a row of packed sequences costs: `python benchmarks/gpu/rows.py [TOKENS …]`, on one GPU.

Qwen3-0.6B's shape with random weights, as verl trains it: FSDP2, bfloat16, gradient checkpointing, verl's fused
log-probabilities. Side by side: transformers' mask over the row (`sdpa`), and each sequence on its own (`packed`).
"""

import argparse
import gc
import os
import statistics
import time
from typing import Any

import torch
from model import shape
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Qwen3ForCausalLM
from verl.models.transformers.monkey_patch import apply_monkey_patch

from skyrl_stack.trainer import packed

LAYERS, HIDDEN, VOCABULARY = 28, 1024, 150_000
SEQUENCE_TOKENS = 1900
"As long as the episodes of `gpu.toml`."
ROUNDS = 4


class Ends:
    eos_token_id = pad_token_id = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=int, nargs="*", default=[4096, 8192, 16_384, 32_768])
    lengths = parser.parse_args().tokens
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("nccl", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    print("| attention | tokens of a row | forward and backward, s | s for 4,096 tokens | peak, GB |")
    print("|---|--:|--:|--:|--:|")
    for attention in ("sdpa", packed.NAME):
        network = build(attention)
        for tokens in lengths:
            torch.cuda.reset_peak_memory_stats()
            seconds = statistics.median([timed(network, tokens) for _ in range(ROUNDS + 1)][1:])
            peak = torch.cuda.max_memory_allocated() / 1e9
            print(
                f"| {attention} | {tokens} | {seconds:.3f} | {seconds * 4096 / tokens:.3f} | {peak:.1f} |", flush=True
            )
        del network
        gc.collect()
        torch.cuda.empty_cache()


def build(attention: str) -> Any:
    config: Any = shape(Ends(), layers=LAYERS, hidden=HIDDEN)
    config._attn_implementation = attention
    with torch.device("cuda"):
        network: Any = Qwen3ForCausalLM(config)
    apply_monkey_patch(
        model=network,
        use_remove_padding=True,
        ulysses_sp_size=1,
        use_fused_kernels=True,
        fused_kernels_backend="torch",
    )
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    mesh = init_device_mesh("cuda", (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in network.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(network, mesh=mesh, mp_policy=policy).train()


def timed(network: Any, tokens: int) -> float:
    """Seconds of one forward and backward pass over a row."""
    whole, rest = divmod(tokens, SEQUENCE_TOKENS)
    positions = torch.cat([torch.arange(length) for length in [SEQUENCE_TOKENS] * whole + [rest]])[None].cuda()
    ids = torch.randint(VOCABULARY, (1, tokens), device="cuda")
    torch.cuda.synchronize()
    started = time.monotonic()
    with torch.autocast("cuda", torch.bfloat16):
        out = network(
            input_ids=ids,
            position_ids=positions,
            attention_mask=None,
            use_cache=False,
            temperature=1.0,
            return_dict=True,
        )
    out.log_probs.float().mean().backward()
    torch.cuda.synchronize()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
