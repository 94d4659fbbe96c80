"""An agent loop for verl that loses the episodes it is told to; the others are real samples of the model."""

import asyncio
import random
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from skyrl_stack.errors import SandboxLost


class LosingLoop(AgentLoopBase):
    """`lose` lists `[step, index, session]`, -1 for any; step `hold_step` waits until `hold_until` exists."""

    def __init__(self, *args: Any, lose: list[list[int]], hold_step: int, hold_until: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lose = [tuple(each) for each in lose]
        self.hold_step = hold_step
        self.hold_until = Path(hold_until)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        me = (int(row["global_steps"]), int(row["index"]), int(row["session_id"]))
        while me[0] == self.hold_step and not self.hold_until.exists():  # noqa: ASYNC110 (made by another process)
            await asyncio.sleep(0.2)
        if any(all(want in (-1, have) for want, have in zip(each, me, strict=True)) for each in self.lose):
            raise SandboxLost(f"sandbox of {me} is gone")
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
