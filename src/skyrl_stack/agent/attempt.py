"""One attempt of a policy at a task: the conversation from its first prompt to its outcome."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openhands.sdk.conversation.exceptions import ConversationRunError
from openhands.sdk.conversation.state import ConversationExecutionStatus, ConversationState
from openhands.sdk.event import MessageEvent, ObservationEvent
from openhands.sdk.event.conversation_error import ConversationErrorEvent

from skyrl_stack.agent.bridge import Bridge
from skyrl_stack.agent.codeact import converse
from skyrl_stack.agent.llm import TokenLLM
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.policy import Policy
from skyrl_stack.agent.prompt import task_prompt
from skyrl_stack.agent.tokens import Tokenizer, Trajectory
from skyrl_stack.agent.tools.finish import BriefFinishTool
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.profile import AgentSection
from skyrl_stack.sandbox.contract import Sandbox


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt came to, apart from the repository that it left."""

    outcome: Outcome
    trajectory: Trajectory
    turns: int
    "Turns that the policy sampled."
    model_s: float
    tools_s: float


async def attempt(
    problem_statement: str,
    *,
    sandbox: Sandbox,
    workdir: str,
    policy: Policy,
    tokenizer: Tokenizer,
    limits: AgentSection,
    context_tokens: int,
) -> Attempt:
    """Let `policy` work on the problem in `sandbox` until an outcome.

    OpenHands is synchronous, so the conversation has a thread of its own, which has ended when this returns.

    Raises:
        InfrastructureError: the sandbox or the model was lost.
    """
    loop = asyncio.get_running_loop()
    bridge = Bridge(loop, timeout_s=limits.episode_timeout_s)
    llm = TokenLLM.over(policy, tokenizer=tokenizer, context_tokens=context_tokens, bridge=bridge)
    workspace = LocalWorkspaceAdapter.over(sandbox, bridge=bridge, limits=limits)

    def talk() -> Outcome | BaseException:
        conversation = converse(llm, workspace=workspace, workdir=workdir, max_steps=limits.max_steps)
        try:
            conversation.send_message(task_prompt(problem_statement))
            conversation.run()
            return bridge.ending or _outcome(conversation.state)
        except ConversationRunError as error:
            raise error.original_exception from None
        finally:
            conversation.close()

    ending = await _in_own_thread(talk, bridge)
    if isinstance(ending, BaseException):
        raise ending
    return Attempt(ending, llm.tokens.trajectory(), llm.turns, bridge.seconds["model"], bridge.seconds["tools"])


async def _in_own_thread(talk: Callable[[], Outcome | BaseException], bridge: Bridge) -> Outcome | BaseException:
    """Run `talk` in a new thread. When this task is cancelled the bridge shuts, and the thread with it."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="conversation")
    thread = asyncio.get_running_loop().run_in_executor(pool, talk)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError as error:
        bridge.end(error)
        await asyncio.wait([thread])
        raise
    finally:
        pool.shutdown(wait=False)


def _outcome(state: ConversationState) -> Outcome:
    """The outcome of a conversation that ended by itself."""
    for event in reversed(state.events):
        match event:
            case ConversationErrorEvent(code="MaxIterationsReached"):
                return Outcome.STEP_LIMIT
            case ObservationEvent(tool_name=BriefFinishTool.name):
                return Outcome.FINISHED
            case MessageEvent(source="agent") if state.execution_status is ConversationExecutionStatus.FINISHED:
                return Outcome.PLAIN_TEXT
    raise RuntimeError(f"the conversation ended as {state.execution_status} without a cause")
