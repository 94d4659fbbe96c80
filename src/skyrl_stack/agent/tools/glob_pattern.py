"""Glob patterns as regular expressions over paths with `/`: `**`, `*`, `?`, `[…]` and `{a,b}`."""

import glob
import re

_TOKEN = re.compile(r"\*\*?|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)


def glob_regex(pattern: str) -> re.Pattern[str]:
    """The expression that matches a whole relative path."""
    return re.compile("|".join(_translate(each) for each in _alternatives(pattern)))


def base_and_pattern(pattern: str) -> tuple[str | None, str]:
    """The directory that an absolute pattern starts at, and the rest; no directory for a relative one."""
    if not pattern.startswith("/"):
        return None, pattern or "**/*"
    parts = pattern.strip("/").split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/" + "/".join(parts[:fixed]), "/".join(parts[fixed:]) or "**/*"


def _translate(pattern: str) -> str:
    *folders, last = pattern.split("/")
    folder_parts = ("(?:[^/]+/)*" if folder == "**" else f"{_component(folder)}/" for folder in folders)
    return "".join(folder_parts) + (".*" if last == "**" else _component(last))


def _component(pattern: str) -> str:
    return _TOKEN.sub(_token, pattern)


def _token(found: re.Match[str]) -> str:
    match found[0]:
        case "*" | "**":
            return "[^/]*"
        case "?":
            return "[^/]"
        case chosen if len(chosen) > 1:
            inner = chosen[1:-1].replace("\\", r"\\")
            return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        case character:
            return re.escape(character)


def _alternatives(pattern: str) -> list[str]:
    opened = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not opened:
        return [pattern]
    before, after = pattern[: opened.start()], pattern[opened.end() :]
    return [each for choice in opened[1].split(",") for each in _alternatives(f"{before}{choice}{after}")]
