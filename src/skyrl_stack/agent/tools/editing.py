"""Edits of a text, as pure functions in the words of OpenHands' editor, which policies know."""

import re

_CONTEXT_LINES = 4
"Lines shown around an edit, as OpenHands' editor does."


class EditRefused(Exception):
    """The edit cannot be made; the message is for the policy."""


def replace_once(text: str, old: str, new: str, *, path: str) -> tuple[str, str]:
    """`text` with the one occurrence of `old` replaced, and what is shown of it.

    Like OpenHands' editor, tries again without the white space around `old` where it is not found as it is.

    Raises:
        EditRefused: `old` is empty, is not there or is there more than once.
    """
    found = _starts(text, old)
    if not found:
        old = old.strip()
        found = _starts(text, old)
    if not found:
        raise EditRefused(f"No replacement was performed, old_str `{old}` did not appear verbatim in {path}.")
    if len(found) > 1:
        lines = _line_numbers(text, found)
        raise EditRefused(
            f"No replacement was performed. Multiple occurrences of old_str `{old}` in lines {lines}."
            " Please ensure it is unique."
        )
    (start,) = found
    edited = text[:start] + new + text[start + len(old) :]
    line = text.count("\n", 0, start) + 1
    first = max(1, line - _CONTEXT_LINES + 1)
    return edited, numbered(edited, f"a snippet of {path}", first, line + _CONTEXT_LINES + new.count("\n"))


def insert_after(text: str, line: int, new: str) -> tuple[str, str]:
    """`text` with `new` as lines of its own after line number `line` (0: before the first), and what is shown of it.

    Raises:
        EditRefused: there is no such line.
    """
    lines = _lines(text)
    if not 0 <= line <= len(lines):
        raise invalid("insert_line", line, f"It should be within the range of allowed values: {[0, len(lines)]}")
    inserted = new.split("\n")
    end = "" if line < len(lines) and not text.endswith("\n") else "\n"
    edited = "\n".join([*lines[:line], *inserted, *lines[line:]]) + end
    last = min(len(lines) + len(inserted), line + _CONTEXT_LINES + len(inserted))
    return edited, numbered(edited, "a snippet of the edited file", max(1, line - _CONTEXT_LINES + 1), last)


def view(text: str, path: str, view_range: list[int] | None = None) -> str:
    """`text` as `cat -n` prints it; `view_range` is [first, last], counted from 1, and -1 means the end.

    Raises:
        EditRefused: the range is not one of the text.
    """
    if view_range is None:
        return numbered(text, path)
    count = len(_lines(text))
    if len(view_range) != 2:
        raise invalid("view_range", view_range, "It should be a list of two integers.")
    first, last = view_range
    if not 1 <= first <= count:
        hint = f"Its first element `{first}` should be within the range of lines of the file: {[1, count]}."
        raise invalid("view_range", view_range, hint)
    note = ""
    if last > count:
        note = f"NOTE: We only show up to {count} since there're only {count} lines in this file.\n"
    last = count if last == -1 else min(last, count)
    if last < first:
        hint = f"Its second element `{last}` should be greater than or equal to the first element `{first}`."
        raise invalid("view_range", view_range, hint)
    return note + numbered(text, path, first, last)


def numbered(text: str, of_what: str, first: int = 1, last: int | None = None) -> str:
    """Lines `first` to `last` with their numbers, as `cat -n` prints them."""
    shown = _lines(text)[first - 1 : last]
    listing = "".join(f"{number:6}\t{line}\n" for number, line in enumerate(shown, first))
    return f"Here's the result of running `cat -n` on {of_what}:\n{listing}"


def invalid(parameter: str, value: object, hint: str) -> EditRefused:
    """The refusal of a parameter's value."""
    return EditRefused(f"Invalid `{parameter}` parameter: {value}. {hint}")


def _starts(text: str, old: str) -> list[int]:
    if not old:
        raise EditRefused("No replacement was performed. old_str is empty.")
    return [match.start() for match in re.finditer(re.escape(old), text)]


def _line_numbers(text: str, starts: list[int]) -> list[int]:
    """Of ascending positions, each line once; counted in one pass, since a policy may ask for a million."""
    numbers: list[int] = []
    line, position = 1, 0
    for start in starts:
        line += text.count("\n", position, start)
        position = start
        if not numbers or numbers[-1] != line:
            numbers.append(line)
    return numbers


def _lines(text: str) -> list[str]:
    """Lines ended by a line feed only, so that numbers agree with `cat -n`."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
