"""verl's rollout layer on the CPU: one server per replica, and the sender of the trainer's new weights to it."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import ray
import torch
from torch.distributed.device_mesh import DeviceMesh
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

from skyrl_stack.trainer.cpu.generation import Generator

Weights = Iterable[tuple[str, torch.Tensor]] | AsyncIterator[tuple[str, torch.Tensor]]


def _server_name(replica_rank: int) -> str:
    return f"rollout_server_{replica_rank}"


class Server:
    """Ray actor around a `Generator`: the methods that verl's `LLMServerClient` and replica call."""

    def __init__(self, model_path: str, *, context_tokens: int, response_tokens: int, seed: int) -> None:
        torch.set_num_threads(1)  # the sandboxes need the other cores, and a step of a tiny model fills one
        self.generator = Generator(model_path, context_tokens=context_tokens, seed=seed)
        self.response_tokens = response_tokens
        self.version = 0
        self.turn = asyncio.Lock()
        self.going_on = asyncio.Event()
        "Clear while an update interrupts what is being sampled."
        self.going_on.set()

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        """Sample a response. Only `temperature` and `max_tokens` are honoured; others must be neutral.

        Raises:
            ValueError: a sampling parameter that would change the distribution, or no room in the context.
        """
        if sampling_params.get("top_p", 1.0) != 1.0 or sampling_params.get("top_k", -1) not in (-1, 0):
            raise ValueError("the CPU rollout samples from the whole distribution: leave rollout.top_p and top_k alone")
        await self.going_on.wait()
        most = sampling_params.get("max_tokens", self.response_tokens)
        async with self.turn:
            tokens, log_probs = await asyncio.to_thread(
                self.generator.sample,
                prompt_ids,
                max_tokens=most,
                temperature=sampling_params.get("temperature", 1.0),
                interrupted=lambda: not self.going_on.is_set(),
            )
            version = self.version
        ended = tokens[-1] in self.generator.eos or len(tokens) == most or self.going_on.is_set()
        return TokenOutput(
            token_ids=tokens,
            log_probs=log_probs,
            stop_reason="completed" if ended else "aborted",
            extra_fields={"global_steps": version},
        )

    async def load_weights(self, weights: list[tuple[str, torch.Tensor]], version: int | None) -> None:
        async with self.turn:
            self.generator.load_weights(weights)
            self.version = self.version if version is None else version

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Interrupt what is being sampled, and let others wait; verl's client asks again with what it has."""
        self.going_on.clear()

    async def resume_generation(self) -> None:
        self.going_on.set()

    async def ready(self) -> None: ...

    # There is no memory to give back between rollouts and updates.
    async def wake_up(self) -> None: ...

    async def sleep(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...


class TransformersReplica(RolloutReplica):
    """One replica: one server."""

    async def launch_servers(self) -> None:
        rollout = self.config
        name = _server_name(self.replica_rank)
        actor: Any = ray.remote(Server)
        server = actor.options(name=name, num_cpus=0, max_concurrency=self.max_concurrency).remote(
            self.model_config.path,
            context_tokens=rollout.max_model_len or rollout.prompt_length + rollout.response_length,
            response_tokens=rollout.response_length,
            seed=rollout.seed,
        )
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = name


class WeightSender(BaseRollout):
    """Lives in the trainer's worker process; verl calls it after every update."""

    def __init__(
        self, config: RolloutConfig, model_config: HFModelConfig, device_mesh: DeviceMesh, replica_rank: int = -1
    ) -> None:
        super().__init__(config, model_config, device_mesh)
        ranks = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        rank = int(os.environ["RANK"])
        self.replica_rank = rank // ranks if replica_rank == -1 else replica_rank
        self.leads = rank % ranks == 0

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self, weights: Weights, wire_format: str = "named_tensors", global_steps: int | None = None, **_: Any
    ) -> None:
        """Send full tensors. Every rank drains `weights`, which gathers its shards; one of them sends."""
        if wire_format != "named_tensors":
            raise ValueError(f"the CPU rollout takes full tensors, not {wire_format}")
        gathered = [(name, value.detach().cpu()) async for name, value in ensure_async_iterator(weights)]
        if self.leads:
            server: Any = ray.get_actor(_server_name(self.replica_rank))
            await server.load_weights.remote(gathered, version=global_steps)
