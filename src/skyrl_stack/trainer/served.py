"""Served: a model in a directory, served for as long as somebody asks it: by vLLM on a GPU, else by our own server.

directory ─▶ Hugging Face files ─▶ `python -m skyrl_stack.trainer.serve` ─▶ a Unix socket ─▶ token ids in and out
"""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from skyrl_stack.errors import SetupError
from skyrl_stack.scratch import scratch
from skyrl_stack.trainer.checkpoints import is_checkpoint, merge

START_TIMEOUT_S = 900.0
POLL_S = 0.2
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Served:
    """Where a model is asked for tokens."""

    socket: Path
    tokenizer: Any


def require_model(model: Path) -> None:
    """Raises SetupError: there is nothing in `model` that could be served."""
    if not ((model / "config.json").is_file() or is_checkpoint(model)):
        raise SetupError(
            f"--model {model}: neither the URL of a server, nor a directory of Hugging Face files (config.json), nor a "
            "checkpoint of a run (…/checkpoints/global_step_N)"
        )


def huggingface_files(model: Path, target: Path) -> Path:
    """`model`, or `target`, where what verl merged of the checkpoint `model` stays for the next time.

    Raises:
        SetupError: verl cannot merge it.
    """
    if not is_checkpoint(model):
        return model
    if not target.is_dir():
        draft = target.with_name(f".{target.name}-draft")
        shutil.rmtree(draft, ignore_errors=True)
        merge(model, draft)
        draft.rename(target)
    return target


@contextlib.contextmanager
def served(files: Path, *, context_tokens: int, log: Path, say: Callable[[str], None]) -> Iterator[Served]:
    """Serve `files` while the block runs. However this process ends, the server does, too: its input is the lifeline.

    Raises:
        SetupError: it cannot be served here; says why.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(files)
    except (OSError, ValueError) as error:
        raise SetupError(f"{files}: no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
    with scratch("serve") as private, log.open("ab") as output:
        socket = private / "socket"
        command = [sys.executable, "-m", "skyrl_stack.trainer.serve", str(files), str(socket), str(context_tokens)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
        try:
            started = time.monotonic()
            _await_answer(process, socket, log)
            say(f"model: {files} is served after {time.monotonic() - started:.0f} s, log in {log}")
            yield Served(socket, tokenizer)
        finally:
            _end(process)


def _await_answer(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=5) as http:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if http.get("http://model/health").is_success:
                    return
            time.sleep(POLL_S)
    words = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise SetupError(f"the model's server did not start: {words[-1]}; see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
