"""Evaluation against a real HTTP server that speaks OpenAI's chat API by a script: every way an episode can end."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from swebench.harness.utils import get_predictions_from_file

from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.cli import main
from skyrl_stack.evaluation import endpoint as endpoint_module
from skyrl_stack.evaluation.endpoint import ATTEMPTS, Endpoint
from skyrl_stack.evaluation.profile import evaluation_profile
from skyrl_stack.evaluation.run import Evaluation, Subject
from skyrl_stack.evaluation.summary import conclude
from skyrl_stack.factory.make import write_tasks
from skyrl_stack.tasks.task import Task

pytestmark = [pytest.mark.podman, pytest.mark.timeout(300)]

LIMITS = ("agent.max_steps=5", "agent.episode_timeout_s=25", "agent.detect_stuck=true", "runtime.memory_mb=256")
FINISH = render_call("finish", message="done")
GARBLED = "<tool_call>{no json</tool_call>"


class Script(ThreadingHTTPServer):
    """Plays `behaviours`, one an episode, in order."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, task: Task, behaviours: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fix = render_call("terminal", command=f"git apply - <<'PATCH'\n{task.patch}PATCH")
        self.behaviours = iter(behaviours)
        self.behaviour = ""
        self.refused = 0
        "Times in a row that the same request was refused."
        self.asked: list[dict[str, Any]] = []
        self.headers_seen: set[str | None] = set()
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(body)
        turns = sum(message["role"] == "assistant" for message in body["messages"])
        self.refused = self.refused + 1 if turns == 0 and 0 < self.refused < ATTEMPTS else 0
        if turns == 0 and not self.refused:
            self.behaviour = next(self.behaviours)
        match self.behaviour, turns:
            case "retried", 0 if not self.refused:
                self.refused = 1
                return 429, {"error": {"message": "slow down"}}
            case "solves" | "retried", 0:
                return said(self.fix)
            case "solves" | "retried" | "finishes", _:
                return said(FINISH)
            case "talks", _:
                return said("I have no idea.")
            case "goes on", _:
                return said(render_call("terminal", command=f"echo {turns}"))
            case "repeats", _:
                return said(render_call("terminal", command="true"))
            case "hoards", _:
                return said(render_call("terminal", command="head -c 500M /dev/zero | tail"))
            case "refuses", _:
                return said("I'm sorry, but I can't help with that.")
            case "sleeps", _:
                self.stopping.wait(100)
                return 500, {}
            case "overflows", _:
                return 400, {"error": {"message": "This model's maximum context length is 8 tokens."}}
            case "babbles", 0:
                return said(GARBLED)
            case "garbles", _:
                return said(GARBLED)
            case "babbles", _:
                return said(FINISH)
        self.refused = self.refused or 1
        return 503, {"error": {"message": "down"}}


def said(text: str) -> tuple[int, dict[str, Any]]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers_seen.add(self.headers["Authorization"])
        status, answer = self.server.answer(body) if self.path == "/v1/chat/completions" else (404, {})
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(BrokenPipeError):  # who asked has given up
            self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:
        pass


BEHAVIOURS = ["solves", "finishes", "talks", "goes on", "sleeps", "overflows", "babbles", "is down", "retried"]
BEHAVIOURS += ["refuses", "repeats", "garbles", "hoards"]
OUTCOMES = dict.fromkeys(Outcome, 1) | {Outcome.FINISHED: 4}
OF_INFRASTRUCTURE = (Outcome.SANDBOX_LOST, Outcome.MODEL_LOST)


@pytest.fixture
def script(inflection_tasks: list[Task]) -> Iterator[Script]:
    server = Script(inflection_tasks[0], [*BEHAVIOURS, "is down", "solves"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()


def test_every_ending_is_counted_and_what_was_lost_is_played_again(
    inflection_tasks: list[Task], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    file, out = tmp_path / "one.jsonl", tmp_path / "out"
    write_tasks(file, inflection_tasks[:1])
    profile = evaluation_profile(LIMITS, at_once=1)
    evaluation = Evaluation.open(out, profile, file, Subject(name="scripted"))
    said_lines: list[str] = []
    run = evaluation.run(
        Endpoint(script.url, "scripted"), profile, repetitions=len(BEHAVIOURS), at_once=1, say=said_lines.append
    )
    asyncio.run(run)
    summary = conclude(evaluation, prices=(1.0, 10.0))
    assert summary
    assert (summary.tasks, summary.attempts, summary.lost) == (1, 12, 1)
    assert summary.outcomes == {
        outcome: count for outcome, count in OUTCOMES.items() if outcome not in OF_INFRASTRUCTURE
    }
    assert summary.reasons == {"Resolved": 2, "EmptyPatch": 10}
    assert summary.pass_at[1].mean == pytest.approx(2 / 12)
    assert summary.pass_at[2].mean == pytest.approx(1 - (10 * 9) / (12 * 11))
    assert summary.prompt_tokens == 10 * summary.completion_tokens > 0
    assert summary.dollars == pytest.approx((summary.prompt_tokens + 10 * summary.completion_tokens) / 1e6)
    assert {"start", "model", "tools", "grade"} <= summary.seconds.keys()
    assert script.headers_seen == {"Bearer the-key"}
    assert not any(b"the-key" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    goes_on_with_what_was_lost(script, file, out, inflection_tasks[0])


def goes_on_with_what_was_lost(script: Script, file: Path, out: Path, task: Task) -> None:
    """By the command this time; only the lost episode is played, and patches are written as SWE-bench takes them."""
    argv = ["eval", "--tasks", str(file), "--model", script.url]
    argv += ["--name", "scripted", "--n", str(len(BEHAVIOURS)), "--out", str(out), "--at-once", "1"]
    argv += [part for limit in LIMITS for part in ("--set", limit)]
    lost = CliRunner().invoke(main, argv)
    assert lost.exit_code == 1
    assert lost.output.endswith("run it again: what was lost is played again\n")
    command = str(Path(sys.executable).with_name("skyrl-stack"))
    done = subprocess.run([command, *argv], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of 13 episodes to play" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["attempts"], summary["lost"], summary["reasons"]["Resolved"]) == (13, 0, 3)
    (prediction,) = [json.loads(line) for line in (out / "predictions-0.jsonl").read_text().splitlines()]
    assert prediction.keys() == {"instance_id", "model_name_or_path", "model_patch"}
    assert prediction["instance_id"] == task.instance_id
    assert prediction["model_patch"].startswith("diff --git ")
    assert len(list(out.glob("predictions-*.jsonl"))) == 13
    listed = CliRunner().invoke(main, ["tasks", "list", str(file), "--eval", str(out)])
    assert re.search(rf"{re.escape(task.instance_id)} .* line, place .* 3/13 ", listed.output)
    assert get_predictions_from_file(str(out / "predictions-0.jsonl"), "", "") == [prediction]


def test_an_evaluation_of_other_tasks_and_a_model_that_is_no_url_are_refused(
    inflection_tasks: list[Task], tmp_path: Path
) -> None:
    command = str(Path(sys.executable).with_name("skyrl-stack"))
    file = tmp_path / "t.jsonl"
    write_tasks(file, inflection_tasks[:1])

    def refused(model: str, *more: str) -> str:
        argv = [command, "eval", "--tasks", str(file), "--model", model, "--out", str(tmp_path / "out"), *more]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
        assert done.returncode == 1
        return done.stderr

    assert "neither the URL of a server, nor a directory" in refused("checkpoints/step_3")
    Evaluation.open(tmp_path / "out", evaluation_profile((), at_once=1), file, Subject(name="default"))
    assert "an evaluation of default is there" in refused("http://127.0.0.1:9/v1", "--name", "another")
    write_tasks(file, inflection_tasks)
    assert "an evaluation of other tasks is there" in refused("http://127.0.0.1:9/v1")
    file.write_text("")
    assert f"{file}: no task in it" in refused("http://127.0.0.1:9/v1")
