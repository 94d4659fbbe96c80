"""The tiny model before it has learnt anything: a byte-level BPE tokenizer and a Qwen3 network from a config."""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from skyrl_stack.agent.tokens import Tokenizer as AgentTokenizer

VOCABULARY = 2048
END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
_SPECIAL = [END_OF_TEXT, "<|im_start|>", END_OF_TURN]
# Not "special", as in Qwen3: the agent reads them in decoded text.
_MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
_WORDS = r"[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\s+"


class TinyTokenizer(AgentTokenizer, Protocol):
    """The part of a `PreTrainedTokenizerFast` that is used here, as exact as it is."""

    @property
    def pad_token_id(self) -> int: ...

    def __len__(self) -> int: ...

    def save_pretrained(self, path: Path) -> Any: ...


def train_tokenizer(texts: Iterable[str]) -> TinyTokenizer:
    """A byte-level BPE tokenizer with Qwen3's marks and chat template. Any text survives it; `texts` become short."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_MARKS),
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in _MARKS])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TURN, pad_token=END_OF_TEXT)
    tokenizer.chat_template = files(__package__).joinpath("chat_template.jinja").read_text()
    return tokenizer


def new_network(tokenizer: TinyTokenizer, *, context_tokens: int, seed: int) -> Qwen3ForCausalLM:
    """About a million random weights, full precision, in the architecture of a production model."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=context_tokens,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)
