"""Base of every part of a profile: what a section allows, and how a wrong value is explained, before any exists."""

import difflib
import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from skyrl_stack.errors import ProfileError

_OF_A_KEY = "[key]"
"Ends pydantic's place of an error that is in a table's key, not in its value."


class Section(BaseModel):
    """Frozen, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ProfileError: it is not TOML; names the file.
    """
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not valid TOML: {error}") from error


def explain(error: ValidationError, root: type[Section]) -> str:
    """What is wrong with a table of type `root`, in one line: the key, the value and the remedy."""
    first = error.errors()[0]
    key, section = _locate(first["loc"], root)
    if first["type"] == "extra_forbidden":
        return f"{key}: no such key{_nearest(str(first['loc'][-1]), section)}"
    if first["type"] == "missing":
        return f"{key}: missing"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    is_key = first["loc"][-1] == _OF_A_KEY
    value = "" if is_key or isinstance(first["input"], dict) else f" = {first['input']!r}"
    return f"{key}{value}: {message[0].lower()}{message[1:]}"


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint: the nearest of the known words, or all of them where none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"


def _locate(location: tuple[int | str, ...], root: type[Section]) -> tuple[str, type[Section]]:
    """The dotted key at `location`, and the section that should hold it; pydantic's place also names a union's tag."""
    key: list[str] = []
    section: Any = root
    inner: Any = root
    for part in location[:-1] if location[-1:] == (_OF_A_KEY,) else location:
        if isinstance(inner, UnionType):
            inner = next(kind for kind in get_args(inner) if kind.model_fields["kind"].default == part)
            continue
        key.append(str(part))
        if get_origin(inner) is dict:
            inner = get_args(inner)[1]
            continue
        section, field = inner, getattr(inner, "model_fields", {}).get(part)
        inner = field.annotation if field else None
    return ".".join(key), section


def _nearest(key: str, section: type[Section]) -> str:
    known = sorted(section.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"
