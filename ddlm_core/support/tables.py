"""Tables of texts: one row is one text. JSON by hand, the rest and the Hub through ``datasets``."""

import csv
import glob
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from textwrap import shorten
from typing import Any

from ddlm_core.support.errors import UserError
from ddlm_core.support.textfiles import encoding_of, kind_of, open_text, undecodable

FIRST = 100  # rows in which a column of texts is looked for


def file_texts(
    path: Path, column: str | None = None, encoding: str = "utf-8", columns: list[str] | None = None
) -> Iterator[str]:
    """The texts in a .jsonl, .json, .csv, .tsv, .parquet or .arrow file; ``columns`` gets their column.

    Raises:
        UserError: if the file is damaged, if it has no such column, or a row without a text in it.
    """
    if kind_of(path) in (".jsonl", ".ndjson", ".json"):
        rows = json_rows(path, encoding)
        first = list(islice(rows, FIRST))
        name = choose_column([row for row in first if isinstance(row, dict)], column, path)
        values = (row.get(name) if isinstance(row, dict) else None for row in chain(first, rows))
        yield from _texts(values, name, path, columns)
        return
    with _readable(path, encoding):
        load = _loader(path, encoding)
        batch: dict[str, list[Any]] = next(iter(load().iter(FIRST)), {})
        if (
            "__index_level_0__" in batch
        ):  # pandas takes the first field of such rows for a row's name
            raise UserError("a row has more fields than the header")
        if kind_of(path) in (".csv", ".tsv"):  # so that a text such as 12 stays a text
            from datasets import Features, Value

            strings = Features({name: Value("string") for name in batch})
            load = _loader(path, encoding, features=strings)
        name = choose_column(_as_rows(batch), column, path)
        values = _column(load(), name) if batch else ()
        yield from _texts(values, name, path, columns)


# datasets reads JSON too, but turns texts that look like dates into times, tells faults by a number
# that is no row's, and cuts UTF-16 in the middle of a letter.
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


def _loader(path: Path, encoding: str, **options: Any) -> Callable[[], Any]:
    """A function that opens a file with ``datasets``, which streams it."""
    from datasets import load_dataset, logging

    logging.set_verbosity(logging.CRITICAL)  # one clear line, ours
    builder = {".tsv": "csv"}.get(kind_of(path), kind_of(path)[1:])
    if builder == "csv":
        known = encoding_of(path, encoding)
        with open_text(path, encoding) as file:
            separator = _separator(file.readline())
        options |= {"sep": separator, "encoding": known, "keep_default_na": False}
    files = {"train": [glob.escape(str(path.absolute()))]}
    return lambda: load_dataset(builder, data_files=files, split="train", streaming=True, **options)


def _separator(header: str) -> str:
    """The sign that cuts a line into most fields."""
    return max(",;\t|", key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


@contextmanager
def _readable(path: Path, encoding: str) -> Iterator[None]:
    """What ``datasets``, pandas and pyarrow raise for a bad file, in a line that names it."""
    try:
        yield
    except UnicodeError as error:
        raise undecodable(path, encoding_of(path, encoding)) from error
    except (ValueError, OSError, NotImplementedError) as error:
        if isinstance(error, UserError) and str(path) in str(error):
            raise
        reason = shorten(str(error), 200)
        raise UserError(f"{path}: cannot read this {kind_of(path)} file ({reason})") from error


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
    choice = [
        name for name in names if {type(row.get(name)) for row in rows} - {type(None)} == {str}
    ]
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


def _texts(
    values: Iterable[Any], name: str, where: object, columns: list[str] | None
) -> Iterator[str]:
    if columns is not None and name not in columns:
        columns.append(name)
    for number, text in enumerate(values, 1):
        if not isinstance(text, str):
            raise UserError(f"{where}, row {number}: need an object with a text {name!r}")
        yield text
