"""What the trainer on a GPU rests on: sequences that share a row do not see each other, without flash attention."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from skyrl_stack.trainer import packed

MODELS = [(Qwen3Config, Qwen3ForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM)]


def network_of(config: type[Any], network: type[Any]) -> Any:
    torch.manual_seed(0)
    shape = config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        attn_implementation=packed.NAME,
    )
    return network(shape).eval()


@pytest.mark.parametrize(("config", "kind"), MODELS)
def test_packed_sequences_are_kept_apart_where_positions_start_again(config: type[Any], kind: type[Any]) -> None:
    network = network_of(config, kind)
    rows = [torch.randint(0, 97, (1, length)) for length in (13, 7, 1)]
    joined = {"input_ids": torch.cat(rows, 1), "use_cache": False}
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.inference_mode():
        apart = torch.cat([network(input_ids=row, use_cache=False).logits for row in rows], 1)
        together = network(**joined, position_ids=positions, attention_mask=None).logits
        one_sequence = network(**joined).logits
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert (one_sequence - apart).abs().max() > 0.1


def test_gradients_do_not_cross_into_another_sequence() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 9, 8, requires_grad=True) for heads in (4, 2, 2))
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    out, _ = packed.attend(torch.nn.Identity(), query, key, value, None, position_ids=positions)
    out[0, 5:].sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    assert not key.grad[:, :, :5].any()
    assert value.grad[:, :, 5:].abs().sum() > 0


def test_rows_with_padding_are_refused() -> None:
    network = network_of(Qwen3Config, Qwen3ForCausalLM)
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="one row without padding"):
        network(input_ids=ids, attention_mask=mask, use_cache=False)
