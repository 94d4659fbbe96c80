"""The `skyrl-stack show` and `replay` commands: one episode, for people and against its model."""

import sys
from pathlib import Path

import click

RUN_DIRECTORY = click.option(
    "--run-dir", type=click.Path(exists=True, file_okay=False, path_type=Path), help="By default the newest run."
)


@click.command()
@click.argument("episode")
@RUN_DIRECTORY
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page there instead.")
def show(episode: str, run_dir: Path | None, html: Path | None) -> None:
    """What happened in EPISODE: a record's file, or the beginning of its id."""
    from skyrl_stack.show import show_episode

    show_episode(_file(episode, run_dir), html=html)


@click.command()
@click.argument("episode")
@RUN_DIRECTORY
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="By default the run's first model.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="That the episode was sampled with.")
def replay(episode: str, run_dir: Path | None, model: Path | None, dtype: str, temperature: float) -> None:
    """Score EPISODE again; exit code 1 if its log-probabilities are not the model's."""
    from skyrl_stack.trainer.replay import replay as score

    scored = score(_file(episode, run_dir), model, dtype=dtype, temperature=temperature)  # type: ignore[arg-type]
    click.echo(scored.line())
    if not scored.agrees:
        sys.exit(1)


def _file(episode: str, run_dir: Path | None) -> Path:
    from skyrl_stack.run_directory import RunDirectory
    from skyrl_stack.show import find_episode

    return find_episode(episode, RunDirectory.open(run_dir) if run_dir else None)
