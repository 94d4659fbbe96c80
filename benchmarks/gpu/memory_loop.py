"""An agent loop for `memory.py`: made-up episodes that fill the context."""

import random
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

PROMPT_TOKENS = 512


class FullContext(AgentLoopBase):
    """As many random tokens as the step's context holds, all but the prompt's sampled."""

    def __init__(self, *args: Any, contexts: list[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.contexts = contexts

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        count = self.contexts[min(int(row["global_steps"]), len(self.contexts)) - 1] - PROMPT_TOKENS
        return AgentLoopOutput(
            prompt_ids=[random.randrange(100_000) for _ in range(PROMPT_TOKENS)],
            response_ids=[random.randrange(100_000) for _ in range(count)],
            response_mask=[1] * count,
            response_logprobs=[-11.5] * count,
            reward_score=float(random.random() < 0.5),
            num_turns=1,
            metrics=AgentLoopMetrics(generate_sequences=0.0, tool_calls=0.0),
            extra_fields={"reward_extra_info": {}, "min_global_steps": 0, "max_global_steps": 0},
        )
