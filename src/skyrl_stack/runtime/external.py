"""A runtime of another launch, known by its URL and the file of its key. It is used, and outlives its users."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from skyrl_stack import __version__
from skyrl_stack.errors import PeerLost, ProfileError
from skyrl_stack.runtime.wire import API_KEY, Health, ImageNames
from skyrl_stack.runtime_section import RuntimeSection

_TIMEOUT_S = 5.0
_IMAGES_TIMEOUT_S = 300.0


class ExternalRuntime:
    """One of `runtime.urls`.

    Every method raises PeerLost where it cannot be reached, and ProfileError where it does not answer as it should.
    """

    def __init__(self, url: str, key_file: Path) -> None:
        self.url = url
        self.key = read_key(key_file)
        self._key_file = key_file

    @classmethod
    def all_of(cls, section: RuntimeSection) -> "list[ExternalRuntime]":
        """Raises ProfileError where the key cannot be used."""
        return [cls(url, section.api_key_file) for url in section.urls if section.api_key_file]

    def greet(self) -> Health:
        """What it is, and how full."""
        return self._health("GET", "/health")

    def show_life(self, client: str) -> Health:
        """As `greet`. The sandboxes of `client` are kept as long as such signs come."""
        return self._health("POST", f"/clients/{client}")

    def leave(self, client: str) -> None:
        """End the sandboxes of `client`."""
        self._ask("DELETE", f"/clients/{client}")

    def tasks(self) -> bytes:
        """The task file of its run; it has their images."""
        return self._ask("GET", "/tasks").content

    def lacking(self, images: Iterable[str]) -> tuple[str, ...]:
        """Those of `images` that it does not have."""
        body = ImageNames(references=tuple(images)).model_dump()
        answer = self._ask("POST", "/images/lacking", json=body, timeout=_IMAGES_TIMEOUT_S)
        return ImageNames.model_validate_json(answer.content).references

    def _health(self, method: str, path: str) -> Health:
        answer = self._ask(method, path)
        try:
            health = Health.model_validate_json(answer.content)
        except ValidationError as error:
            raise ProfileError(f"runtime {self.url}: what answers there is no runtime of skyrl-stack") from error
        if health.version != __version__:
            raise ProfileError(
                f"runtime {self.url}: is of skyrl-stack {health.version}, this {__version__}: launch both from one"
            )
        return health

    def _ask(self, method: str, path: str, *, timeout: float = _TIMEOUT_S, **request: Any) -> httpx.Response:
        headers = {API_KEY: self.key}
        try:
            # No proxy: the runtime is on this machine or this cluster.
            answer = httpx.request(
                method, f"{self.url}{path}", headers=headers, timeout=timeout, trust_env=False, **request
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise PeerLost(f"runtime {self.url}: cannot be reached ({why}); does it still run?") from error
        if answer.status_code == 401:
            raise ProfileError(f"runtime {self.url}: {self._key_file} does not hold its key")
        if not answer.is_success:
            said = " ".join(answer.text[:200].split())
            raise ProfileError(f"runtime {self.url}: answered {answer.status_code} to {method} {path}: {said}")
        return answer


def read_key(file: Path) -> str:
    """The key in `file`.

    Raises:
        ProfileError: it cannot be read, holds no key, or others may read it.
    """
    try:
        mode, key = file.stat().st_mode, file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"runtime.api_key_file = {file}: cannot be read: {error}") from error
    if mode & 0o077:
        raise ProfileError(f"runtime.api_key_file = {file}: others may read it: chmod 600 {file}")
    if not key or not key.isprintable() or " " in key:
        raise ProfileError(f"runtime.api_key_file = {file}: must hold a key and nothing else")
    return key
