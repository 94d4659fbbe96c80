"""The policy's tools act in its sandbox, and nowhere else."""

import asyncio
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from playground import TOKENIZER, play, playground, profile, sandboxes

from skyrl_stack.agent.calls import render_call
from skyrl_stack.run_directory import RunDirectory

pytestmark = pytest.mark.podman

FINISH = render_call("finish", message="done")
FILE = "/testbed/sums.py"


def terminal(command: str, **options: Any) -> str:
    return render_call("terminal", command=command, **options)


def editor(command: str, path: str = FILE, **options: Any) -> str:
    return render_call("file_editor", command=command, path=path, **options)


def answers(calls: list[str], tmp_path: Path, **agent: Any) -> list[str]:
    """What each call was answered, as the policy saw it."""
    playground()

    async def run() -> str:
        async with sandboxes() as provider:
            directory = RunDirectory.create(tmp_path, profile())
            _, trajectory = await play([*calls, FINISH], directory, provider, max_steps=len(calls) + 1, **agent)
            return TOKENIZER.decode(trajectory.response_ids)

    found = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", asyncio.run(run()), re.DOTALL)
    assert len(found) == len(calls)
    return found


def test_nothing_that_the_policy_types_happens_on_this_host(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    name, namespaces, touched, created, shown = answers(
        [
            terminal("hostname"),
            terminal("readlink /proc/self/ns/pid /proc/self/ns/mnt /proc/self/ns/user"),
            terminal(f"mkdir -p {trap} && touch {trap}/typed && echo was typed"),
            editor("create", f"{trap}/written", file_text="x"),
            editor("view", __file__),
        ],
        tmp_path,
    )
    assert socket.gethostname() not in name
    here = {Path(f"/proc/self/ns/{kind}").readlink().name for kind in ("pid", "mnt", "user")}
    assert here.isdisjoint(namespaces.split())
    assert "was typed" in touched
    assert "created successfully" in created
    assert "does not exist" in shown
    assert list(trap.iterdir()) == []


def test_a_shell_keeps_its_directory_and_variables(tmp_path: Path) -> None:
    _, shown, failed = answers(
        [terminal("cd /tmp && export WORD=kept"), terminal('echo "$WORD in $PWD"'), terminal("echo bad >&2; false")],
        tmp_path,
    )
    assert shown == "kept in /tmp\n[exit code 0]"
    assert failed == "bad\n[exit code 1]"


def test_a_command_is_killed_when_its_time_is_over(tmp_path: Path) -> None:
    slow, next_one = answers([terminal("sleep 100", timeout=1), terminal("echo alive")], tmp_path)
    assert slow == "[timed out after 1 s and was killed]"
    assert next_one == "alive\n[exit code 0]"


def test_long_output_is_cut_in_the_middle(tmp_path: Path) -> None:
    (shown,) = answers([terminal("seq 1000")], tmp_path, observation_limit_chars=200)
    assert shown.startswith("1\n2\n") and "999\n1000\n[exit code 0]" in shown
    assert "characters cut" in shown
    assert len(shown) < 300


def test_files_are_viewed_and_edited_as_openhands_does(tmp_path: Path) -> None:
    numbered = "     1\tdef add(a, b):\n     2\t    return a - b"
    viewed, part, listing, replaced, inserted, undone, after = answers(
        [
            editor("view"),
            editor("view", view_range=[2, -1]),
            editor("view", "/testbed"),
            editor("str_replace", old_str="a - b", new_str="a + b"),
            editor("insert", insert_line=0, new_str="# sums"),
            editor("undo_edit"),
            terminal(f"cat {FILE}"),
        ],
        tmp_path,
    )
    assert viewed == f"Here's the result of running `cat -n` on {FILE}:\n{numbered}"
    assert part.endswith(":\n     2\t    return a - b")
    assert listing.endswith(":\nsums.py")
    assert "     2\t    return a + b" in replaced
    assert "     1\t# sums\n     2\tdef add(a, b):" in inserted
    assert undone == f"Last edit to {FILE} undone successfully."
    assert after == "def add(a, b):\n    return a + b\n[exit code 0]"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (editor("view", "/testbed/none.py"), "does not exist"),
        (editor("view", "/dev/zero"), "is not a file"),
        (editor("view", "/usr/bin/python3"), "is not a text file"),
        (editor("view", view_range=[5, 9]), "Invalid view_range"),
        (editor("create", file_text="x"), "it is there already"),
        (editor("create", f"{FILE}/below", file_text="x"), "cannot be written"),
        (editor("create", "/testbed/new.py"), "`file_text` is required"),
        (editor("str_replace", old_str="nowhere", new_str=""), "did not appear verbatim"),
        (editor("insert", insert_line=7, new_str="x"), "Invalid insert_line"),
        (editor("undo_edit"), "No edit history"),
        (editor("delete"), "Error validating tool"),
        (terminal("a\0b"), "NUL byte"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_episode_goes_on(call: str, reason: str, tmp_path: Path) -> None:
    said, alive = answers([call, terminal("echo on")], tmp_path)
    assert reason in said
    assert alive == "on\n[exit code 0]"
