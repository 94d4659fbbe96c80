"""What an evaluation is made of: transcripts that lose nothing, estimates, and an endpoint's answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import TokenStream
from skyrl_stack.evaluation.estimates import mean_with_interval, pass_at
from skyrl_stack.evaluation.transcript import TranscriptTokenizer, messages_of

TOKENIZER = TranscriptTokenizer()


@given(st.text())
def test_no_character_is_lost(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert len(ids) <= len(text) // 4 + 1 + 2 * text.count("<|im_")


def test_a_conversation_reaches_a_chat_api_as_it_was() -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}
    stream = TokenStream(TOKENIZER, context_tokens=1000)
    stream.open([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Fix\nit"}], [tool])
    said = TOKENIZER.encode("<tool_call>é</tool_call>", add_special_tokens=False)
    stream.append_sampled(Completion([*said, TOKENIZER.eos_token_id], [0.0] * (len(said) + 1), "stop"))
    stream.append_messages([{"role": "tool", "content": "seen"}, {"role": "user", "content": "go on"}])
    messages = messages_of(TOKENIZER.decode(stream.ids, skip_special_tokens=False))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be brief.\n\n# Tools") and '"look"' in messages[0]["content"]
    assert [message["content"] for message in messages[1:]] == [
        "Fix\nit",
        "<tool_call>é</tool_call>",
        "<tool_response>\nseen\n</tool_response>\ngo on",
    ]


@pytest.mark.parametrize(
    ("k", "solved", "of", "expected"), [(1, 1, 4, 0.25), (2, 1, 4, 0.5), (2, 3, 4, 1), (3, 0, 4, 0)]
)
def test_pass_at_k(k: int, solved: int, of: int, expected: float) -> None:
    assert pass_at(k, solved, of) == pytest.approx(expected)


def test_intervals_stay_in_bounds_and_shrink() -> None:
    assert mean_with_interval([1.0] * 5) == pytest.approx((1.0, 0.5655, 1.0), abs=1e-3)  # Wilson's for 5 of 5
    assert mean_with_interval([0.0] * 5)[:2] == (0.0, 0.0)
    wide, narrow = (mean_with_interval([0.0, 1.0] * n) for n in (5, 500))
    assert wide[0] == narrow[0] == 0.5
    assert wide[2] - wide[1] > 5 * (narrow[2] - narrow[1])
