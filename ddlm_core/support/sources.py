"""Where text comes from: files, or the Hugging Face Hub."""

import glob
import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ddlm_core.support.errors import UserError

BLOCK = 1 << 20  # characters that are read and encoded at a time
Piece = tuple[str, bool]  # some text, and whether a story ends after it


def read_file(path: Path, column: str = "text") -> Iterator[Piece]:
    """Read a ``.txt`` (one running text), or the rows of a ``.jsonl`` or ``.parquet`` file."""
    if path.suffix == ".txt":
        with path.open(encoding="utf-8", newline="") as file:
            while piece := file.read(BLOCK):
                yield piece, False
        yield "", True
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from _texts((_value(row, column) for row in file if row.strip()), column, path)
    elif path.suffix == ".parquet":
        from datasets import load_dataset

        rows = load_dataset("parquet", data_files=str(path))["train"]
        yield from _texts(_column(rows, column), column, path)
    else:
        raise UserError(f"{path}: need a .txt, .jsonl or .parquet file")


def _value(row: str, column: str) -> Any:
    try:
        return json.loads(row)[column]
    except (ValueError, KeyError, TypeError):
        return None


def _column(rows: Any, column: str) -> Iterator[Any]:
    """The values of a column of a data set, a thousand rows at a time (one by one takes longer)."""
    if column not in rows.column_names:
        yield None
        return
    for batch in rows.select_columns(column).iter(1000):
        yield from batch[column]


def _texts(values: Iterable[Any], column: str, source: object) -> Iterator[Piece]:
    for number, text in enumerate(values, 1):
        if not isinstance(text, str):
            raise UserError(f"{source}, row {number}: need an object with a text {column!r}")
        yield text, True


def hub_stories(source: str, split: str, column: str) -> Iterator[Piece]:
    """The texts of a data set on the Hugging Face Hub, through ``datasets``."""
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # one clear line, below, and not a line for every retry
    try:
        rows = load_dataset(source, split=split)
    except Exception as error:
        raise ConnectionError(
            f"could not load {source!r} from the Hugging Face Hub ({type(error).__name__}); "
            "without a network, 'pocket-stories' and paths of local .txt, .jsonl and .parquet files work"
        ) from error
    yield from _texts(_column(rows, column), column, source)


def read_stories(
    source: str, split: str = "train", limit: int | None = None, column: str = "text"
) -> Iterator[Piece]:
    """The first ``limit`` pieces of a source: see :func:`setup_dataloaders` for what that can be."""
    paths = sorted(glob.glob(source, recursive=True))
    if paths:
        pieces = (piece for path in paths for piece in read_file(Path(path), column))
    elif Path(source).suffix in (".txt", ".jsonl", ".parquet") or source.startswith((".", "/")):
        raise FileNotFoundError(f"no file matches {source}")
    else:
        pieces = hub_stories(source, split, column)
    yield from islice(pieces, limit)


def source_key(source: str, split: str, limit: int | None, column: str) -> tuple:
    """All that the text of :func:`read_stories` depends on, to know whether it is still the same.

    Of a file these are name, size and time of the last change; of a data set on the Hub its name and
    revision (without a network, the name alone).
    """
    paths = [Path(path).resolve() for path in sorted(glob.glob(source, recursive=True))]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return files or (source, split, hub_revision(source)), limit, column


def hub_revision(source: str) -> str | None:
    """The commit of a data set on the Hub, or None if the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(source, timeout=10).sha
    except Exception:  # noqa: BLE001  which ones depends on the HTTP library, and that on the version
        return None


def in_blocks(
    pieces: Iterable[Piece], characters: int | None = None
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Pieces in blocks of some ``characters`` (of ``BLOCK`` if not given): texts, does a story end, hashes.

    A story that ends in the block has a hash, uint64: the same wherever, and for the same text.
    """
    characters = characters or BLOCK
    texts, is_end, hashes, size, story = [], [], bytearray(), 0, blake2b(digest_size=8)
    for text, last in pieces:
        texts.append(text)
        is_end.append(last)
        size += len(text) + 1
        story.update(text.encode("utf-8", "surrogatepass"))
        if last:
            hashes += story.digest()
            story = blake2b(digest_size=8)
        if size >= characters:
            yield texts, np.array(is_end), np.frombuffer(hashes, "<u8")
            texts, is_end, hashes, size = [], [], bytearray(), 0
    if texts:
        yield texts, np.array(is_end), np.frombuffer(hashes, "<u8")
