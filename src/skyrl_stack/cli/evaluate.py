"""The `skyrl-stack eval` command: parse, call, print, as the others do."""

from pathlib import Path

import click


@click.command("eval")
@click.option("--tasks", "file", required=True, type=click.Path(path_type=Path), help="Task file.")
@click.option("--model", "url", required=True, metavar="URL", help="An OpenAI-compatible server, with its /v1.")
@click.option("--name", default="default", show_default=True, help="What the server calls the model.")
@click.option("--n", "repetitions", default=1, show_default=True, type=click.IntRange(min=1), help="Episodes a task.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where; what is there goes on.")
@click.option("--at-once", default=4, show_default=True, type=click.IntRange(min=1), help="Episodes at a time.")
@click.option("--temperature", default=0.0, show_default=True)
@click.option("--max-tokens", default=4096, show_default=True, help="Of one turn.")
@click.option("--prices", nargs=2, type=float, help="Dollars for a million tokens, read and written.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of the profile.")
def evaluate(
    file: Path,
    url: str,
    name: str,
    repetitions: int,
    out: Path | None,
    at_once: int,
    temperature: float,
    max_tokens: int,
    prices: tuple[float, float] | None,
    overrides: tuple[str, ...],
) -> None:
    """Play the episodes of training, and grade them, with any model behind an OpenAI-compatible API.

    Its key is taken from OPENAI_API_KEY. A checkpoint is served by `vllm serve`.
    """
    import asyncio

    from skyrl_stack.evaluation.endpoint import Endpoint
    from skyrl_stack.evaluation.profile import evaluation_profile
    from skyrl_stack.evaluation.run import Evaluation
    from skyrl_stack.evaluation.summary import conclude

    endpoint = Endpoint(url.rstrip("/"), name, temperature=temperature, max_tokens=max_tokens)
    profile = evaluation_profile(overrides, at_once=at_once)
    evaluation = Evaluation.open(out or Path(".skyrl_evals") / f"{file.stem}_{Path(name).name}", profile, file, name)
    try:
        asyncio.run(evaluation.run(endpoint, profile, repetitions=repetitions, at_once=at_once, say=click.echo))
    finally:
        conclude(evaluation, prices=prices)
