"""The trainer role: `python -m skyrl_stack.trainer --run-dir DIR [--resume]`.

Waits for the runtime, makes or finds the model that training starts from, and hands over to verl.
"""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skyrl_stack.errors import RunDirectoryError, StackError
from skyrl_stack.presence import Presence
from skyrl_stack.profile import Profile
from skyrl_stack.records import write_atomic
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.stand_in import standing_in
from skyrl_stack.tasks.task import read_tasks
from skyrl_stack.trainer import cluster, dataset, gpus, options
from skyrl_stack.trainer.checkpoints import ranks_of, repair_marker, steps_done
from skyrl_stack.trainer.ending import EXIT_LEFT, LEAVE_BY_VARIABLE, Departure, Ending
from skyrl_stack.trainer.nodes import other_nodes, own_address
from skyrl_stack.trainer.ranks import Ranks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.trainer", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on after the newest checkpoint")
    arguments = parser.parse_args()
    try:
        train(RunDirectory.open(arguments.run_dir), resume=arguments.resume)
    except StackError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    return 0


def train(directory: RunDirectory, *, resume: bool) -> None:
    """Train to the profile's last step.

    Raises:
        StackError: the runtime is gone, training cannot go on, or the directory cannot be used as asked.
        SystemExit: with EXIT_LEFT, if it was asked to leave and has saved what was done, or has lost a node and is
            to be started again.
    """
    profile, done = directory.profile(), steps_done(directory.checkpoints)
    if done and not resume:
        raise RunDirectoryError(f"{directory.checkpoints}: holds a checkpoint of step {done}; add --resume to go on")
    if done >= profile.trainer.steps:
        print(f"trainer: all {done} steps are done; raise trainer.steps to train on", flush=True)
        return
    _require_ranks_of_checkpoint(directory, done, Ranks.of(profile))
    ending, launch = Ending(comes_back=profile.goes_on), directory.launch()
    with (
        Presence(directory, "trainer", "runtime", on_lost=ending.peer_lost) as presence,
        ending,
        cluster.private_directory(launch.launch_id, directory.path) as private,
        standing_in(directory),
    ):
        gpus.use_given_gpus()
        # Where the runtime may be back, this role's job knows how long to wait for it.
        directory.await_endpoint("runtime", profile.run.start_timeout_s + profile.run.hold_s * profile.goes_on)
        _prepare(directory, profile, private)
        departure = Departure(private / "leave", _leave_by(), profile.run.notice_s)
        ending.after_steps(departure.asked)
        presence.ready()
        _run(directory, profile, private, departure, ending)
        if departure.asked.exists() and (done := steps_done(directory.checkpoints)) < profile.trainer.steps:
            print(f"trainer: left after step {done} of {profile.trainer.steps}", flush=True)
            raise SystemExit(EXIT_LEFT)


def _require_ranks_of_checkpoint(directory: RunDirectory, step: int, ranks: Ranks) -> None:
    saved = ranks_of(directory.checkpoints, step)
    if saved not in (None, ranks.total):
        raise RunDirectoryError(
            f"{directory.checkpoints}: step {step} was saved in {saved} shards, one a rank, and this launch has "
            f"{ranks.total} ranks: resume with launcher.trainer.nodes × launcher.trainer.gpus = {saved}"
        )


def _prepare(directory: RunDirectory, profile: Profile, private: Path) -> None:
    """Everything verl reads: its environment, the model, the rows, and who plays an episode."""
    token_file = cluster.write_token(private)
    os.environ |= options.environment(
        profile, directory, token_file=token_file, run_id=_wandb_run_id(directory), users=os.environ
    )
    from skyrl_stack.trainer.model import ensure_model  # imports what reads the environment

    ensure_model(directory, profile)
    tasks = list(read_tasks(directory.tasks_file))
    dataset.write_rows(tasks, directory.verl / "tasks.parquet", tasks_per_step=profile.trainer.tasks_per_step)
    agent_loop = json.dumps(options.agent_loop_config(directory))
    write_atomic(options.agent_loop_file(directory), agent_loop.encode())


def _run(directory: RunDirectory, profile: Profile, private: Path, departure: Departure, ending: Ending) -> None:
    from skyrl_stack.trainer.verl_run import run_verl

    repair_marker(directory.checkpoints)
    print(f"trainer: verl from step {steps_done(directory.checkpoints) + 1} to {profile.trainer.steps}", flush=True)

    @contextmanager
    def on_all_nodes() -> Iterator[None]:
        ending.take_signals()
        with other_nodes(profile, directory.path, private=private, on_lost=ending.node_lost):
            yield

    run_verl(
        options.verl_options(profile, directory, ray_dir=cluster.ray_directory(private), address=own_address(profile)),
        users=options.users_options(profile),
        departure=departure,
        while_ray_runs=on_all_nodes,
    )


def _leave_by() -> float | None:
    """By when we must have ended; who started us knows the time limit."""
    moment = os.environ.get(LEAVE_BY_VARIABLE)
    return float(moment) if moment else None


def _wandb_run_id(directory: RunDirectory) -> str:
    """The W&B run of this run directory: made once, so that a resumed launch goes on in it."""
    file = directory.verl / "wandb_run_id"
    if not file.is_file():
        write_atomic(file, secrets.token_hex(4).encode())
    return file.read_text()


if __name__ == "__main__":
    sys.exit(main())
