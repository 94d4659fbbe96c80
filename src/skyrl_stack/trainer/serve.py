"""Serve: the process that serves one model, until its standard input ends.

`python -m skyrl_stack.trainer.serve FILES SOCKET CONTEXT_TOKENS`. The part of OpenAI's completions API that takes and
gives token ids, over a Unix socket, which is nobody else's.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from skyrl_stack.errors import SetupError, StackError
from skyrl_stack.node import end_with_parent
from skyrl_stack.trainer.gpus import use_given_gpus

MODEL = "model"
"What the server calls it."
CPU_LIMIT_GB = 4.0
"Weights above it are not for a CPU, one token at a time."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.trainer.serve", description=__doc__)
    parser.add_argument("files", type=Path)
    parser.add_argument("socket", type=Path)
    parser.add_argument("context_tokens", type=int)
    arguments = parser.parse_args()
    import torch

    serve = _serve_by_vllm if torch.cuda.is_available() else _serve_on_cpu
    try:
        serve(arguments.files, arguments.socket, arguments.context_tokens)
    except StackError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    return 0


def _serve_on_cpu(files: Path, socket: Path, context_tokens: int) -> None:
    weights = sum(file.stat().st_size for file in (*files.glob("*.safetensors"), *files.glob("*.bin"))) / 1e9
    if weights > CPU_LIMIT_GB:
        raise SetupError(f"{files}: {weights:.0f} GB of weights need a GPU, and there is none: evaluate where one is")
    from skyrl_stack.trainer.cpu.completions import CompletionsServer

    threading.Thread(target=_leave_at_end_of_input, args=(socket,), daemon=True).start()
    with CompletionsServer(files, socket, context_tokens=context_tokens) as server:
        server.serve_forever()


def _leave_at_end_of_input(socket: Path) -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(socket.parent, ignore_errors=True)  # who asked may have been killed
    os._exit(0)


def _serve_by_vllm(files: Path, socket: Path, context_tokens: int) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise SetupError("there is a GPU, but no vLLM to serve the model on it: run `make setup CONFIG=dev`")
    use_given_gpus()
    names = ["--served-model-name", MODEL, "--max-model-len", str(context_tokens), "--generation-config", "vllm"]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(files), "--uds", str(socket), *names]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=end_with_parent,
    )
    threading.Thread(target=_end_at_end_of_input, args=(process, socket), daemon=True).start()
    if code := process.wait():
        raise SetupError(f"vLLM ended with exit code {code}")


def _end_at_end_of_input(process: subprocess.Popen[bytes], socket: Path) -> None:
    sys.stdin.buffer.read()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its engine and workers
    _leave_at_end_of_input(socket)


if __name__ == "__main__":
    sys.exit(main())
