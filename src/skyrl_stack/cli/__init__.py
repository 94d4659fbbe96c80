"""The `skyrl-stack` command: parse, call, print. Everything that decides lives below.

Imports of the commands are inside them: `--help` must not wait for what a command needs.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skyrl_stack import __version__
from skyrl_stack.cli.episodes import replay, show
from skyrl_stack.cli.errors import OneLineErrors
from skyrl_stack.cli.evaluate import evaluate
from skyrl_stack.cli.images import images
from skyrl_stack.cli.one_role import one_role_options
from skyrl_stack.cli.tasks import tasks

if TYPE_CHECKING:
    from skyrl_stack.run_directory import RunDirectory

RUN_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
OVERRIDES = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of the profile."
)
RUN = click.argument("run_dir", type=RUN_DIRECTORY, required=False)


def run() -> None:
    """The command as a process of its own: told to end, it closes what it has open, as after Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # and not ignored, as by nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    main()


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Reinforcement learning of coding agents: rootless sandboxes, real tests, verl."""


main.add_command(show)
main.add_command(replay)
main.add_command(tasks)
main.add_command(images)
main.add_command(evaluate)


@main.command()
@click.argument("config")
@OVERRIDES
@one_role_options
@click.option("--resume", is_flag=True, help="Go on with the newest run of this profile, or with --run-dir.")
@click.option("--run-dir", type=RUN_DIRECTORY, help="With --resume: the run directory to go on with.")
@click.option("--unverified", is_flag=True, help="Train also on given tasks that nobody verified.")
@click.option("--allow-unlocked", is_flag=True, help="Run images that containers/images.lock does not describe.")
@click.option("--dry-run", is_flag=True, help="Slurm: write and print what would be submitted, and submit nothing.")
def launch(
    config: str,
    overrides: tuple[str, ...],
    resume: bool,
    run_dir: Path | None,
    unverified: bool,
    allow_unlocked: bool,
    dry_run: bool,
) -> None:
    """Run the profile CONFIG: a name in profiles/, or the path of a TOML file."""
    from skyrl_stack.launch.launch import launch_profile

    if unverified:
        overrides = (*overrides, "tasks.unverified=true")
    if allow_unlocked:
        overrides = (*overrides, "images.unlocked=true")
    launch_profile(config, overrides, resume=resume, run_dir=run_dir, dry_run=dry_run, say=click.echo)


@main.command()
@click.argument("config")
@OVERRIDES
@one_role_options
def plan(config: str, overrides: tuple[str, ...]) -> None:
    """Say whether the profile CONFIG fits where it is to run; exit code 1 if it does not."""
    from skyrl_stack.launch.launch import find_profile
    from skyrl_stack.launch.plan.plan import plan
    from skyrl_stack.launch.plan.survey import survey
    from skyrl_stack.launch.plan.table import print_plan
    from skyrl_stack.profile import load_profile

    profile = load_profile(find_profile(config), overrides)
    planned = plan(profile, survey(profile))
    print_plan(planned)
    if not planned.fits:
        sys.exit(1)
    click.echo(f"profile {profile.name} can be launched")


@main.command()
@RUN
@click.option("--watch", is_flag=True, help="Until the run is over.")
def status(run_dir: Path | None, watch: bool) -> None:
    """What RUN_DIR is doing, by default the newest run: its roles, jobs, steps and last error."""
    from skyrl_stack.launch.status import print_status, watch_status

    (watch_status if watch else print_status)(_run(run_dir))


@main.command()
@RUN
@click.option("-f", "--follow", is_flag=True, help="Until the run is over.")
@click.option("-n", "--lines", default=20, show_default=True, help="Lines of each log to begin with.")
def logs(run_dir: Path | None, follow: bool, lines: int) -> None:
    """What both roles of RUN_DIR print, by default of the newest run."""
    from skyrl_stack.launch.logs import print_logs

    print_logs(_run(run_dir), last=lines, follow=follow)


@main.command()
@RUN
def stop(run_dir: Path | None) -> None:
    """Stop RUN_DIR, by default the newest run, and wait until it has ended."""
    from skyrl_stack.launch.stop import stop_run

    stop_run(_run(run_dir), say=click.echo)


@main.command()
@RUN
@OVERRIDES
@one_role_options
def resume(run_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Go on with RUN_DIR, by default the newest run, after its newest checkpoint."""
    from skyrl_stack.launch.launch import resume_run

    resume_run(_run(run_dir), overrides, say=click.echo)


@main.command()
@RUN
@click.option("--nodes", type=click.IntRange(1, 256), default=1, show_default=True, help="How many more.")
def join(run_dir: Path | None, nodes: int) -> None:
    """Give RUN_DIR, by default the newest run, more nodes for its sandboxes while it lasts. Slurm only."""
    from skyrl_stack.launch.slurm.submit import join_run

    join_run(_run(run_dir), nodes, say=click.echo)


@main.command("list")
@click.argument("root", type=click.Path(path_type=Path), default=Path(".skyrl_jobs"))
def list_runs(root: Path) -> None:
    """The runs below ROOT, by default .skyrl_jobs, and what state each is in."""
    from skyrl_stack.launch.status import print_runs

    print_runs(root)


@main.command()
@RUN
@click.option("--episodes", is_flag=True, help="Also a line for each episode.")
def report(run_dir: Path | None, episodes: bool) -> None:
    """Table of the steps of RUN_DIR, by default of the newest run below .skyrl_jobs."""
    from skyrl_stack.report import print_report

    print_report(_run(run_dir), episodes=episodes)


@main.command()
def sweep() -> None:
    """Remove what a crash or a power cut left of launches that are gone: processes, mounts, temporary files."""
    from skyrl_stack.sandbox.sweep import sweep as sweep_leftovers

    removed = sweep_leftovers()
    for item in removed:
        click.echo(f"removed {item}")
    if not removed:
        click.echo("nothing to remove")


def _run(run_dir: Path | None) -> "RunDirectory":
    from skyrl_stack.run_directory import RunDirectory

    return RunDirectory.open(run_dir) if run_dir else RunDirectory.latest()
