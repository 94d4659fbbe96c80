"""A registry's HTTP API, as much of it as fetching images needs. Source: OCI distribution specification 1.1.

Redirects to another host lose the token (httpx does that). A registry that asks for patience (429, with or without
Retry-After) gets it, and the user is told.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import httpx

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.credentials import credentials
from skyrl_stack.oci.manifest import IMAGES, INDICES, Manifest, read_manifest
from skyrl_stack.oci.reference import Reference

PATIENCE_S = 3600.0
"As long as a registry is waited for in all, for one answer."
_FIRST_WAIT_S = 5.0
_CONNECT_TIMEOUT_S = 15.0
_READ_TIMEOUT_S = 60.0
_HOSTS = {"docker.io": "registry-1.docker.io"}
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+)(:\d+)?")

Say = Callable[[str], None]


class Registry:
    """The repository of `reference`, while the block runs. `tick` is called while it waits, every second."""

    def __init__(self, reference: Reference, say: Say) -> None:
        self._reference = reference
        self._say = say
        scheme = "http" if _LOOPBACK.fullmatch(reference.registry) else "https"
        host = _HOSTS.get(reference.registry, reference.registry)
        self._base = f"{scheme}://{host}/v2/{reference.repository}"
        self._token: dict[str, str] = {}
        self._basic: httpx.BasicAuth | None = None
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        self._http = httpx.Client(timeout=timeout, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._http.close()

    def manifest(self, version: str) -> Manifest:
        """The manifest of a tag or digest.

        Raises:
            SetupError: there is none, it may not be had, or it is not what the digest says.
        """
        with self._get(f"manifests/{version}", {"Accept": ", ".join((*IMAGES, *INDICES))}) as answer:
            content = answer.read()
            kind = answer.headers.get("Content-Type", "").partition(";")[0]
        try:
            manifest = read_manifest(content, kind)
        except SetupError as error:
            raise self._failure(str(error)) from error
        if version.startswith("sha256:") and manifest.descriptor.digest != version:
            raise self._failure(f"the registry sent {manifest.descriptor.digest} for {version}")
        return manifest

    @contextmanager
    def blob(self, digest: str, start: int, tick: Callable[[], None]) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a blob from `start` on, or from 0 where the registry cannot do that: (from where, pieces).

        Raises:
            SetupError: it cannot be had.
            httpx.HTTPError: the connection broke.
        """
        headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"} if start else {}
        with self._get(f"blobs/{digest}", headers, tick) as answer:
            yield (start if answer.status_code == 206 else 0), answer.iter_raw(1 << 18)

    @contextmanager
    def _get(
        self, path: str, headers: dict[str, str], tick: Callable[[], None] = lambda: None
    ) -> Iterator[httpx.Response]:
        waited = 0.0
        is_challenged = False
        while True:
            try:
                request = self._http.build_request("GET", f"{self._base}/{path}", headers=headers | self._token)
                answer = self._http.send(request, stream=True, auth=self._basic)
            except httpx.TransportError as error:
                raise self._failure(
                    f"no answer ({error or type(error).__name__}); from a node without a way out nothing can be "
                    f"fetched: run `skyrl-stack images pull {self._reference}` on one that has it"
                ) from error
            try:
                if answer.is_success:
                    yield answer
                    return
                if answer.status_code == 401 and not is_challenged:
                    is_challenged = True
                    self._authorize(answer.headers.get("WWW-Authenticate", ""))
                elif answer.status_code == 429:
                    waited += self._wait(answer, waited, tick)
                else:
                    raise self._refused(answer)
            finally:
                answer.close()

    def _wait(self, answer: httpx.Response, waited: float, tick: Callable[[], None]) -> float:
        wait_s = _retry_after(answer)
        wait_s = max(_FIRST_WAIT_S, waited) if wait_s is None else wait_s
        if waited + wait_s > PATIENCE_S:
            raise self._failure(
                f"its rate limit is reached, and it asks to wait for {wait_s:.0f} s; what is fetched is kept: run this "
                "again then, or log in (`podman login`), which raises the limit"
            )
        self._say(f"{self._reference.registry}: rate limit (429); going on in {wait_s:.0f} s, as it asks")
        end = time.monotonic() + wait_s
        while (left := end - time.monotonic()) > 0:
            tick()
            time.sleep(min(1.0, left))
        return wait_s

    def _authorize(self, challenge: str) -> None:
        """Get a token, as the challenge of a 401 says."""
        kind, _, rest = challenge.partition(" ")
        parts = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        known = credentials(self._reference.registry)
        if kind.lower() == "basic" and known:
            self._basic = httpx.BasicAuth(*known)
        if kind.lower() != "bearer" or "realm" not in parts:
            return
        wanted = {name: parts[name] for name in ("service", "scope") if name in parts}
        try:
            answer = self._http.get(parts["realm"], params=wanted, auth=known)
            if not answer.is_success:
                raise self._refused(answer)
            body = answer.json()
            self._token = {"Authorization": f"Bearer {body.get('token') or body['access_token']}"}
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise self._failure(f"no token from {parts['realm']}: {error}") from error

    def _refused(self, answer: httpx.Response) -> SetupError:
        if answer.status_code == 404:
            return self._failure("the registry has no such image")
        if answer.status_code in (401, 403):
            login = f"`podman login {self._reference.registry}`"
            return self._failure(f"there is no such image, or it needs a login: {login}")
        return self._failure(f"{answer.url.host} answered {answer.status_code} {answer.reason_phrase}")

    def _failure(self, reason: str) -> SetupError:
        return SetupError(f"cannot pull {self._reference}: {reason}")


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds to wait, of the header Retry-After, which holds them or a date. Source: RFC 9110, 10.2.3."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
