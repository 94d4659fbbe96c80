"""Git of a sandbox in OpenHands' terms: what changed against HEAD, and both sides of one file."""

from pathlib import PurePosixPath
from shlex import quote
from typing import Any

from skyrl_stack.runtime.wire import NotRight
from skyrl_stack.sandbox.contract import CommandResult, FileMissing, FileTooLarge, Sandbox

_SHELL = "git"
_TIMEOUT_S = 50.0


async def changes(sandbox: Sandbox, path: str) -> list[dict[str, str]]:
    """Files below `path` that are not as in HEAD, new ones included.

    Raises:
        NotRight: `path` is not in a repository.
    """
    result = await _git(sandbox, path, "status --porcelain=v1 --untracked-files=all --no-renames -z")
    if result.exit_code:
        raise NotRight(f"{path}: {_reason(result)}")
    entries = [entry for entry in result.stdout.split("\0") if entry]
    return [{"status": _status(entry[:2]), "path": entry[3:]} for entry in entries]


async def diff(sandbox: Sandbox, path: str) -> dict[str, Any]:
    """A file as it is in HEAD (`original`) and now (`modified`); None where there is none.

    Raises:
        NotRight: `path` is not in a repository, or the file is too large for an answer.
    """
    file = PurePosixPath(path)
    inside = await _git(sandbox, str(file.parent), "rev-parse --is-inside-work-tree")
    if inside.exit_code:
        raise NotRight(f"{path}: {_reason(inside)}")
    original = await _git(sandbox, str(file.parent), f"show {quote(f'HEAD:./{file.name}')}")
    if original.truncated_bytes:
        raise NotRight(f"{path}: too large for a diff")
    try:
        modified = (await sandbox.read_file(path)).decode(errors="replace")
    except FileTooLarge as error:
        raise NotRight(str(error)) from error
    except FileMissing:
        modified = None
    return {"modified": modified, "original": None if original.exit_code else original.stdout}


async def _git(sandbox: Sandbox, directory: str, arguments: str) -> CommandResult:
    command = f"git -c safe.directory='*' -C {quote(directory)} --no-pager {arguments}"
    return await sandbox.run(command, shell=_SHELL, timeout_s=_TIMEOUT_S)


def _status(letters: str) -> str:
    """From the letters of `git status`: what became of the file in the index, and in the work tree."""
    if letters == "??" or "A" in letters:
        return "ADDED"
    return "DELETED" if "D" in letters else "UPDATED"


def _reason(result: CommandResult) -> str:
    return result.stderr.strip() or f"git ended with {result.exit_code}"
