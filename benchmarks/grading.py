"""What a grade costs: core-seconds by stage, of the gold patches of a task file, one grade after the other.

    python benchmarks/grading.py TASKS.jsonl [--tasks 10]

Every process that a stage starts counts, those of Podman and of the sandbox too: the stages run in sandboxes of this
process's own cell, so their CPU time is what the cell and this process used meanwhile.
"""

import argparse
import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from skyrl_stack.factory.given import ensure_images
from skyrl_stack.grading.apply import apply_patch
from skyrl_stack.grading.start import set_up
from skyrl_stack.grading.verdict import judge
from skyrl_stack.profile import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.script import run_script
from skyrl_stack.tasks.evaluation import specification
from skyrl_stack.tasks.task import Task, read_tasks

STAGES = ("sandbox", "apply", "tests", "parse", "remove")
TICKS = os.sysconf("SC_CLK_TCK")
TIMEOUT_S = 300.0


@dataclass
class Meter:
    """Core-seconds and wall seconds by stage, over all grades."""

    cores: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        cores, wall = used(), time.monotonic()
        yield
        self.cores[stage] += used() - cores
        self.wall[stage] += time.monotonic() - wall


def used() -> float:
    """Core-seconds of this process and of all that it has started, those that have ended and were waited for too."""
    children: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(directory.name)
            children.setdefault(int(fields[1]), []).append(pid)
            times[pid] = sum(int(ticks) for ticks in fields[11:15]) / TICKS
    total, todo = 0.0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += times.get(pid, 0.0)
        todo += children.get(pid, [])
    return total


async def grade_all(tasks: list[Task], meter: Meter) -> None:
    limits = RuntimeSection()
    await asyncio.to_thread(specification, tasks[0].model_dump(mode="json"))  # swebench's imports count once, not here
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as sandboxes:
        for task in tasks:
            script = specification(task.model_dump(mode="json")).eval_script
            with meter.of("sandbox"):
                sandbox = await sandboxes.start(SandboxSpec(image=task.image, memory_mb=limits.memory_mb))
                await set_up(sandbox, task)
            with meter.of("apply"):
                assert await apply_patch(sandbox, task, task.patch)
            with meter.of("tests"):
                run = await run_script(sandbox, script, timeout_s=TIMEOUT_S)
            with meter.of("parse"):
                verdict = judge(task, run.log)
            with meter.of("remove"):
                await sandbox.stop()
            assert verdict and verdict.resolved, task.instance_id


def show(meter: Meter, count: int) -> None:
    table = Table(box=SIMPLE, pad_edge=False, caption=f"means of {count} grades", caption_justify="left")
    for column in ("stage", "core-seconds", "wall s", "of the tests"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    tests = meter.cores["tests"]
    for stage in STAGES:
        share = f"{meter.cores[stage] / tests:.1%}" if stage != "tests" else ""
        table.add_row(stage, f"{meter.cores[stage] / count:.3f}", f"{meter.wall[stage] / count:.3f}", share)
    own = sum(meter.cores.values()) - tests
    table.add_row("own share", f"{own / count:.3f}", "", f"{own / tests:.1%}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tasks", type=int, default=10)
    arguments = parser.parse_args()
    tasks = list(read_tasks(arguments.file))[: arguments.tasks]
    asyncio.run(ensure_images(tasks, print))
    meter = Meter()
    asyncio.run(grade_all(tasks, meter))
    show(meter, len(tasks))


if __name__ == "__main__":
    main()
