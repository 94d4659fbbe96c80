"""Edits of a text, as pure functions that say what is wrong in words for the policy."""

import re

_CONTEXT_LINES = 4
"Lines shown around an edit, as OpenHands' editor does."


class EditRefused(Exception):
    """The edit cannot be made; the message is for the policy."""


def replace_once(text: str, old: str, new: str, *, path: str) -> tuple[str, str]:
    """`text` with the one occurrence of `old` replaced, and the snippet around it.

    Like OpenHands' editor, tries again without the white space around `old` where it is not found as it is.

    Raises:
        EditRefused: `old` equals `new`, is empty, is not there or is there more than once.
    """
    if old == new:
        raise EditRefused("No replacement was performed. old_str and new_str must be different.")
    if not old.strip():
        raise EditRefused("No replacement was performed. old_str is empty.")
    found = [match.start() for match in re.finditer(re.escape(old), text)]
    if not found:
        old = old.strip()
        found = [match.start() for match in re.finditer(re.escape(old), text)]
    if not found:
        raise EditRefused(f"No replacement was performed, old_str `{old}` did not appear verbatim in {path}.")
    if len(found) > 1:
        lines = sorted({text.count("\n", 0, start) + 1 for start in found})
        raise EditRefused(f"No replacement was performed. old_str is in lines {lines}. Please ensure it is unique.")
    (start,) = found
    edited = text[:start] + new + text[start + len(old) :]
    return edited, _snippet(edited, first=text.count("\n", 0, start) + 1, count=new.count("\n") + 1)


def insert_after(text: str, line: int, new: str) -> tuple[str, str]:
    """`text` with `new` as lines of its own after line number `line` (0: before the first), and the snippet.

    Raises:
        EditRefused: there is no such line.
    """
    lines = _lines(text)
    if not 0 <= line <= len(lines):
        raise EditRefused(f"Invalid insert_line {line}: the file has lines 1 to {len(lines)}; 0 inserts before them.")
    inserted = new.split("\n")
    edited = "\n".join([*lines[:line], *inserted, *lines[line:]]) + "\n"
    return edited, _snippet(edited, first=line + 1, count=len(inserted))


def numbered(text: str, view_range: list[int] | None = None) -> str:
    """`text` as `cat -n` prints it; `view_range` is [first, last], counted from 1, and -1 means the end.

    Raises:
        EditRefused: the range is not one of the text.
    """
    lines = _lines(text)
    first, last = 1, len(lines)
    if view_range is not None:
        first, last = _checked_range(view_range, len(lines))
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines[first - 1 : last], first))


def _checked_range(view_range: list[int], count: int) -> tuple[int, int]:
    if len(view_range) != 2:
        raise EditRefused(f"Invalid view_range {view_range}: it should be a list of two integers.")
    first, last = view_range
    last = count if last == -1 else min(last, count)
    if not 1 <= first <= last:
        raise EditRefused(f"Invalid view_range {view_range}: the file has lines 1 to {count}.")
    return first, last


def _snippet(text: str, *, first: int, count: int) -> str:
    last = min(first + count - 1 + _CONTEXT_LINES, len(_lines(text)))
    first = max(1, first - _CONTEXT_LINES)
    return numbered(text, [first, last]) if first <= last else ""


def _lines(text: str) -> list[str]:
    """Lines ended by a line feed only, so that numbers agree with `cat -n`."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
