"""Says what a GPU machine has, and what of all that a run needs is missing: a line for each, and exit code 1."""

import importlib
import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

MODULES = (
    "torch",
    "vllm.v1.engine.async_llm",
    "verl.trainer.main_ppo",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
    "verl.workers.engine_workers",
    "skyrl_stack.trainer.agent_loop",
    "skyrl_stack.runtime.server",
    "skyrl_stack.factory.make",
    "skyrl_stack.cli",
)
PACKAGES = ("torch", "triton", "vllm", "verl", "ray", "transformers", "tensordict", "openhands-sdk", "numpy")
PROGRAMS = ("podman", "conmon", "git", "gcc", "nvidia-smi")


def main() -> int:
    started, missing = time.monotonic(), []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary fails in ways of its own
            missing.append(f"{name}: {type(error).__name__}: {error}")
    missing += [f"{name}: not on PATH" for name in PROGRAMS if shutil.which(name) is None]
    missing += gpu()
    print("packages:", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES))
    print(f"cores: {os.cpu_count()}, checked in {time.monotonic() - started:.0f} s")
    for line in missing:
        print(f"missing: {line}")
    return 1 if missing else 0


def gpu() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return ["a GPU that torch sees"]
    properties = torch.cuda.get_device_properties(0)
    print(f"gpu: {torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    try:
        return [f"a right answer of vLLM's {name}" for name, error in _kernel_errors() if error > 0.02]
    except Exception as error:
        return [f"vLLM's kernels: {type(error).__name__}: {error}"]


def _kernel_errors() -> Iterator[tuple[str, float]]:
    """Relative errors of two of vLLM's compiled kernels, on random input, against PyTorch in full precision."""
    import torch
    from vllm import _custom_ops
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    x, weight = torch.randn(64, 1024, device="cuda").bfloat16(), torch.randn(1024, device="cuda").bfloat16()
    out = torch.full_like(x, torch.nan)
    _custom_ops.rms_norm(out, x, weight, 1e-6)
    yield "rms_norm", _error(out, torch.nn.functional.rms_norm(x.float(), (1024,), weight.float(), 1e-6))

    q, k, v = (torch.randn(256, 8, 128, device="cuda").bfloat16() for _ in range(3))
    ends = torch.tensor([0, 256], dtype=torch.int32, device="cuda")
    out = flash_attn_varlen_func(q, k, v, 256, ends, 256, ends, causal=True, fa_version=3)
    heads_first = (t.float().transpose(0, 1) for t in (q, k, v))
    want = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(0, 1)
    yield "flash attention 3", _error(out, want)


def _error(out: Any, want: Any) -> float:
    error = ((out.float() - want).norm() / want.norm()).item()
    return error if error == error else float("inf")


if __name__ == "__main__":
    sys.exit(main())
