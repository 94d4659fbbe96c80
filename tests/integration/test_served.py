"""A model in a directory, served by its own process: it gives the tokens of its weights, and ends with who asked."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from skyrl_stack.errors import ModelUnavailable, SetupError
from skyrl_stack.evaluation.endpoint import Endpoint, open_client
from skyrl_stack.trainer.serve import CPU_LIMIT_GB, MODEL
from skyrl_stack.trainer.served import Served, huggingface_files, require_model, served
from skyrl_stack.trainer.tiny import network

pytestmark = pytest.mark.timeout(200)

CONTEXT = 64
PROMPT = [5, 6, 7]
HOLDS_FOR_EVER = """
import sys, time
from pathlib import Path
from skyrl_stack.trainer.served import served
with served(Path(sys.argv[1]), context_tokens=64, log=Path(sys.argv[2]), say=lambda _: None) as server:
    print(server.socket, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = network.train_tokenizer(["some words"])
    tokenizer.save_pretrained(path)
    network.new_network(tokenizer, context_tokens=CONTEXT, seed=3).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[Served]:
    with served(files, context_tokens=CONTEXT, log=files / "log", say=print) as server:
        yield server


def sample(server: Served, prompt: list[int], *, max_tokens: int = 8) -> tuple[list[int], int]:
    """Tokens at their most likely, and how many the server says that it read."""
    endpoint = Endpoint("http://model/v1", MODEL, tokenizer=server.tokenizer, socket=server.socket)

    async def ask() -> tuple[list[int], int]:
        async with open_client(endpoint) as http:
            policy = endpoint.policy(http)
            completion = await policy.sample(prompt, max_tokens=max_tokens)
            return completion.token_ids, policy.usage.prompt_tokens

    return asyncio.run(ask())


def test_it_gives_the_likeliest_tokens_of_its_weights(server: Served, files: Path) -> None:
    tokens, read = sample(server, PROMPT)
    model = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    assert tokens == logits.argmax(-1).tolist()
    assert read == len(PROMPT)


def test_a_prompt_that_is_too_long_is_no_sample(server: Served) -> None:
    with pytest.raises(ModelUnavailable, match="leaves no room"):
        sample(server, [5] * CONTEXT)


def test_it_ends_with_a_killed_evaluation_and_leaves_no_file(files: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLDS_FOR_EVER, str(files), str(tmp_path / "log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        socket = Path(holder.stdout.readline().strip())
        assert servers(socket)
        os.kill(holder.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (servers(socket) or socket.parent.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (servers(socket), socket.parent.exists()) == ([], False)


def servers(socket: Path) -> list[str]:
    return [file.parent.name for file in Path("/proc").glob("[0-9]*/cmdline") if str(socket) in words(file)]


def words(file: Path) -> list[str]:
    try:
        return file.read_text().split("\0")
    except OSError:
        return []


def test_what_cannot_be_served_is_said(files: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="neither the URL of a server, nor a directory"):
        require_model(tmp_path)
    require_model(files)
    assert huggingface_files(files, tmp_path / "merged") == files
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor/fsdp_config.json").write_text("{}")
    with pytest.raises(SetupError, match="could not merge"):
        huggingface_files(tmp_path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_large_model_is_not_served_on_a_cpu(files: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for file in files.iterdir():
        (large / file.name).symlink_to(file)
    with (large / "weights.safetensors").open("wb") as weights:
        weights.truncate(int(CPU_LIMIT_GB * 1e9) + 1)
    with (
        pytest.raises(SetupError, match="need a GPU"),
        served(large, context_tokens=CONTEXT, log=tmp_path / "log", say=print),
    ):
        pass
