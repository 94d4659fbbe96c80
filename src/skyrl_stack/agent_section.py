"""The `[agent]` table of a profile: who works on a task, by what limits, and what each way to end is worth."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from skyrl_stack.section import Section

Worth = Literal["grade", "zero", "mask"]
"Reward from the tests of what was left, reward 0 without them, or no sample at all."


class OutcomesSection(Section):
    """What an episode that ended so is worth. A lost sandbox or model is never a reward, and has no key."""

    finished: Worth = "grade"
    plain_text: Worth = "grade"
    refused: Worth = "grade"
    step_limit: Worth = "grade"
    context_exceeded: Worth = "grade"
    timed_out: Worth = "grade"
    stuck: Worth = "grade"
    malformed_calls: Worth = "grade"
    out_of_memory: Worth = "grade"


class AgentSection(Section):
    max_steps: int = Field(default=8, ge=1)
    "Model calls per episode."
    command_timeout_s: float = Field(default=60.0, gt=0)
    episode_timeout_s: float = Field(default=300.0, gt=0)
    observation_limit_chars: int = Field(default=2000, ge=100)
    "Longest tool output that the policy is shown; the middle is cut and the cut says so."
    tell_at: tuple[float, ...] = (0.8,)
    "Shares of the context, or of the steps, at which the policy is told how much is left."
    max_malformed_calls: int = Field(default=3, ge=1)
    "Calls in a row that could not be read, after which the episode ends as MalformedCalls."
    detect_stuck: bool = False
    "End an episode that repeats itself (OpenHands' detector: the same call and answer four times) as Stuck."
    call_form: Literal["auto", "json", "function", "deepseek", "llama", "prompt"] = "auto"
    "How tools are called; `auto`: the chat template's own form where it is known, else OpenHands' prompt."
    reasoning: Literal["keep", "strip"] = "keep"
    "`strip`: what is inside <think> is not told again in later turns; each such turn is a trajectory of its own."
    condense_at: float | None = Field(default=None, gt=0, lt=1)
    "Share of the context at which the middle of the history is left out, in a new trajectory; None: never."
    tools: tuple[str, ...] = ("terminal", "file_editor", "finish")
    "Names of OpenHands' registry; `grep`, `glob` and `think` are there too."
    modules: tuple[str, ...] = ()
    "Python modules to import first: what they pass to OpenHands' `register_tool` can be named in `tools`."
    agent_class: str = "skyrl_stack.agent.codeact:OHCodeActAgent"
    "`module:Class` of the OpenHands agent."
    system_prompt: Path | None = None
    "Jinja template of a system prompt; it may use {{ workdir }}."
    task_prompt: Path | None = None
    "Jinja template of the first message; it may use {{ problem_statement }} and {{ workdir }}."
    outcomes: OutcomesSection = OutcomesSection()
