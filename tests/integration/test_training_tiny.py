"""The tiny model's teacher in real sandboxes: its scripts earn what their names say, and become traces."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playing import play, profile, sandboxes

from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.profile import ModelSection, Profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import Task

pytestmark = pytest.mark.podman


def test_the_teachers_scripts_earn_what_they_should(inflection_tasks: list[Task], tmp_path: Path) -> None:
    from skyrl_stack.trainer.tiny import teacher

    directory = RunDirectory.create(tmp_path, profile())

    async def rewards() -> list[float | None]:
        async with sandboxes() as provider:
            scripts = teacher.scripts(inflection_tasks[0])
            played = [await play(inflection_tasks[0], script.turns, directory, provider) for script in scripts]
            return [episode.reward for episode, _ in played]

    assert asyncio.run(rewards()) == [1.0, 0.0, 0.0]


def test_traces_hold_what_the_teacher_said(inflection_tasks: list[Task]) -> None:
    from skyrl_stack.trainer.tiny import teacher
    from skyrl_stack.trainer.tiny.traces import Classroom

    async def teach() -> None:
        async with sandboxes() as provider:
            classroom = Classroom(provider, Profile(name="local"))
            tokenizer = await classroom.tokenizer(inflection_tasks)
            traces = await classroom.traces(inflection_tasks, tokenizer)
        lessons = [script for task in inflection_tasks for script in teacher.scripts(task) for _ in range(script.share)]
        assert len(traces) == len(lessons)
        for trace, script in zip(traces, lessons, strict=True):
            sampled = [i for i, mine in zip(trace.response_ids, trace.response_mask, strict=True) if mine]
            text = tokenizer.decode(sampled, skip_special_tokens=False)
            assert text == "".join(f"{turn}<|im_end|>" for turn in script.turns)
            assert len(trace.prompt_ids) < 1000
            assert sum(trace.response_mask) < 200

    asyncio.run(teach())


class Greedy:
    """The policy of a model, at its most likely."""

    def __init__(self, path: Path, end_of_turn: int) -> None:
        from skyrl_stack.trainer.cpu.generation import Generator

        self.generator = Generator(path, context_tokens=2048, seed=0)
        self.end_of_turn = end_of_turn

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        tokens, log_probs = self.generator.sample(prompt_ids, max_tokens=max_tokens, temperature=0)
        return Completion(tokens, log_probs, "stop" if tokens[-1] == self.end_of_turn else "length")


def test_a_model_is_made_once_and_guesses_more_often_than_it_solves(
    inflection_tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from skyrl_stack.trainer.tiny import teacher
    from skyrl_stack.trainer.tiny.make import find_or_make
    from skyrl_stack.trainer.tiny.traces import Classroom

    task = inflection_tasks[0]
    settings = Profile(name="local", model=ModelSection(sft_steps=120))
    directory = RunDirectory.create(tmp_path, settings)
    directory.tasks_file.write_text(f"{task.model_dump_json()}\n")
    publish(directory.launch_file, Launch())
    runtime = subprocess.Popen([sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(directory.path)])
    try:
        directory.await_endpoint("runtime", 60)
        monkeypatch.setenv("SKYRL_CACHE", str(tmp_path / "cache"))  # of models; the runtime has the machine's images
        path = find_or_make(directory, settings)
        monkeypatch.delenv("SKYRL_CACHE")
    finally:
        runtime.terminate()
        runtime.wait(60)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    monkeypatch.setenv("SKYRL_CACHE", str(tmp_path / "cache"))
    assert find_or_make(directory, settings) == path  # without a runtime
    monkeypatch.delenv("SKYRL_CACHE")

    tokenizer = AutoTokenizer.from_pretrained(path)

    async def play_and_teach() -> tuple[Episode, list[Trajectory]]:
        async with sandboxes() as provider:
            policy = Greedy(path, tokenizer.eos_token_id)
            fixed: Any = {"sandboxes": provider, "profile": settings, "directory": directory, "tokenizer": tokenizer}
            episode = await run_episode(task, policy=policy, step=0, repetition=0, **fixed)
            return episode, await Classroom(provider, settings).traces([task], tokenizer)

    episode, traces = asyncio.run(play_and_teach())
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")
    lessons = [script for script in teacher.scripts(task) for _ in range(script.share)]
    solves, guesses = (likelihood(model, traces[i]) for i in (0, lessons.index(teacher.scripts(task)[1])))
    assert 0.05 < solves < guesses  # often enough for rewards to find it
    assert (episode.outcome, episode.reward) == (Outcome.FINISHED, 0.0)
    assert re.search(r"^\+ *pass$", episode.patch or "", re.MULTILINE)


def likelihood(model: Any, trace: Trajectory) -> float:
    """How likely the model is to say all of what a trace says."""
    import torch

    tokens = torch.tensor([[*trace.prompt_ids, *trace.response_ids]])
    with torch.no_grad():
        log_probs = model(tokens).logits[0, :-1].log_softmax(-1)
    said = log_probs.gather(1, tokens[0, 1:, None])[-len(trace.response_ids) :, 0]
    return float((said * torch.tensor(trace.response_mask)).sum().exp())
