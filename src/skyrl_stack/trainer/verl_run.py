"""One run of verl's own `main_ppo`, in this process and on a Ray cluster that ends with it."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from skyrl_stack.errors import ProfileError, StackError, TrainingStopped
from skyrl_stack.trainer.ending import Departure
from skyrl_stack.trainer.options import Options


def run_verl(
    options: Options,
    *,
    users: Collection[str],
    departure: Departure,
    while_ray_runs: Callable[[], AbstractContextManager[None]],
) -> None:
    """Train until verl's last step, or `departure`. `options.environment` must be set before the first call.

    Args:
        options: verl's options by dotted name.
        users: those of them that the user chose, and may have misspelt.
        departure: when to leave before the last step.
        while_ray_runs: entered when Ray runs, and has put its signal handlers in place of ours; left before it ends.

    Raises:
        ProfileError: verl has no such option.
        TrainingStopped: verl failed, or our part in it gave up; names the cause.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    from verl.trainer.main_ppo import run_ppo

    from skyrl_stack.trainer.task_runner import TaskRunner

    class Runner:
        """The task runner, which `run_ppo` makes as soon as Ray runs: on this node, whatever others join."""

        @staticmethod
        def remote() -> Any:
            stack.enter_context(while_ray_runs())
            # Here it also sees the file by which it is asked to leave.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            return ray.remote(TaskRunner).options(scheduling_strategy=here).remote(departure)

    config = _config(options, users)
    with ExitStack() as stack:
        stack.callback(end_ray)
        try:
            run_ppo(config, task_runner_class=Runner)
        except RayTaskError as error:
            raise _cause(error) from error
        except RayError as error:
            raise TrainingStopped(f"Ray failed: {error}") from error


def end_ray() -> None:
    """Shut Ray down here and now, also if a signal cuts that short; there is no second one (`Ending`).

    What were left of it Ray would end at the interpreter's exit. To clear its directories it first makes them, and by
    then our guard has removed them.
    """
    import ray

    try:
        ray.shutdown()
    except BaseException:
        ray.shutdown()
        raise


def _config(options: Options, users: Collection[str]) -> Any:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer")
    missing = object()
    for key, value in options.items():
        known = OmegaConf.select(config, key, default=missing) is not missing
        if key in users and not known and not key.startswith("+"):
            raise ProfileError(f"trainer.verl: verl has no option {key}; write +{key} to add one")
        OmegaConf.update(config, key.removeprefix("+"), value, force_add=True)
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError) as error:
        raise ProfileError(f"verl refuses the options: {error}") from error
    return config


def _cause(error: Any) -> StackError:
    """The error inside Ray's wrapping: ours as it is, any other by name."""
    cause = error.cause
    if isinstance(cause, StackError):
        return cause
    last_line = (str(cause).strip() or "no message").splitlines()[-1]
    return TrainingStopped(f"verl failed: {type(cause).__name__}: {last_line}")
