"""Where text comes from: files, the Hugging Face Hub, or the grammar of chapter 2."""

import glob
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ddlm_core import stories

POCKET = "pocket-stories"
Piece = tuple[str, bool]  # some text, and whether a story ends after it


def read_file(path: Path, column: str = "text") -> Iterator[Piece]:
    """Read a ``.txt`` (one running text), or the rows of a ``.jsonl`` or ``.parquet`` file."""
    if path.suffix == ".txt":
        with path.open(encoding="utf-8", newline="") as file:
            while piece := file.read(1 << 20):
                yield piece, False
        yield "", True
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from _texts(filter(str.strip, file), column, path)
    elif path.suffix == ".parquet":
        from datasets import load_dataset

        yield from _texts(load_dataset("parquet", data_files=str(path))["train"], column, path)
    else:
        raise ValueError(f"{path}: need a .txt, .jsonl or .parquet file")


def _texts(rows: Iterable[dict | str], column: str, source: object) -> Iterator[Piece]:
    for number, row in enumerate(rows, 1):
        try:
            text = (json.loads(row) if isinstance(row, str) else row)[column]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"{source}, row {number}: need an object with a text {column!r}")
        yield text, True


def hub_stories(source: str, split: str, column: str) -> Iterator[Piece]:
    """The texts of a data set on the Hugging Face Hub, through ``datasets``."""
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # one clear line, below, and not a line for every retry
    try:
        return _texts(load_dataset(source, split=split), column, source)
    except Exception as error:
        raise ConnectionError(
            f"could not load {source!r} from the Hugging Face Hub ({type(error).__name__}); "
            f"without a network, {POCKET!r} and paths of local .txt, .jsonl and .parquet files work"
        ) from error


def read_stories(
    source: str, split: str = "train", limit: int | None = None, column: str = "text", seed: int = 0
) -> Iterator[Piece]:
    """The first ``limit`` pieces of a source: see :func:`setup_dataloaders` for what that can be."""
    paths = sorted(glob.glob(source, recursive=True))
    if source == POCKET:
        pieces = ((story, True) for story in stories.sample(limit or 100_000, seed))
    elif paths:
        pieces = (piece for path in paths for piece in read_file(Path(path), column))
    elif Path(source).suffix in (".txt", ".jsonl", ".parquet") or source.startswith((".", "/")):
        raise FileNotFoundError(f"no file matches {source}")
    else:
        pieces = hub_stories(source, split, column)
    yield from islice(pieces, limit)
