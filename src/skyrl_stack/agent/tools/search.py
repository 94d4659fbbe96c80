"""The `grep` and `glob` tools: which files hold a pattern, and which have a name; searched in the sandbox.

Both answer in the words of OpenHands' own. They need grep and find of the image; where an image lacks them the
policy is told what bash said.
"""

import posixpath
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from openhands.sdk.tool import Action, Observation
from pydantic import Field, field_validator

from skyrl_stack.agent.tools.cap import cap_middle
from skyrl_stack.agent.tools.executor import FixedTool, SandboxExecutor
from skyrl_stack.agent.tools.glob_pattern import base_and_pattern, glob_regex

if TYPE_CHECKING:
    from openhands.sdk.conversation.state import ConversationState

_MOST_FILES = 100
_CUT = "\n\n[Results truncated to first 100 files. Consider using a more specific pattern.]"
_NEWEST_FIRST = "LC_ALL=C sort -k1,1nr -k2"
_NO_DIRECTORY = 3
"Exit code by which a search says that its directory is none."


class SearchRefused(Exception):
    """The search cannot be made; the message is for the policy."""


class _SearchAction(Action):
    pattern: str
    path: str | None = Field(default=None, description="absolute path of the directory; default: the current one")

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a pattern or path cannot hold a NUL byte")
        return value


class SandboxGrepAction(_SearchAction):
    """Field names are those of OpenHands' grep."""

    pattern: str = Field(description="regular expression to search for in file contents")
    include: str | None = Field(default=None, description='only files of this name, as "*.py"')


class SandboxGlobAction(_SearchAction):
    """Field names are those of OpenHands' glob."""

    pattern: str = Field(description='as "**/test_*.py"')


class SearchObservation(Observation):
    """The files found, newest first."""


class _SearchExecutor[A: _SearchAction](SandboxExecutor[A, SearchObservation]):
    async def act(self, action: A) -> SearchObservation:
        try:
            text = await self._answer(action)
        except SearchRefused as refusal:
            return SearchObservation.from_text(str(refusal), is_error=True)
        return SearchObservation.from_text(cap_middle(text, self._limits.observation_limit_chars))

    async def _answer(self, action: A) -> str:
        raise NotImplementedError

    async def _ask(self, directory: str, command: str) -> list[str]:
        """Where it is, and the lines that `command` prints there; a relative one begins where the policy's shell is."""
        where = f"cd -- {shlex.quote(directory)} 2>/dev/null || exit {_NO_DIRECTORY}"
        result = await self._sandbox.run(
            f"({where}\npwd -P\n{command})", timeout_s=self._limits.command_timeout_s, shell=self._workspace.shell
        )
        if result.exit_code == _NO_DIRECTORY:
            raise SearchRefused(f"Search path '{directory}' is not a valid directory")
        if result.timed_out or (result.exit_code and result.stderr):
            raise SearchRefused(result.stderr.strip() or "the search took too long; search a smaller directory")
        return result.stdout.splitlines()


class SandboxGrepExecutor(_SearchExecutor[SandboxGrepAction]):
    """grep -R, as OpenHands' own where there is no ripgrep: case ignored, binary and hidden files left out."""

    async def _answer(self, action: SandboxGrepAction) -> str:
        try:
            re.compile(action.pattern)
        except re.error as error:
            raise SearchRefused(f"Invalid regex pattern: {error}") from error
        grep = f"grep -RIlZs --exclude-dir='.?*' -ie {shlex.quote(action.pattern)} ."
        search = f"set -o pipefail; {grep} | xargs -0r stat -c '%Y %n' -- | {_NEWEST_FIRST}"
        root, *lines = await self._ask(action.path or ".", search)
        names = [line.partition(" ")[2].removeprefix("./") for line in lines]
        include = glob_regex(action.include.rpartition("/")[2]) if action.include else None
        found = [posixpath.join(root, name) for name in names if _shown(name, include)]
        filtered = f" (filtered by '{action.include}')" if action.include else ""
        if not found:
            return f"No files found containing pattern '{action.pattern}' in directory '{root}'{filtered}"
        listed = "\n".join(found[:_MOST_FILES])
        cut = _CUT if len(found) > _MOST_FILES else ""
        count = min(len(found), _MOST_FILES)
        return f"Found {count} file(s) containing pattern '{action.pattern}' in '{root}'{filtered}:\n{listed}{cut}"


class SandboxGlobExecutor(_SearchExecutor[SandboxGlobAction]):
    """find, filtered here by the pattern: always recursive, hidden files left out."""

    async def _answer(self, action: SandboxGlobAction) -> str:
        directory, pattern = (action.path, action.pattern) if action.path else base_and_pattern(action.pattern)
        find = "find . -name '.?*' -prune -o -type f -printf '%T@ %P\\n'"
        root, *lines = await self._ask(directory or ".", f"{find} | {_NEWEST_FIRST}")
        wanted = glob_regex(pattern if "**" in pattern else f"**/{pattern}")
        names = (line.partition(" ")[2] for line in lines)
        found = [posixpath.join(root, name) for name in names if wanted.fullmatch(name)]
        if not found:
            return f"No files found matching pattern '{action.pattern}' in directory '{root}'"
        listed = "\n".join(found[:_MOST_FILES])
        cut = _CUT if len(found) > _MOST_FILES else ""
        count = min(len(found), _MOST_FILES)
        return f"Found {count} file(s) matching pattern '{action.pattern}' in '{root}':\n{listed}{cut}"


class SandboxGrepTool(FixedTool[SandboxGrepAction, SearchObservation]):
    """Named `grep`, as OpenHands' own, which searches the host and is not registered here."""

    name: ClassVar[str] = "grep"

    @classmethod
    def create(cls, conv_state: "ConversationState") -> Sequence[Self]:
        return [
            cls(
                description="Find the files that hold a pattern.",
                action_type=SandboxGrepAction,
                observation_type=SearchObservation,
                executor=SandboxGrepExecutor(conv_state),
            )
        ]


class SandboxGlobTool(FixedTool[SandboxGlobAction, SearchObservation]):
    """Named `glob`, as OpenHands' own, which searches the host and is not registered here."""

    name: ClassVar[str] = "glob"

    @classmethod
    def create(cls, conv_state: "ConversationState") -> Sequence[Self]:
        return [
            cls(
                description="Find files by name, newest first.",
                action_type=SandboxGlobAction,
                observation_type=SearchObservation,
                executor=SandboxGlobExecutor(conv_state),
            )
        ]


def _shown(name: str, include: re.Pattern[str] | None) -> bool:
    *directories, file = name.split("/")
    if any(directory.startswith(".") for directory in directories):
        return False
    return bool(include.fullmatch(file)) if include else not file.startswith(".")
