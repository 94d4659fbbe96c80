"""A conversation takes nothing from this host and leaves nothing on it, whatever lies in the user's home."""

import json
import os
import subprocess
import sys
from pathlib import Path

CONVERSATION = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from qwen3 import small_tokenizer
from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent_section import AgentSection

tokenizer = small_tokenizer()
policy = ScriptedPolicy([render_call("finish", message="done")], tokenizer)
done = asyncio.run(attempt("add(2, 2) is 0", sandbox=None, workdir="/testbed", policy=policy, tokenizer=tokenizer,
                           limits=AgentSection(), context_tokens=20_000))
stock = [name for name in sys.modules if name.startswith('openhands.tools')]
print(json.dumps([done.ending.outcome, tokenizer.decode(done.trajectories[0].prompt_ids), stock]))
"""


def test_hooks_agents_and_profiles_of_the_user_have_no_part(tmp_path: Path) -> None:
    home, temporary, marker = tmp_path / "home", tmp_path / "tmp", tmp_path / "hook-ran"
    temporary.mkdir()
    plugin = home / ".agents" / "plugins" / "mine"
    (plugin / "hooks").mkdir(parents=True)
    (plugin / ".plugin").mkdir()
    (plugin / ".plugin" / "plugin.json").write_text(json.dumps({"name": "mine"}))
    hook = {"hooks": [{"type": "command", "command": f"touch {marker}"}]}
    events = ("SessionStart", "UserPromptSubmit", "PreToolUse", "Stop", "SessionEnd")
    (plugin / "hooks" / "hooks.json").write_text(json.dumps({"hooks": {event: [hook] for event in events}}))
    (home / ".openhands" / "profiles").mkdir(parents=True)
    (home / ".openhands" / "profiles" / "seeing.json").write_text(json.dumps({"model": "gpt-4o", "api_key": "x"}))
    before = sorted(home.rglob("*"))

    printed = subprocess.run(
        [sys.executable, "-c", CONVERSATION, str(Path(__file__).parents[1])],
        env=os.environ | {"HOME": str(home), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    outcome, prompt, stock_tools = json.loads(printed.stdout.splitlines()[-1])

    assert outcome == "Finished"
    assert not marker.exists()
    offered = prompt.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    assert [json.loads(tool)["function"]["name"] for tool in offered] == ["terminal", "file_editor", "finish"]
    assert stock_tools == []
    assert sorted(home.rglob("*")) == before
    assert list(temporary.iterdir()) == []
