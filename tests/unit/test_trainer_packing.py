"""What the trainer on a GPU rests on: sequences that share a row do not see each other, without flash attention."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def test_packed_sequences_are_kept_apart_where_positions_start_again() -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        attn_implementation="sdpa",
    )
    network = Qwen3ForCausalLM(config).eval()
    rows = [torch.randint(0, 97, (1, length)) for length in (13, 7, 1)]
    packed = {"input_ids": torch.cat(rows, 1), "use_cache": False}
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.inference_mode():
        apart = torch.cat([network(input_ids=row, use_cache=False).logits for row in rows], 1)
        together = network(**packed, position_ids=positions, attention_mask=None).logits
        one_sequence = network(**packed).logits
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert (one_sequence - apart).abs().max() > 0.1
