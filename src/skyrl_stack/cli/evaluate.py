"""The `skyrl-stack eval` command: parse, call, print, as the others do."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from skyrl_stack.evaluation.endpoint import Endpoint
    from skyrl_stack.profile import Profile
    from skyrl_stack.run_directory import RunDirectory

MODEL = "An OpenAI-compatible server, with its /v1; or a checkpoint of a run, or Hugging Face files, served here."


@click.command("eval")
@click.option("--tasks", "file", required=True, type=click.Path(path_type=Path), help="Task file.")
@click.option("--model", required=True, metavar="URL|DIRECTORY", help=MODEL)
@click.option("--name", help="What the server calls the model; of a directory, what you call it.")
@click.option("--n", "repetitions", default=1, show_default=True, type=click.IntRange(min=1), help="Episodes a task.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where; what is there goes on.")
@click.option("--at-once", default=4, show_default=True, type=click.IntRange(min=1), help="Episodes at a time.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(min=0))
@click.option("--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1), help="Of one turn.")
@click.option("--prices", nargs=2, type=float, help="Dollars for a million tokens, read and written.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of the profile.")
def evaluate(
    file: Path,
    model: str,
    name: str | None,
    repetitions: int,
    out: Path | None,
    at_once: int,
    temperature: float,
    max_tokens: int,
    prices: tuple[float, float] | None,
    overrides: tuple[str, ...],
) -> None:
    """Play the episodes of training, and grade them, with any model: no trainer is needed.

    The key of a server is taken from OPENAI_API_KEY. A directory is served by vLLM where there is a GPU; a checkpoint
    of a run plays by the limits of its run. The exit code is 1 where an episode was lost: a second call plays it.
    """
    import asyncio

    from skyrl_stack.evaluation.profile import evaluation_profile
    from skyrl_stack.evaluation.run import Evaluation, Subject
    from skyrl_stack.evaluation.summary import conclude

    directory = _directory(model)
    name = name or (directory.absolute().name if directory else "default")
    profile = evaluation_profile(overrides, at_once=at_once, model=directory)
    subject = Subject(name=name, directory=str(directory.absolute()) if directory else "")
    out = out or Path(".skyrl_evals") / f"{file.stem}_{Path(name).name}"
    evaluation = Evaluation.open(out, profile, file, subject)
    options = {"temperature": temperature, "max_tokens": max_tokens}
    try:
        with _endpoint(model, directory, name, evaluation.directory, profile, options) as endpoint:
            asyncio.run(evaluation.run(endpoint, profile, repetitions=repetitions, at_once=at_once, say=click.echo))
    finally:
        summary = conclude(evaluation, prices=prices)
    if summary and summary.lost:
        click.echo("run it again: what was lost is played again")
        sys.exit(1)


def _directory(model: str) -> Path | None:
    """The directory that `model` is, where it is no URL.

    Raises:
        SetupError: it is neither.
    """
    from skyrl_stack.trainer.served import require_model

    if model.startswith(("http://", "https://")):
        return None
    require_model(Path(model))
    return Path(model)


@contextmanager
def _endpoint(
    model: str, directory: Path | None, name: str, out: "RunDirectory", profile: "Profile", options: dict[str, Any]
) -> "Iterator[Endpoint]":
    """Where the model is asked: at its URL, or at a server of our own for as long as this lasts."""
    from skyrl_stack.evaluation.endpoint import Endpoint

    if not directory:
        yield Endpoint(model.rstrip("/"), name, **options)
        return
    from skyrl_stack.trainer.serve import MODEL as SERVED_AS
    from skyrl_stack.trainer.served import huggingface_files, served

    files = huggingface_files(directory, out.model)
    log = out.logs / "model.log"
    with served(files, context_tokens=profile.model.context_tokens, log=log, say=click.echo) as server:
        yield Endpoint("http://model/v1", SERVED_AS, tokenizer=server.tokenizer, socket=server.socket, **options)
