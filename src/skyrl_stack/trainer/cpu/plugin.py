"""What verl imports first, in every process, when it trains on the CPU (`VERL_USE_EXTERNAL_MODULES`).

PlatformRegistry        the CPU as a platform                       platform.py
RolloutReplicaRegistry  a rollout server that needs no GPU          rollout.py
EngineRegistry          FSDP as it is, found as the "cuda" engine   VERL_ENGINE_DEVICE, see options.py
torch.distributed       one backend where verl names two   below
"""

from typing import Any

import torch.distributed
from verl.workers.rollout import base, replica

from skyrl_stack.trainer.cpu import platform as platform

ROLLOUT = "transformers"
"Name of the CPU rollout in `actor_rollout_ref.rollout.name`."


def _load_replica() -> type[replica.RolloutReplica]:
    from skyrl_stack.trainer.cpu.rollout import TransformersReplica

    return TransformersReplica


_init_process_group = torch.distributed.init_process_group


def _init_with_one_backend(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    """verl asks for `cpu:gloo,<device>:<backend>`; with the CPU as the device torch refuses the repetition."""
    if backend and backend.count("cpu:gloo") > 1:
        backend = "cpu:gloo"
    _init_process_group(backend, *args, **kwargs)


torch.distributed.init_process_group = _init_with_one_backend
replica.RolloutReplicaRegistry.register(ROLLOUT, _load_replica)
base._ROLLOUT_REGISTRY[(ROLLOUT, "async")] = "skyrl_stack.trainer.cpu.rollout.WeightSender"
