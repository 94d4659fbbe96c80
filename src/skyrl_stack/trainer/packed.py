"""Packed: attention over rows that hold several sequences, each of which sees itself alone.

transformers keeps them apart by a mask of the row's length squared, so a row costs what one sequence of its length
would. Without a mask it costs what they cost one by one, so rows can be long, and a GPU has enough to do. Flash
attention does that, but has no wheel for the torch that verl pins; PyTorch has the kernel, and this module names it to
transformers (`attn_implementation = "packed"`). verl's processes import it (`VERL_USE_EXTERNAL_MODULES`).
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

NAME = "packed"
_OTHER = "set trainer.verl.actor_rollout_ref.model.override_config.attn_implementation to another"
_UNKNOWN = ("softcap", "s_aux", "cache")
"What models may ask of their attention, and this one does not know."


@dataclass(frozen=True)
class Row:
    """Where the sequences of a row begin, its end included."""

    bounds: list[int]
    on_device: torch.Tensor
    "The same, int32."

    @property
    def longest(self) -> int:
        return max(end - start for start, end in zip(self.bounds, self.bounds[1:], strict=False))


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: of (1, heads, tokens, size) make (1, tokens, heads, size).

    A sequence begins where `position_ids`, (1, tokens), do not go on.

    Raises:
        ValueError: the rows are padded, not packed, or the model asks for more than plain causal attention.
    """
    if attention_mask is not None or position_ids is None or position_ids.shape != (1, query.shape[2]):
        raise ValueError(f"attention over packed rows takes one row without padding: {_OTHER}")
    if asked := [name for name in _UNKNOWN if more.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} needs {asked[0]}, which attention over packed rows lacks: {_OTHER}")
    row = _row(position_ids)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _by_kernel(row, query, key, value, scaling, sliding_window), None
    if sliding_window is not None and sliding_window < row.longest:
        raise ValueError(f"PyTorch's kernel has windows in 16 bits on a GPU alone: {_OTHER}")
    return _one_by_one(row, query, key, value, scaling), None


def _by_kernel(
    row: Row, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
) -> torch.Tensor:
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    causal = (-1 if window is None else window - 1, 0)
    ends, longest = row.on_device, row.longest
    out: Any = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=causal)
    return out[None]


def _one_by_one(
    row: Row, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> torch.Tensor:
    parts = []
    for start, end in zip(row.bounds, row.bounds[1:], strict=False):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


_last: tuple[weakref.ref[torch.Tensor], Row] | None = None


def _row(position_ids: torch.Tensor) -> Row:
    """All layers ask with the same tensor, and to look into it is to wait for the GPU."""
    global _last
    if _last is None or _last[0]() is not position_ids:
        inner = (position_ids[0].diff() != 1).nonzero().flatten() + 1
        bounds = [0, *inner.tolist(), position_ids.shape[1]]
        row = Row(bounds, torch.tensor(bounds, dtype=torch.int32, device=position_ids.device))
        _last = weakref.ref(position_ids), row
    return _last[1]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, flash_attention_mask)  # none, where nothing is padded
