"""What the trainer learns from is what the engine saw and sampled: conversations by the thousand, real tokenizers."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skyrl_stack.agent.calls import MalformedCall
from skyrl_stack.agent.dialogue import Dialogue
from skyrl_stack.agent.forms import CallForm, DeepSeekForm, JsonForm, LlamaForm, PromptForm, form_of
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Message, TokenStream
from tokenizers_npm import real_tokenizer

EXAMPLES = 500
OPENING = [{"role": "system", "content": "Fix it."}, {"role": "user", "content": "<issue>\nf() is wrong\n</issue>"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "terminal",
        "description": "Run.",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    },
}
LLAMA_TOOLS = Path(__file__).parents[1] / "data" / "llama3_tools_chat_template.jinja"
MALFORMED: dict[type[CallForm], list[str]] = {
    JsonForm: ["<tool_call>\n{bad json}\n</tool_call>", '<tool_call>\n{"name": "terminal"', "<tool_call>"],
    DeepSeekForm: [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>terminal\n```json\n{bad",
        "<｜tool▁call▁begin｜>function",
    ],
    LlamaForm: ['{"name": "terminal"', '{"name": "terminal", "arguments": {}}', '{"name": '],
    PromptForm: ["<function=terminal>\n<parameter=command>\nls", "<function=", "<function=terminal>\n</functio"],
}

snippets = st.sampled_from(
    [
        "def f(x):\n\treturn  x\n",
        "e\u0301\u0323",
        "한국어 العربية",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\u2028\x0c\r\n",
        "</tool_call>",
        "  \n\n",
    ]
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | snippets
texts = st.lists(words, max_size=3).map("".join)


@dataclass(frozen=True)
class Turn:
    kind: str
    "What the policy wants to say: `call`, `two calls`, `malformed`, `plain` or `empty`."
    said: str
    thought: str
    answers: tuple[str, str]
    cut: int | None
    "Tokens after which the turn is cut off; None where it ends by itself."


turns = st.builds(
    Turn,
    kind=st.sampled_from(["call", "call", "two calls", "malformed", "plain", "empty"]),
    said=texts,
    thought=st.sampled_from(["", "", "let me think of zebras"]),
    answers=st.tuples(texts, texts),
    cut=st.none() | st.integers(0, 30),
)
conversations = st.lists(turns, min_size=1, max_size=5)


@dataclass
class Family:
    """A tokenizer, and its template's own text around a turn, written out by hand."""

    name: str
    form: type[CallForm]
    around: Callable[[list[Message]], str]
    template: Path | None = None
    "Where that of the tokenizer's package shows no tools, though the model knows them."

    @property
    def tokenizer(self) -> Any:
        return told_of_tools(self.name, self.template) if self.template else real_tokenizer(self.name)

    def text(self, answers: list[Message]) -> str:
        said = self.around(answers)
        return unicodedata.normalize("NFC", said) if self.name == "qwen3" else said


@cache
def told_of_tools(name: str, template: Path) -> Any:
    tokenizer = real_tokenizer.__wrapped__(name)
    tokenizer.chat_template = template.read_text()
    return tokenizer


def qwen(answers: list[Message]) -> str:
    if answers[0]["role"] == "user":
        said = "".join(f"<|im_start|>user\n{answer['content']}<|im_end|>\n" for answer in answers)
    else:
        responses = "".join(f"\n<tool_response>\n{answer['content']}\n</tool_response>" for answer in answers)
        said = f"<|im_start|>user{responses}<|im_end|>\n"
    return f"<|im_end|>\n{said}<|im_start|>assistant\n"


def joined(answers: list[Message]) -> str:
    """The user's one message by the prompt's form."""
    results = [
        f"EXECUTION RESULT of [terminal]:\n{answer['content']}" if answer["role"] == "tool" else answer["content"]
        for answer in answers
    ]
    return "\n\n".join(results)


def llama(answers: list[Message]) -> str:
    user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "assistant"))
    return f"<|eot_id|>{user}{joined(answers).strip()}<|eot_id|>{assistant}"


def llama_native(answers: list[Message]) -> str:
    user, tool, assistant = (
        f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("user", "ipython", "assistant")
    )
    said = [
        f"{tool}{json.dumps(answer['content'], ensure_ascii=False)}"
        if answer["role"] == "tool"
        else f"{user}{answer['content'].strip()}"
        for answer in answers
    ]
    return f"<|eot_id|>{'<|eot_id|>'.join(said)}<|eot_id|>{assistant}"


def deepseek(answers: list[Message]) -> str:
    if answers[0]["role"] == "user":
        return f"<｜end▁of▁sentence｜><｜User｜>{answers[0]['content']}<｜Assistant｜>"
    said = "\n".join(f"<｜tool▁output▁begin｜>{answer['content']}<｜tool▁output▁end｜>" for answer in answers)
    return f"<｜end▁of▁sentence｜><｜tool▁outputs▁begin｜>{said}<｜tool▁outputs▁end｜>"


FAMILIES = [
    Family("qwen3", JsonForm, qwen),
    Family("llama3_1", PromptForm, llama),
    Family("llama3_1", LlamaForm, llama_native, LLAMA_TOOLS),
    Family("deepseek_v3", DeepSeekForm, deepseek),
]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.name}-{family.form.__name__}")


@dataclass
class Player:
    """Plays a conversation as OpenHands does: a turn that cannot be read is dropped from the history."""

    family: Family
    strip: bool = False
    history: list[Message] = field(default_factory=lambda: list(OPENING))
    seen: list[tuple[TokenStream, list[int], Completion]] = field(default_factory=list)
    "For each turn its stream, the prompt that the engine saw, and what it sampled."
    answers: list[list[Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokenizer = self.family.tokenizer
        self.dialogue = Dialogue(
            tokenizer,
            context_tokens=1_000_000,
            form=form_of(tokenizer),
            strip_reasoning=self.strip,
            notice=lambda stream: None,
        )

    def play(self, conversation: list[Turn]) -> None:
        for turn in conversation:
            self.dialogue.hear(self.history, [TOOL])
            completion = self.sample(turn)
            self.seen.append((self.dialogue.stream, list(self.dialogue.stream.ids), completion))
            self.hear(turn, completion)
        self.dialogue.hear(self.history, [TOOL])

    def sample(self, turn: Turn) -> Completion:
        tokenizer, form = self.family.tokenizer, self.dialogue.form
        call = form.render("terminal", {"command": turn.said})
        bad = MALFORMED[self.family.form]
        said = {
            "call": f"{turn.said[:5]}\n{call}",
            "two calls": f"{call}\n{call}",
            "malformed": bad[len(turn.said) % len(bad)],
            "plain": turn.said,
            "empty": "",
        }[turn.kind]
        thought = f"<think>\n{turn.thought}\n</think>\n\n" if turn.thought else ""
        ids = [*tokenizer.encode(thought + said, add_special_tokens=False), tokenizer.eos_token_id][: turn.cut]
        serial = len(self.seen)
        stop = "stop" if ids[-1:] == [tokenizer.eos_token_id] else "length"
        return Completion(ids, [-serial - i / 1000 for i in range(len(ids))], stop)

    def hear(self, turn: Turn, completion: Completion) -> None:
        try:
            read = self.dialogue.sampled(completion)
        except MalformedCall as error:
            answers = [{"role": "user", "content": f"{error} {turn.answers[0]}"}]
        else:
            self.history = [*self.history, {"role": "assistant", "content": read.content}]
            tools = [{"role": "tool", "name": "terminal", "content": text} for text in turn.answers[: len(read.calls)]]
            answers = tools or [{"role": "user", "content": f"go on {turn.answers[0]}"}]
        self.history = [*self.history, *answers]
        self.answers.append(answers)


thousands = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))


@families
def test_the_form_is_the_templates_own_or_else_the_prompts(family: Family) -> None:
    assert type(form_of(family.tokenizer)) is family.form


@families
@thousands
@given(conversations)
def test_what_is_learnt_from_is_what_was_seen_and_sampled(family: Family, conversation: list[Turn]) -> None:
    player = Player(family)
    player.play(conversation)
    stream = player.dialogue.stream
    assert {id(each) for each, _, _ in player.seen} == {id(stream)}
    tokenizer, end = family.tokenizer, family.tokenizer.eos_token_id
    _, first_prompt, _ = player.seen[0]
    mask: list[int] = []
    log_probs: list[float] = []
    prompts = [*(prompt for _, prompt, _ in player.seen[1:]), stream.ids]
    for (_, prompt, completion), answers, following in zip(player.seen, player.answers, prompts, strict=True):
        so_far = prompt + completion.token_ids
        assert following[: len(so_far)] == so_far
        said = following[len(so_far) :]
        ended = [end] if so_far[-1] == end else []
        assert tokenizer.decode([*ended, *said], skip_special_tokens=False) == family.text(answers)
        mask += [1] * len(completion.token_ids) + [0] * len(said)
        log_probs += completion.log_probs + [0.0] * len(said)
    (trajectory,) = player.dialogue.trajectories()
    last = len(mask) - mask[::-1].index(1) if 1 in mask else 0
    assert trajectory.prompt_ids == first_prompt
    assert trajectory.response_ids == stream.ids[len(first_prompt) :][:last]
    assert trajectory.response_mask == mask[:last]
    assert trajectory.response_log_probs == log_probs[:last]


@families
@settings(deadline=None, max_examples=EXAMPLES // 7)
@given(conversations)
def test_reasoning_that_is_not_told_again_begins_a_new_trajectory(family: Family, conversation: list[Turn]) -> None:
    player = Player(family, strip=True)
    player.play(conversation)
    tokenizer = family.tokenizer
    sampled: list[int] = []
    for trajectory in player.dialogue.trajectories():
        assert "zebras" not in tokenizer.decode(trajectory.prompt_ids)
        pairs = zip(trajectory.response_ids, trajectory.response_mask, strict=True)
        sampled += [token for token, mine in pairs if mine]
    assert sampled == [token for _, _, completion in player.seen for token in completion.token_ids]
    for stream, prompt, completion in player.seen:
        assert stream.ids[: len(prompt) + len(completion.token_ids)] == prompt + completion.token_ids
    for (stream, _, completion), (following, *_) in zip(player.seen, player.seen[1:], strict=False):
        text = stream.text(completion)
        thought = text.startswith("<think>") and text.removeprefix("<think>").strip() != ""
        assert (following is not stream) == thought


@families
def test_a_call_cut_at_every_token_is_read_or_refused(family: Family) -> None:
    """Nothing between a whole call and none is taken for a call."""
    tokenizer, form = family.tokenizer, form_of(family.tokenizer)
    form.opening(list(OPENING), [TOOL])
    text = "Look.\n" + form.render("terminal", {"command": 'echo "é 👩‍👧" && ls\n'})
    ids = tokenizer.encode(text, add_special_tokens=False)
    for cut in range(len(ids)):
        try:
            assert form.parse(tokenizer.decode(ids[:cut])).calls == ()
        except MalformedCall:
            continue
    (call,) = form.parse(tokenizer.decode(ids)).calls
    assert (call.name, call.arguments) == ("terminal", {"command": 'echo "é 👩‍👧" && ls\n'})


def test_a_tokenizer_that_loses_white_space_is_refused() -> None:
    """DeepSeek's, as transformers makes it of the class that its configuration names."""
    from transformers import LlamaTokenizerFast

    real = real_tokenizer("deepseek_v3")
    lossy = LlamaTokenizerFast(vocab=real.get_vocab(), merges=[])
    lossy.chat_template = real.chat_template
    with pytest.raises(ValueError, match="loses text"):
        TokenStream(lossy, context_tokens=1000).open(list(OPENING))
