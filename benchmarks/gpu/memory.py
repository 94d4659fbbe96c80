"""Peak memory of the trainer at several context lengths: `python benchmarks/gpu/memory.py MODEL RUN_ROOT CONTEXT...`

verl trains on sequences that fill each context, one length a step, with the options of a launch; only the episodes are
made up, and a row is one sequence, as a packed row is no longer than that. PyTorch keeps one peak: lengths must grow.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from skyrl_stack.profile import ModelSection, Profile, TrainerSection
from skyrl_stack.report import read_metrics
from skyrl_stack.run_directory import Launch, RunDirectory, publish
from skyrl_stack.trainer import cluster, options
from skyrl_stack.trainer.ending import Departure
from skyrl_stack.trainer.model import ensure_model

TASKS, ROLLOUTS = 2, 2
VERL = {
    "trainer.logger": ["console", "file"],
    "trainer.save_freq": -1,
    "actor_rollout_ref.rollout.enforce_eager": True,
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes": 4 << 30,
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.1,
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": False,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 1,
    "actor_rollout_ref.actor.use_dynamic_bsz": False,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 1,
}


def main() -> None:
    model, root, contexts = Path(sys.argv[1]), Path(sys.argv[2]), sorted(int(word) for word in sys.argv[3:])
    profile = Profile(
        name=f"memory-{model.name}",
        model=ModelSection(path=str(model), context_tokens=contexts[-1]),
        trainer=TrainerSection(
            device="cuda",
            steps=len(contexts),
            tasks_per_step=TASKS,
            rollouts_per_task=ROLLOUTS,
            save_every=100,
            verl=VERL,
        ),
    )
    directory = RunDirectory.create(root, profile)
    launch = Launch()
    publish(directory.launch_file, launch)
    with cluster.private_directory(launch.launch_id, directory.path) as private:
        token = cluster.write_token(private)
        os.environ |= options.environment(profile, directory, token_file=token, run_id="none", users=os.environ)
        _train(directory, profile, private, contexts)
    for context, (_, metrics) in zip(contexts, sorted(read_metrics(directory).items()), strict=False):
        allocated, reserved = (metrics[f"actor/perf/max_memory_{kind}_gb"] for kind in ("allocated", "reserved"))
        print(f"memory: {model.name}, context {context}: {allocated:.2f} GB, reserved {reserved:.2f} GB", flush=True)


def _train(directory: RunDirectory, profile: Profile, private: Path, contexts: list[int]) -> None:
    import pyarrow
    import pyarrow.parquet

    from skyrl_stack.trainer.verl_run import run_verl

    ensure_model(directory, profile)
    rows = [
        {"data_source": "memory", "prompt": [{"role": "user", "content": "-"}], "extra_info": {"index": index}}
        for index in range(TASKS)
    ]
    directory.verl.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory.verl / "tasks.parquet")
    loop = {"name": options.AGENT_LOOP, "_target_": "memory_loop.FullContext", "contexts": contexts}
    options.agent_loop_file(directory).write_text(json.dumps([loop]))
    asked = options.verl_options(profile, directory, ray_dir=cluster.ray_directory(private))
    run_verl(
        {key: value for key, value in asked.items() if "sampler" not in key},
        users=[],
        departure=Departure(private / "leave", leave_by=None, notice_s=0),
        while_ray_runs=nullcontext,
    )


if __name__ == "__main__":
    main()
