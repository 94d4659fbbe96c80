"""The CPU rollout's sampler: its log-probabilities are those that the trainer recomputes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from skyrl_stack.trainer.cpu.generation import Generator
from skyrl_stack.trainer.tiny import network

CONTEXT = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = network.train_tokenizer(["some words"])
    tokenizer.save_pretrained(path)
    network.new_network(tokenizer, context_tokens=CONTEXT, seed=3).save_pretrained(path)
    return path


def recomputed(model: Path, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    """Log-probabilities by one pass over the whole sequence."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = network(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(tokens)), torch.tensor(tokens)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_over_turns_match_a_full_pass(model: Path, temperature: float) -> None:
    generator = Generator(model, context_tokens=CONTEXT, seed=0)
    sequence = [5, 6, 7]
    for observation in ([], [9, 10], [11]):  # each turn continues the last: the cached prefix is used
        sequence = sequence + observation
        tokens, log_probs = generator.sample(sequence, max_tokens=12, temperature=temperature)
        expected = recomputed(model, sequence, tokens, temperature)
        assert torch.allclose(torch.tensor(log_probs), expected, atol=1e-4)
        sequence = sequence + tokens


def test_two_episodes_with_one_prompt_do_not_mix(model: Path) -> None:
    generator = Generator(model, context_tokens=CONTEXT, seed=0)
    first, _ = generator.sample([5, 6], max_tokens=6, temperature=1.0)
    generator.sample([5, 6], max_tokens=6, temperature=1.0)
    prompt = [5, 6, *first, 8]
    tokens, log_probs = generator.sample(prompt, max_tokens=6, temperature=1.0)
    assert torch.allclose(torch.tensor(log_probs), recomputed(model, prompt, tokens, 1.0), atol=1e-4)


def test_new_weights_take_effect_and_forget_the_old(model: Path) -> None:
    generator = Generator(model, context_tokens=CONTEXT, seed=0)
    before, _ = generator.sample([5, 6], max_tokens=4, temperature=0)
    name, weight = next(iter(generator.model.named_parameters()))
    generator.load_weights([(name, torch.randn_like(weight))])
    after, _ = generator.sample([5, 6, *before, 7], max_tokens=4, temperature=0)
    fresh = Generator(model, context_tokens=CONTEXT, seed=0)
    fresh.load_weights([(name, next(iter(generator.model.parameters())).detach())])
    assert after == fresh.sample([5, 6, *before, 7], max_tokens=4, temperature=0)[0]
    with pytest.raises(ValueError, match="no parameter nonsense"):
        generator.load_weights([("nonsense", weight)])


def test_the_context_is_never_exceeded(model: Path) -> None:
    generator = Generator(model, context_tokens=CONTEXT, seed=0)
    generator.eos = frozenset()
    tokens, _ = generator.sample([5] * (CONTEXT - 3), max_tokens=50, temperature=1.0)
    assert len(tokens) == 3
    with pytest.raises(ValueError, match="leaves no room"):
        generator.sample([5] * CONTEXT, max_tokens=1, temperature=1.0)
