"""A small real tokenizer with the chat template that Qwen3 ships (tests/data/, Apache-2.0)."""

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATE = Path(__file__).parent / "data" / "qwen3_chat_template.jinja"
CORPUS = [
    "def add(a, b):\n    return a + b\n",
    '<tool_call>\n{"name": "terminal", "arguments": {"command": "cat /testbed/a.py"}}\n</tool_call>',
    "<tool_response>\nassistant user system function parameters properties description string\n</tool_response>",
]


@cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen3's, trained on the spot on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE.read_text()
    return fast
