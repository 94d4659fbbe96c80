"""A conversation that is ended from outside ends as OpenHands' own do: no exception, no invented action."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from openhands.sdk.conversation.state import ConversationExecutionStatus
from openhands.sdk.event import ActionEvent
from openhands.sdk.event.conversation_error import ConversationErrorEvent

from qwen3 import small_tokenizer
from skyrl_stack.agent.bridge import Bridge
from skyrl_stack.agent.codeact import SealedConversation, converse
from skyrl_stack.agent.llm import TokenLLM
from skyrl_stack.agent.outcome import Ending, Outcome
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.errors import ModelUnavailable


async def ended(script: Iterable[str], *, asynchronous: bool) -> tuple[SealedConversation, Bridge]:
    """A conversation of `script` after its run, which no tool has a part in."""
    tokenizer = small_tokenizer()
    bridge = Bridge(asyncio.get_running_loop(), timeout_s=60)
    limits = AgentSection(tell_at=())
    policy = ScriptedPolicy(script, tokenizer)
    llm = TokenLLM.over(policy, tokenizer=tokenizer, context_tokens=2500, bridge=bridge, limits=limits)
    no_sandbox: Any = None
    workspace = LocalWorkspaceAdapter.over(no_sandbox, bridge=bridge, limits=limits)
    conversation = converse(llm, workspace=workspace, workdir="/testbed")
    conversation.send_message("add(2, 2) is 0")
    await (conversation.arun() if asynchronous else asyncio.to_thread(conversation.run))
    conversation.close()
    return conversation, bridge


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_context(asynchronous: bool) -> None:
    conversation, bridge = asyncio.run(ended(["talk " * 3000], asynchronous=asynchronous))
    assert isinstance(bridge.ending, Ending) and bridge.ending.outcome is Outcome.CONTEXT_EXCEEDED
    assert conversation.state.execution_status is ConversationExecutionStatus.FINISHED
    assert isinstance(conversation.state.events[-1], ConversationErrorEvent)
    assert not any(isinstance(event, ActionEvent) for event in conversation.state.events)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_lost_model(asynchronous: bool) -> None:
    conversation, bridge = asyncio.run(ended([], asynchronous=asynchronous))
    assert isinstance(bridge.ending, ModelUnavailable)
    assert conversation.state.execution_status is ConversationExecutionStatus.FINISHED


def test_malformed_calls_one_after_another_are_each_told() -> None:
    """OpenHands drops these turns, and joins the messages between them into one."""
    malformed = "<tool_call>\nnot json\n</tool_call>"
    conversation, bridge = asyncio.run(ended([malformed, malformed, "I give up."], asynchronous=False))
    assert bridge.ending is None
    llm = conversation.agent.llm
    assert isinstance(llm, TokenLLM)
    ids = llm.dialogue.stream.trajectory().response_ids
    told = "<|im_start|>user\nMalformed tool call: not valid JSON: Expecting value<|im_end|>\n<|im_start|>assistant\n"
    end = "<|im_end|>\n"
    assert small_tokenizer().decode(ids) == f"{malformed}{end}{told}{malformed}{end}{told}I give up.<|im_end|>"
