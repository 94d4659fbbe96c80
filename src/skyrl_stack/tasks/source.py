"""Source: the raw rows of a data set, one after the other, from a file, a directory or the Hugging Face Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError
from skyrl_stack.tasks.task import TaskError

Row = dict[str, Any]
BULK = frozenset({"execution_result_content", "prompt", "modified_entity_summaries", "responses_create_params"})
"Columns that no task is made of; in R2E-Gym they are nearly all of the data."
BATCH_ROWS = 32
READ_AHEAD = 1 << 20
"Bytes of a column. Without a bound, whole row groups are read, and all that was read stays in memory."
SUFFIXES = (".parquet", ".jsonl")


def read_rows(source: str, split: str) -> Iterator[tuple[str, Row | TaskError]]:
    """Rows with the place of each, in order, a few in memory at a time. What is no row is an error in its place.

    `split` chooses among the files of a directory, by the start of their names, and on the Hub.

    Raises:
        TaskError: there is no such file, directory or data set.
        SetupError: the packages that read it are not installed.
    """
    path = Path(source)
    if not path.exists():
        if source.endswith(SUFFIXES) or source.startswith(("/", ".")) or source.count("/") != 1:
            raise TaskError(f"{source}: no such file or directory, and no data set's name, which is OWNER/NAME")
        yield from read_hub(source, split)
        return
    for file in _files(path, split):
        yield from _of_parquet(file) if file.suffix == ".parquet" else _of_lines(file)


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise TaskError(f"{path}: neither .parquet nor .jsonl")
        return [path]
    files = sorted(file for file in path.rglob(f"{split}*") if file.suffix in SUFFIXES)
    if not files:
        raise TaskError(f"{path}: no {split}*.parquet or {split}*.jsonl in it; --split names another part")
    return files


def _of_lines(file: Path) -> Iterator[tuple[str, Row | TaskError]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            place = f"{file}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield place, TaskError(f"not JSON: {error.msg}")
                continue
            except UnicodeDecodeError:
                yield place, TaskError("not UTF-8")
                continue
            yield place, row if isinstance(row, dict) else TaskError("not a JSON object")


def _of_parquet(file: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise SetupError(f"{file}: reading it needs pyarrow: run `make setup`") from error
    try:
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=READ_AHEAD)
    except (OSError, pyarrow.ArrowException) as error:
        raise TaskError(f"{file}: not a parquet file: {_first_line(error)}") from error
    columns = [name for name in table.schema_arrow.names if name not in BULK]
    number = 0
    with table:
        batches = table.iter_batches(batch_size=BATCH_ROWS, columns=columns)
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                raise TaskError(f"{file}: damaged after row {number}: {_first_line(error)}") from error
            for row in rows:
                number += 1
                yield f"{file}:{number}", row


def read_hub(name: str, split: str) -> Iterator[tuple[str, Row]]:
    """Rows of a data set of the Hub, or of a copy of one in a directory, streamed by Hugging Face's own package."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SetupError(f"{name}: reading the Hub needs the package datasets: run `make setup`") from error
    try:
        rows = load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{name}:{number}", {key: value for key, value in row.items() if key not in BULK}
    except (OSError, ValueError) as error:
        raise TaskError(f"{name}: the Hub does not give split {split}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
