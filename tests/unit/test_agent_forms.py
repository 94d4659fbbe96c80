"""How tools are told and called: the chat template's form, or the prompt's."""

import json

import pytest
from openhands.sdk.llm.mixins.fn_call_converter import (
    convert_fncall_messages_to_non_fncall_messages,
    convert_non_fncall_messages_to_fncall_messages,
)

from qwen3 import small_tokenizer
from skyrl_stack.agent.calls import Call, MalformedCall
from skyrl_stack.agent.forms import CallForm, DeepSeekForm, FunctionForm, JsonForm, LlamaForm, PromptForm, form_of

EDIT = {
    "type": "function",
    "function": {
        "name": "edit",
        "description": "Edit a file.",
        "parameters": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "where"},
                "line": {"type": "integer", "description": "at"},
                "lines": {"type": "array", "items": {"type": "integer"}, "description": "all"},
                "quick": {"type": "boolean", "description": "or not"},
                "much": {"anyOf": [{"type": "number"}, {"type": "null"}], "description": "amount"},
            },
            "required": ["path"],
        },
    },
}
OPENING = [{"role": "system", "content": "Fix it."}, {"role": "user", "content": "f() is wrong"}]


def prompt_form() -> PromptForm:
    form = PromptForm()
    form.opening(OPENING, [EDIT])
    return form


def test_the_template_says_which_form() -> None:
    tokenizer = small_tokenizer()
    assert type(form_of(tokenizer)) is JsonForm
    assert type(form_of(tokenizer, "prompt")) is PromptForm
    coder = small_tokenizer.__wrapped__()
    coder.chat_template = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>\n<function=name>"
    assert type(form_of(coder)) is FunctionForm
    coder.chat_template = "{{ messages[0].content }}"
    assert type(form_of(coder)) is PromptForm


def test_the_prompt_is_openhands_own() -> None:
    messages, tools = prompt_form().opening(OPENING, [EDIT])
    theirs = convert_fncall_messages_to_non_fncall_messages(
        [dict(message) for message in OPENING],
        [EDIT],  # type: ignore[list-item]
        add_in_context_learning_example=False,
    )
    assert tools is None
    assert messages == theirs


@pytest.mark.parametrize(
    "text",
    [
        "<function=edit>\n<parameter=path>/a</parameter>\n</function>",
        "I look.\n<function=edit>\n<parameter=path>\n/a\n</parameter>\n<parameter=line>3</parameter>\n</function>",
        "<function=edit>\n<parameter=path>a\nb  c</parameter>\n<parameter=lines>[1, 2]</parameter>\n</function>",
    ],
)
def test_what_openhands_reads_is_read_alike(text: str) -> None:
    messages = [*OPENING, {"role": "assistant", "content": text}]
    *_, theirs = convert_non_fncall_messages_to_fncall_messages(messages, [EDIT])  # type: ignore[list-item]
    turn = prompt_form().parse(text)
    (call,) = theirs["tool_calls"]
    (mine,) = turn.calls
    assert mine.name == call["function"]["name"]
    assert mine.arguments == json.loads(call["function"]["arguments"])
    assert turn.content == theirs["content"].strip()


def test_values_have_the_types_of_the_schema_and_keep_their_white_space() -> None:
    form = prompt_form()
    arguments = {"path": "    indented\n  x ", "line": 2, "lines": [1], "quick": True, "much": None}
    assert form.parse(form.render("edit", arguments)).calls == (Call("edit", arguments),)
    coder = FunctionForm()
    coder.opening(OPENING, [EDIT])
    assert coder.parse(coder.render("edit", arguments)).calls == (Call("edit", arguments),)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<parameter=line>three</parameter>\n</function>", "line is not of type integer"),
        ("<parameter=lines>[1</parameter>\n</function>", "lines is not of type array"),
        ('<parameter=lines>["\\ud800"]</parameter>\n</function>', "lines is not of type array"),
        ("<parameter=path>/a\n</function>", "</parameter> is missing"),
        ("<parameter=path>/a</parameter>", "</function> is missing"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(body: str, reason: str) -> None:
    with pytest.raises(MalformedCall, match=reason):
        prompt_form().parse(f"<function=edit>\n{body}")


def test_all_that_follows_a_turn_is_one_message_of_the_user() -> None:
    results = [{"role": "tool", "name": "edit", "content": "one"}, {"role": "tool", "name": "edit", "content": "two"}]
    told = [{"role": "user", "content": "go on"}]
    (joined,) = prompt_form().answers(results + told)
    assert joined["content"] == "EXECUTION RESULT of [edit]:\none\n\nEXECUTION RESULT of [edit]:\ntwo\n\ngo on"


@pytest.mark.parametrize("form", [JsonForm(), LlamaForm(), DeepSeekForm()], ids=lambda form: type(form).__name__)
def test_native_calls_are_read_as_they_are_written(form: CallForm) -> None:
    first, second = {"path": 'a "b"\n```json {"name": 1}'}, {"line": 2, "lines": [], "quick": None}
    text = f"I look.\n{form.render('edit', first)}\n{form.render('view', second)}"
    turn = form.parse(f"<think>\nhm\n</think>\n\n{text}")
    assert (turn.reasoning, turn.content) == ("hm", "I look.")
    assert turn.calls == (Call("edit", first), Call("view", second))
    assert form.parse("I am done; x = {1: 2}").calls == ()


@pytest.mark.parametrize(
    ("form", "text", "reason"),
    [
        (LlamaForm(), '{"name": "edit", "arguments": {}}', "write {"),
        (LlamaForm(), '{"name": "edit", "parameters": {}}; {"name": ', "not valid JSON"),
        (LlamaForm(), '{"name": "edit", "parameters": {}} and so on', "not valid JSON"),
        (DeepSeekForm(), "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>", "write <"),
        (DeepSeekForm(), DeepSeekForm().render("edit", {}).removesuffix("<｜tool▁calls▁end｜>"), "write <"),
        (DeepSeekForm(), DeepSeekForm().render("edit", {}).replace("{}", "[]"), "no JSON object"),
        (DeepSeekForm(), DeepSeekForm().render("edit", {}).replace("```<", "<"), "is missing"),
    ],
)
def test_native_calls_that_cannot_be_read_are_refused(form: CallForm, text: str, reason: str) -> None:
    with pytest.raises(MalformedCall, match=reason):
        form.parse(text)


def test_the_system_prompt_of_deepseek_describes_the_tools() -> None:
    (system, user), tools = DeepSeekForm().opening(OPENING, [EDIT])
    assert (user, tools) == (OPENING[1], None)
    assert system["content"].startswith("Fix it.\n\n## Tools") and '"Edit a file."' in system["content"]
