"""What a grade costs: core-seconds by stage, of the gold patches of a task file.

    python benchmarks/grading.py TASKS.jsonl [--at-once 2] [--swebench 16]

Every process that a stage starts counts, those of Podman and of the sandbox too: each of the processes that grade at
once does so in a cell and a control group of its own, one grade after the other, so the CPU time of a stage is what the
group used meanwhile. Making a control group takes root. `--swebench` lets swebench's own harness do the same work for
so many of the tasks, in turns with this stack, over the cell's socket, which speaks Docker's API.
"""

import argparse
import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, contextmanager
from functools import partial, partialmethod
from multiprocessing import get_context
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.grading.apply import apply_patch
from skyrl_stack.grading.control import control_of, passed_although_broken
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
OWN = ("sandbox", "apply", "parse", "remove")
HARNESSES = ("this stack", "swebench")
NOTHING = diff_of("NOTES.md", None, "no idea\n")
"A patch that fixes nothing."
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"Where version 2 of them may be mounted: alone, or beside version 1."
TIMEOUT_S = 300.0

Work = Callable[[list[Task], Path], Coroutine[None, None, "Meter"]]


class Meter:
    """Core-seconds and wall seconds by stage, over all grades of this process."""

    def __init__(self, stages: Sequence[str], group: Path) -> None:
        self.cores = dict.fromkeys(stages, 0.0)
        self.wall = dict.fromkeys(stages, 0.0)
        self.grades = 0
        self.right = 0
        self._group = group

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        cores, wall = self._used(), time.monotonic()
        yield
        self.wall[stage] += time.monotonic() - wall
        self.cores[stage] += self._used() - cores

    def _used(self) -> float:
        lines = (self._group / "cpu.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6

    def add(self, other: "Meter") -> None:
        for stage in self.cores:
            self.cores[stage] += other.cores[stage]
            self.wall[stage] += other.wall[stage]
        self.grades += other.grades
        self.right += other.right


@contextmanager
def own_group() -> Iterator[Path]:
    """A control group for this process and all that it starts: what is counted by process is too coarse for a stage."""
    mount = next(path for path in CGROUPS if (path / "cgroup.procs").exists())
    (inside,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    before = mount / inside.lstrip("/")
    group = before / f"skyrl-grading-{os.getpid()}"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield group
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


async def grade_all(tasks: list[Task], group: Path) -> Meter:
    meter, limits = Meter(STAGES, group), RuntimeSection()
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as sandboxes:
        await grade(tasks[0], tasks[0].patch, sandboxes, timeout_s=TIMEOUT_S)  # first times do not count
        for task in tasks:
            script = specification(task.model_dump(mode="json")).eval_script
            with meter.of("sandbox"):
                sandbox = await sandboxes.start(SandboxSpec(image=task.image, **limits.sizes))
                await set_up(sandbox, task)
            with meter.of("apply"):
                assert await apply_patch(sandbox, task, task.patch)
            with meter.of("tests"):
                run = await run_script(sandbox, script, timeout_s=TIMEOUT_S)
            with meter.of("parse"):
                verdict = judge(task, run.log)
            with meter.of("remove"):
                await sandbox.stop()
            with meter.of("control"):
                forged = await control(task, script, sandboxes)
            meter.grades += 1
            meter.right += bool(verdict and verdict.resolved and not forged)
    return meter


async def control(task: Task, script: str, sandboxes: PodmanSandboxes) -> bool:
    """The second sandbox of a patch that is resolved: whether broken tests pass there."""
    sandbox = await sandboxes.start(SandboxSpec(image=task.image, **RuntimeSection().sizes))
    await set_up(sandbox, task)
    assert await apply_patch(sandbox, task, task.patch)
    scripts = control_of(task, script)
    assert scripts
    logs = [(await run_script(sandbox, each, timeout_s=TIMEOUT_S)).log for each in scripts]
    await sandbox.stop()
    return passed_although_broken(task, *logs) != []


async def side_by_side(tasks: list[Task], group: Path) -> Meter:
    """Grade each task's fix and a patch that fixes nothing, by both in turns."""
    meter = Meter(HARNESSES, group)
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as sandboxes:
        assert sandboxes._cell
        with swebench_harness(sandboxes._cell.socket) as theirs:
            for task in tasks:
                for name, patch in (("fix", task.patch), ("nothing", NOTHING)):
                    with meter.of("this stack"):
                        mine = (await grade(task, patch, sandboxes, timeout_s=TIMEOUT_S)).resolved
                    with meter.of("swebench"):
                        other = await asyncio.to_thread(theirs, task, patch, name)
                    meter.grades += 1
                    meter.right += mine == other == (name == "fix")
    return meter


def grades_of(work: Work, tasks: list[Task]) -> Meter:
    """What a process of its own does."""
    with own_group() as group:
        return asyncio.run(work(tasks, group))


def measured(work: Work, tasks: list[Task], at_once: int) -> Meter:
    """`work` for all tasks, shared among `at_once` processes."""
    shares = [share for number in range(at_once) if (share := tasks[number::at_once])]
    with ProcessPoolExecutor(len(shares), mp_context=get_context("spawn")) as pool:
        first, *others = pool.map(partial(grades_of, work), shares)
    for meter in others:
        first.add(meter)
    return first


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


def show(meter: Meter, about: str) -> None:
    table = Table(box=SIMPLE, pad_edge=False, caption=about, caption_justify="left")
    for column in ("stage", "core-seconds", "wall s", "of the tests"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    tests = meter.cores["tests"]
    for stage in STAGES:
        share = f"{meter.cores[stage] / tests:.1%}" if stage != "tests" else ""
        table.add_row(stage, *means(meter, stage), share)
    own = sum(meter.cores[stage] for stage in OWN)
    table.add_row(f"own share: {', '.join(OWN)}", f"{own / meter.grades:.3f}", "", f"{own / tests:.1%}")
    Console(width=100).print(table)


def show_both(meter: Meter, about: str) -> None:
    table = Table(box=SIMPLE, pad_edge=False, caption=f"{about} by both", caption_justify="left")
    for column in ("harness", "core-seconds", "wall s"):
        table.add_column(column, justify="left" if column == "harness" else "right")
    for name in HARNESSES:
        table.add_row(name, *means(meter, name))
    Console(width=100).print(table)


def means(meter: Meter, stage: str) -> tuple[str, str]:
    return f"{meter.cores[stage] / meter.grades:.3f}", f"{meter.wall[stage] / meter.grades:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--swebench", type=int, default=0, metavar="TASKS")
    arguments = parser.parse_args()
    tasks = list(read_tasks(arguments.file))
    asyncio.run(ensure_images(tasks, print))
    some = tasks[:: max(1, len(tasks) // arguments.swebench)][: arguments.swebench] if arguments.swebench else []
    for work, report, chosen in ((grade_all, show, tasks), (side_by_side, show_both, some)):
        if chosen:
            started = time.monotonic()
            meter = measured(work, chosen, arguments.at_once)
            seconds = time.monotonic() - started
            about = f"means of {meter.grades} grades, {arguments.at_once} at once; all in {seconds:.0f} s"
            report(meter, f"{about}; {meter.right} right")


if __name__ == "__main__":
    main()
