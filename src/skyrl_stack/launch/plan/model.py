"""A model's shape, read from files of this machine: never from the network, which a login node may lack."""

import json
import os
import tomllib
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

KNOWN = Path(__file__).with_name("models.toml")


class Shape(BaseModel):
    """What `config.json` of a decoder-only transformer says, by the Hub's own names."""

    model_config = ConfigDict(frozen=True)

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_size: int = Field(default=0, alias="head_dim")
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0

    @property
    def head_dim(self) -> int:
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def layer_parameters(self) -> int:
        """Of one layer: attention, MLP or experts, norms."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys) + (queries + 2 * keys if self.attention_bias else 0)
        experts = self.num_experts * (3 * self.hidden_size * self.moe_intermediate_size + self.hidden_size)
        mlp = experts or 3 * self.hidden_size * self.intermediate_size
        return attention + mlp + 2 * self.hidden_size

    @property
    def root_parameters(self) -> int:
        """Outside the layers: embedding, head and last norm."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size

    @property
    def parameters(self) -> int:
        return self.num_hidden_layers * self.layer_parameters + self.root_parameters

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied with."""
        idle = (self.num_experts - self.num_experts_per_tok) * 3 * self.hidden_size * self.moe_intermediate_size
        return self.parameters - self.num_hidden_layers * max(0, idle)

    @property
    def active_intermediate(self) -> int:
        """Width of the MLP that one token passes."""
        return self.num_experts_per_tok * self.moe_intermediate_size or self.intermediate_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Of the cache, in bfloat16: a key and a value a layer."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2


def read_shape(name: str) -> Shape | None:
    """The shape of a directory, of a Hub name in the Hub's cache, or of a model known here; None of any other."""
    folder = Path(name) if Path(name).is_dir() else cached(name)
    table = _json(folder / "config.json") if folder else tomllib.loads(KNOWN.read_text()).get(name)
    if table is not None and "qwen2" in str(table.get("model_type")):
        table = table | {"attention_bias": True}  # always there, and not in its config.json
    try:
        return Shape.model_validate(table) if table else None
    except ValidationError:
        return None


def read_parameters(name: str) -> int | None:
    """Parameters, counted in the headers of the model's safetensors files; None where they are not here."""
    folder = Path(name) if Path(name).is_dir() else cached(name)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    if not files:
        return None
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def cached(name: str) -> Path | None:
    """The newest snapshot of Hub model `name` in the Hub's own cache."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    cache = Path(os.environ.get("HF_HUB_CACHE") or hub)
    snapshots = (cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*")
    return max(snapshots, key=lambda folder: folder.stat().st_mtime, default=None)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_bytes())
    except (OSError, json.JSONDecodeError):
        return None
