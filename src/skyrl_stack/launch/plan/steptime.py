"""Time of a step, estimated as a range: how long generating, the tools and the update take, and so how long a run.

    generate   an episode's own tokens come one after the other: each reads the weights and the caches of all that its
               replica of the policy works on, at 40 to 70 % of the memory's bandwidth; the rest of its context, which
               the tools wrote, is computed once at 2 FLOPs a parameter. 15 to 35 % of a context is the policy's own.
    tools      each model call runs a command of 0.5 to 4 s; starting a sandbox and testing a patch take 10 to 90 s
    update     10 FLOPs a parameter and token (log-prob 2, forward 2, backward 4, forward again for gradient
               checkpointing 2), and attention's, at 25 to 45 % of the GPU's best
    tokens     an episode fills 35 to 100 % of its context

The low end takes all the better values, the high end all the worse. Neither is a promise.
"""

from dataclasses import dataclass

from skyrl_stack.launch.plan.gpus import Gpu
from skyrl_stack.launch.plan.memory import Memory
from skyrl_stack.launch.plan.model import Shape
from skyrl_stack.launch.plan.options import Options
from skyrl_stack.profile import Profile


@dataclass(frozen=True)
class Assumed:
    """One end of the range."""

    bandwidth: float
    flops: float
    filled: float
    own: float
    command_s: float
    around_s: float


BEST = Assumed(bandwidth=0.7, flops=0.45, filled=0.35, own=0.15, command_s=0.5, around_s=10)
WORST = Assumed(bandwidth=0.4, flops=0.25, filled=1.0, own=0.35, command_s=4, around_s=90)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    generate: float
    tools: float
    update: float

    @property
    def total(self) -> float:
        return self.generate + self.tools + self.update


def step_time(
    profile: Profile, shape: Shape, options: Options, memory: Memory, gpu: Gpu
) -> tuple[StepTime, StepTime] | None:
    """The best and the worst that is to be expected; None of a GPU whose speed is not known."""
    if gpu.flops is None or gpu.bandwidth is None:
        return None
    low, high = (_one(profile, shape, options, memory, gpu.flops, gpu.bandwidth, at) for at in (BEST, WORST))
    return low, high


def _one(
    profile: Profile, shape: Shape, options: Options, memory: Memory, flops: float, bandwidth: float, at: Assumed
) -> StepTime:
    trainer = profile.trainer
    episodes = trainer.tasks_per_step * trainer.rollouts_per_task
    tokens = at.filled * profile.model.context_tokens
    waves = max(1.0, episodes / trainer.concurrent_episodes)
    together = min(trainer.concurrent_episodes / options.replicas, max(1.0, memory.kv_tokens / tokens))
    reads = (2 * shape.active_parameters + together * tokens / 2 * shape.kv_bytes_per_token) / options.tensor_parallel
    in_turns = max(1.0, trainer.concurrent_episodes / options.replicas / together)
    decode = at.own * tokens * reads / (at.bandwidth * bandwidth) * in_turns * waves
    prefill = 2 * shape.active_parameters * tokens * episodes / (options.gpus * at.flops * flops)
    calls = min(profile.agent.max_steps, 1 + int(at.own * tokens / 100))
    attention = 12 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * tokens / 2
    learned = (10 * shape.active_parameters + attention) * tokens * episodes
    return StepTime(
        generate=decode + prefill,
        tools=waves * (calls * at.command_s + at.around_s),
        update=learned / (options.gpus * at.flops * flops),
    )
