"""The OpenHands agent and conversation, closed: tools of the sandbox only, and an end that is never an exception."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openhands.sdk import Agent, LocalConversation, Tool
from openhands.sdk.conversation.state import ConversationExecutionStatus
from openhands.sdk.event.conversation_error import ConversationErrorEvent
from openhands.sdk.llm.exceptions import LLMContextWindowExceedError

from skyrl_stack.agent.bridge import Halted
from skyrl_stack.agent.condenser import MiddleOut
from skyrl_stack.agent.llm import TokenLLM
from skyrl_stack.agent.openhands_env import state_directory
from skyrl_stack.agent.prompt import system_prompt
from skyrl_stack.agent.registry import agent_class, known_tools
from skyrl_stack.agent.tools.sound import SoundExecutor
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.errors import ToolFailed, attribute


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
    commands that run here. These methods are private to the pinned SDK, which has no option for it.
    """

    def __init__(self, *, workspace: LocalWorkspaceAdapter, **options: Any) -> None:
        super().__init__(workspace=workspace, **options)
        self._bridge = workspace.bridge

    def _ensure_plugins_loaded(self) -> None:
        self._plugins_loaded = True

    def _register_file_based_agents(self) -> None:
        pass

    def _ensure_agent_ready(self) -> None:
        """Make the agent's tools, as ones of which a failure ends the episode.

        Raises:
            ToolFailed: one cannot be made.
        """
        if self._agent_ready:
            return
        with attribute(ToolFailed, "the tools of the agent cannot be made"):
            super()._ensure_agent_ready()
        tools = self.agent.tools_map
        sound = {name: tool.set_executor(SoundExecutor(tool, self._bridge)) for name, tool in tools.items()}
        object.__setattr__(self.agent, "_tools", sound)  # as the SDK does: its agents are frozen


def converse(llm: TokenLLM, *, workspace: LocalWorkspaceAdapter, workdir: str) -> SealedConversation:
    """A conversation that is ready for its first message, with the agent and tools of the profile. Kept in memory.

    Raises:
        ProfileError: the profile names an agent, a module, a tool or a prompt that cannot be had.
    """
    section = workspace.limits
    agent = agent_class(section)(
        llm=llm,
        tools=[Tool(name=name) for name in known_tools(section)],
        include_default_tools=[],
        system_prompt=system_prompt(workdir, section.system_prompt),
        condenser=MiddleOut() if section.condense_at else None,
    )
    return SealedConversation(
        agent=agent,
        workspace=workspace,
        max_iteration_per_run=section.max_steps,
        visualizer=None,
        stuck_detection=section.detect_stuck,
        profile_store_dir=state_directory() / "profiles",
    )


@contextmanager
def _ending(conversation: LocalConversation, on_event: Any) -> Iterator[None]:
    try:
        yield
    except (Halted, LLMContextWindowExceedError) as error:
        on_event(ConversationErrorEvent(source="environment", code=type(error).__name__, detail=str(error)))
        conversation.state.execution_status = ConversationExecutionStatus.FINISHED
