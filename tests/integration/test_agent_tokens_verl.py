"""The token stream against verl's own builder of continuous tokens: two implementations, the same ids."""

from hypothesis import given, settings
from hypothesis import strategies as st
from verl.utils.tokenizer.continuous_token import QwenContinuousTokenBuilder

from qwen3 import small_tokenizer
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import TokenStream

TOKENIZER = small_tokenizer()
TOOLS = [
    {
        "type": "function",
        "function": {"name": "terminal", "description": "Run.", "parameters": {"type": "object", "properties": {}}},
    }
]
OPENING = [{"role": "system", "content": "Fix it."}, {"role": "user", "content": "f() is wrong"}]
CALL = {"id": "1", "type": "function", "function": {"name": "terminal", "arguments": {}}}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
tool_answers = st.lists(
    texts.map(lambda text: {"role": "tool", "content": text, "tool_call_id": "1", "name": "terminal"}),
    min_size=1,
    max_size=3,
)
user_answers = texts.map(lambda text: [{"role": "user", "content": text}])
sampled = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=10)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(sampled, st.one_of(tool_answers, user_answers)), min_size=1, max_size=4))
def test_the_ids_are_those_of_verl(conversation: list[tuple[list[int], list[dict[str, str]]]]) -> None:
    """For turns that ended by themselves; verl leaves a turn that was cut off open."""
    builder = QwenContinuousTokenBuilder(TOKENIZER)
    stream = TokenStream(TOKENIZER, context_tokens=1_000_000)
    stream.open(OPENING, TOOLS)
    ids = builder.build_initial_tokens(OPENING, tools=TOOLS)
    messages = list(OPENING)
    for turn, answer in conversation:
        turn = [*turn, TOKENIZER.eos_token_id]
        stream.append_sampled(Completion(turn, [0.0] * len(turn), "stop"))
        stream.append_messages([{"role": message["role"], "content": message["content"]} for message in answer])
        ids = builder.merge_assistant_tokens(ids, turn).token_ids
        messages = [*messages, {"role": "assistant", "content": "", "tool_calls": [CALL] * len(answer)}]
        ids = builder.merge_context_tokens(messages, messages + answer, ids, tools=TOOLS).token_ids
        messages += answer
        assert stream.ids == ids
