"""Options of a launch that starts one of the two roles. What they say becomes values of the profile."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click


def one_role_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to `command`, which gets what they say among its `overrides`."""

    @click.option("--runtime-only", is_flag=True, help="Start no trainer; serve sandboxes to those of other launches.")
    @click.option("--runtime-url", "urls", multiple=True, metavar="URL", help="Use this runtime, which runs already.")
    @click.option("--api-key-file", type=click.Path(path_type=Path), help="Holds the key of every --runtime-url.")
    @functools.wraps(command)
    def with_one_role(
        *arguments: Any,
        overrides: tuple[str, ...],
        runtime_only: bool,
        urls: tuple[str, ...],
        api_key_file: Path | None,
        **options: Any,
    ) -> None:
        said = _overrides(runtime_only, [url.rstrip("/") for url in urls], api_key_file)
        command(*arguments, overrides=(*overrides, *said), **options)

    return with_one_role


def _overrides(runtime_only: bool, urls: list[str], api_key_file: Path | None) -> Iterator[str]:
    """As `--set` takes them; strings of JSON are strings of TOML."""
    if runtime_only:
        yield "run.runtime_only=true"
    if urls:
        yield f"runtime.urls={json.dumps(urls, ensure_ascii=False)}"
    if api_key_file:
        yield f"runtime.api_key_file={json.dumps(str(api_key_file), ensure_ascii=False)}"
