"""The `file_editor` tool: view and change text files in the sandbox."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from openhands.sdk.tool import Action, Observation, ToolDefinition
from pydantic import Field

from skyrl_stack.agent.tools.cap import cap_middle
from skyrl_stack.agent.tools.editing import EditRefused, insert_after, numbered, replace_once
from skyrl_stack.agent.tools.executor import SandboxExecutor
from skyrl_stack.sandbox.contract import FileMissing

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState

Command = Literal["view", "create", "str_replace", "insert", "undo_edit"]

_MAX_FILE_BYTES = 10 * 1024 * 1024
"As OpenHands' editor: larger files are not for editing, and would be carried here whole."
_KIND = """\
if [ -d "$p" ]; then echo directory
elif [ -f "$p" ]; then [ "$(stat -Lc %s -- "$p")" -le "$most" ] && echo text || echo large
elif [ -e "$p" ] || [ -L "$p" ]; then echo other
else
  while [ ! -e "$p" ]; do p="$(dirname -- "$p")"; done
  [ -d "$p" ] && [ -w "$p" ] && echo missing || echo other
fi"""


class SandboxEditorAction(Action):
    """One view or edit. Field names are those of OpenHands' file_editor."""

    command: Command
    path: str = Field(description="absolute path")
    file_text: str | None = Field(default=None, description="for create")
    old_str: str | None = Field(default=None, description="for str_replace; must be unique in the file")
    new_str: str | None = Field(default=None, description="for str_replace and insert")
    insert_line: int | None = Field(default=None, description="insert after this line")
    view_range: list[int] | None = Field(default=None, description="[first, last] line")


class SandboxEditorObservation(Observation):
    """What was seen or done."""


class SandboxEditorExecutor(SandboxExecutor[SandboxEditorAction, SandboxEditorObservation]):
    """Edits by reading and writing whole files through the sandbox; keeps what undo needs."""

    def __init__(self, state: "ConversationState") -> None:
        super().__init__(state)
        self._history: dict[str, list[str]] = {}

    async def act(self, action: SandboxEditorAction) -> SandboxEditorObservation:
        try:
            text = await self._answer(action)
        except EditRefused as refusal:
            return SandboxEditorObservation.from_text(self._cap(str(refusal)), is_error=True)
        return SandboxEditorObservation.from_text(self._cap(text))

    async def _answer(self, action: SandboxEditorAction) -> str:
        if not action.path.startswith("/") or "\0" in action.path:
            raise EditRefused(f"Invalid path {action.path!r}: it should be an absolute path.")
        match action.command:
            case "view":
                return await self._view(action.path, action.view_range)
            case "create":
                return await self._create(action.path, _given(action, "file_text"))
            case "str_replace":
                text = await self._read(action.path)
                edited, snippet = replace_once(text, _given(action, "old_str"), action.new_str or "", path=action.path)
                return await self._edit(action.path, text, edited, snippet)
            case "insert":
                text = await self._read(action.path)
                edited, snippet = insert_after(text, _given(action, "insert_line"), _given(action, "new_str"))
                return await self._edit(action.path, text, edited, snippet)
            case "undo_edit":
                return await self._undo(action.path)

    async def _view(self, path: str, view_range: list[int] | None) -> str:
        kind = await self._kind(path)
        if kind == "directory":
            find = "find . -mindepth 1 -maxdepth 2 -not -path '*/.*' -printf '%P\\n' | LC_ALL=C sort"
            listing = await self._ask(f"(cd -- {shlex.quote(path)} && {find})")
            return f"Files and directories up to 2 levels deep in {path}, without hidden ones:\n{listing}"
        text = await self._read(path, kind=kind)
        return f"Here's the result of running `cat -n` on {path}:\n{numbered(text, view_range)}"

    async def _create(self, path: str, text: str) -> str:
        if await self._kind(path) != "missing":
            raise EditRefused(f"Cannot create {path}: it is there already, or its directory cannot be written.")
        await self._write(path, text)
        return f"File created successfully at: {path}"

    async def _edit(self, path: str, text: str, edited: str, snippet: str) -> str:
        await self._write(path, edited)
        self._history.setdefault(path, []).append(text)
        return f"The file {path} has been edited. Here's the result of running `cat -n` on a snippet of it:\n{snippet}"

    async def _undo(self, path: str) -> str:
        history = self._history.get(path)
        if not history:
            raise EditRefused(f"No edit history found for {path}.")
        await self._write(path, history.pop())
        return f"Last edit to {path} undone successfully."

    async def _read(self, path: str, *, kind: str | None = None) -> str:
        kind = kind or await self._kind(path)
        if kind == "missing":
            raise EditRefused(f"The path {path} does not exist. Please provide a valid path.")
        if kind != "text":
            raise EditRefused(f"The path {path} is not a file of at most {_MAX_FILE_BYTES} bytes; use the terminal.")
        try:
            return (await self._sandbox.read_file(path)).decode()
        except (FileMissing, UnicodeDecodeError) as error:
            raise EditRefused(f"{path} is not a text file.") from error

    async def _write(self, path: str, text: str) -> None:
        try:
            await self._sandbox.write_file(path, text.encode())
        except ValueError as error:
            raise EditRefused(f"Cannot write {path}: {error}") from error

    async def _kind(self, path: str) -> str:
        """`directory`, `text` (a file of a size to edit), `missing` (and can be made), or anything else."""
        return await self._ask(f"p={shlex.quote(path)}; most={_MAX_FILE_BYTES}\n{_KIND}")

    async def _ask(self, command: str) -> str:
        """Run a command in a shell apart from the policy's, which may be in any state."""
        result = await self._sandbox.run(command, timeout_s=self._limits.command_timeout_s, shell="editor")
        return result.stdout.rstrip("\n")

    def _cap(self, text: str) -> str:
        return cap_middle(text, self._limits.observation_limit_chars)


class SandboxEditorTool(ToolDefinition[SandboxEditorAction, SandboxEditorObservation]):
    """Named `file_editor`, as OpenHands' own, which edits files of the host and is not registered here."""

    name: ClassVar[str] = "file_editor"

    @classmethod
    def create(cls, conv_state: "ConversationState") -> Sequence[Self]:
        return [
            cls(
                description="View or edit a file.",
                action_type=SandboxEditorAction,
                observation_type=SandboxEditorObservation,
                executor=SandboxEditorExecutor(conv_state),
            )
        ]


def _given[T](action: SandboxEditorAction, name: str) -> T:  # type: ignore[misc]
    value = getattr(action, name)
    if value is None:
        raise EditRefused(f"Parameter `{name}` is required for command: {action.command}.")
    return value
