"""The token stream: what is sampled stays, what is said is the template's own text."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3 import small_tokenizer
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Message, TokenStream

TOKENIZER = small_tokenizer()
END = TOKENIZER.eos_token_id
TOOLS = [
    {
        "type": "function",
        "function": {"name": "terminal", "description": "Run.", "parameters": {"type": "object", "properties": {}}},
    }
]
OPENING = [{"role": "system", "content": "Fix it."}, {"role": "user", "content": "<issue>\nf() is wrong\n</issue>"}]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<|" not in text)
answers = st.one_of(
    st.lists(texts.map(lambda text: {"role": "tool", "content": text}), min_size=1, max_size=3),
    texts.map(lambda text: [{"role": "user", "content": text}]),
)
sampled_ids = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=12)


@dataclass
class Turn:
    ids: list[int]
    answer: list[Message]


turns = st.lists(
    st.builds(Turn, st.one_of(sampled_ids, sampled_ids.map(lambda ids: [*ids, END])), answers), min_size=1, max_size=5
)


def completion(ids: list[int]) -> Completion:
    return Completion(ids, [-0.5 - i for i in range(len(ids))], "stop" if ids[-1:] == [END] else "length")


def opened() -> TokenStream:
    stream = TokenStream(TOKENIZER, context_tokens=100_000)
    stream.open(OPENING, TOOLS)
    return stream


def rendered(answer: list[Message]) -> str:
    """Qwen3's own text for an answer, written out by hand."""
    if answer[0]["role"] == "user":
        said = f"<|im_start|>user\n{answer[0]['content']}<|im_end|>\n"
    else:
        responses = "".join(f"\n<tool_response>\n{message['content']}\n</tool_response>" for message in answer)
        said = f"<|im_start|>user{responses}<|im_end|>\n"
    return f"{said}<|im_start|>assistant\n"


def test_the_first_prompt_is_the_templates() -> None:
    text = TOKENIZER.apply_chat_template(OPENING, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    assert TOKENIZER.decode(opened().ids) == text
    assert opened().trajectory().prompt_ids == opened().ids


@settings(deadline=None, max_examples=300)
@given(turns)
def test_nothing_that_was_seen_or_sampled_ever_changes(conversation: list[Turn]) -> None:
    stream = opened()
    expected_mask: list[int] = []
    for turn in conversation:
        before = list(stream.ids)
        stream.append_sampled(completion(turn.ids))
        after_turn = list(stream.ids)
        assert after_turn == before + turn.ids
        stream.append_messages(turn.answer)
        assert stream.ids[: len(after_turn)] == after_turn
        expected_mask += [1] * len(turn.ids) + [0] * (len(stream.ids) - len(after_turn))
    stream.append_sampled(completion([END]))
    expected_mask.append(1)
    trajectory = stream.trajectory()
    assert trajectory.prompt_ids + trajectory.response_ids == stream.ids
    assert trajectory.response_mask == expected_mask


@settings(deadline=None, max_examples=300)
@given(turns)
def test_log_probs_are_the_engines_where_the_mask_is_one(conversation: list[Turn]) -> None:
    stream = opened()
    expected: list[float] = []
    for turn in conversation:
        stream.append_sampled(completion(turn.ids))
        expected += completion(turn.ids).log_probs
        stream.append_messages(turn.answer)
    trajectory = stream.trajectory()
    pairs = list(zip(trajectory.response_mask, trajectory.response_log_probs, strict=True))
    assert [log_prob for sampled, log_prob in pairs if sampled] == expected
    assert all(log_prob == 0.0 for sampled, log_prob in pairs if not sampled)
    assert trajectory.response_mask[-1:] in ([1], [])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(texts, answers), min_size=1, max_size=5), st.booleans())
def test_the_stream_shows_the_templates_own_text(conversation: list[tuple[str, list[Message]]], cut: bool) -> None:
    """Whether a turn ended by itself or was cut off: the policy sees it closed, once."""
    stream = opened()
    expected = TOKENIZER.decode(stream.ids)
    for said, answer in conversation:
        ids = TOKENIZER.encode(said, add_special_tokens=False)
        stream.append_sampled(completion(ids if cut else [*ids, END]))
        stream.append_messages(answer)
        expected += f"{said}<|im_end|>\n{rendered(answer)}"
    assert TOKENIZER.decode(stream.ids) == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(texts.filter(lambda text: text.strip("\n")), min_size=1, max_size=4))
def test_the_stream_is_what_the_template_renders_of_the_whole_conversation(outputs: list[str]) -> None:
    """With turns that the template repeats as they are: reasoning kept, since no user message follows."""
    turn = '<think>\nlook\n</think>\n\n<tool_call>\n{"name": "terminal", "arguments": {}}\n</tool_call>'
    stream = opened()
    messages: list[Message] = list(OPENING)
    for output in outputs:
        stream.append_sampled(completion([*TOKENIZER.encode(turn, add_special_tokens=False), END]))
        answer = {"role": "tool", "content": output}
        stream.append_messages([answer])
        messages += [{"role": "assistant", "content": turn}, answer]
    whole = TOKENIZER.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, tokenize=False)
    assert TOKENIZER.decode(stream.ids) == whole
    assert stream.ids == TOKENIZER.encode(whole, add_special_tokens=False)


def test_the_end_of_a_turn_that_was_cut_off_is_context() -> None:
    stream = opened()
    stream.append_sampled(completion([50, 51]))
    stream.append_messages([{"role": "user", "content": "go on"}])
    stream.append_sampled(completion([52]))
    trajectory = stream.trajectory()
    assert trajectory.response_ids[2] == END
    assert trajectory.response_mask[:3] == [1, 1, 0]


def test_a_trajectory_ends_with_what_was_sampled() -> None:
    stream = opened()
    assert stream.trajectory().response_ids == []
    stream.append_sampled(completion([50, END]))
    stream.append_messages([{"role": "user", "content": "unheard"}])
    assert stream.trajectory().response_ids == [50, END]


def test_room_is_what_is_left_of_the_context() -> None:
    length = len(opened().ids)
    stream = TokenStream(TOKENIZER, context_tokens=length + 3)
    stream.open(OPENING, TOOLS)
    stream.append_sampled(completion([50, END]))
    assert stream.room == 1
