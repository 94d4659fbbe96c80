"""Edits as pure functions, and the cap on observations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_stack.agent.tools.cap import cap_middle
from skyrl_stack.agent.tools.editing import EditRefused, insert_after, numbered, replace_once, view

TEXT = "one\ntwo\nthree\ntwo and a half\n"


def test_replaces_what_is_there_once() -> None:
    edited, snippet = replace_once(TEXT, "three\n", "3\n3b\n", path="/a")
    assert edited == "one\ntwo\n3\n3b\ntwo and a half\n"
    assert snippet.splitlines()[3:5] == ["     3\t3", "     4\t3b"]


def test_finds_what_differs_in_outer_white_space_only() -> None:
    assert replace_once("x = 1\n", "  x = 1  ", "x = 2", path="/a")[0] == "x = 2\n"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("four", "4", "did not appear verbatim in /a"),
        ("two", "2", r"lines \[2, 4\]"),
        ("", "x", "empty"),
        ("   ", "x", "empty"),
    ],
)
def test_refuses_what_is_not_one_place(old: str, new: str, reason: str) -> None:
    with pytest.raises(EditRefused, match=reason):
        replace_once(TEXT, old, new, path="/a")


def test_a_deletion_of_all_has_an_empty_snippet() -> None:
    assert replace_once("gone", "gone", "", path="/a") == (
        "",
        "Here's the result of running `cat -n` on a snippet of /a:\n",
    )


@given(st.lists(st.text("ab \t"), max_size=6), st.integers(0, 6), st.lists(st.text("xy"), min_size=1, max_size=3))
def test_inserts_lines_and_leaves_the_others(lines: list[str], at: int, new: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    at = min(at, len(lines))
    edited, _ = insert_after(text, at, "\n".join(new))
    assert edited == "".join(f"{line}\n" for line in [*lines[:at], *new, *lines[at:]])


@pytest.mark.parametrize("line", [-1, 5])
def test_refuses_to_insert_where_there_is_no_line(line: int) -> None:
    with pytest.raises(EditRefused, match=r"allowed values: \[0, 4\]"):
        insert_after(TEXT, line, "x")


def listed(text: str) -> str:
    return text.partition(":\n")[2]


def test_numbers_lines_as_cat_does() -> None:
    assert listed(view("a\n\nb\x0cc", "/a", [2, -1])) == "     2\t\n     3\tb\x0cc\n"
    assert view("a\nb\n", "/a", [1, 99]).startswith("NOTE: We only show up to 2")
    assert listed(numbered("", "/a")) == ""


@pytest.mark.parametrize("view_range", [[0, 2], [3, 2], [9, 9], [1], [1, 2, 3]])
def test_refuses_a_range_that_is_not_there(view_range: list[int]) -> None:
    with pytest.raises(EditRefused, match="Invalid `view_range`"):
        view(TEXT, "/a", view_range)


def test_a_million_places_are_counted_in_one_pass() -> None:
    with pytest.raises(EditRefused, match="Multiple occurrences"):
        replace_once("x\n" * 1_000_000, "x", "y", path="/a")


@given(st.text(), st.integers(2, 50))
def test_a_cap_keeps_both_ends_and_says_what_it_cut(text: str, limit: int) -> None:
    capped = cap_middle(text, limit)
    if len(text) <= limit:
        assert capped == text
        return
    head, tail = text[: (limit + 1) // 2], text[len(text) - limit // 2 :]
    assert capped == f"{head}\n[… {len(text) - limit} characters cut …]\n{tail}"
