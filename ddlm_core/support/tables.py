"""Tables of texts: one row is one text. JSON and CSV by hand, the rest and the Hub by ``datasets``."""

import csv
import glob
import json
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from ddlm_core.support.errors import UserError
from ddlm_core.support.textfiles import BINARY_TABLES, kind_of, open_text

FIRST = 100  # rows in which a column of texts is looked for
Row = dict[str, Any]


def file_texts(
    path: Path, column: str | None = None, encoding: str = "utf-8", columns: list[str] | None = None
) -> Iterator[str]:
    """The texts in a .jsonl, .json, .csv, .tsv, .parquet or .arrow file; ``columns`` gets their column.

    Raises:
        UserError: if the file is damaged, if it has no such column, or a row without a text in it.
    """
    if kind_of(path) in BINARY_TABLES:
        yield from _binary_table(path, column, columns)
        return
    rows = (csv_rows if kind_of(path) in (".csv", ".tsv") else json_rows)(path, encoding)
    first = list(islice(rows, FIRST))
    name = choose_column([row for row in first if isinstance(row, dict)], column, path)
    every = chain(first, rows)
    values = (row.get(name) if isinstance(row, dict) else None for row in every)
    yield from _texts(values, name, path, columns)


# datasets reads JSON and CSV too, but makes times of texts that look like dates, and numbers of 007,
# takes the first field for a row's name if a row is too long, tells faults by a number that is no
# row's, and cuts UTF-16 in the middle of a letter.
def json_rows(path: Path, encoding: str = "utf-8") -> Iterator[Any]:
    """The values in a file of JSON lines, or of one JSON array; a string is a row with a ``text``."""
    with open_text(path, encoding) as file:
        lines = (line for line in file if line.strip())
        start = next(lines, "")
        if start.lstrip().startswith("[") or (kind_of(path) == ".json" and not _is_whole(start)):
            values = _parsed(start + file.read(), f"{path}")
            values = iter(values if isinstance(values, list) else [values])
        else:
            numbered = enumerate(chain([start] if start else [], lines), 1)
            values = (_parsed(line, f"{path}, row {number}") for number, line in numbered)
        for value in values:
            yield {"text": value} if isinstance(value, str) else value


def _is_whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"no JSON: {error.msg} at its character {error.pos + 1}"
        raise UserError(f"{where}: need an object with a text, got {reason}") from error


def csv_rows(path: Path, encoding: str = "utf-8") -> Iterator[Row]:
    """The rows under the header of a file of values, apart by the sign that cuts the header most."""
    csv.field_size_limit(2**31 - 1)  # in characters; the limit of a new process is 131,072
    number = 0
    with open_text(path, encoding) as file:
        header = file.readline()
        signs = ",;\t|" if kind_of(path) == ".csv" else "\t"
        sign = max(signs, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))
        rows = csv.reader(chain([header], file), delimiter=sign, strict=True)
        try:
            names = next(rows, [])
            for number, row in enumerate(filter(None, rows), 1):
                if len(row) != len(names):
                    fields = f"{len(row)} fields, and the header {len(names)}"
                    raise UserError(
                        f"{path}, row {number} has {fields}: quote texts that hold {sign!r}"
                    )
                yield dict(zip(names, row))
        except csv.Error as error:
            hint = 'a quote inside a quoted text is written twice, ""'
            raise UserError(f"{path}, row {number + 1}: {error}: {hint}") from error


def _binary_table(path: Path, column: str | None, columns: list[str] | None) -> Iterator[str]:
    from datasets import load_dataset, logging

    logging.set_verbosity(logging.CRITICAL)  # one clear line, ours
    files = {"train": [glob.escape(str(path.absolute()))]}
    try:
        table = load_dataset(kind_of(path)[1:], data_files=files, split="train", streaming=True)
        batch: dict[str, list[Any]] = next(iter(table.iter(FIRST)), {})
    except (ValueError, OSError) as error:
        reason = shorten(str(error), 200)
        raise UserError(f"{path}: cannot read it ({reason}): make or copy it again") from error
    if batch:
        name = choose_column(_as_rows(batch), column, path)
        yield from _texts(_column(table, name), name, path, columns)


def hub_texts(
    source: str,
    split: str = "train",
    column: str | None = None,
    config: str | None = None,
    columns: list[str] | None = None,
) -> Iterator[str]:
    """The texts of a data set on the Hugging Face Hub, through ``datasets``.

    Without a split ``validation``, its like or ``test`` is taken; without ``train``, the only one.

    Raises:
        UserError: if there is no such data set, configuration, split or column.
        ConnectionError: if the Hub cannot be reached.
    """
    rows = _hub_rows(source, split, config)
    name = choose_column(_as_rows(rows[:FIRST]), column, source)
    yield from _texts(_column(rows, name), name, source, columns)


def _hub_rows(source: str, split: str, config: str | None) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # one clear line, below, and not a line for every retry
    which = (source,) if config is None else (source, config)
    try:
        try:
            return load_dataset(*which, split=split)
        except ValueError as error:
            if "nknown split" not in str(error):
                raise
        parts = load_dataset(*which)
        return parts[choose_split(list(parts), split, source)]
    except UserError:
        raise
    except (ValueError, DatasetNotFoundError) as error:
        reason = shorten(str(error).partition("Example of usage")[0], 300).rstrip(". ")
        hint = ": dataset_config=…" if "onfig" in reason else ""
        raise UserError(
            f"cannot use {source!r} of the Hugging Face Hub ({reason}){hint}"
        ) from error
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}", 200)
        raise ConnectionError(
            f"could not load {source!r} from the Hugging Face Hub ({reason}); "
            "without a network, 'pocket-stories' and paths of local files and folders work"
        ) from error


def choose_split(names: list[str], wanted: str, source: str) -> str:
    """The split that stands in for ``wanted``, or a UserError that names all."""
    if wanted == "validation":
        likely = ["valid", "val", "dev", "test"]
        hint = "leave out val_dataset_name, and a part of the training text is held out"
    else:
        likely = names if len(names) == 1 else []
        hint = "save one of them as a file, and name that"
    if chosen := next((name for name in likely if name in names), None):
        warnings.warn(f"{source!r} has no split {wanted!r}: {chosen!r} is taken", stacklevel=2)
        return chosen
    raise UserError(f"{source!r} has no split {wanted!r}, only {', '.join(names)}: {hint}")


def _column(rows: Any, name: str) -> Iterator[Any]:
    """The values of a column of a data set, a thousand rows at a time (one by one takes longer)."""
    for batch in rows.select_columns(name).iter(1000):
        yield from batch[name]


def _as_rows(batch: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values)) for values in zip(*batch.values())]


def choose_column(rows: list[dict[str, Any]], wanted: str | None, where: object) -> str:
    """The wanted column, or ``text``, or the only one of these rows that holds text.

    Raises:
        UserError: if there is none, or a choice; it lists the columns.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    choice = [name for name in names if _holds_text([row.get(name) for row in rows])]
    if not names or (wanted or "text") in names:
        return wanted or "text"
    if wanted is None and len(choice) == 1:
        return choice[0]
    missing = f"{where}: no column {wanted or 'text'!r}"
    if not choice:
        raise UserError(
            f"{missing}, and no other holds text ({', '.join(names)}): leave the file out"
        )
    raise UserError(f"{missing}, but text in {', '.join(choice)}: text_column={choice[0]}, say")


def _holds_text(values: list[Any]) -> bool:
    """Whether they are strings, and not all of them numbers, as in a column of a .csv; some may lack."""
    told = [value for value in values if value not in (None, "")]
    return bool(told) and all(isinstance(v, str) for v in told) and not all(map(_is_number, told))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _texts(
    values: Iterable[Any], name: str, where: object, columns: list[str] | None
) -> Iterator[str]:
    if columns is not None and name not in columns:
        columns.append(name)
    for number, text in enumerate(values, 1):
        if not isinstance(text, str):
            raise UserError(f"{where}, row {number}: need an object with a text {name!r}")
        yield text
