"""What a measured run says: `python benchmarks/gpu/summary.py RUN_DIR [GPU_SAMPLES]`, as a table in Markdown.

GPU_SAMPLES is what `nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used` wrote twice a second beside the run.
"""

import csv
import statistics
import sys
from datetime import datetime
from pathlib import Path

from skyrl_stack.report import Step, read_steps
from skyrl_stack.run_directory import RunDirectory

STAGES = {
    "rollout": "gen",
    "old log-probs": "old_log_prob",
    "update": "update_actor",
    "weight sync": "update_weights",
    "checkpoint": "save_checkpoint",
}
METRICS = {
    "rollout ↔ trainer probability, mean difference": "training/rollout_probs_diff_mean",
    "the same, largest": "training/rollout_probs_diff_max",
    "their correlation": "training/rollout_actor_probs_pearson_corr",
    "gradient norm": "actor/grad_norm",
    "peak memory of the trainer's tensors, GB": "actor/perf/max_memory_allocated_gb",
    "memory that the trainer reserved, GB": "actor/perf/max_memory_reserved_gb",
    "model FLOP/s utilisation of the update": "perf/mfu/actor",
}


def main() -> None:
    directory = RunDirectory.open(Path(sys.argv[1]))
    steps = read_steps(directory)
    print(f"| {directory.profile().name} |" + "".join(f" step {step.number} |" for step in steps))
    print("|---|" + "--:|" * len(steps))
    _row("solved", [f"{step.solved}/{len(step.rewards)}" for step in steps])
    _row("step, s", [f"{step.seconds('step'):.1f}" for step in steps])
    for name, key in STAGES.items():
        _row(f"· {name}, s", [f"{step.seconds(key):.2f}" for step in steps])
    _row("episodes per second of rollout", [f"{len(step.episodes) / step.seconds('gen'):.2f}" for step in steps])
    _row("an episode: model, tools, grade, s", [_episode(step) for step in steps])
    for name, key in METRICS.items():
        _row(name, [f"{step.metrics.get(key, float('nan')):.4g}" for step in steps])
    if len(sys.argv) > 2:
        _gpu(Path(sys.argv[2]))


def _row(name: str, cells: list[str]) -> None:
    print(f"| {name} |" + "".join(f" {cell} |" for cell in cells))


def _episode(step: Step) -> str:
    stages = ("model", "tools", "grade")
    return ", ".join(f"{statistics.fmean(e.seconds.get(s, 0.0) for e in step.episodes):.1f}" for s in stages)


def _gpu(file: Path) -> None:
    rows = [row for row in csv.reader(file.read_text().splitlines()) if len(row) >= 3]
    busy = [float(row[1]) for row in rows]
    times = [datetime.strptime(row[0].strip(), "%Y/%m/%d %H:%M:%S.%f") for row in (rows[0], rows[-1])]
    seconds, at_work = (times[1] - times[0]).total_seconds(), sum(b > 0 for b in busy) / len(busy)
    print(
        f"\nGPU over {seconds:.0f} s: at work in {at_work:.0%} of {len(busy)} samples,"
        f" utilisation {statistics.fmean(busy):.0f} %,"
        f" memory at most {max(float(row[2]) for row in rows) / 1024:.1f} GiB"
    )


if __name__ == "__main__":
    main()
