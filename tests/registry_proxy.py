"""A proxy before a registry, at the boundary: it counts what is asked for, and behaves as badly as registries can."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


@dataclass
class Proxy:
    """What it saw, and what it is to do wrong with the next answers."""

    address: str = ""
    asked: list[tuple[float, str, str]] = field(default_factory=list)
    "(time, path, Range) of every GET that was answered with content."
    refusals: list[str] = field(default_factory=list)
    "Values of Retry-After: each refuses one GET with 429."
    cuts: int = 0
    "So many blobs break off in the middle."
    corrupt: bool = False
    "Blobs have a byte wrong."
    pace_s: float = 0.0
    "Pause before each piece of a blob."

    def blobs(self) -> list[str]:
        return [path.rpartition("/")[2] for _, path, _ in self.asked if "/blobs/" in path]


@contextmanager
def proxied(registry: str) -> Iterator[Proxy]:
    """A proxy before the registry at `registry`, on a port of its own."""
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if proxy.refusals:
                self.send_response(429)
                self.send_header("Retry-After", proxy.refusals.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            headers = {name: self.headers[name] for name in ("Accept", "Range") if name in self.headers}
            answer = httpx.get(f"http://{registry}{self.path}", headers=headers)
            proxy.asked.append((time.monotonic(), self.path, self.headers.get("Range", "")))
            content = answer.content
            is_large_blob = "/blobs/" in self.path and len(content) > 10_000
            if is_large_blob and proxy.corrupt:
                content = b"x" + content[1:]
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Content-Range", "Docker-Content-Digest"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if is_large_blob and proxy.cuts:
                proxy.cuts -= 1
                content = content[: len(content) // 2]
            for start in range(0, len(content), 1 << 20):
                if is_large_blob:
                    time.sleep(proxy.pace_s)
                self.wfile.write(content[start : start + (1 << 20)])

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.address = f"127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
