"""Does the loop learn? `python benchmarks/learning.py OUT [--seeds 1 2 3] [--at-once 1] [--set KEY=VALUE …]`

A curriculum that a tiny policy can learn in minutes, by the product's own path: real files, real tests, real sandboxes,
verl. 56 tasks are made by the factory from a git checkout of 14 one-line functions, each with four bugs; about a
quarter are held out. The policy starts from a teacher whose most frequent edit is wrong. For each seed it is trained
twice, the second time on rewards that are shuffled among the episodes of a step, and evaluated on the tasks held out.

The bar was fixed before the first run. In every seed, on tasks held out:

    the sampled solve rate rises by at least 0.25, and above the greedy rate before training;
    with shuffled rewards it does not.

OUT gets a directory for each seed, results.json, results.md and learning.svg; a second call goes on with what is there.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import plot

from skyrl_stack.report import read_steps
from skyrl_stack.run_directory import RunDirectory

HERE = Path(__file__).parent
STACK = [sys.executable, "-c", "from skyrl_stack.cli import main; main()"]
RISE = 0.25
SAMPLES = 8
"Episodes of each task held out."
HELD_OUT = 0.25
SHUFFLED = (
    f"trainer.verl.trainer.v1.sampler.custom_sampler.path={HERE / 'shuffled.py'}",
    "trainer.verl.algorithm.adv_estimator=shuffled_grpo",
)
ARMS = {"reward": (), "shuffled": SHUFFLED}
LINES = {
    "area": "width * height + edge - 1",
    "border": "top + bottom + left - 2",
    "change": "price * count - coupon + 3",
    "depth": "pressure * scale + offset + 4",
    "energy": "mass * speed * drag - 5",
    "factor": "ratio - share * weight + 6",
    "growth": "income + bonus - tax - 7",
    "hours": "days * shift - pause * 2",
    "index": "row * columns + column + 8",
    "joint": "first + second * third - 9",
    "kernel": "pixel * gain - dark + 1",
    "length": "step * steps + start - 2",
    "margin": "revenue - cost - fees + 3",
    "number": "tens * base + ones + 4",
}
"Function and what it returns; four places of each line can go wrong."
CASES = ((7, 3, 5), (2, 9, 4), (11, 6, 8))


@dataclass(frozen=True)
class Result:
    """One seed's rates on the tasks held out, and its training curves by arm."""

    seed: int
    greedy_before: float
    before: float
    after: dict[str, float]
    curves: dict[str, list[float]]

    def learnt(self, arm: str) -> bool:
        """Whether `arm` passes the bar."""
        return self.after[arm] - self.before >= RISE and self.after[arm] > self.greedy_before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="of learning.toml")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    train, held_out = make_tasks(out)
    bench = Bench(out, train, held_out, arguments.overrides, asyncio.Semaphore(arguments.at_once))
    results = asyncio.run(bench.run(arguments.seeds))
    (out / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    kinds = {arm: [result.curves[arm] for result in results] for arm in ARMS}
    (out / "learning.svg").write_text(plot.curves("share of a training step's episodes that are solved", kinds))
    table = "\n".join(rows(results))
    (out / "results.md").write_text(f"{table}\n")
    print(table)
    return 0 if all(each.learnt("reward") and not each.learnt("shuffled") for each in results) else 1


class Bench:
    """Trainings and evaluations, as commands that a user would type."""

    def __init__(
        self, out: Path, train: Path, held_out: Path, overrides: Sequence[str], places: asyncio.Semaphore
    ) -> None:
        self.out = out
        self.train = train
        self.held_out = held_out
        self.overrides = overrides
        self.places = places

    async def run(self, seeds: Sequence[int]) -> list[Result]:
        return await asyncio.gather(*(self._seed(seed) for seed in seeds))

    async def _seed(self, seed: int) -> Result:
        runs = dict(zip(ARMS, await asyncio.gather(*(self._trained(seed, arm) for arm in ARMS)), strict=True))
        start = runs["reward"].model
        greedy, before, *after = await asyncio.gather(
            self._evaluated(f"{seed}-greedy", start, temperature=0),
            self._evaluated(f"{seed}-before", start),
            *(self._evaluated(f"{seed}-{arm}", newest_checkpoint(run)) for arm, run in runs.items()),
        )
        curves = {arm: [step.solved / len(step.rewards) for step in read_steps(run)] for arm, run in runs.items()}
        return Result(seed, greedy, before, dict(zip(ARMS, after, strict=True)), curves)

    async def _trained(self, seed: int, arm: str) -> RunDirectory:
        root = self.out / f"{seed}-{arm}"
        if not (found := sorted(root.glob("*_learning"))) or not list(RunDirectory(found[-1]).checkpoints.glob("g*")):
            sets = [f"run.root={root}", f"tasks.file={self.train}", f"model.seed={seed}", f"trainer.seed={seed}"]
            log, asked = root.with_suffix(".log"), options([*sets, *ARMS[arm], *self.overrides])
            async with self.places:
                await run(log, "launch", HERE / "learning.toml", *asked)
            found = sorted(root.glob("*_learning"))
        return RunDirectory.open(found[-1])

    async def _evaluated(self, name: str, model: Path, *, temperature: float = 1) -> float:
        out = self.out / f"eval-{name}"
        asked = ["--temperature", temperature, "--n", SAMPLES if temperature else 1, "--at-once", 4, "--out", out]
        async with self.places:
            log = out.with_suffix(".log")
            await run(log, "eval", "--tasks", self.held_out, "--model", model, "--name", name, *asked)
        return json.loads((out / "summary.json").read_text())["pass_at"]["1"]["mean"]


def make_tasks(out: Path) -> tuple[Path, Path]:
    """The tasks to train on and those held out, made once."""
    tasks = out / "tasks.jsonl"
    if not tasks.is_file():
        checkout = out / "arithmetic"
        write_project(checkout)
        patterns = ["--from", checkout, "--sources", "arithmetic.py", "--tests", "test_*.py"]
        count = 4 * len(LINES)
        asyncio.run(run(out / "tasks.log", "tasks", "make", tasks, *patterns, *options([f"per_project={count}"])))
        asyncio.run(run(out / "tasks.log", "tasks", "split", tasks, "--holdout", HELD_OUT))
    return out / "tasks.train.jsonl", out / "tasks.holdout.jsonl"


def write_project(checkout: Path) -> None:
    """A git checkout of one-line functions with a test for each."""
    checkout.mkdir(parents=True)
    code, tests = [], ["import arithmetic\n"]
    for name, line in LINES.items():
        arguments = list(dict.fromkeys(re.findall("[a-z]+", line)))
        values = [eval(line, dict(zip(arguments, case, strict=True))) for case in CASES]  # of this file's own lines
        code.append(f"def {name}({', '.join(arguments)}):\n    return {line}\n")
        checks = (f"    assert arithmetic.{name}{case} == {value}\n" for case, value in zip(CASES, values, strict=True))
        tests.append(f"def test_{name}():\n{''.join(checks)}")
    (checkout / "arithmetic.py").write_text("\n\n".join(code))
    (checkout / "test_arithmetic.py").write_text("\n\n".join(tests))
    git = ["git", "-c", "user.name=learning", "-c", "user.email=learning@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Arithmetic"]):
        subprocess.run([*git, *words], cwd=checkout, check=True)


def options(sets: Sequence[str]) -> Iterator[str]:
    for one in sets:
        yield from ("--set", one)


def newest_checkpoint(run: RunDirectory) -> Path:
    return max(run.checkpoints.glob("global_step_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))


async def run(log: Path, *words: object) -> None:
    """A command of skyrl-stack, with all that it says in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # Evaluated on the CPU wherever it was trained: it is so small that vLLM would take longer to start.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if words[0] == "eval" else {}
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *STACK, *map(str, words), stdout=output, stderr=output, env=os.environ | hidden
        )
        if code := await process.wait():
            raise SystemExit(f"learning: skyrl-stack {words[0]} ended with exit code {code}; see {log}")


def rows(results: Sequence[Result]) -> Iterator[str]:
    yield "| seed | greedy before | sampled before | after | with shuffled rewards | bar |"
    yield "|--:|--:|--:|--:|--:|---|"
    for each in results:
        passed = "passed" if each.learnt("reward") and not each.learnt("shuffled") else "not passed"
        rates = (each.greedy_before, each.before, each.after["reward"], each.after["shuffled"])
        yield f"| {each.seed} |" + "".join(f" {rate:.2f} |" for rate in rates) + f" {passed} |"


if __name__ == "__main__":
    sys.exit(main())
