"""The OpenHands agent and conversation, closed: our tools only, and an end that is never an exception."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openhands.sdk import Agent, LocalConversation, Tool
from openhands.sdk.conversation.state import ConversationExecutionStatus
from openhands.sdk.event.conversation_error import ConversationErrorEvent
from openhands.sdk.llm.exceptions import LLMContextWindowExceedError

from skyrl_stack.agent.bridge import Halted
from skyrl_stack.agent.llm import TokenLLM
from skyrl_stack.agent.openhands_env import state_directory
from skyrl_stack.agent.prompt import system_prompt
from skyrl_stack.agent.tools.file_editor import SandboxEditorTool
from skyrl_stack.agent.tools.finish import BriefFinishTool
from skyrl_stack.agent.tools.terminal import SandboxTerminalTool
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter

TOOLS = (SandboxTerminalTool.name, SandboxEditorTool.name, BriefFinishTool.name)
"All that the policy can call."


class OHCodeActAgent(Agent):
    """OpenHands' agent; a halted episode or a full context finishes the conversation instead of failing it.

    The event says that the environment ended it: no action is invented in the policy's name.
    """

    def step(self, conversation: LocalConversation, on_event: Any, on_token: Any = None) -> None:
        with _ending(conversation, on_event):
            super().step(conversation, on_event, on_token)

    async def astep(self, conversation: LocalConversation, on_event: Any, on_token: Any = None) -> None:
        with _ending(conversation, on_event):
            await super().astep(conversation, on_event, on_token)


class SealedConversation(LocalConversation):
    """A LocalConversation that takes nothing from this host.

    The SDK adds the plugins, hooks and agents that it finds in the user's home to every conversation; hooks are
    commands that run here. Both methods are private to the pinned SDK, which has no option to turn them off.
    """

    def _ensure_plugins_loaded(self) -> None:
        self._plugins_loaded = True

    def _register_file_based_agents(self) -> None:
        pass


def converse(llm: TokenLLM, *, workspace: LocalWorkspaceAdapter, workdir: str, max_steps: int) -> SealedConversation:
    """A conversation that is ready for its first message. Kept in memory; one run of at most `max_steps` turns."""
    agent = OHCodeActAgent(
        llm=llm,
        tools=[Tool(name=name) for name in TOOLS],
        include_default_tools=[],
        system_prompt=system_prompt(workdir),
    )
    return SealedConversation(
        agent=agent,
        workspace=workspace,
        max_iteration_per_run=max_steps,
        visualizer=None,
        # A policy that repeats itself is ended by its limits, and learns from it.
        stuck_detection=False,
        profile_store_dir=state_directory() / "profiles",
    )


@contextmanager
def _ending(conversation: LocalConversation, on_event: Any) -> Iterator[None]:
    try:
        yield
    except (Halted, LLMContextWindowExceedError) as error:
        on_event(ConversationErrorEvent(source="environment", code=type(error).__name__, detail=str(error)))
        conversation.state.execution_status = ConversationExecutionStatus.FINISHED
