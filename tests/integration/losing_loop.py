"""An agent loop for verl that loses the episodes it is told to; the others are real samples of the model."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from skyrl_stack.episode.record import Episode, episode_id
from skyrl_stack.errors import SandboxLost
from skyrl_stack.records import publish
from skyrl_stack.run_directory import RunDirectory


class LosingLoop(AgentLoopBase):
    """`lose` lists `[step, index, session]`, -1 for any; step `hold_step` waits until `hold_until` exists."""

    def __init__(
        self, *args: Any, run_directory: str, lose: list[list[int]], hold_step: int, hold_until: str, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.directory = RunDirectory(Path(run_directory))
        self.lose = [tuple(each) for each in lose]
        self.hold_step = hold_step
        self.hold_until = Path(hold_until)

    def lost(self, me: tuple[int, int, int]) -> SandboxLost:
        """The error of an episode, with the record that `run_episode` would have left."""
        step, index, session = me
        name = episode_id(f"task-{index}", step=step, repetition=session)
        error = f"SandboxLost: sandbox of {me} is gone"
        record = Episode(
            id=name,
            instance_id=f"task-{index}",
            step=step,
            repetition=session,
            started_at=time.time(),
            error=error,
            seconds={},
        )
        publish(self.directory.episode_file(name), record)
        return SandboxLost(error)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        me = (int(row["global_steps"]), int(row["index"]), int(row["session_id"]))
        while me[0] == self.hold_step and not self.hold_until.exists():  # noqa: ASYNC110 (made by another process)
            await asyncio.sleep(0.2)
        if any(all(want in (-1, have) for want, have in zip(each, me, strict=True)) for each in self.lose):
            raise self.lost(me)
        prompt = self.tokenizer.encode(f"task {row['index']}", add_special_tokens=False)
        output = await self.server_manager.generate(
            request_id=row["uid"], prompt_ids=prompt, sampling_params=sampling_params | {"max_tokens": 8}
        )
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=output.token_ids,
            response_mask=[1] * len(output.token_ids),
            response_logprobs=output.log_probs,
            reward_score=float(me[2] % 2) + random.random() / 100,
            num_turns=1,
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": {}} | output.extra_fields,
        )
