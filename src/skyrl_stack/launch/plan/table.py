"""A plan as text for a terminal."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skyrl_stack.launch.plan.findings import Plan

STYLES = {"error": "red", "warning": "yellow", "note": "dim"}
WIDTH_OF_A_FILE = 160


def print_plan(plan: Plan) -> None:
    """Print what is needed beside what there is, and then the findings."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_A_FILE)
    console.print(needs_table(plan))
    for finding in plan.findings:
        console.print(Text.assemble((f"{finding.level}: ", STYLES[finding.level]), finding.text), soft_wrap=True)


def needs_table(plan: Plan) -> Table:
    """A row a need."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("", "needed", "there is"):
        table.add_column(column, overflow="fold")
    for need in plan.needs:
        table.add_row(Text(need.what), Text(need.needed), Text(need.there_is or "not known"))
    return table
