"""The `file_editor` tool: view and change text files in the sandbox."""

import asyncio
import shlex
from collections import deque
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from openhands.sdk.tool import Action, Observation
from pydantic import Field

from skyrl_stack.agent.tools.cap import cap_middle
from skyrl_stack.agent.tools.editing import EditRefused, insert_after, invalid, numbered, replace_once, view
from skyrl_stack.agent.tools.executor import FixedTool, SandboxExecutor
from skyrl_stack.sandbox.contract import FileMissing

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState

Command = Literal["view", "create", "str_replace", "insert", "undo_edit"]

_MAX_FILE_BYTES = 10 * 1024 * 1024
"As OpenHands' editor: larger files are not for editing, and would be carried here whole."
_MOST_UNDONE = 10
"Edits of one file that can be undone, as OpenHands' editor."
_REVIEW = "Review the changes and make sure they are as expected"
_LINES = "(correct indentation, no duplicate lines, etc)"
_AGAIN = "Edit the file again if necessary."
_LOOK = """\
if [ -d "$p" ]; then echo directory
elif [ -f "$p" ]; then stat -Lc %s -- "$p"
elif [ -e "$p" ] || [ -L "$p" ]; then echo other
else
  d="$(dirname -- "$p")"; while [ ! -e "$d" ]; do d="$(dirname -- "$d")"; done
  [ -d "$d" ] && [ -w "$d" ] && echo missing || echo nowhere
fi"""
_LIST = """\
cd -- "$p" && find . -mindepth 1 -maxdepth 2 -name '.*' -prune -o -xtype d -printf '%P/\\n' -o -printf '%P\\n'
echo; ls -A -- "$p" | grep -c '^\\.'"""


class SandboxEditorAction(Action):
    """One view or edit. Field names are those of OpenHands' file_editor."""

    command: Command
    path: str = Field(description="absolute path")
    file_text: str | None = Field(default=None, description="for create")
    old_str: str | None = Field(default=None, description="for str_replace; must be unique in the file")
    new_str: str | None = Field(default=None, description="for str_replace and insert")
    insert_line: int | None = Field(default=None, ge=0, description="insert after this line")
    view_range: list[int] | None = Field(default=None, description="[first, last] line")


class SandboxEditorObservation(Observation):
    """What was seen or done."""


class SandboxEditorExecutor(SandboxExecutor[SandboxEditorAction, SandboxEditorObservation]):
    """Edits by reading and writing whole files through the sandbox; keeps what undo needs."""

    def __init__(self, state: "ConversationState") -> None:
        super().__init__(state)
        self._history: dict[str, deque[str]] = {}

    async def act(self, action: SandboxEditorAction) -> SandboxEditorObservation:
        try:
            text = await self._answer(action)
        except EditRefused as refusal:
            return SandboxEditorObservation.from_text(self._cap(str(refusal)), is_error=True)
        return SandboxEditorObservation.from_text(self._cap(text))

    async def _answer(self, action: SandboxEditorAction) -> str:
        path = await self._absolute(action.path)
        kind = await self._kind(path, action.command)
        match action.command:
            case "view" if kind == "directory":
                return await self._list(path, action.view_range)
            case "view":
                text = await self._read(path, kind)
                return await asyncio.to_thread(view, text, path, action.view_range)
            case "create":
                text = _given(action, "file_text")
                await self._write(path, text)
                self._remember(path, text)
                return f"File created successfully at: {path}"
            case "str_replace":
                old, new = _given(action, "old_str"), _given(action, "new_str")
                if old == new:
                    hint = "No replacement was performed. `new_str` and `old_str` must be different."
                    raise invalid("new_str", new, hint)
                text = await self._read(path, kind)
                edited, shown = await asyncio.to_thread(replace_once, text, old, new, path=path)
                return await self._edit(path, text, edited, f"{shown}{_REVIEW}. {_AGAIN}")
            case "insert":
                line, new = _given(action, "insert_line"), _given(action, "new_str")
                text = await self._read(path, kind)
                edited, shown = await asyncio.to_thread(insert_after, text, line, new)
                return await self._edit(path, text, edited, f"{shown}{_REVIEW} {_LINES}. {_AGAIN}")
            case "undo_edit":
                return await self._undo(path)

    async def _absolute(self, path: str) -> str:
        if "\0" in path:
            raise invalid("path", repr(path), "A path cannot hold a NUL byte.")
        normal = str(PurePosixPath(path))
        if normal.startswith("/"):
            return normal
        there = await self._ask(f'p="$PWD"/{shlex.quote(normal)}; [ -e "$p" ] && echo "$p"')
        meant = f" Maybe you meant {there}?" if there else ""
        raise invalid("path", normal, f"The path should be an absolute path.{meant}")

    async def _kind(self, path: str, command: Command) -> str:
        """`directory`, `missing` (and can be made), a file's size, or `other`: fit for `command`."""
        kind = await self._ask(f"p={shlex.quote(path)}\n{_LOOK}")
        if command == "create" and kind in ("missing", "nowhere"):
            if kind == "nowhere":
                raise EditRefused(f"Ran into a directory that cannot be written while trying to write to {path}")
            return kind
        if command == "create":
            hint = f"File already exists at: {path}. Cannot overwrite files using command `create`."
            raise invalid("path", path, hint)
        if kind in ("missing", "nowhere"):
            raise invalid("path", path, f"The path {path} does not exist. Please provide a valid path.")
        if kind == "directory" and command != "view":
            hint = f"The path {path} is a directory and only the `view` command can be used on directories."
            raise invalid("path", path, hint)
        return kind

    async def _list(self, path: str, view_range: list[int] | None) -> str:
        if view_range:
            hint = "The `view_range` parameter is not allowed when `path` points to a directory."
            raise invalid("view_range", view_range, hint)
        *names, _, hidden = (await self._ask(f"p={shlex.quote(path)}\n({_LIST})")).split("\n")
        entries = sorted(names, key=lambda name: name.rstrip("/").split("/"))
        base = path.rstrip("/")
        listing = "\n".join([f"{path}/", *(f"{base}/{name}" for name in entries)])
        text = f"Here's the files and directories up to 2 levels deep in {path}, excluding hidden items:\n{listing}"
        if hidden != "0":
            text += (
                f"\n\n{hidden} hidden files/directories in this directory are excluded."
                f" You can use 'ls -la {path}' to see them."
            )
        return text

    async def _edit(self, path: str, text: str, edited: str, shown: str) -> str:
        await self._write(path, edited)
        self._remember(path, text)
        return f"The file {path} has been edited. {shown}"

    async def _undo(self, path: str) -> str:
        history = self._history.get(path)
        if not history:
            raise EditRefused(f"No edit history found for {path}.")
        text = history.pop()
        await self._write(path, text)
        return f"Last edit to {path} undone successfully. {numbered(text, path)}"

    def _remember(self, path: str, text: str) -> None:
        self._history.setdefault(path, deque(maxlen=_MOST_UNDONE)).append(text)

    async def _read(self, path: str, kind: str) -> str:
        if kind.isdigit() and int(kind) > _MAX_FILE_BYTES:
            size = f"{int(kind) / 1024 / 1024:.1f}MB"
            raise _not_text(path, f"File is too large ({size}). Maximum allowed size is 10MB.")
        try:
            data = await self._sandbox.read_file(path) if kind.isdigit() else b"\0"
            text = data.decode()
        except (FileMissing, UnicodeDecodeError):
            text = "\0"
        if "\0" in text:
            raise _not_text(path, "File appears to be binary and this file type cannot be read or edited by this tool.")
        return text

    async def _write(self, path: str, text: str) -> None:
        try:
            await self._sandbox.write_file(path, text.encode())
        except ValueError as error:
            raise EditRefused(f"Ran into {error} while trying to write to {path}") from error

    async def _ask(self, command: str) -> str:
        """Run a command in a shell apart from the policy's, which may be in any state."""
        result = await self._sandbox.run(command, timeout_s=self._limits.command_timeout_s, shell="editor")
        return result.stdout.rstrip("\n")

    def _cap(self, text: str) -> str:
        return cap_middle(text, self._limits.observation_limit_chars)


class SandboxEditorTool(FixedTool[SandboxEditorAction, SandboxEditorObservation]):
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


def _not_text(path: str, reason: str) -> EditRefused:
    return EditRefused(f"File validation failed for {path}: {reason}")


def _given[T](action: SandboxEditorAction, name: str) -> T:  # type: ignore[misc]
    value = getattr(action, name)
    if value is None:
        raise EditRefused(f"Parameter `{name}` is required for command: {action.command}.")
    return value
