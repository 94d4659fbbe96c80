"""Diffs as text: one taken back by another, and one made of two versions of a file."""

import difflib
import io
import re

_TURNED = {"new file mode": "deleted file mode", "deleted file mode": "new file mode"}
_MODES = re.compile(rf"^({'|'.join(_TURNED)})", re.MULTILINE)
_FILES = re.compile(r"^--- (?:a/)?(.*)\n\+\+\+ (?:b/)?(.*)$", re.MULTILINE)
_CHANGED_LINE = re.compile(r"[+-].*\n(?:\\.*\n)?")
_CHANGES = re.compile(rf"^(?:{_CHANGED_LINE.pattern})+", re.MULTILINE)


def reverse_diff(diff: str) -> str:
    """The diff that takes `diff` back, which is of git's form and has no renames, modes and binary files."""
    text = diff if diff.endswith("\n") else f"{diff}\n"
    parts = re.split(r"^(?=@@ |diff --git )", text, flags=re.MULTILINE)
    return "".join(_reverse_hunk(part) if part.startswith("@@") else _reverse_header(part) for part in parts)


def _reverse_header(header: str) -> str:
    header = _MODES.sub(lambda mode: _TURNED[mode[1]], header)
    header = re.sub(r"^index (\w+)\.\.(\w+)", r"index \2..\1", header, flags=re.MULTILINE)
    return _FILES.sub(lambda files: f"--- {_side('a', files[2])}\n+++ {_side('b', files[1])}", header)


def _side(letter: str, file: str) -> str:
    return file if file == "/dev/null" else f"{letter}/{file}"


def _reverse_hunk(hunk: str) -> str:
    head, _, body = hunk.partition("\n")
    head = re.sub(r"^@@ -(\S+) \+(\S+) @@", r"@@ -\2 +\1 @@", head)
    return f"{head}\n{_CHANGES.sub(_reverse_changes, body)}"


def _reverse_changes(changes: re.Match[str]) -> str:
    lines = _CHANGED_LINE.findall(changes[0])
    added = ["-" + line[1:] for line in lines if line.startswith("+")]
    return "".join([*added, *("+" + line[1:] for line in lines if line.startswith("-"))])


def diff_of(path: str, old: str | None, new: str | None) -> str:
    """The diff of git's form from one version of a file to another; None is a file that is not there."""
    mode = "new file mode 100644\n" if old is None else "deleted file mode 100644\n" if new is None else ""
    lines = difflib.unified_diff(
        _lines_of(old or ""),
        _lines_of(new or ""),
        "/dev/null" if old is None else f"a/{path}",
        "/dev/null" if new is None else f"b/{path}",
    )
    body = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return f"diff --git a/{path} b/{path}\n{mode}{body}" if body else ""


def changed_lines(patch: str) -> int:
    """Lines that a patch adds or removes."""
    lines = patch.splitlines()
    return sum(line.startswith(("+", "-")) and not line.startswith(("+++ ", "--- ")) for line in lines)


def _lines_of(text: str) -> list[str]:
    """Lines with their ends, split at line feeds alone, as git does."""
    return io.StringIO(text, newline="\n").readlines()
