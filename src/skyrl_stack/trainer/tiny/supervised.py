"""The tiny model's start: a few hundred supervised steps on traces, on exactly the tokens that a policy sampled."""

import random
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from skyrl_stack.agent.tokens import Trajectory

BATCH = 6
LEARNING_RATE = 6e-3
WARMUP_STEPS = 15
IGNORED = -100


def loss_of(network: Qwen3ForCausalLM, traces: Sequence[Trajectory]) -> torch.Tensor:
    """Mean over the batch's sampled tokens. Padding comes last, where causal attention never looks back from."""
    device = network.device
    rows = [torch.tensor(trace.prompt_ids + trace.response_ids, device=device) for trace in traces]
    inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    targets = torch.full_like(inputs, IGNORED)
    for row, trace in enumerate(traces):
        start = len(trace.prompt_ids)
        sampled = torch.tensor(trace.response_mask, dtype=torch.bool, device=device)
        targets[row, start : start + len(sampled)][sampled] = torch.tensor(trace.response_ids, device=device)[sampled]
    targets = targets[:, 1:]
    learnt = targets != IGNORED
    hidden = network.model(input_ids=inputs[:, :-1], use_cache=False).last_hidden_state
    return cross_entropy(network.lm_head(hidden[learnt]), targets[learnt])


def fit(
    network: Qwen3ForCausalLM,
    traces: Sequence[Trajectory],
    *,
    steps: int,
    seed: int,
    learning_rate: float = LEARNING_RATE,
    loss: Callable[[Qwen3ForCausalLM, Sequence[Trajectory]], torch.Tensor] = loss_of,
    say: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train in place; `say` gets each step and its loss, by default per sampled token, in nats."""
    order = random.Random(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * max(0.05, 1 - step / max(steps, 1))
    )
    network.train()
    for step in range(steps):
        value = loss(network, order.sample(traces, min(BATCH, len(traces))))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        say(step, value.item())
    network.eval()
