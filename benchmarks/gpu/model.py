"""Makes the policy of the measurements: a Qwen3 of production shape, random weights, a start on scripted traces.

`python benchmarks/gpu/model.py PROFILE TOKENIZER TARGET [--layers 28 --hidden 1024] [--steps 150] [--thought 0]`

The traces are played by the product's own agent in real sandboxes on the profile's tasks, as for the tiny model. So the
policy talks in real tool calls and its episodes differ in reward, which random weights alone would not give. It learns
one thought by heart, which it says before each call: so long that the GPU has as much to do as in real work.
"""

import argparse
import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.factory.make import make_tasks
from skyrl_stack.profile import Profile, load_profile
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.storage import cache_dir
from skyrl_stack.tasks.task import Task, read_tasks
from skyrl_stack.trainer.tiny import teacher
from skyrl_stack.trainer.tiny.supervised import fit, loss_of
from skyrl_stack.trainer.tiny.traces import Classroom

LEARNING_RATE = 3e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="28 and hidden 1024: Qwen3-0.6B; 2048: Qwen3-1.7B")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=150, help="supervised steps; 0 leaves the weights random")
    parser.add_argument("--thought", type=int, default=0, help="words that it says before each call")
    arguments = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.tokenizer)
    torch.manual_seed(0)
    network = Qwen3ForCausalLM(shape(tokenizer, layers=arguments.layers, hidden=arguments.hidden)).cuda()
    if arguments.steps:
        traces = asyncio.run(play(load_profile(arguments.profile), tokenizer, thought=arguments.thought))
        fit(
            network,
            traces,
            steps=arguments.steps,
            seed=0,
            learning_rate=LEARNING_RATE,
            loss=in_bfloat16,
            say=report,
        )
    network.to(torch.bfloat16).save_pretrained(arguments.target)
    tokenizer.save_pretrained(arguments.target)
    print(f"model: {network.num_parameters():,} parameters in {arguments.target}", flush=True)


def shape(tokenizer: Any, *, layers: int, hidden: int) -> Qwen3Config:
    """Qwen3's own proportions below 4B: heads of 128, two query heads for each key, tied embeddings."""
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


async def play(profile: Profile, tokenizer: Any, *, thought: int) -> list[Trajectory]:
    """Each script's trace on each task of the profile, in sandboxes of this process."""

    def thinking(task: Task) -> list[teacher.Script]:
        words = " ".join(islice(cycle(__doc__.split()), thought))
        return [
            replace(script, turns=tuple(f"{words}\n{turn}" for turn in script.turns))
            for script in teacher.scripts(task)
        ]

    started = time.monotonic()
    tasks = list(read_tasks(await make_tasks(profile.tasks, cache_dir())))
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as podman:
        traces = await Classroom(podman, profile, thinking if thought else teacher.scripts).traces(tasks, tokenizer)
    longest = max(len(trace.prompt_ids) + len(trace.response_ids) for trace in traces)
    seconds = time.monotonic() - started
    print(f"model: traces of {len(tasks)} tasks in {seconds:.0f} s, up to {longest} tokens", flush=True)
    return traces


def in_bfloat16(network: Any, traces: Sequence[Trajectory]) -> torch.Tensor:
    """The loss in bfloat16 on full-precision weights."""
    with torch.autocast("cuda", torch.bfloat16):
        return loss_of(network, traces)


def report(step: int, loss: float) -> None:
    if step % 25 == 24:
        print(f"model: step {step + 1}, loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
