"""The policy's tools act in its sandbox, and nowhere else."""

import asyncio
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playing import TOKENIZER, play, profile, sandboxes

from skyrl_stack.agent.calls import render_call
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import Task

pytestmark = pytest.mark.podman

Answers = Callable[..., list[str]]
FINISH = render_call("finish", message="done")
FILE = "/tmp/playground/sums.py"
"Outside of the repository, so that there is no patch to grade."


def terminal(command: str, **options: Any) -> str:
    return render_call("terminal", command=command, **options)


def editor(command: str, path: str = FILE, **options: Any) -> str:
    return render_call("file_editor", command=command, path=path, **options)


@pytest.fixture
def answers(inflection_tasks: list[Task], tmp_path: Path) -> Answers:
    """What each call was answered, as the policy saw it; there is a small file to work on."""
    start = terminal(f"mkdir /tmp/playground && printf 'def add(a, b):\\n    return a - b\\n' > {FILE}")

    async def shown(script: list[str], **agent: Any) -> str:
        async with sandboxes() as provider:
            directory = RunDirectory.create(tmp_path, profile())
            task = inflection_tasks[0]
            _, trajectory = await play(task, script, directory, provider, max_steps=len(script), **agent)
            return TOKENIZER.decode(trajectory.response_ids)

    def ask(*calls: str, **agent: Any) -> list[str]:
        text = asyncio.run(shown([start, *calls, FINISH], **agent))
        _, *found = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", text, re.DOTALL)
        assert len(found) == len(calls)
        return found

    return ask


def test_nothing_that_the_policy_types_happens_on_this_host(answers: Answers, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    name, namespaces, touched, created, shown = answers(
        terminal("hostname"),
        terminal("readlink /proc/self/ns/pid /proc/self/ns/mnt /proc/self/ns/user"),
        terminal(f"mkdir -p {trap} && touch {trap}/typed && echo was typed"),
        editor("create", f"{trap}/written", file_text="x"),
        editor("view", __file__),
    )
    assert socket.gethostname() not in name
    here = {Path(f"/proc/self/ns/{kind}").readlink().name for kind in ("pid", "mnt", "user")}
    assert here.isdisjoint(namespaces.split())
    assert "was typed" in touched
    assert "created successfully" in created
    assert "does not exist" in shown
    assert list(trap.iterdir()) == []


def test_a_shell_keeps_its_directory_and_variables(answers: Answers) -> None:
    _, shown, failed = answers(
        terminal("cd /tmp && export WORD=kept"), terminal('echo "$WORD in $PWD"'), terminal("echo bad >&2; false")
    )
    assert shown == "kept in /tmp\n[exit code 0]"
    assert failed == "bad\n[exit code 1]"


def test_a_command_is_killed_when_its_time_is_over(answers: Answers) -> None:
    slow, next_one = answers(terminal("sleep 100", timeout=1), terminal("echo alive"))
    assert slow == "[timed out after 1 s and was killed]"
    assert next_one == "alive\n[exit code 0]"


def test_long_output_is_cut_in_the_middle(answers: Answers) -> None:
    (shown,) = answers(terminal("seq 1000"), observation_limit_chars=200)
    assert shown.startswith("1\n2\n") and "999\n1000\n[exit code 0]" in shown
    assert "characters cut" in shown
    assert len(shown) < 300


def test_files_are_viewed_and_edited_as_openhands_does(answers: Answers) -> None:
    numbered = "     1\tdef add(a, b):\n     2\t    return a - b"
    viewed, part, listing, replaced, inserted, undone, after = answers(
        editor("view"),
        editor("view", view_range=[2, -1]),
        editor("view", "/tmp/playground"),
        editor("str_replace", old_str="a - b", new_str="a + b"),
        editor("insert", insert_line=0, new_str="# sums"),
        editor("undo_edit"),
        terminal(f"cat {FILE}"),
    )
    assert viewed == f"Here's the result of running `cat -n` on {FILE}:\n{numbered}\n"
    assert part.endswith(":\n     2\t    return a - b\n")
    assert listing.endswith(":\n/tmp/playground/\n/tmp/playground/sums.py")
    assert "     2\t    return a + b" in replaced
    assert "     1\t# sums\n     2\tdef add(a, b):" in inserted
    assert undone.startswith(f"Last edit to {FILE} undone successfully. Here's the result")
    assert after == "def add(a, b):\n    return a + b\n[exit code 0]"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (editor("view", "/testbed/none.py"), "does not exist"),
        (editor("view", "/dev/zero"), "appears to be binary"),
        (editor("view", "/usr/bin/python3"), "appears to be binary"),
        (editor("view", view_range=[5, 9]), "Invalid `view_range`"),
        (editor("create", file_text="x"), "File already exists"),
        (editor("create", f"{FILE}/below", file_text="x"), "cannot be written"),
        (editor("create", "/testbed/new.py"), "`file_text` is required"),
        (editor("str_replace", old_str="nowhere", new_str=""), "did not appear verbatim"),
        (editor("insert", insert_line=7, new_str="x"), "Invalid `insert_line`"),
        (editor("undo_edit"), "No edit history"),
        (editor("delete"), "Error validating tool"),
        (terminal("a\0b"), "NUL byte"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_episode_goes_on(call: str, reason: str, answers: Answers) -> None:
    said, alive = answers(call, terminal("echo on"))
    assert reason in said
    assert alive == "on\n[exit code 0]"
