"""Completions: the CPU's `Generator` behind as much of OpenAI's API, with vLLM's token ids, as an evaluation asks."""

import json
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch

from skyrl_stack.trainer.cpu.generation import Generator


class CompletionsServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers one request after the other, over as many connections as there are."""

    daemon_threads = True

    def __init__(self, files: Path, socket: Path, *, context_tokens: int) -> None:
        torch.set_num_threads(1)  # the sandboxes need the other cores
        self.generator = Generator(files, context_tokens=context_tokens, seed=0)
        self.turn = threading.Lock()
        super().__init__(str(socket), _Handler)

    def complete(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises KeyError, TypeError, ValueError: it cannot be answered."""
        prompt = question["prompt"]
        with self.turn:
            tokens, _ = self.generator.sample(
                prompt, max_tokens=question["max_tokens"], temperature=question["temperature"]
            )
        ended = tokens[-1] in self.generator.eos
        choice = {"index": 0, "token_ids": tokens, "finish_reason": "stop" if ended else "length"}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _server(self) -> CompletionsServer:
        assert isinstance(self.server, CompletionsServer)
        return self.server

    def do_GET(self) -> None:
        self._answer(HTTPStatus.OK if self.path == "/health" else HTTPStatus.NOT_FOUND, {})

    def do_POST(self) -> None:
        question = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/completions":
            return self._answer(HTTPStatus.NOT_FOUND, {})
        try:
            self._answer(HTTPStatus.OK, self._server.complete(json.loads(question)))
        except (KeyError, TypeError, ValueError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": {"message": f"{type(error).__name__}: {error}"}})

    def address_string(self) -> str:
        return "client"  # of a Unix socket there is none

    def log_message(self, format: str, *_: Any) -> None:
        pass

    def _answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
