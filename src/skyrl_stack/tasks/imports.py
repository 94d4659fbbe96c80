"""Import: from a data set to a task file, row by row; what cannot be graded is left out, and said."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from skyrl_stack.errors import SetupError
from skyrl_stack.records import draft_of
from skyrl_stack.tasks.convert import convert
from skyrl_stack.tasks.source import Row, read_rows
from skyrl_stack.tasks.task import EXACT, Task, TaskError, reason_of

EXAMPLES = 3
READ_WITH_BLANKS = frozenset({"parse_log_django", "parse_log_sympy", EXACT})
"Readers of logs that keep an id with blanks whole. All of pytest's cut it."


@dataclass
class Tally:
    """What became of the rows."""

    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    "Names or places of rows, by the reason."
    ids_removed: int = 0
    "Test ids that no reader of a log can find, taken out of rows that are kept."

    def report(self) -> Iterator[str]:
        """A line for each row that was dropped."""
        for reason, names in self.dropped.items():
            yield from (f"{name}\t{reason}\n" for name in names)

    def lines(self) -> Iterator[str]:
        """For people."""
        total = self.kept + sum(map(len, self.dropped.values()))
        yield f"{total} rows read, {self.kept} tasks written"
        for reason, names in sorted(self.dropped.items(), key=lambda entry: -len(entry[1])):
            more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
            yield f"dropped {len(names)}: {reason} ({', '.join(names[:EXAMPLES])}{more})"
        if self.ids_removed:
            yield f"{self.ids_removed} test ids with blanks taken out: the reader of their log would cut them"


def import_tasks(
    source: str,
    target: Path,
    *,
    split: str = "train",
    limit: int | None = None,
    dropped: Path | None = None,
    say: Callable[[str], None] = print,
) -> Tally:
    """Write the tasks of `source` to `target`, which appears when it is complete, and what is `dropped` and why.

    Raises:
        TaskError: the source cannot be read, or gives no task.
    """
    tally = Tally()
    seen: set[str] = set()
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(target) as draft:
        for place, row in read_rows(source, split):
            try:
                task = _task(row, seen, tally)
                line = f"{task.model_dump_json()}\n".encode()
            except (TaskError, PydanticSerializationError) as error:  # the latter: half a character
                name = row.get("instance_id") if isinstance(row, dict) else None
                tally.dropped[str(error)].append(str(name or place))
                continue
            seen.add(task.instance_id)
            draft.write(line)
            tally.kept += 1
            if tally.kept % 500 == 0:
                say(f"{tally.kept} tasks so far")
            if tally.kept == limit:
                break
        if dropped:
            dropped.write_text("".join(tally.report()), errors="backslashreplace")
        if not tally.kept:
            raise TaskError("; ".join([f"{source}: no task in it", *list(tally.lines())[1:]]))
    return tally


def _task(row: Row | TaskError, seen: set[str], tally: Tally) -> Task:
    if isinstance(row, TaskError):
        raise row
    try:
        columns = convert(row)
    except (LookupError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise TaskError(f"a column is missing or malformed: {type(error).__name__}: {error}") from error
    if columns["log_parser"] not in READ_WITH_BLANKS:
        for name in ("FAIL_TO_PASS", "PASS_TO_PASS"):
            kept = [test for test in columns[name] if not re.search(r"\s", test)]
            tally.ids_removed += len(columns[name]) - len(kept)
            columns[name] = kept
    try:
        task = Task.model_validate(columns)
    except ValidationError as error:
        raise TaskError(reason_of(error)) from error
    _require_gradable(task, seen)
    return task


def _require_gradable(task: Task, seen: set[str]) -> None:
    if task.instance_id in seen:
        raise TaskError("its instance_id came before")
    if not re.search(r"^(---|\+\+\+|rename|GIT binary|deleted|new file) ?", task.patch, re.MULTILINE):
        raise TaskError("patch: no fix in it")
    if not task.problem_statement.strip():
        raise TaskError("problem_statement: empty")
    if not re.fullmatch(r"HEAD|[0-9a-f]{7,64}", task.base_commit):
        raise TaskError("base_commit: no commit's hash")
    if task.log_parser not in _parsers():
        raise TaskError(f"log_parser: swebench has no {task.log_parser}")


def _parsers() -> frozenset[str]:
    try:
        from swebench.harness.log_parsers import PARSER_REGISTRY
    except ImportError as error:
        raise SetupError("importing tasks needs the package swebench: run `make setup`") from error
    return frozenset(PARSER_REGISTRY) | {EXACT}
