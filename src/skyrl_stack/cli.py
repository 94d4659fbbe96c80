"""The `skyrl-stack` command: parse, call, print. Everything that decides lives below.

Imports of the commands are inside them: `--help` must not wait for what a command needs.
"""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click

from skyrl_stack import __version__
from skyrl_stack.errors import StackError

RUN_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


def one_line_errors[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """A `StackError` is one line and exit code 1; anything else is a bug and shows its traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except StackError as error:
            click.echo(f"skyrl-stack: {error}", err=True)
            sys.exit(1)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Reinforcement learning of coding agents: rootless sandboxes, real tests, verl."""


@main.command()
@click.argument("config")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of the profile.")
@click.option("--resume", is_flag=True, help="Go on with the newest run of this profile, or with --run-dir.")
@click.option("--run-dir", type=RUN_DIRECTORY, help="With --resume: the run directory to go on with.")
@one_line_errors
def launch(config: str, overrides: tuple[str, ...], resume: bool, run_dir: Path | None) -> None:
    """Run the profile CONFIG: a name in profiles/, or the path of a TOML file."""
    from skyrl_stack.launch.launch import launch_profile

    launch_profile(config, overrides, resume=resume, run_dir=run_dir, say=click.echo)


@main.command()
@click.argument("run_dir", type=RUN_DIRECTORY, required=False)
@click.option("--episodes", is_flag=True, help="Also a line for each episode.")
@one_line_errors
def report(run_dir: Path | None, episodes: bool) -> None:
    """Table of the steps of RUN_DIR, by default of the newest run below .skyrl_jobs."""
    from skyrl_stack.report import print_report
    from skyrl_stack.run_directory import RunDirectory

    print_report(RunDirectory.open(run_dir) if run_dir else RunDirectory.latest(), episodes=episodes)


@main.command()
@one_line_errors
def sweep() -> None:
    """Remove what a crash or a power cut left of launches that are gone: processes, mounts, temporary files."""
    from skyrl_stack.sandbox.sweep import sweep as sweep_leftovers

    removed = sweep_leftovers()
    for item in removed:
        click.echo(f"removed {item}")
    if not removed:
        click.echo("nothing to remove")
