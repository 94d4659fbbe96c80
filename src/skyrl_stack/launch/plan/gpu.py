"""The trainer's GPUs: does a step fit their memory, and how long does it take on them?"""

from collections.abc import Iterator

from skyrl_stack.launch.plan.findings import Finding, Need, gb
from skyrl_stack.launch.plan.gpus import Gpu, gpu_of
from skyrl_stack.launch.plan.memory import Memory, estimate
from skyrl_stack.launch.plan.model import Shape
from skyrl_stack.launch.plan.options import Options, options_of
from skyrl_stack.launch.plan.steptime import step_time
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.profile import Profile
from skyrl_stack.site import SlurmLauncher, clock
from skyrl_stack.trainer.ranks import misfits

_UTILIZATION = "trainer.verl.actor_rollout_ref.rollout.gpu_memory_utilization"


def gpus(profile: Profile, survey: Survey) -> Iterator[Need | Finding]:
    """Memory and time of one step on the GPUs that the trainer's job would get."""
    names = _types(profile, survey)
    wrong = [Finding("error", text) for text in misfits(profile, names)]
    yield from wrong
    if wrong or profile.trainer.device != "cuda" or survey.shape is None:
        return
    launcher = profile.launcher
    memory_gb = launcher.trainer.gpu_memory_gb if isinstance(launcher, SlurmLauncher) else None
    found = [gpu for name in names or {""} if (gpu := gpu_of(name, memory_gb))]
    if not found:
        yield Finding(
            "note",
            "the GPU's type is not known, so its memory is not checked: set launcher.trainer.gpu_type or gpu_memory_gb",
        )
        return
    gpu = min(found, key=lambda gpu: gpu.memory)
    options = options_of(profile)
    memory = estimate(survey.shape, options, gpu.memory, parameters=survey.parameters)
    yield from _peaks(memory, options, gpu)
    yield from _cache(profile, memory, options)
    yield from _time(profile, survey.shape, options, memory, gpu)


def _types(profile: Profile, survey: Survey) -> set[str]:
    """Slurm's names of all GPUs that the job may get."""
    launcher = profile.launcher
    if not isinstance(launcher, SlurmLauncher):
        return set()
    job = launcher.trainer
    offered = [partition for partition in survey.partitions or () if partition.name == job.partition]
    return {job.gpu_type} if job.gpu_type else {name for partition in offered for name in partition.gpus}


def _peaks(memory: Memory, options: Options, gpu: Gpu) -> Iterator[Need | Finding]:
    there_is = f"{gb(gpu.memory)} on {gpu.name or 'each GPU'}"
    vllm = f"{gb(memory.resident)} of FSDP + {gb(memory.vllm)} of vLLM"
    yield Need("GPU memory: rollout", f"{gb(memory.rollout)}: {vllm}", there_is)
    yield Need("GPU memory: log-prob", gb(memory.log_prob), there_is)
    yield Need("GPU memory: update", f"{gb(memory.update)}, {gb(memory.logits)} of it logits", there_is)
    if memory.rollout > gpu.memory:
        most = (gpu.memory - (memory.rollout - memory.vllm)) / gpu.memory
        remedy = (
            f"{_UTILIZATION} = {int(100 * most) / 100:.2f} works"
            if most * gpu.memory > memory.vllm_fixed
            else "more GPUs work, or the offloading of verl's fsdp_config (param_offload, optimizer_offload)"
        )
        yield Finding("error", f"a rollout needs {gb(memory.rollout)} of a GPU's {gb(gpu.memory)}: {remedy}")
    if (most := max(memory.update, memory.log_prob)) > gpu.memory:
        remedy = _smaller(memory, options, gpu)
        yield Finding("error", f"an update needs {gb(most)} of a GPU's {gb(gpu.memory)}: {remedy}")


def _smaller(memory: Memory, options: Options, gpu: Gpu) -> str:
    """The nearest setting with a smaller update."""
    if not options.fused and memory.update - memory.logits < gpu.memory:
        return "trainer.verl.actor_rollout_ref.model.use_fused_kernels = true keeps the logits out of memory"
    return "more GPUs work, or a smaller model.context_tokens or micro-batch (ppo_micro_batch_size_per_gpu)"


def _cache(profile: Profile, memory: Memory, options: Options) -> Iterator[Need | Finding]:
    """vLLM refuses to start without room for one context; with little room, episodes wait for each other."""
    context = profile.model.context_tokens
    per_replica = -(-profile.trainer.concurrent_episodes // options.replicas)
    yield Need(
        "KV cache of a replica",
        f"{per_replica * context} tokens if {per_replica} episodes fill their context",
        f"{memory.kv_tokens} ({options.replicas} replicas of {options.tensor_parallel} GPUs)",
    )
    if memory.kv_tokens < context:
        yield Finding(
            "error",
            f"vLLM's {gb(memory.vllm)} ({_UTILIZATION} = {options.utilization:.2f}) leave a cache of "
            f"{memory.kv_tokens} tokens, less than model.context_tokens = {context}: raise it",
        )
    elif memory.kv_tokens < per_replica * context // 4:
        yield Finding(
            "warning",
            f"the KV cache of a replica holds {memory.kv_tokens / context:.1f} full contexts for {per_replica} "
            "episodes: they will wait for each other",
        )


def _time(profile: Profile, shape: Shape, options: Options, memory: Memory, gpu: Gpu) -> Iterator[Need | Finding]:
    times = step_time(profile, shape, options, memory, gpu)
    launcher = profile.launcher
    if times is None or not isinstance(launcher, SlurmLauncher):
        return
    low, high = times
    names = ("generate", "tools", "update")
    stages = (f"{name} {_range(getattr(low, name), getattr(high, name))}" for name in names)
    yield Need("time of a step (a guess)", f"{_range(low.total, high.total)}", ", ".join(stages))
    steps, limit = profile.trainer.steps, launcher.trainer.time_limit_s
    yield Need("time of the run (a guess)", _range(steps * low.total, steps * high.total), f"{clock(limit)} a job")
    if low.total * profile.trainer.save_every > limit:
        yield Finding(
            "warning",
            f"a checkpoint every {profile.trainer.save_every} steps may not be reached within the trainer's "
            f"{clock(limit)}: trainer.save_every = 1 is safer",
        )


def _range(low: float, high: float) -> str:
    return f"{_span(low)} to {_span(high)}"


def _span(duration_s: float) -> str:
    if duration_s < 100:
        return f"{duration_s:.0f} s"
    if duration_s < 6000:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.0f} h" if duration_s < 72 * 3600 else f"{duration_s / 86400:.0f} days"
