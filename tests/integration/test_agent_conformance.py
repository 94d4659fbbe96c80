"""Our tools in a sandbox against OpenHands' own on this machine: the same calls, the same words, the same files."""

import asyncio
import os
import random
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openhands.sdk.tool import ToolDefinition
from openhands.sdk.tool.builtins.finish import FinishTool
from openhands.sdk.tool.builtins.think import ThinkTool
from playing import sandboxes

from skyrl_stack.agent.bridge import Bridge
from skyrl_stack.agent.tools.file_editor import SandboxEditorAction, SandboxEditorExecutor, SandboxEditorTool
from skyrl_stack.agent.tools.finish import BriefFinishTool
from skyrl_stack.agent.tools.search import (
    SandboxGlobAction,
    SandboxGlobExecutor,
    SandboxGlobTool,
    SandboxGrepAction,
    SandboxGrepExecutor,
    SandboxGrepTool,
)
from skyrl_stack.agent.tools.terminal import SandboxTerminalAction, SandboxTerminalExecutor, SandboxTerminalTool
from skyrl_stack.agent.tools.think import BriefThinkTool
from skyrl_stack.agent.workspace import LocalWorkspaceAdapter
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.sandbox.contract import Sandbox, SandboxSpec
from skyrl_stack.tasks.task import Task

FILES = {
    "a.py": "def add(a, b):\n    return a - b\n\n\ndef mul(a, b):\n    return a * b\n",
    "pkg/__init__.py": "",
    "pkg/b.py": "# \u00e9t\u00e9 \U0001f469\u200d\U0001f467\nX = 1\nX = 1\n",
    "pkg/deep/c.txt": "Needle in a haystack\n" * 12,
    "pkg/.hidden/d.py": "needle",
    ".secret": "needle\n",
    "no_newline.txt": "one\ntwo",
    "odd.txt": "form\x0cfeed\u2028line\n",
}
INSIDE = AgentSection(observation_limit_chars=100_000)


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory with the files, at a path that the sandbox can have too."""
    path = Path(tempfile.mkdtemp(prefix="conformance-", dir="/tmp"))
    for number, (name, text) in enumerate(FILES.items()):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
        os.utime(file, (1_700_000_000 + number, 1_700_000_000 + number))
    yield path
    shutil.rmtree(path)


async def furnished(sandbox: Sandbox, root: Path) -> Any:
    """The state of a conversation in `sandbox`, which has the files too."""
    for number, (name, text) in enumerate(FILES.items()):
        await sandbox.write_file(str(root / name), text.encode())
        await sandbox.run(f"touch -d @{1_700_000_000 + number} {root / name}")
    await sandbox.run(f"cd {root}")
    bridge = Bridge(asyncio.get_running_loop(), timeout_s=300)
    return SimpleNamespace(workspace=LocalWorkspaceAdapter.over(sandbox, bridge=bridge, limits=INSIDE))


def in_sandbox(task: Task, root: Path, work: Callable[[Sandbox, Any], Awaitable[None]]) -> None:
    async def run() -> None:
        async with sandboxes() as provider:
            sandbox = await provider.start(SandboxSpec(image=task.image, workdir="/testbed"))
            await work(sandbox, await furnished(sandbox, root))

    asyncio.run(run())


def editor_calls(root: Path) -> Iterator[dict[str, Any]]:
    a, b, bare = str(root / "a.py"), str(root / "pkg/b.py"), str(root / "no_newline.txt")
    yield {"command": "view", "path": a}
    yield {"command": "view", "path": str(root)}
    yield {"command": "view", "path": f"{root}//pkg/"}
    yield {"command": "view", "path": str(root / "pkg/__init__.py")}
    yield {"command": "view", "path": str(root / "odd.txt"), "view_range": [1, 1]}
    for view_range in ([2, 4], [2, -1], [2, 99], [0, 2], [9, 9], [5, 3], [1], [-1, 3]):
        yield {"command": "view", "path": a, "view_range": view_range}
    yield {"command": "view", "path": str(root), "view_range": [1, 2]}
    for path in (str(root / "none.py"), "a.py", str(root)):
        yield {"command": "str_replace", "path": path, "old_str": "x", "new_str": "y"}
    yield {"command": "create", "path": a, "file_text": "x"}
    yield {"command": "create", "path": str(root / "new.py")}
    yield {"command": "create", "path": str(root / "new.py"), "file_text": "new\n\tfile"}
    yield {"command": "undo_edit", "path": str(root / "new.py")}
    yield {"command": "str_replace", "path": b, "old_str": "X = 1", "new_str": "Y"}
    yield {"command": "str_replace", "path": b, "old_str": "nowhere", "new_str": "Y"}
    yield {"command": "str_replace", "path": b, "old_str": "same", "new_str": "same"}
    yield {"command": "str_replace", "path": b, "old_str": "X = 1"}
    yield {"command": "str_replace", "path": b, "new_str": "X = 1"}
    yield {"command": "str_replace", "path": a, "old_str": "  a - b \n", "new_str": "a + b  # \u00fc"}
    yield {"command": "str_replace", "path": a, "old_str": "def mul(a, b):\n    return a * b\n", "new_str": ""}
    yield {"command": "insert", "path": a, "insert_line": 0, "new_str": "# top\n# of it"}
    yield {"command": "insert", "path": a, "insert_line": 99, "new_str": "x"}
    yield {"command": "insert", "path": a, "new_str": "x"}
    yield {"command": "insert", "path": a, "insert_line": 1}
    yield {"command": "insert", "path": bare, "insert_line": 1, "new_str": "between"}
    yield from ({"command": "undo_edit", "path": a} for _ in range(4))
    yield {"command": "undo_edit", "path": b}
    chance = random.Random(0)
    for _ in range(25):
        word = chance.choice(["a", "def ", "return a", "\n", "- b", "    return", ":\n", "X"])
        yield chance.choice(
            [
                {"command": "str_replace", "path": a, "old_str": word, "new_str": chance.choice(["", "z\n", "q  "])},
                {"command": "insert", "path": a, "insert_line": chance.randrange(7), "new_str": word * 2},
                {"command": "undo_edit", "path": a},
                {"command": "view", "path": a},
            ]
        )


@pytest.mark.podman
def test_the_editor_answers_and_edits_as_openhands_own(
    inflection_tasks: list[Task], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openhands.tools.file_editor.definition import FileEditorAction
    from openhands.tools.file_editor.impl import FileEditorExecutor

    with monkeypatch.context() as patched:  # it leaves its history behind
        patched.setattr(tempfile, "tempdir", str(tmp_path))
        theirs = FileEditorExecutor(workspace_root=str(root))

    async def compare(sandbox: Sandbox, state: Any) -> None:
        await sandbox.run(f"cd {root}", shell="editor")
        ours = SandboxEditorExecutor(state)
        for call in editor_calls(root):
            mine = await ours.act(SandboxEditorAction(**call))
            stock = theirs(FileEditorAction(**call))
            assert (mine.text, mine.is_error) == (stock.text, stock.is_error), call
        for file in [*FILES, "new.py"]:
            assert await sandbox.read_file(str(root / file)) == (root / file).read_bytes(), file

    in_sandbox(inflection_tasks[0], root, compare)


@pytest.mark.podman
def test_searches_find_what_openhands_own_find(inflection_tasks: list[Task], root: Path) -> None:
    from openhands.tools.glob.definition import GlobAction
    from openhands.tools.glob.impl import GlobExecutor
    from openhands.tools.grep.definition import GrepAction
    from openhands.tools.grep.impl import GrepExecutor

    greps: list[dict[str, Any]] = [
        {"pattern": "needle"},
        {"pattern": "needle", "path": str(root / "pkg")},
        {"pattern": "def .*b)", "include": "*.py"},
        {"pattern": "needle", "include": "*.py"},
        {"pattern": "no such thing"},
        {"pattern": "(", "path": str(root)},
        {"pattern": "x", "path": str(root / "none")},
        {"pattern": "-e", "include": "*.txt"},
    ]
    globs: list[dict[str, Any]] = [
        {"pattern": "*.py"},
        {"pattern": "**/*.py"},
        {"pattern": "pkg/**/*.txt"},
        {"pattern": "[ab].py", "path": str(root)},
        {"pattern": "?.txt"},
        {"pattern": f"{root}/pkg/*.py"},
        {"pattern": "*.rs"},
        {"pattern": "*", "path": str(root / "none")},
    ]

    async def compare(_: Sandbox, state: Any) -> None:
        grep, glob = GrepExecutor(working_dir=str(root)), GlobExecutor(working_dir=str(root))
        assert (grep._search_backend, glob._ripgrep_available) == ("grep", False), "ripgrep sorts otherwise"
        for call in greps:
            mine, stock = await SandboxGrepExecutor(state).act(SandboxGrepAction(**call)), grep(GrepAction(**call))
            assert (mine.text, mine.is_error) == (stock.text, stock.is_error), call
        for call in globs:
            mine, stock = await SandboxGlobExecutor(state).act(SandboxGlobAction(**call)), glob(GlobAction(**call))
            assert (mine.text, mine.is_error) == (stock.text, stock.is_error), call

    in_sandbox(inflection_tasks[0], root, compare)


COMMANDS = (
    "pwd",
    "export WORD='kept \u00e9'; cd pkg",
    'echo "$WORD in $(basename $PWD)"',
    "false",
    "echo to stderr >&2; (exit 7)",
    "for i in 1 2 3; do\n  echo $i\ndone",
    "cat <<'END'\na  b\n   c\nEND",  # OpenHands' shell takes a tab for a wish to complete
    "f() { echo from a function; }; f",
    "source /dev/null && echo bash reads source; [[ a == a ]] && echo and double brackets",
    "printf 'no newline'",
    "nosuchcommand_x 2>/dev/null",
)


def plain(text: str) -> str:
    """What a terminal printed, without how it was told to show it."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).lstrip("\r\n").replace("\r", "")


def says_the_same(mine: Any, stock: Any, command: str) -> bool:
    said = mine.text.removesuffix(f"[exit code {mine.exit_code}]").rstrip()
    printed = plain(stock.text).rstrip()
    # OpenHands' shows a command again that has several lines, or that its terminal was not ready for.
    again = printed.startswith(command) or "\n" in command
    return mine.exit_code == stock.exit_code and (said == printed or (again and printed.endswith(said)))


@pytest.mark.podman
def test_the_terminal_prints_and_keeps_what_openhands_own_does(inflection_tasks: list[Task], root: Path) -> None:
    from openhands.tools.terminal.definition import TerminalAction
    from openhands.tools.terminal.impl import TerminalExecutor

    async def compare(_: Sandbox, state: Any) -> None:
        theirs = TerminalExecutor(working_dir=str(root), terminal_type="subprocess")
        ours = SandboxTerminalExecutor(state)
        try:
            for command in COMMANDS:
                for pause_s in (
                    0,
                    1,
                    4,
                ):  # OpenHands' shell may answer before it is ready
                    await asyncio.sleep(pause_s)
                    mine = await ours.act(SandboxTerminalAction(command=command))
                    stock = await asyncio.to_thread(theirs, TerminalAction(command=command, timeout=20))
                    if says_the_same(mine, stock, command):
                        break
                else:
                    raise AssertionError(f"{command}: {mine!r} is not {stock!r}")
            for reset in ({"command": "", "reset": True}, {"command": 'echo "[$WORD]"', "reset": True}):
                mine = await ours.act(SandboxTerminalAction(**reset))
                stock = await asyncio.to_thread(theirs, TerminalAction(**reset))
                assert mine.text.removesuffix("[exit code 0]").split() == plain(stock.text).split(), reset
            typed = {"command": "y", "is_input": True}
            mine = await ours.act(SandboxTerminalAction(**typed))
            stock = await asyncio.to_thread(theirs, TerminalAction(**typed))
            words = "No previous running command to interact with"
            assert mine.is_error and words in mine.text and words in plain(stock.text)
        finally:
            theirs.close()

    in_sandbox(inflection_tasks[0], root, compare)


def stock(name: str) -> type[ToolDefinition]:
    from openhands.tools.file_editor import FileEditorTool
    from openhands.tools.glob import GlobTool
    from openhands.tools.grep import GrepTool
    from openhands.tools.terminal import TerminalTool

    tools = (FileEditorTool, FinishTool, GlobTool, GrepTool, TerminalTool, ThinkTool)
    return {tool.name: tool for tool in tools}[name]


@pytest.mark.parametrize(
    "ours",
    [BriefFinishTool, BriefThinkTool, SandboxEditorTool, SandboxGlobTool, SandboxGrepTool, SandboxTerminalTool],
    ids=lambda tool: tool.name,
)
def test_the_schemas_are_openhands_own_apart_from_their_words(
    ours: type[ToolDefinition], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what the editor of OpenHands leaves goes with the test

    def parameters(tool: type[ToolDefinition], workspace: Any) -> Any:
        llm = SimpleNamespace(vision_is_active=lambda: False)
        agent, no_files = SimpleNamespace(llm=llm), None
        state: Any = SimpleNamespace(workspace=workspace, agent=agent, env_observation_persistence_dir=no_files)
        (made,) = tool.create(state)
        if made.executor:
            made.executor.close()
        return wordless(made.to_openai_tool()["function"]["parameters"])  # type: ignore[typeddict-item]

    nothing: Any = None
    adapter = LocalWorkspaceAdapter.over(nothing, bridge=nothing, limits=INSIDE)
    local = SimpleNamespace(working_dir=str(tmp_path))
    assert parameters(ours, adapter) == parameters(stock(ours.name), local)


def wordless(schema: Any) -> Any:
    """A schema without its descriptions, which every episode's prompt would pay for."""
    if isinstance(schema, dict):
        return {
            key: wordless(value) for key, value in schema.items() if key != "description" or isinstance(value, dict)
        }
    return schema
