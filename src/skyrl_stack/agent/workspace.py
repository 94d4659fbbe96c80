"""OpenHands' workspace as a handle on the sandbox: what the tools need, and nothing of this host."""

from pathlib import Path
from typing import Any, NoReturn, Self

from openhands.sdk.workspace import LocalWorkspace
from openhands.sdk.workspace.models import CommandResult
from pydantic import PrivateAttr

from skyrl_stack.agent.bridge import Bridge
from skyrl_stack.agent.openhands_env import state_directory
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.sandbox.contract import Sandbox


class LocalWorkspaceAdapter(LocalWorkspace):
    """A LocalWorkspace, since LocalConversation takes no other, whose every verb means the sandbox.

    `working_dir` is an empty private directory: OpenHands makes it, and looks there for its own files.
    """

    _sandbox: Sandbox = PrivateAttr()
    _bridge: Bridge = PrivateAttr()
    _limits: AgentSection = PrivateAttr()
    _shells: int = PrivateAttr(default=1)

    @classmethod
    def over(cls, sandbox: Sandbox, *, bridge: Bridge, limits: AgentSection) -> Self:
        """The workspace of one episode."""
        workspace = cls(working_dir=str(state_directory()))
        workspace._sandbox, workspace._bridge, workspace._limits = sandbox, bridge, limits
        return workspace

    @property
    def sandbox(self) -> Sandbox:
        return self._sandbox

    @property
    def bridge(self) -> Bridge:
        return self._bridge

    @property
    def limits(self) -> AgentSection:
        return self._limits

    @property
    def shell(self) -> str:
        """Name of the policy's own shell in the sandbox."""
        return "main" if self._shells == 1 else f"main-{self._shells}"

    def renew_shell(self) -> None:
        """A new one from here on: nothing of the old one's directory or environment."""
        self._shells += 1

    def execute_command(self, command: str, cwd: str | Path | None = None, timeout: float = 30.0) -> CommandResult:
        """Run a command in the sandbox, in a shell apart from the policy's."""
        work = self.sandbox.run(command, timeout_s=timeout, shell="workspace", cwd=cwd and str(cwd))
        result = self.bridge.call("tools", work)
        return CommandResult(
            command=command,
            exit_code=result.exit_code,
            stdout=result.stdout,
            stderr=result.stderr,
            timeout_occurred=result.timed_out,
        )

    def file_upload(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def file_download(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def git_changes(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()

    def git_diff(self, *_: Any, **__: Any) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise NotImplementedError("files of the sandbox are reached through the file_editor tool, not the workspace")
