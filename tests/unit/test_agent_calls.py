"""Tool calls in sampled text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_stack.agent.calls import Call, MalformedCall, Turn, parse_turn, render_call

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=6), values, max_size=3))))
def test_what_is_written_as_a_call_is_read_as_that_call(calls: list[tuple[str, dict]]) -> None:
    text = "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls
    )
    assert parse_turn(text).calls == tuple(Call(name, arguments) for name, arguments in calls)


def test_a_call_may_hold_the_closing_tag() -> None:
    text = "Editing.\n" + render_call("file_editor", new_str="a </tool_call> b\n\u00e9")
    assert parse_turn(text) == Turn("", "Editing.", (Call("file_editor", {"new_str": "a </tool_call> b\n\u00e9"}),))


def test_reasoning_is_apart_from_what_is_said() -> None:
    call = render_call("finish", message="x")
    assert parse_turn(f"<think>\nhm\n</think>\n\n{call}") == Turn("hm", "", (Call("finish", {"message": "x"}),))
    assert parse_turn(f"opened by the prompt\n</think>\n{call}").reasoning == "opened by the prompt"
    assert parse_turn("<think>\nnever closed " + call) == Turn("never closed " + call, "", ())
    assert parse_turn("done") == Turn("", "done", ())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{bad json}\n</tool_call>", "not valid JSON"),
        ('{"name": "terminal", "arguments": {}}', "</tool_call> is missing"),
        ('{"name": "terminal"}\n</tool_call>', "write {"),
        ('{"name": "terminal", "arguments": "ls"}\n</tool_call>', "write {"),
        ("[1]\n</tool_call>", "write {"),
        ("9" * 5000 + "\n</tool_call>", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("", "not valid JSON"),
        ('{"name": "terminal", "arguments": {"command": "\\ud800"}}\n</tool_call>', "out of bounds"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(body: str, reason: str) -> None:
    with pytest.raises(MalformedCall, match=reason.replace("{", r"\{")):
        parse_turn(f"<tool_call>\n{body}")
