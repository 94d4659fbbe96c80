"""How often a role has been started in a launch, and whether the run got further in between."""

from skyrl_stack.errors import TrainingStopped
from skyrl_stack.records import Incarnation, Record, publish, read_if_there
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.trainer.checkpoints import steps_done


class Starts(Record):
    """What a role's job leaves for the next time that it is started."""

    launch_id: str
    starts: int
    steps: int
    "Saved when it was last started."
    in_vain: int
    "Starts in a row that found no step more than the one before."


def count_start(directory: RunDirectory, role: Role, me: Incarnation, *, max_requeues: int) -> Starts:
    """Count a start of this role.

    Raises:
        TrainingStopped: it was requeued `max_requeues` times in a row and no step was finished.
    """
    file = directory.path / "slurm" / f"{role}-{me.instance}-starts.json"
    last, steps = read_if_there(file, Starts), steps_done(directory.checkpoints)
    if last is None or last.launch_id != me.launch_id:
        now = Starts(launch_id=me.launch_id, starts=1, steps=steps, in_vain=0)
    else:
        in_vain = last.in_vain + 1 if steps == last.steps else 0
        now = Starts(launch_id=me.launch_id, starts=last.starts + 1, steps=steps, in_vain=in_vain)
    publish(file, now)
    if now.in_vain > max_requeues:
        raise TrainingStopped(
            f"the {role} was requeued {now.in_vain} times in a row and step {steps + 1} was not finished "
            f"(run.max_requeues = {max_requeues}): a longer time limit, or a smaller step"
        )
    return now
