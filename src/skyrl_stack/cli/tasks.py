"""The `skyrl-stack tasks` commands: parse, call, print, as the others do."""

import sys
from pathlib import Path

import click

SOLVED = "Directory of an evaluation: how often its model solved each task, which is how hard a task is for it."
OWN = "A source distribution (.tar.gz) or a git checkout of your own, in place of the catalogue."
WHEEL = "With --from: a pure-Python wheel that its tests need, besides pytest."
SETTINGS = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the profile's [tasks], as per_project=10."
)
POSITIVE = click.FloatRange(min=0, min_open=True)
FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def tasks() -> None:
    """Task files: import data sets, make tasks, look at them, split them, verify them."""


@tasks.command("import")
@click.argument("source")
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--split", default="train", show_default=True, help="Part of a data set, or of a directory.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many tasks.")
@click.option("--dropped", type=click.Path(dir_okay=False, path_type=Path), help="Where to write each row left out.")
def import_(source: str, target: Path, split: str, limit: int | None, dropped: Path | None) -> None:
    """Write the tasks of SOURCE, a .parquet or .jsonl file, a directory of them or a Hub name, to TARGET.

    Known: SWE-bench (also Verified and Lite), SWE-Gym, SWE-smith, R2E-Gym, SWE-rebench and SWE-bench-extra.
    """
    from skyrl_stack.tasks.imports import import_tasks

    tally = import_tasks(source, target, split=split, limit=limit, dropped=dropped, say=click.echo)
    for line in tally.lines():
        click.echo(line)


@tasks.command()
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--from", "places", multiple=True, type=click.Path(exists=True, path_type=Path), help=OWN)
@click.option("--sources", multiple=True, help="With --from: pattern of files to put bugs into, as `src/*/*.py`.")
@click.option("--tests", multiple=True, help="With --from: pattern of files with tests, as `tests/test_*.py`.")
@click.option("--wheel", "wheels", multiple=True, type=click.Path(exists=True, path_type=Path), help=WHEEL)
@SETTINGS
def make(
    target: Path,
    places: tuple[Path, ...],
    sources: tuple[str, ...],
    tests: tuple[str, ...],
    wheels: tuple[Path, ...],
    overrides: tuple[str, ...],
) -> None:
    """Make tasks, of projects of the catalogue or of one of your own, and write them to TARGET."""
    import asyncio

    from skyrl_stack.factory.make import make_tasks
    from skyrl_stack.factory.own import own_project
    from skyrl_stack.profile import Profile, override_profile
    from skyrl_stack.records import write_atomic
    from skyrl_stack.sandbox.storage import cache_dir

    if places and not (sources and tests):
        raise click.UsageError("--from needs --sources and --tests")
    downloads = cache_dir() / "downloads"
    own = [own_project(place, sources=sources, tests=tests, wheels=wheels, downloads=downloads) for place in places]
    section = override_profile(Profile(name="make"), [f"tasks.{override}" for override in overrides]).tasks
    made = asyncio.run(make_tasks(section, cache_dir(), click.echo, own=own or None))
    write_atomic(target, made.read_bytes())
    click.echo(f"{target}: {len(target.read_text().splitlines())} tasks; next: skyrl-stack tasks verify {target}")


@tasks.command("list")
@FILE
@click.option("--eval", "evaluation", type=click.Path(file_okay=False, path_type=Path), help=SOLVED)
def list_(file: Path, evaluation: Path | None) -> None:
    """A line for each task of FILE: its kind, its tests, its image and what `verify` said of it."""
    from skyrl_stack.tasks.listing import print_tasks

    if not evaluation:
        return print_tasks(file)
    from skyrl_stack.evaluation.summary import solved_attempts

    solved = {name: (sum(attempts), len(attempts)) for name, attempts in solved_attempts(evaluation).items()}
    return print_tasks(file, solved)


@tasks.command()
@FILE
@click.argument("instance_id")
@click.option("--script", is_flag=True, help="Only the eval script.")
@click.option("--patch", is_flag=True, help="Only the gold patch.")
def show(file: Path, instance_id: str, script: bool, patch: bool) -> None:
    """One task of FILE: its problem, its tests, how it is graded and its gold patch."""
    from skyrl_stack.tasks.listing import find_task, print_task

    task = find_task(file, instance_id)
    if script or patch:
        click.echo((task.eval_script if script else "") + (task.patch if patch else ""), nl=False)
    else:
        print_task(task)


@tasks.command()
@FILE
@click.option("--holdout", default=0.1, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True))
@click.option("--by", type=click.Choice(["task", "repo"]), default="task", show_default=True)
@click.option("--seed", default=0, show_default=True)
def split(file: Path, holdout: float, by: str, seed: int) -> None:
    """Two parts of FILE beside it, .train and .holdout; a repository is never torn apart with --by repo."""
    from skyrl_stack.tasks.parts import split_tasks

    for path, count in split_tasks(file, holdout=holdout, by=by, seed=seed).items():
        click.echo(f"{path}: {count} tasks")


@tasks.command()
@FILE
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(min=1), help="Grades of the gold patch.")
@click.option("--at-once", default=2, show_default=True, type=click.IntRange(min=1), help="Tasks at a time.")
@click.option("--timeout", default=300.0, show_default=True, type=POSITIVE, help="Seconds that the tests may take.")
def verify(file: Path, repeats: int, at_once: int, timeout: float) -> None:
    """Let each task of FILE prove itself: its fix is resolved, nothing and five ways to cheat are not.

    What is found is written beside FILE, task by task; a second call goes on with what is left.
    """
    import asyncio

    from skyrl_stack.verification.verify import verify_tasks

    outcome = asyncio.run(verify_tasks(file, repeats=repeats, at_once=at_once, timeout_s=timeout, say=click.echo))
    for line in outcome.lines():
        click.echo(line)
    if outcome.undecided:
        click.echo("run it again: what is undecided is tried again")
        sys.exit(1)
