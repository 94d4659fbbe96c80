"""An episode's page, and an episode scored again."""

import json
from pathlib import Path
from typing import Any

import pytest

from skyrl_stack.agent.events import Event
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import RunDirectoryError, SetupError
from skyrl_stack.profile import Profile
from skyrl_stack.records import publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.show import find_episode, show_episode
from skyrl_stack.trainer.cpu.generation import Generator
from skyrl_stack.trainer.replay import replay
from skyrl_stack.trainer.tiny import network


def record(**facts: Any) -> Episode:
    return Episode.model_validate(
        {
            "id": "00001-toy-0-abc",
            "instance_id": "toy",
            "problem_statement": "add(2, 2) is [0]",
            "step": 1,
            "repetition": 0,
            "started_at": 100.0,
            "seconds": {"model": 1.5},
        }
        | facts
    )


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, Profile(name="test"))


def test_a_page_shows_all_that_happened(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [
        Event(at=101.0, kind="call", source="agent", tool="terminal", text='{"command": "ls"}', reasoning="hm"),
        Event(at=102.0, kind="answer", source="environment", tool="terminal", text="[red]a.py <b>"),
    ]
    episode = record(outcome=Outcome.STUCK, reward=0.0, patch="--- a/x\n+++ b/x\n", events=events, turns=1)
    publish(directory.episode_file(episode.id), episode)
    file = find_episode("00001-toy", directory)
    show_episode(file)
    printed = capsys.readouterr().out
    for shown in ("Stuck", "reward   0", "add(2, 2) is [0]", "hm", '{"command": "ls"}', "[red]a.py <b>", "+++ b/x"):
        assert shown in printed
    assert "2.0 s  environment  terminal" in printed
    show_episode(file, html=tmp_path / "page.html")
    assert "[red]a.py &lt;b&gt;" in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out == ""


def test_what_is_no_episode_is_one_line(directory: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no such episode"):
        find_episode("none", directory)
    for name in ("a1", "a2"):
        publish(directory.episode_file(name), record(id=name))
    with pytest.raises(RunDirectoryError, match="2 episodes begin so"):
        find_episode("a", directory)
    old = tmp_path / "old.json"
    old.write_text(json.dumps(json.loads(record().model_dump_json()) | {"format": 1}))
    with pytest.raises(RunDirectoryError, match="of format 1, and this is for format 2"):
        show_episode(old)


def test_an_episode_agrees_with_the_model_that_sampled_it_and_with_no_other(directory: RunDirectory) -> None:
    tokenizer = network.train_tokenizer(["some words"])
    for seed, path in ((3, directory.model), (4, directory.path / "other")):
        network.new_network(tokenizer, context_tokens=96, seed=seed).save_pretrained(path)
    generator = Generator(directory.model, context_tokens=96, seed=0)
    prompt, said = [5, 6, 7], [9, 10, 11]
    first, first_log_probs = generator.sample(prompt, max_tokens=8, temperature=0.7)
    second, second_log_probs = generator.sample(prompt + first + said, max_tokens=8, temperature=0.7)
    trajectory = Trajectory(
        prompt_ids=prompt,
        response_ids=first + said + second,
        response_mask=[1] * len(first) + [0] * 3 + [1] * len(second),
        response_log_probs=[*first_log_probs, 0.0, 0.0, 0.0, *second_log_probs],
    )
    file = directory.episode_file("toy")
    publish(file, record(trajectories=[trajectory]))
    scored = replay(file, temperature=0.7)
    assert scored.agrees and scored.largest < 1e-4
    assert scored.tokens == len(first) + len(second)
    for dtype in ("bfloat16", "float16"):
        rounded = replay(file, temperature=0.7, dtype=dtype)
        assert rounded.agrees and rounded.largest > scored.largest
    assert not replay(file).agrees  # at another temperature
    assert not replay(file, directory.path / "other", temperature=0.7).agrees
    with pytest.raises(SetupError, match="not a model"):
        replay(file, directory.episodes)
