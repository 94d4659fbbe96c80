"""What broke the system before this one: a test for each symptom, which fails when its cure is undone.

The names `OHCodeActAgent` and `LocalWorkspaceAdapter` are those that users of that system know.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempting import TOKENIZER, Answering, attempted
from openhands.sdk import LocalConversation
from openhands.sdk.workspace import LocalWorkspace
from playing import play, profile, sandboxes

from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.codeact import OHCodeActAgent, SealedConversation
from skyrl_stack.agent.openhands_env import state_directory
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.errors import ToolFailed
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.sweep import sweep
from skyrl_stack.tasks.task import Task

FINISH = render_call("finish", message="done")

CUSTOM = """
from openhands.sdk.tool import ToolExecutor, register_tool
from openhands.sdk.tool.builtins.think import ThinkTool
from skyrl_stack.agent.codeact import OHCodeActAgent

class MyAgent(OHCodeActAgent):
    def step(self, conversation, on_event, on_token=None):
        STEPS.append(type(self).__name__)
        super().step(conversation, on_event, on_token)

class Importing(ToolExecutor):
    def __call__(self, action, conversation=None):
        from openhands.sdk.tool.builtins import CmdRunAction

class OldTool(ThinkTool):
    name = "old"

    @classmethod
    def create(cls, conv_state=None, **params):
        (tool,) = super().create(conv_state, **params)
        return [tool.set_executor(Importing())]

register_tool("old", OldTool)
STEPS = []
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with an agent and a tool of a user's own, and no prompts beside it."""
    (tmp_path / "custom_agent.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "custom_agent", raising=False)
    return "custom_agent"


def test_workspace_must_be_a_local_workspace(tmp_path: Path) -> None:
    """Cause: LocalConversation with a remote workspace. The adapter is local for OpenHands, and its tools remote."""
    assert issubclass(LocalWorkspaceAdapter, LocalWorkspace)
    sandbox, trap = Answering("there"), tmp_path / "trap"
    command = f"touch {trap}"
    done = attempted([render_call("terminal", command=command), FINISH], sandbox=sandbox)
    assert done.ending.outcome is Outcome.FINISHED
    assert sandbox.commands == [command]
    assert not trap.exists()


def test_unknown_kind_ohcodeactagent(custom: str) -> None:
    """Cause: RemoteConversation sends the agent to a server, which does not know its class. Ours stays here."""
    assert issubclass(SealedConversation, LocalConversation)
    assert OHCodeActAgent.__name__ == "OHCodeActAgent"
    done = attempted([FINISH], agent_class=f"{custom}:MyAgent")
    assert done.ending.outcome is Outcome.FINISHED
    assert sys.modules[custom].STEPS == ["MyAgent"]


def test_permission_denied_testbed() -> None:
    """Cause: the path of the sandbox was made on this host. /proc/testbed cannot be made by anybody."""
    done = attempted([FINISH], workdir="/proc/testbed")
    assert done.ending.outcome is Outcome.FINISHED
    assert state_directory().stat().st_mode & 0o777 == 0o700


def test_permission_denied_testbed_leaves_nothing_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same: the local state is removed, also when its process could not do it."""
    crash = "from skyrl_stack.agent.openhands_env import *; import os; state_directory(); os.kill(os.getpid(), 9)"
    crashed = subprocess.run([sys.executable, "-c", crash], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert crashed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep()
    assert not left.exists()


def test_prompt_file_not_found(custom: str) -> None:
    """Cause: OpenHands looks for a subclass' prompts beside its module. Ours are given inline."""
    done = attempted([FINISH], agent_class=f"{custom}:MyAgent")
    assert "You fix issues in a Python repository at /testbed." in TOKENIZER.decode(done.trajectories[0].prompt_ids)


@pytest.mark.podman
def test_source_not_found(tests_cache: Path, tiny_image: str) -> None:
    """Cause: commands went through /bin/sh, which is dash. They go to one bash, which keeps directory and variables."""

    async def said() -> list[str]:
        async with PodmanSandboxes(f"h{os.getpid()}a", image_stores=[image_store_path(tests_cache)]) as provider:
            sandbox = await provider.start(SandboxSpec(image=tiny_image))
            await sandbox.run("mkdir /tmp/here; echo 'export WORD=kept' > /tmp/here/env.sh")
            results = [
                await sandbox.run(command) for command in ("cd /tmp/here && source ./env.sh", 'echo "$WORD $PWD"')
            ]
            return [result.stdout + result.stderr for result in results]

    assert asyncio.run(said()) == ["", "kept /tmp/here\n"]


@pytest.mark.podman
def test_invalid_internal_status(tests_cache: Path, tiny_image: str) -> None:
    """Cause: a Podman state that all runs shared was corrupt. Each has its own, made at its start."""

    def provider(name: str) -> PodmanSandboxes:
        return PodmanSandboxes(f"h{os.getpid()}{name}", image_stores=[image_store_path(tests_cache)])

    async def said() -> str:
        spec = SandboxSpec(image=tiny_image)
        async with provider("b") as first:
            await first.start(spec)
            assert first._cell
            with first._cell.client() as client:
                store = Path(client.info()["store"]["graphRoot"])
            state = [file for file in store.rglob("*") if file.suffix in (".db", ".sql")]
            assert state
            for file in state:
                file.write_bytes(b"corrupt")
            async with provider("c") as second:
                sandbox = await second.start(spec)
                return (await sandbox.run("echo alive")).stdout

    assert asyncio.run(said()) == "alive\n"


@pytest.mark.parametrize("agent", ["skyrl_stack.agent.codeact:OHCodeActAgent", "custom_agent:MyAgent"])
def test_pydantic_errors_at_context_window_exceeded(custom: str, agent: str) -> None:
    """Cause: a FinishAction in the policy's name, which did not even validate. A full context is an outcome."""
    done = attempted(["talk " * 9000], context_tokens=3_000, agent_class=agent)
    assert done.ending.outcome is Outcome.CONTEXT_EXCEEDED
    assert [event.kind for event in done.events] == ["system", "message", "end"]


def test_tool_calls_swallowed_as_an_error(custom: str) -> None:
    """Cause: an import of what does not exist, caught and shown to the policy. A tool that cannot run stops the run."""
    call = render_call("old", thought="x")
    with pytest.raises(ToolFailed, match="tool old: ImportError: cannot import name 'CmdRunAction'"):
        attempted([call, FINISH], modules=(custom,), tools=("old", "finish"))


@pytest.mark.podman
def test_any_non_empty_patch_scored_1_and_untracked_files_lost(inflection_tasks: list[Task], tmp_path: Path) -> None:
    """Cause: a placeholder in the grader's place. The tests decide, and a new file is part of the patch."""
    script: list[Any] = [render_call("terminal", command="echo 'x = 1' > new_module.py"), FINISH]

    async def played() -> Any:
        async with sandboxes() as provider:
            episode, _ = await play(inflection_tasks[0], script, RunDirectory.create(tmp_path, profile()), provider)
            return episode

    episode = asyncio.run(played())
    assert episode.patch and "+++ b/new_module.py\n@@ -0,0 +1 @@\n+x = 1\n" in episode.patch
    assert (episode.grade.reason, episode.reward) == ("TestsFailed", 0.0)
