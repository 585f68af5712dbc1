# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

"""Training: data."""

import glob
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core import stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = [
    "POCKET",
    "read_file",
    "read_stories",
    "hub_texts",
    "encode_stories",
    "split_stories",
    "TokenWindows",
    "WindowSampler",
    "training_loader",
    "evaluation_loader",
    "setup_dataloaders",
]

POCKET = "pocket-stories"


def read_file(path: Path, column: str = "text") -> Iterator[tuple[str, bool]]:
    """Read a text file piece by piece.

    Args:
        path: a ``.txt`` file, which is one running text, or a ``.jsonl`` or ``.parquet`` file,
            in which every row is one story.
        column: name of the field that holds the text of a row.

    Yields:
        Pieces of text, and whether a story ends after the piece.
    """
    if path.suffix == ".txt":
        with path.open(encoding="utf-8", newline="") as file:
            while piece := file.read(1 << 20):
                yield piece, False
        yield "", True
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from ((json.loads(line)[column], True) for line in file if line.strip())
    elif path.suffix == ".parquet":
        from datasets import load_dataset

        rows = load_dataset("parquet", data_files=str(path), split="train")
        yield from ((row[column], True) for row in rows)
    else:
        raise ValueError(f"{path}: need a .txt, .jsonl or .parquet file")


def read_stories(
    source: str, split: str = "train", limit: int | None = None, column: str = "text", seed: int = 0
) -> Iterator[tuple[str, bool]]:
    """Read the stories of a source: see :func:`setup_dataloaders` for what a source can be.

    Yields:
        Pieces of text, and whether a story ends after the piece.
    """
    if source == POCKET:
        yield from ((story, True) for story in stories.sample(limit or 100_000, seed))
        return
    paths = sorted(glob.glob(source, recursive=True))
    if paths:
        pieces = (piece for path in paths for piece in read_file(Path(path), column))
    elif Path(source).suffix in (".txt", ".jsonl", ".parquet") or source.startswith((".", "/")):
        raise FileNotFoundError(f"no file matches {source}")
    else:
        pieces = ((text, True) for text in hub_texts(source, split, column))
    yield from islice(pieces, limit)


def hub_texts(source: str, split: str, column: str) -> Iterator[str]:
    """The texts of a data set on the Hugging Face Hub, through ``datasets``."""
    from datasets import load_dataset

    try:
        rows = load_dataset(source, split=split)
    except Exception as error:
        raise ConnectionError(
            f"could not load {source!r} from the Hugging Face Hub ({type(error).__name__}); "
            f"without a network, {POCKET!r} and paths of local .txt, .jsonl and .parquet files work"
        ) from error
    return (row[column] for row in rows)


def encode_stories(
    pieces: Iterable[tuple[str, bool]],
    tokenizer: CharacterLevelTokenizer,
    pad_to: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All stories as one long row of tokens, one ``<PAD>`` after each.

    Args:
        pieces: pieces of text, and whether a story ends after the piece.
        tokenizer: turns text into ids.
        pad_to: fill each story with ``<PAD>`` up to this many tokens instead.

    Returns:
        The tokens, uint8, and the positions at which the stories end, int64.

    Raises:
        ValueError: if a story is longer than ``pad_to``.
    """
    rows, ends, total = [], [], 0
    for text, is_end in pieces:
        row = tokenizer.encode_numpy(text)
        if pad_to is not None and len(row) > pad_to:
            raise ValueError(f"a story of {len(row)} characters does not fit in {pad_to}")
        padding = pad_to - len(row) if pad_to is not None else int(is_end)
        rows.append(np.pad(row, (0, padding), constant_values=PAD_ID))
        total += len(rows[-1])
        if is_end:
            ends.append(total)
    tokens = np.concatenate(rows) if rows else np.zeros(0, np.uint8)
    return tokens, np.array(ends, dtype=np.int64)


def split_stories(
    tokens: np.ndarray, ends: np.ndarray, held_out: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut off ``held_out`` stories for validation and as many for testing, from the end.

    Fewer where there are not enough; a single running text gives a twentieth for each.

    Returns:
        Training, validation and test tokens, which share no story.
    """
    if len(ends) > 2:
        count = min(held_out, max(1, len(ends) // 10))
        first, second = int(ends[-2 * count - 1]), int(ends[-count - 1])
    else:
        first, second = len(tokens) * 18 // 20, len(tokens) * 19 // 20
    return tokens[:first], tokens[first:second], tokens[second:]


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, asked for by where they start; filled with ``<PAD>`` at the end."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        window = np.pad(window, (0, self.length - len(window)), constant_values=PAD_ID)
        return torch.from_numpy(window)


class WindowSampler(Sampler[int]):
    """Where the windows of an epoch start: each part of the text once, in random order.

    The order depends on ``seed`` and ``epoch`` alone, so that a run can be resumed exactly. In
    running text (``aligned=False``) every epoch cuts at other places. ``skip`` leaves out the
    first windows of the epoch, once.
    """

    def __init__(self, tokens: int, length: int, seed: int = 0, aligned: bool = False) -> None:
        self.tokens, self.length, self.seed, self.aligned = tokens, length, seed, aligned
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return max(1, self.tokens // self.length - (not self.aligned))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        slack = 0 if self.aligned else min(self.length, max(0, self.tokens - self.length))
        shift = int(torch.randint(slack + 1, (), generator=generator))
        order = torch.randperm(len(self), generator=generator)
        skip, self.skip = self.skip, 0
        yield from (shift + order[skip:] * self.length).tolist()


def training_loader(
    tokens: np.ndarray, length: int, batch_size: int, seed: int, aligned: bool, num_workers: int = 0
) -> DataLoader:
    """Batches of random windows, uint8 (B, L); see :class:`WindowSampler`."""
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens is shorter than one window of {length}")
    sampler = WindowSampler(len(tokens), length, seed, aligned)
    return DataLoader(
        TokenWindows(tokens, length),
        batch_size=min(batch_size, len(sampler)),
        sampler=sampler,
        drop_last=True,
        num_workers=num_workers,
    )


def evaluation_loader(tokens: np.ndarray, length: int, batch_size: int) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    starts = range(0, len(tokens), length)
    return DataLoader(TokenWindows(tokens, length), batch_size=batch_size, sampler=starts)


def setup_dataloaders(
    dataset_name: str = "roneneldan/TinyStories",
    train_samples: int | None = None,
    val_samples: int = 1000,
    context_len: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    val_dataset_name: str | None = None,
    text_column: str = "text",
    seed: int = 0,
) -> tuple[DataLoader, DataLoader, DataLoader, CharacterLevelTokenizer]:
    """Training, validation and test batches of tokens, and the tokenizer that made them.

    Args:
        dataset_name: ``"pocket-stories"``; a path or glob of ``.txt``, ``.jsonl`` or ``.parquet``
            files; or the name of a data set on the Hugging Face Hub with a text column.
        train_samples: number of stories to read (of pieces of a megabyte, for a ``.txt``);
            all if not given.
        val_samples: number of stories held out for validation, and again for testing.
        context_len: tokens in a window.
        batch_size: windows in a batch.
        num_workers: processes that load batches; 0 loads them in this one.
        val_dataset_name: validate on all of this source instead; testing stays as it is.
        text_column: name of the field that holds the text.
        seed: of the order of the windows, and of ``pocket-stories``.

    Returns:
        Three loaders of uint8 batches (B, context_len), and the tokenizer.

    Raises:
        FileNotFoundError: if no file matches.
        ConnectionError: if the Hub cannot be reached.
        ValueError: if the text is shorter than a window, or a story longer.
    """
    tokenizer = CharacterLevelTokenizer()
    aligned = dataset_name == POCKET
    pad_to = context_len if aligned else None
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    pieces = read_stories(dataset_name, "train", limit, text_column, seed)
    train, val, test = split_stories(*encode_stories(pieces, tokenizer, pad_to), val_samples)
    if val_dataset_name is not None:
        pieces = read_stories(val_dataset_name, "validation", val_samples, text_column, seed + 1)
        train, (val, _) = np.concatenate([train, val]), encode_stories(pieces, tokenizer, pad_to)
    loader = training_loader(train, context_len, batch_size, seed, aligned, num_workers)
    evaluations = [evaluation_loader(part, context_len, batch_size) for part in (val, test)]
    return loader, *evaluations, tokenizer
