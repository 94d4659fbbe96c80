"""One episode for people: its record as a page in the terminal, or as HTML."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from skyrl_stack.errors import RunDirectoryError
from skyrl_stack.records import write_atomic
from skyrl_stack.run_directory import RunDirectory

FORMAT = 2
WIDTH = 120
COLOURS = {"agent": "cyan", "environment": "green", "user": "yellow"}


class EventLine(BaseModel):
    """The part of an event that is shown (see `agent/events.py`)."""

    at: float
    kind: str
    source: str
    tool: str | None = None
    text: str
    reasoning: str = ""


class Page(BaseModel):
    """The part of an episode's record that is shown (see `episode/record.py` for the whole)."""

    model_config = ConfigDict(frozen=True)

    format: int
    id: str
    instance_id: str
    problem_statement: str = ""
    started_at: float
    outcome: str | None = None
    detail: str = ""
    masked: bool = False
    turns: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    sampled_tokens: int = 0
    patch: str | None = None
    grade: dict[str, Any] | None = None
    reward: float | None = None
    error: str | None = None
    seconds: dict[str, float] = {}
    events: list[EventLine] = []
    trajectories: list[dict[str, list[float]]] = []


def find_episode(episode: str, directory: RunDirectory | None = None) -> Path:
    """The record of `episode`: a file, or the beginning of an id in a run, by default the newest.

    Raises:
        RunDirectoryError: there is none, or more than one.
    """
    if Path(episode).is_file():
        return Path(episode)
    directory = directory or RunDirectory.latest()
    found = sorted(directory.episodes.glob(f"{episode}*.json"))
    if len(found) != 1:
        many = f"{len(found)} episodes begin so" if found else "no such episode"
        raise RunDirectoryError(f"{directory.episodes}/{episode}: {many}; `report --episodes` lists their ids")
    return found[0]


def read_page(file: Path) -> Page:
    """The record in `file`.

    Raises:
        RunDirectoryError: it is not an episode's, or of another format.
    """
    try:
        page = Page.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RunDirectoryError(f"{file}: not the record of an episode: {error.errors()[0]['msg']}") from error
    if page.format != FORMAT:
        raise RunDirectoryError(f"{file}: of format {page.format}, and this is for format {FORMAT}")
    return page


def show_episode(file: Path, *, html: Path | None = None) -> None:
    """Print the record in `file`, or write it to `html`."""
    page = read_page(file)
    if html is None:
        console = Console()
        console = console if console.is_terminal else Console(width=WIDTH)
        console.print(*parts(page), sep="\n")
        return
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=WIDTH, record=True, file=nowhere)
        console.print(*parts(page), sep="\n")
    write_atomic(html, console.export_html().encode())


def parts(page: Page) -> Iterator[RenderableType]:
    """What is shown, from top to bottom."""
    yield _facts(page)
    yield Panel(Text(page.problem_statement.strip()), title="task", title_align="left")
    for event in page.events:
        if event.kind != "system":
            yield _event(event, page.started_at)
    if page.patch:
        yield Panel(Syntax(page.patch, "diff", word_wrap=True), title="patch", title_align="left")


def _facts(page: Page) -> Table:
    table = Table.grid(padding=(0, 2))
    worth = "masked" if page.masked else "none" if page.reward is None else f"{page.reward:g}"
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in page.seconds.items())
    linked = len(page.trajectories)
    tokens = (
        f"{page.prompt_tokens} + {page.response_tokens}, {page.sampled_tokens} of them sampled in {page.turns} turns"
    )
    rows = {
        "episode": page.id,
        "outcome": " ".join(part for part in (page.outcome or "none", page.detail) if part),
        "reward": worth,
        "grade": _grade(page.grade),
        "error": page.error,
        "tokens": tokens + (f", {linked} linked trajectories" if linked > 1 else ""),
        "seconds": seconds,
    }
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    return table


def _grade(grade: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (grade or {}).items() if not isinstance(value, dict | list))


def _event(event: EventLine, started_at: float) -> Panel:
    title = f"{event.at - started_at:.1f} s  {event.source}  {event.tool or event.kind}"
    text = Text(event.text.strip("\n"))
    if event.reasoning:
        text = Text.assemble((event.reasoning.strip() + "\n\n", "italic dim"), text)
    colour = "red" if event.kind in ("error", "end") else COLOURS.get(event.source, "white")
    return Panel(text, title=Text(title), title_align="left", border_style=colour)
