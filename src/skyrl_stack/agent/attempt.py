"""One attempt of a policy at a task: the conversation from its first prompt to its outcome."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from openhands.sdk.conversation.exceptions import ConversationRunError
from openhands.sdk.conversation.state import ConversationExecutionStatus, ConversationState
from openhands.sdk.event import MessageEvent, ObservationEvent
from openhands.sdk.event.conversation_error import ConversationErrorEvent
from openhands.sdk.llm import content_to_str

from skyrl_stack.agent.bridge import Bridge
from skyrl_stack.agent.codeact import SealedConversation, converse
from skyrl_stack.agent.events import Event, told
from skyrl_stack.agent.heap import exempt_imports
from skyrl_stack.agent.llm import TokenLLM
from skyrl_stack.agent.outcome import Ending, Outcome, of_error, of_plain_text
from skyrl_stack.agent.policy import Policy
from skyrl_stack.agent.prompt import task_prompt
from skyrl_stack.agent.tokens import Tokenizer, Trajectory
from skyrl_stack.agent.tools.finish import BriefFinishTool
from skyrl_stack.agent.turns import TURNS
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.errors import InfrastructureError, ToolFailed
from skyrl_stack.sandbox.contract import Sandbox

_OVERTIME_S = 120.0
"In which a conversation that is over comes to an end. A thread cannot be ended from outside."


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt came to, apart from the repository that it left."""

    ending: Ending
    error: InfrastructureError | None
    "What was lost, if the ending is that."
    trajectories: list[Trajectory]
    "Linked: each but the first begins with what the one before it came to. One, unless the history was told anew."
    events: list[Event]
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
    """Let `policy` work on the problem in `sandbox` until an outcome, which a lost sandbox or model is too.

    OpenHands is synchronous, so the conversation has a thread of its own, which has ended when this returns.

    Raises:
        ProfileError: the profile names an agent, a tool or a prompt that cannot be had.
        ToolFailed: a tool cannot be made, cannot run, or does not come back.
    """
    exempt_imports()
    bridge = Bridge(asyncio.get_running_loop(), timeout_s=limits.episode_timeout_s)

    def talk() -> Attempt:
        with TURNS.taken():
            llm = TokenLLM.over(
                policy, tokenizer=tokenizer, context_tokens=context_tokens, bridge=bridge, limits=limits
            )
            workspace = LocalWorkspaceAdapter.over(sandbox, bridge=bridge, limits=limits)
            conversation = converse(llm, workspace=workspace, workdir=workdir)
            first = task_prompt(problem_statement, workdir=workdir, template=limits.task_prompt)
            ending = _held(conversation, first, bridge)
            return _summed_up(ending, conversation.state, llm, bridge)

    return await _in_own_thread(talk, bridge, timeout_s=limits.episode_timeout_s)


def _held(conversation: SealedConversation, first: str, bridge: Bridge) -> Ending | BaseException:
    """How the conversation ended, once it has."""
    try:
        conversation.send_message(first)
        conversation.run()
        return bridge.ending or _ending(conversation.state)
    except ConversationRunError as error:
        return bridge.ending or error.original_exception
    finally:
        conversation.close()


def _summed_up(ending: Ending | BaseException, state: ConversationState, llm: TokenLLM, bridge: Bridge) -> Attempt:
    error = ending if isinstance(ending, InfrastructureError) else None
    if isinstance(ending, BaseException):
        lost = of_error(ending)
        if lost is None:
            raise ending
        ending = lost
    seconds, trajectories = bridge.seconds, llm.dialogue.trajectories()
    events = list(told(state.events))
    return Attempt(ending, error, trajectories, events, llm.turns, seconds["model"], seconds["tools"])


async def _in_own_thread(talk: Callable[[], Attempt], bridge: Bridge, *, timeout_s: float) -> Attempt:
    """Run `talk` in a new thread. When this task is cancelled the bridge shuts, and the thread with it."""

    async def run() -> Attempt:
        # Not started from here: to start a thread waits until it has been given the interpreter, for milliseconds.
        return await asyncio.wrap_future(await asyncio.to_thread(_started, talk))

    thread = asyncio.ensure_future(run())
    try:
        await asyncio.wait([thread], timeout=timeout_s + _OVERTIME_S)
    except asyncio.CancelledError as error:
        bridge.end(error)
        await asyncio.wait([thread], timeout=_OVERTIME_S)
        raise
    if thread.done():
        return thread.result()
    thread.cancel()
    bridge.end(Ending(outcome=Outcome.TIMED_OUT))
    raise ToolFailed(
        f"a tool has not come back {_OVERTIME_S:.0f} s after the wall time of its episode "
        f"(agent.episode_timeout_s = {timeout_s:g}): give it a time limit of its own"
    )


def _started[T](function: Callable[[], T]) -> Future[T]:
    """What `function` will come to in a thread that does not keep the process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="conversation", daemon=True).start()
    return future


def _ending(state: ConversationState) -> Ending:
    """The ending of a conversation that ended by itself."""
    if state.execution_status is ConversationExecutionStatus.STUCK:
        return Ending(outcome=Outcome.STUCK)
    for event in reversed(state.events):
        match event:
            case ConversationErrorEvent(code="MaxIterationsReached"):
                return Ending(outcome=Outcome.STEP_LIMIT)
            case ObservationEvent(tool_name=BriefFinishTool.name):
                return Ending(outcome=Outcome.FINISHED)
            case MessageEvent(source="agent") if state.execution_status is ConversationExecutionStatus.FINISHED:
                return of_plain_text("".join(content_to_str(event.llm_message.content)))
    raise RuntimeError(f"the conversation ended as {state.execution_status} without a cause")
