"""The tiny model's teacher, tokenizer and supervised start; nothing here needs a sandbox."""

import json
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_stack.agent.calls import parse_turn
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import TokenStream
from skyrl_stack.errors import ProfileError
from skyrl_stack.trainer.tiny import network, supervised, teacher
from toys import toy_task

PATCH = """\
diff --git a/pkg/m.py b/pkg/m.py
--- a/pkg/m.py
+++ b/pkg/m.py
@@ -1,4 +1,4 @@
 import re
 
-    return re.sub(r'(\\w)"', "\\\\1", x) or x - 1
+    return re.sub(r'(\\w)"', "\\\\1", x) or x + 1
 # end
"""


def command(turn: str) -> str:
    (call,) = parse_turn(turn).calls
    return call.arguments["command"]


def test_the_scripts_do_what_their_names_say(tmp_path: Path) -> None:
    fix = teacher.line_fix(toy_task(patch=PATCH))
    assert (fix.file, fix.line) == ("pkg/m.py", 3)
    for script, expected in zip(
        teacher.scripts(toy_task(patch=PATCH)), (fix.sound, "    pass", fix.buggy), strict=True
    ):
        file = tmp_path / "m.py"
        file.write_text(f"import re\n\n{fix.buggy}\n# end\n")
        for turn in script.turns[:-1]:
            line = command(turn).replace("/testbed/pkg/m.py", str(file))
            printed = subprocess.run(["/bin/bash", "-c", line], check=True, capture_output=True, text=True).stdout
            assert not printed or fix.buggy in printed
        assert file.read_text() == f"import re\n\n{expected}\n# end\n"
        assert parse_turn(script.turns[-1]).calls[0].name == "finish"


def test_a_fix_of_two_lines_is_refused() -> None:
    with pytest.raises(ProfileError, match="learns to fix one line"):
        teacher.line_fix(toy_task(patch=PATCH.replace(" # end", "-# end\n+# fin")))


@pytest.fixture(scope="module")
def tokenizer() -> network.TinyTokenizer:
    return network.train_tokenizer(["a few words", json.dumps({"name": "terminal", "arguments": {}})])


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(tokenizer: network.TinyTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)  # as Qwen's does


def test_marks_of_calls_are_one_token_and_are_read_back(tokenizer: network.TinyTokenizer) -> None:
    ids = tokenizer.encode("<tool_call>x</tool_call><|im_end|>", add_special_tokens=False)
    assert len(ids) == 4
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>x</tool_call>"


def test_only_sampled_tokens_are_learnt(tokenizer: network.TinyTokenizer) -> None:
    stream = TokenStream(tokenizer, context_tokens=512)
    stream.open([{"role": "user", "content": "a few"}])
    for text in ("words", "a few words"):
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        stream.append_sampled(Completion(ids, [0.0] * len(ids), "stop"))
        stream.append_messages([{"role": "tool", "content": "few few few"}])
    trace = stream.trajectory()
    policy = network.new_network(tokenizer, context_tokens=512, seed=0)
    losses: list[float] = []
    supervised.fit(policy, [trace], steps=40, seed=0, say=lambda _, loss: losses.append(loss))
    assert losses[0] > 4
    assert losses[-1] < 0.1

    import torch

    inputs = torch.tensor([trace.prompt_ids + trace.response_ids])
    with torch.no_grad():
        guesses = policy(inputs).logits[0, len(trace.prompt_ids) - 1 : -1].argmax(-1)
    learnt = torch.tensor(trace.response_mask, dtype=torch.bool)
    truth = torch.tensor(trace.response_ids)
    assert torch.equal(guesses[learnt], truth[learnt])
    assert not torch.equal(guesses[~learnt], truth[~learnt])
