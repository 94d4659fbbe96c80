"""Attempts without a sandbox: limits, words about them, condensation, and agents and tools of a profile's own."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attempting import TOKENIZER, Answering, attempted

from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.errors import ProfileError, SandboxExpired, SandboxLost, ToolFailed
from skyrl_stack.sandbox.contract import CommandResult, Excess

FINISH = render_call("finish", message="done")
LOOK = render_call("terminal", command="ls")
THINK = render_call("think", thought="hm")


@pytest.mark.parametrize(
    ("script", "agent", "outcome"),
    [
        (["<tool_call>\n{bad"] * 9, {"max_malformed_calls": 2}, Outcome.MALFORMED_CALLS),
        ([THINK] * 9, {"detect_stuck": True, "max_steps": 9}, Outcome.STUCK),
        ([THINK] * 9, {"max_steps": 9}, Outcome.STEP_LIMIT),
        (["I'm sorry, but I can't do that."], {}, Outcome.REFUSED),
        ([""] * 9, {"max_steps": 4}, Outcome.STEP_LIMIT),
        ([], {}, Outcome.MODEL_LOST),
    ],
)
def test_each_end_has_its_outcome_and_no_action_is_invented(
    script: list[str], agent: dict[str, Any], outcome: Outcome
) -> None:
    done = attempted(script, **agent)
    assert done.ending.outcome is outcome
    assert (done.error is None) == (outcome is not Outcome.MODEL_LOST)
    assert not any(event.tool == "finish" for event in done.events)
    assert sum(event.kind == "call" for event in done.events) <= done.turns


def test_a_readable_call_between_malformed_ones_begins_their_count_anew() -> None:
    bad = "<tool_call>\n{bad"
    done = attempted([bad, THINK, bad, FINISH], max_malformed_calls=2)
    assert (done.ending.outcome, done.turns) == (Outcome.FINISHED, 4)


def test_a_lost_sandbox_is_an_outcome_with_all_that_was_said_before() -> None:
    done = attempted([LOOK, LOOK, FINISH], sandbox=Answering("a.py", SandboxLost("gone")))
    assert done.ending.outcome is Outcome.SANDBOX_LOST
    assert isinstance(done.error, SandboxLost)
    assert done.turns == 2
    assert TOKENIZER.decode(done.trajectories[0].response_ids).count("a.py\n[exit code 0]") == 1


def test_the_end_of_a_sandboxes_wall_time_is_a_timeout_of_the_policy() -> None:
    done = attempted([LOOK, LOOK, FINISH], sandbox=Answering("a.py", SandboxExpired("removed")))
    assert (done.ending.outcome, done.ending.detail, done.error) == (Outcome.TIMED_OUT, "removed", None)


@pytest.mark.parametrize("resource", ["memory", "processes", "disk"])
def test_commands_that_use_up_the_sandbox_are_told_and_end_the_episode(resource: str) -> None:
    killed = CommandResult(exit_code=137, stdout="", stderr="Killed")
    over = killed.model_copy(update={"excess": Excess.model_validate({"resource": resource, "used": 9, "allowed": 8})})
    done = attempted([LOOK] * 5 + [FINISH], sandbox=Answering(over, killed, over, over, "never"), max_steps=9)
    assert (done.ending.outcome, done.turns) == (Outcome.OUT_OF_MEMORY, 4)
    assert done.error is None
    assert resource in done.ending.detail
    told = TOKENIZER.decode(done.trajectories[0].response_ids)
    assert told.count(f"[all processes were killed: {over.excess}]") == 2, "the second kill was for something else"


def test_the_policy_is_told_once_for_each_threshold() -> None:
    done = attempted([THINK] * 7 + [FINISH], max_steps=8, tell_at=(0.5, 0.75))
    told = TOKENIZER.decode(done.trajectories[0].response_ids)
    assert told.count(" steps are left]") == 2
    assert "tokens and 4 steps are left]" in told and "tokens and 2 steps are left]" in told


class Watched(ScriptedPolicy):
    """Remembers how many tokens it might have said."""

    budgets: list[tuple[int, int]]

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Any:
        self.budgets.append((len(prompt_ids), max_tokens))
        return await super().sample(prompt_ids, max_tokens=max_tokens)


def test_a_turn_may_say_what_is_left_of_the_context() -> None:
    policy = Watched([THINK, THINK, FINISH], TOKENIZER)
    policy.budgets = []
    limits = AgentSection(tools=("think", "finish"))
    done = asyncio.run(
        attempt(
            "x",
            sandbox=Answering(),  # type: ignore[arg-type]
            workdir="/",
            policy=policy,
            tokenizer=TOKENIZER,
            limits=limits,
            context_tokens=4_000,
        )
    )
    assert done.ending.outcome is Outcome.FINISHED
    assert [prompt + budget for prompt, budget in policy.budgets] == [4_000] * 3


def test_a_condensed_history_begins_a_new_trajectory() -> None:
    words = [f"word{number} " * 60 for number in range(8)]
    looks = [render_call("terminal", command=f"cat {number}") for number in range(8)]
    done = attempted([*looks, FINISH], sandbox=Answering(*words), max_steps=40, context_tokens=6_000, condense_at=0.6)
    assert done.ending.outcome is Outcome.FINISHED
    first, *others = done.trajectories
    assert others
    for trajectory in others:
        prompt = TOKENIZER.decode(trajectory.prompt_ids)
        assert "f() is wrong" in prompt and "earlier calls and answers are left out here." in prompt
        assert "word0" not in prompt
    assert "word0" in TOKENIZER.decode(first.response_ids)
    sampled = [
        token
        for trajectory in done.trajectories
        for token, mine in zip(trajectory.response_ids, trajectory.response_mask, strict=True)
        if mine
    ]
    assert TOKENIZER.decode(sampled) == "".join(f"{turn}<|im_end|>" for turn in [*looks, FINISH])
    assert any(event.kind == "condensed" for event in done.events)


PLUGIN = """
import threading

from openhands.sdk import Agent
from openhands.sdk.tool import ToolExecutor, register_tool
from openhands.sdk.tool.builtins.think import ThinkTool

class MyAgent(Agent):
    \"\"\"Not ours: knows nothing of halted episodes.\"\"\"

class DoubtTool(ThinkTool):
    name = "doubt"

register_tool("doubt", DoubtTool)

comes_back = threading.Event()

class Broken(ToolExecutor):
    def __call__(self, action, conversation=None):
        match action.thought:
            case "import":
                from openhands.sdk.tool.builtins import CmdRunAction
            case "attribute":
                conversation.workspace.execute(action)
            case "value":
                raise ValueError("ask for something else")
            case "wait":
                comes_back.wait()
            case "answer":
                return {"nothing": "of an observation"}

class BrokenTool(ThinkTool):
    name = "broken"

    @classmethod
    def create(cls, conv_state=None, **params):
        (tool,) = super().create(conv_state, **params)
        return [tool.set_executor(Broken())]

class UnmadeTool(ThinkTool):
    name = "unmade"

    @classmethod
    def create(cls, conv_state=None, **params):
        from openhands.sdk.tool.builtins import FileEditAction

register_tool("broken", BrokenTool)
register_tool("unmade", UnmadeTool)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "system.j2").write_text("Be bold in {{ workdir }}.")
    (tmp_path / "task.j2").write_text("Please: {{ problem_statement }}")
    monkeypatch.syspath_prepend(tmp_path)
    return SimpleNamespace(
        modules=("my_plugin",),
        agent_class="my_plugin:MyAgent",
        tools=("doubt", "finish"),
        system_prompt=tmp_path / "system.j2",
        task_prompt=tmp_path / "task.j2",
    )


def test_agent_tools_and_prompts_are_the_profiles(plugin: SimpleNamespace) -> None:
    done = attempted([render_call("doubt", thought="why"), FINISH], **vars(plugin))
    assert done.ending.outcome is Outcome.FINISHED
    prompt = TOKENIZER.decode(done.trajectories[0].prompt_ids)
    assert "Be bold in /testbed." in prompt and "Please: f() is wrong<" in prompt
    assert '"name": "doubt"' in prompt and '"name": "terminal"' not in prompt


@pytest.mark.parametrize(
    ("thought", "cause"),
    [
        ("import", "tool broken: ImportError: cannot import name 'CmdRunAction'"),
        ("attribute", "tool broken: AttributeError: .*execute"),
        ("answer", "tool broken: ValidationError: "),
    ],
)
def test_a_tool_that_cannot_run_is_the_failure_of_the_run(plugin: SimpleNamespace, thought: str, cause: str) -> None:
    plugin.tools = ("broken", "finish")
    with pytest.raises(ToolFailed, match=cause):
        attempted([render_call("broken", thought=thought), FINISH], **vars(plugin))


def test_a_tool_that_does_not_come_back_is_too(plugin: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skyrl_stack.agent.attempt._OVERTIME_S", 1.0)
    plugin.tools, plugin.episode_timeout_s = ("broken", "finish"), 2.0
    with pytest.raises(ToolFailed, match=r"not come back 1 s after .* \(agent.episode_timeout_s = 2\)"):
        attempted([render_call("broken", thought="wait"), FINISH], **vars(plugin))
    sys.modules["my_plugin"].comes_back.set()


def test_a_tool_that_cannot_be_made_is_the_failure_of_the_run(plugin: SimpleNamespace) -> None:
    plugin.tools = ("unmade", "finish")
    with pytest.raises(ToolFailed, match=r"cannot be made: ImportError: .*FileEditAction"):
        attempted([FINISH], **vars(plugin))


def test_a_defect_of_our_own_tools_is_too() -> None:
    with pytest.raises(ToolFailed, match="SandboxTerminalAction: KeyError: 'x'"):
        attempted([LOOK, FINISH], sandbox=Answering(KeyError("x")))


def test_what_a_tool_refuses_by_a_value_error_is_told_to_the_policy(plugin: SimpleNamespace) -> None:
    plugin.tools = ("broken", "finish")
    done = attempted([render_call("broken", thought="value"), FINISH], **vars(plugin))
    assert done.ending.outcome is Outcome.FINISHED
    assert "ask for something else" in TOKENIZER.decode(done.trajectories[0].response_ids)


@pytest.mark.parametrize(
    ("script", "context", "outcome"),
    [([], 50_000, Outcome.MODEL_LOST), (["talk " * 9000], 3_000, Outcome.CONTEXT_EXCEEDED)],
)
def test_any_agent_ends_with_an_outcome(
    plugin: SimpleNamespace, script: list[str], context: int, outcome: Outcome
) -> None:
    assert attempted(script, context_tokens=context, **vars(plugin)).ending.outcome is outcome


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"tools": ("browser",)}, "browser: no such tool; registered: .*terminal"),
        ({"modules": ("no_such_module",)}, "cannot import no_such_module"),
        ({"agent_class": "skyrl_stack.agent.codeact:Nobody"}, "write module:Class"),
        ({"system_prompt": Path("/none.j2")}, "agent.system_prompt = /none.j2"),
        ({"modules": ("openhands.tools.task_tracker",), "tools": ("task_tracker",)}, "would run .* on this host"),
    ],
)
def test_what_a_profile_names_wrongly_is_one_line(agent: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        attempted([FINISH], **agent)
