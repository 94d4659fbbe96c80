"""Serving: the site's store as a registry on loopback, from which a node's Podman pulls only the layers it lacks.

Whoever knows the secret in the path may read, and nobody may write; it lasts as long as the block.
"""

import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from skyrl_stack.oci.manifest import read_manifest
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore

_MANIFEST = re.compile(r"/v2/(?P<secret>[^/]+)/(?P<number>\d+)/manifests/(?P<version>[^/]+)")
_BLOB = re.compile(r"/v2/(?P<secret>[^/]+)/\d+/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_API = "Docker-Distribution-Api-Version"


@contextmanager
def served(store: SiteStore, references: Iterable[Reference]) -> Iterator[dict[str, str]]:
    """Where each name of `references` is to be had, as Podman writes it: HOST:PORT/SECRET/NUMBER."""
    secret = secrets.token_hex(16)
    names = {reference.name: str(number) for number, reference in enumerate(references)}

    class Handler(_Handler):
        def __init__(self, *arguments: object) -> None:
            self.store, self.secret = store, secret
            self.names = {number: name for name, number in names.items()}
            super().__init__(*arguments)  # type: ignore[arg-type]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {name: f"127.0.0.1:{server.server_address[1]}/{secret}/{number}" for name, number in names.items()}
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of manifests and blobs."""

    protocol_version = "HTTP/1.1"
    store: SiteStore
    secret: str
    names: dict[str, str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:
        """Podman says itself what went wrong."""

    def _answer(self, *, with_body: bool) -> None:
        if self.path == "/v2/":
            return self._send(b"{}", "application/json", "", with_body)
        if (found := _MANIFEST.fullmatch(self.path)) and secrets.compare_digest(found["secret"], self.secret):
            return self._manifest(self.names.get(found["number"], ""), found["version"], with_body)
        if (found := _BLOB.fullmatch(self.path)) and secrets.compare_digest(found["secret"], self.secret):
            return self._blob(found["digest"], with_body)
        return self._missing()

    def _manifest(self, name: str, version: str, with_body: bool) -> None:
        digest = version
        if not version.startswith("sha256:"):
            image = self.store.find(Reference.parse(f"{name}:{version}"))
            digest = image.digest if image else ""
        file = self.store.blob(digest)
        if not digest or not file.is_file():
            return self._missing()
        content = file.read_bytes()
        return self._send(content, read_manifest(content).descriptor.mediaType, digest, with_body)

    def _blob(self, digest: str, with_body: bool) -> None:
        file = self.store.blob(digest)
        if not file.is_file():
            return self._missing()
        with file.open("rb") as stream:
            self._head(file.stat().st_size, "application/octet-stream", digest)
            if with_body:
                shutil.copyfileobj(stream, self.wfile, 1 << 20)
        return None

    def _send(self, content: bytes, kind: str, digest: str, with_body: bool) -> None:
        self._head(len(content), kind, digest)
        if with_body:
            self.wfile.write(content)

    def _head(self, size: int, kind: str, digest: str) -> None:
        self.send_response(200)
        self.send_header(_API, "registry/2.0")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def _missing(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()
