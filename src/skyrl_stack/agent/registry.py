"""What a profile names, found: an agent class, and tools of OpenHands' registry that act in the sandbox."""

import importlib
import sys
from typing import Any

from openhands.sdk.agent.base import AgentBase
from openhands.sdk.tool import register_tool
from openhands.sdk.tool.registry import get_tool_module_qualnames

from skyrl_stack.agent.tools.file_editor import SandboxEditorTool
from skyrl_stack.agent.tools.finish import BriefFinishTool
from skyrl_stack.agent.tools.search import SandboxGlobTool, SandboxGrepTool
from skyrl_stack.agent.tools.terminal import SandboxTerminalTool
from skyrl_stack.agent.tools.think import BriefThinkTool
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.errors import ProfileError

_OURS = (SandboxTerminalTool, SandboxEditorTool, SandboxGrepTool, SandboxGlobTool, BriefThinkTool, BriefFinishTool)
_ON_THIS_HOST = "openhands.tools."
"Package of OpenHands' own executors, which act in the process of the agent."


def known_tools(section: AgentSection) -> tuple[str, ...]:
    """The profile's tools, registered.

    Raises:
        ProfileError: a module cannot be imported, a name is not registered, or the tool would act on this host.
    """
    for name in section.modules:
        _module("agent.modules", name)
    homes = get_tool_module_qualnames()
    for tool in _OURS:
        if homes.get(tool.name, _ON_THIS_HOST).startswith(_ON_THIS_HOST):  # or a module brought OpenHands' own along
            register_tool(tool.name, tool)
    homes = get_tool_module_qualnames()
    for name in section.tools:
        if name not in homes:
            raise ProfileError(f"agent.tools: {name}: no such tool; registered: {', '.join(sorted(homes))}")
        if homes[name].startswith(_ON_THIS_HOST):
            raise ProfileError(f"agent.tools: {name}: {homes[name]} would run the policy's calls on this host")
    return section.tools


def agent_class(section: AgentSection) -> Any:
    """The profile's agent.

    Raises:
        ProfileError: there is no such class, or it is no agent of OpenHands.
    """
    module, _, name = section.agent_class.partition(":")
    found = getattr(_module("agent.agent_class", module), name, None)
    if not isinstance(found, type) or not issubclass(found, AgentBase):
        raise ProfileError(f"agent.agent_class = {section.agent_class}: write module:Class, of an OpenHands agent")
    return found


def _module(key: str, name: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ProfileError(f"{key}: cannot import {name}: {error}") from error
