"""What a grade costs: core-seconds by stage, of the gold patches of a task file, one grade after the other.

    python benchmarks/grading.py TASKS.jsonl [--tasks 10] [--swebench]

Every process that a stage starts counts, those of Podman and of the sandbox too: the stages run in sandboxes of this
process's own cell, so their CPU time is what the cell and this process used meanwhile. `--swebench` lets swebench's own
harness do the same work over that cell's socket, which speaks Docker's API.
"""

import argparse
import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from functools import partialmethod
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.grading.apply import apply_patch
from skyrl_stack.grading.control import broken_script, passed_although_broken
from skyrl_stack.grading.grade import grade
from skyrl_stack.grading.start import set_up
from skyrl_stack.grading.verdict import judge
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.script import run_script
from skyrl_stack.tasks.diff import diff_of
from skyrl_stack.tasks.evaluation import specification
from skyrl_stack.tasks.task import Task, read_tasks

STAGES = ("sandbox", "apply", "tests", "parse", "remove", "control")
HARNESSES = ("this stack", "swebench")
NOTHING = diff_of("NOTES.md", None, "no idea\n")
"A patch that fixes nothing."
TICKS = os.sysconf("SC_CLK_TCK")
TIMEOUT_S = 300.0


class Meter:
    """Core-seconds and wall seconds by stage, over all grades."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.cores = dict.fromkeys(stages, 0.0)
        self.wall = dict.fromkeys(stages, 0.0)

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
            with meter.of("control"):
                await control(task, script, sandboxes)


async def control(task: Task, script: str, sandboxes: PodmanSandboxes) -> None:
    """The second sandbox of a patch that is resolved."""
    sandbox = await sandboxes.start(SandboxSpec(image=task.image, memory_mb=RuntimeSection().memory_mb))
    await set_up(sandbox, task)
    assert await apply_patch(sandbox, task, task.patch)
    run = await run_script(sandbox, broken_script(task, script), timeout_s=TIMEOUT_S)
    await sandbox.stop()
    assert passed_although_broken(task, run.log) == []


async def side_by_side(tasks: list[Task], meter: Meter) -> int:
    """Grade each task's fix and a patch that fixes nothing, by both; how often they agreed."""
    agreed = 0
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as sandboxes:
        assert sandboxes._cell
        with swebench_harness(sandboxes._cell.socket) as theirs:
            for task in tasks:
                for name, patch in (("fix", task.patch), ("nothing", NOTHING)):
                    with meter.of("this stack"):
                        mine = (await grade(task, patch, sandboxes, timeout_s=TIMEOUT_S)).resolved
                    with meter.of("swebench"):
                        other = await asyncio.to_thread(theirs, task, patch, name)
                    agreed += mine == other == (name == "fix")
    return agreed


@contextmanager
def swebench_harness(socket: Path) -> Iterator[Callable[[Task, str, str], bool]]:
    """swebench's `run_instance`, in a directory for its logs, with Podman in the place of Docker and of its command."""
    import docker
    from docker.models.containers import ContainerCollection
    from swebench.harness.run_evaluation import run_instance

    # It has no word for a network, and Docker's own would need more rights than a user has.
    ContainerCollection.create = partialmethod(ContainerCollection.create, network_mode="none")  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        command = Path(folder) / "docker"
        command.write_text(f'#!/bin/sh\nexec podman --remote --url unix://{socket} "$@"\n')
        command.chmod(0o755)
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{folder}:{path}"
        client = docker.DockerClient(base_url=f"unix://{socket}", timeout=600)

        def evaluate(task: Task, patch: str, run_id: str) -> bool:
            prediction = {"instance_id": task.instance_id, "model_name_or_path": "benchmark", "model_patch": patch}
            spec = specification(task.model_dump(mode="json"))
            found = run_instance(spec, prediction, client, run_id, timeout=int(TIMEOUT_S))
            log = "".join(file.read_text() for file in Path(folder).rglob("run_instance.log"))
            assert found, f"swebench gave no verdict: {log}"
            return found[1][task.instance_id]["resolved"]

        try:
            yield evaluate
        finally:
            client.close()
            os.environ["PATH"] = path


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


def show_both(meter: Meter, count: int, agreed: int) -> None:
    table = Table(box=SIMPLE, pad_edge=False, caption=f"means of {count} grades; {agreed} verdicts agree and are right")
    for column in ("harness", "core-seconds", "wall s"):
        table.add_column(column, justify="left" if column == "harness" else "right")
    for name in HARNESSES:
        table.add_row(name, f"{meter.cores[name] / count:.2f}", f"{meter.wall[name] / count:.2f}")
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--swebench", action="store_true")
    arguments = parser.parse_args()
    tasks = list(read_tasks(arguments.file))[: arguments.tasks]
    asyncio.run(ensure_images(tasks, print))
    meter = Meter(STAGES)
    asyncio.run(grade_all(tasks, meter))
    show(meter, len(tasks))
    if arguments.swebench:
        both = Meter(HARNESSES)
        agreed = asyncio.run(side_by_side(tasks, both))
        show_both(both, 2 * len(tasks), agreed)


if __name__ == "__main__":
    main()
