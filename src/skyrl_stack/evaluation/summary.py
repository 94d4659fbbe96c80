"""Summary: what an evaluation came to: pass@k with intervals, endings, costs and where the time went."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from skyrl_stack.episode.record import Episode
from skyrl_stack.evaluation.estimates import mean_with_interval, pass_at
from skyrl_stack.evaluation.run import Attempt, Evaluation, Subject
from skyrl_stack.records import publish, read
from skyrl_stack.run_directory import RunDirectory


class Estimate(BaseModel):
    """A mean over tasks with its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float


class Summary(BaseModel):
    """What `summary.json` holds."""

    model_config = ConfigDict(frozen=True)

    model: str
    tasks: int
    "With at least one graded attempt."
    attempts: int
    lost: int
    "To infrastructure; they count for nothing."
    pass_at: dict[int, Estimate]
    "By k: over the tasks with at least k attempts."
    outcomes: dict[str, int]
    reasons: dict[str, int]
    "Of the grades."
    turns: float
    "Mean by episode, as are the seconds."
    seconds: dict[str, float]
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


def conclude(evaluation: Evaluation, *, prices: tuple[float, float] | None = None) -> Summary | None:
    """Write the summary and the predictions of what has ended so far, and print; None where nothing has."""
    attempts = evaluation.attempts()
    if not attempts:
        return None
    summary = summarise(evaluation, prices=prices)
    publish(evaluation.directory.path / "summary.json", summary)
    print_summary(summary, attempts)
    for file in evaluation.write_predictions():
        print(f"predictions: {file}")
    path = evaluation.directory.path
    print(f"episodes: `skyrl-stack report {path} --episodes`, and each by `skyrl-stack show ID --run-dir {path}`")
    return summary


def solved_attempts(directory: Path) -> dict[str, list[bool]]:
    """By task, whether each attempt of the evaluation in `directory` solved it.

    Raises:
        RunDirectoryError: no evaluation is there.
    """
    evaluation = Evaluation(RunDirectory(directory), read(directory / "subject.json", Subject))
    return _solved(evaluation.episode(attempt) for attempt in evaluation.attempts() if not attempt.error)


def _solved(episodes: Iterable[Episode]) -> dict[str, list[bool]]:
    solved: dict[str, list[bool]] = {}
    for episode in episodes:
        solved.setdefault(episode.instance_id, []).append(bool(episode.grade and episode.grade.resolved))
    return solved


def summarise(evaluation: Evaluation, *, prices: tuple[float, float] | None = None) -> Summary:
    """Of all attempts so far. `prices` are dollars for a million tokens, read and written."""
    attempts = evaluation.attempts()
    graded = [attempt for attempt in attempts if not attempt.error]
    episodes = [evaluation.episode(attempt) for attempt in graded]
    solved = _solved(episodes)
    asked, written = sum(one.prompt_tokens for one in graded), sum(one.completion_tokens for one in graded)
    return Summary(
        model=evaluation.model,
        tasks=len(solved),
        attempts=len(graded),
        lost=len(attempts) - len(graded),
        pass_at=dict(_estimates(list(solved.values()))),
        outcomes=dict(Counter(str(episode.outcome) for episode in episodes)),
        reasons=dict(Counter(episode.grade.reason if episode.grade else "not graded" for episode in episodes)),
        turns=_mean([episode.turns for episode in episodes]),
        seconds=_seconds(episodes),
        prompt_tokens=asked,
        completion_tokens=written,
        dollars=None if prices is None else (asked * prices[0] + written * prices[1]) / 1e6,
    )


def _estimates(solved: Sequence[Sequence[bool]]) -> Iterator[tuple[int, Estimate]]:
    for k in range(1, max(map(len, solved), default=0) + 1):
        values = [pass_at(k, sum(task), len(task)) for task in solved if len(task) >= k]
        mean, low, high = mean_with_interval(values)
        yield k, Estimate(mean=mean, low=low, high=high)


def _seconds(episodes: Sequence[Episode]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for episode in episodes:
        for stage, seconds in episode.seconds.items():
            total[stage] += seconds
    return {stage: seconds / len(episodes) for stage, seconds in total.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def print_summary(summary: Summary, attempts: Sequence[Attempt]) -> None:
    console = Console(soft_wrap=True)
    table = Table(box=SIMPLE, pad_edge=False, caption="95 % intervals over tasks", caption_justify="left")
    for column in ("", "mean", "from", "to"):
        table.add_column(column, justify="left" if not column else "right")
    for k, estimate in summary.pass_at.items():
        table.add_row(f"pass@{k}", f"{estimate.mean:.3f}", f"{estimate.low:.3f}", f"{estimate.high:.3f}")
    console.print(table)
    console.print(
        f"{summary.model}: {summary.attempts} episodes of {summary.tasks} tasks, {summary.turns:.1f} turns each"
    )
    console.print(f"outcomes: {_counts(summary.outcomes)}; grades: {_counts(summary.reasons)}")
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in summary.seconds.items())
    console.print(f"seconds by episode: {seconds}")
    dollars = "" if summary.dollars is None else f", {summary.dollars:.2f} $"
    console.print(f"tokens: {summary.prompt_tokens} read, {summary.completion_tokens} written{dollars}")
    for attempt in attempts:
        if attempt.error:
            console.print(f"lost: {attempt.instance_id} #{attempt.repetition}: {attempt.error}", markup=False)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
