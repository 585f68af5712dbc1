# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""Training: data."""

import random
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core import stories
from ddlm_core.support.errors import UserError
from ddlm_core.support.seeds import derive_seed
from ddlm_core.support.sources import (
    AS_IT_IS,
    Piece,
    Reading,
    TextCounts,
    TextSummary,
    in_blocks,
    read_stories,
    source_key,
)
from ddlm_core.support.store import MappedArray, StoredText, stored
from ddlm_core.tokenizer import PAD_ID, UNK_ID, CharacterLevelTokenizer

__all__ = [
    "encode_stories",
    "split_stories",
    "TokenWindows",
    "WindowSampler",
    "evaluation_loader",
    "POCKET",
    "pocket_stories",
    "stored_tokens",
    "Loaders",
    "setup_dataloaders",
    "batches_from",
]


def encode_stories(
    pieces: Iterable[Piece],
    tokenizer: CharacterLevelTokenizer,
    pad_to: int | None = None,
    found: TextCounts | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of some 10^6 tokens (uint8), with ends (int64) and hashes (uint64) of the stories.

    A ``<PAD>`` follows each story, or so many that it has ``pad_to`` tokens. ``found`` counts.

    Raises:
        UserError: if a story has more than ``pad_to`` characters.
    """
    end = 0
    for texts, is_end, hashes in in_blocks(pieces):
        lengths = np.array([len(text) for text in texts])
        fill = is_end * (1 if pad_to is None else pad_to - lengths)
        if (fill < 0).any():
            raise UserError(f"a story of {lengths.max()} characters does not fit in {pad_to}")
        behind = np.repeat(np.cumsum(lengths), fill)  # where every <PAD> goes
        tokens = tokenizer.encode_numpy(text := "".join(texts))
        if found is not None:
            found.count(text, int(is_end.sum()), tokens == UNK_ID)
        tokens = np.insert(tokens, behind, PAD_ID)
        ends = end + np.cumsum(lengths + fill)
        end = ends[-1]
        yield tokens, ends[is_end], hashes


def split_stories(
    tokens: np.ndarray,
    ends: np.ndarray,
    hashes: np.ndarray,
    held_out: int,
    parts: int = 2,
    whole: bool = False,
) -> list[np.ndarray]:
    """Training tokens, and ``parts`` that are held out (validation, test); they share no story.

    A part gets at most ``held_out`` stories and a tenth of all; fewer, if these make up more than a
    sixth of the text. If a single one does, unless stories must stay ``whole``, the text is cut as
    one running text, and a part gets a twentieth.
    """
    count = min(held_out, max(1, len(ends) // 10)) if len(ends) > 2 else 0
    while count and not whole and len(tokens) - ends[-parts * count - 1] > len(tokens) * parts / 6:
        count //= 2
    if count == 0:
        twentieths = np.arange(20 - parts, 20)
        return np.split(tokens, len(tokens) * twentieths // 20)
    held: list[np.ndarray] = []
    for _ in range(parts):
        border, ends, last = ends[-count - 1], ends[:-count], ends[-count:]
        early, late = hashes[:-count], hashes[-count:]
        blocks = (early[i : i + (1 << 20)] for i in range(0, len(early), 1 << 20))
        seen = np.any([np.isin(late, block) for block in blocks], axis=0)
        rows = np.split(tokens[border:], last[:-1] - border)
        fresh = [row for row, repeats in zip(rows, seen) if not repeats]
        if not fresh:
            warnings.warn("stories repeat: those held out also occur in training", stacklevel=2)
        held.insert(0, np.concatenate(fresh or rows))
        tokens, hashes = tokens[:border], early
    return [tokens, *held]


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, uint8, asked for by where they start; ``<PAD>`` beyond the end.

    ``vocab`` is what the tokens mean, if that is known: a trainer compares it with its network's.
    """

    summary: TextSummary  # of the text to train on, from :func:`setup_dataloaders`

    def __init__(
        self, tokens: np.ndarray | MappedArray, length: int, vocab: tuple[str, ...] | None = None
    ) -> None:
        self.tokens, self.length, self.vocab = tokens, length, vocab

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        fill = (0, self.length - len(window))  # before and behind
        return torch.from_numpy(np.pad(window, fill, constant_values=PAD_ID))


class WindowSampler(Sampler[int]):
    """Starts of the windows of ``epoch``, shuffled, without ``skip``; cut anew unless ``aligned``.

    Raises:
        UserError: if the text is shorter than a window.
    """

    def __init__(self, tokens: int, length: int, seed: int = 0, aligned: bool = False) -> None:
        if tokens < length:
            found = f"{tokens} tokens are shorter than one window of {length}"
            raise UserError(f"{found}: take more text, or a smaller context_length")
        self.tokens, self.length, self.seed, self.aligned = tokens, length, seed, aligned
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return max(1, self.tokens // self.length - (not self.aligned))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "windows", self.epoch))
        slack = 0 if self.aligned else min(self.length, self.tokens - self.length)
        shift = int(torch.randint(slack + 1, (), generator=generator))
        order = torch.randperm(len(self), generator=generator)
        order, self.skip = order[self.skip :], 0
        for part in order.split(1 << 16):  # as Python numbers, millions of starts take much memory
            yield from (shift + part * self.length).tolist()


def evaluation_loader(
    tokens: np.ndarray, length: int, batch_size: int, vocab: tuple[str, ...] | None = None
) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    windows, starts = TokenWindows(tokens, length, vocab), range(0, len(tokens), length)
    return DataLoader(windows, batch_size, sampler=starts)


POCKET = "pocket-stories"  # the name of the grammar of chapter 2 as a source


def pocket_stories(n: int, seed: int) -> Iterator[Piece]:
    """The stories of ``stories.sample(n, seed)``, without a list of all of them."""
    grammar, rng = stories.STORIES, random.Random(seed)
    for _ in range(n):
        yield stories.tell(rng.choice(grammar.plots), rng, grammar), True


def stored_tokens(
    source: str,
    tokenizer: CharacterLevelTokenizer,
    how: Reading = AS_IT_IS,
    *,
    seed: int = 0,
    pad_to: int | None = None,
) -> StoredText:
    """Tokens, ends and hashes of a source's stories, memory-mapped; a second call reads no text."""
    found = TextCounts()
    if source == POCKET:
        grammar = sha256(Path(stories.__file__).read_bytes()).hexdigest()
        key = (source, how.limit, seed, grammar)
        read = partial(pocket_stories, how.limit or 100_000, seed)
    else:
        key = source_key(source, how)
        read = partial(read_stories, source, how, found)
    key = (key, tokenizer.vocab, pad_to)
    return stored(key, lambda: encode_stories(read(), tokenizer, pad_to, found), found.plain)


class Loaders(NamedTuple):
    """Batches to train on, to validate with and to test with, uint8 (B, L); and the tokenizer."""

    train: DataLoader
    val: DataLoader
    test: DataLoader
    tokenizer: CharacterLevelTokenizer

    @property
    def summary(self) -> TextSummary:
        """What the text to train on is, and what of it the vocabulary does not have."""
        assert isinstance(self.train.dataset, TokenWindows)
        return self.train.dataset.summary


def setup_dataloaders(
    dataset_name: str = "roneneldan/TinyStories",
    *,
    train_samples: int | None = None,
    val_samples: int = 1000,
    context_length: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    val_dataset_name: str | None = None,
    text_column: str | None = None,
    dataset_config: str | None = None,
    encoding: str = "utf-8",
    separator: str = AS_IT_IS.separator,
    seed: int = 0,
    tokenizer: CharacterLevelTokenizer | None = None,
) -> Loaders:
    """Batches of windows of ``context_length`` tokens, from any text.

    Args:
        dataset_name: pocket-stories, a file, folder or pattern, or a name on the Hub. A file of text
            is a story, as is a row of a .csv, .json, .jsonl or .parquet; .gz, .bz2, .xz: as they are.
        train_samples: stories to read (of a longer one, megabytes); else all, or 100,000 of ours.
        val_samples: stories held out for validation, and again for testing.
        val_dataset_name: validate on ``val_samples`` of this source instead; testing stays as it is.
        text_column: of a table; by default ``text``, or the only one that holds text.
        dataset_config: which configuration of a data set on the Hub.
        encoding: of files without a byte order mark.
        separator: ends a story inside a text; nothing does if it is empty.
        tokenizer: that of the network, ``model.config.tokenizer``; by default that of chapter 1.

    Raises:
        UserError: if a file cannot be read as text, or if all of it is shorter than a window.
        OSError: if there is no such file, or if the Hub cannot be reached.
    """
    tokenizer, aligned = tokenizer or CharacterLevelTokenizer(), dataset_name == POCKET
    read = partial(stored_tokens, tokenizer=tokenizer, pad_to=context_length if aligned else None)
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    how = Reading("train", limit, text_column, dataset_config, encoding, separator)
    text = read(dataset_name, how=how, seed=seed)
    parts, row = (
        2 if val_dataset_name is None else 1,
        (text.tokens[:], text.ends[:], text.hashes[:]),
    )
    first, *held = split_stories(*row, val_samples, parts, aligned)
    windows = TokenWindows(text.tokens.first(len(first)), context_length, tokenizer.vocab)
    sampler = WindowSampler(len(first), context_length, seed, aligned)
    share = sum(map(len, held)) / len(text.tokens)
    windows.summary = TextSummary.of(text.about, len(sampler), share)
    if val_dataset_name is not None:
        how = how._replace(split="validation", limit=val_samples)
        held.insert(0, read(val_dataset_name, how=how, seed=seed + 1).tokens[:])
    full = min(batch_size, len(sampler))
    train = DataLoader(windows, full, sampler=sampler, num_workers=num_workers, drop_last=True)
    val, test = (
        evaluation_loader(part, context_length, batch_size, tokenizer.vocab) for part in held
    )
    return Loaders(train, val, test, tokenizer)


def batches_from(loader: DataLoader, micro_batches: int, step: int) -> Iterator[Tensor]:
    """The windows of each step from ``step`` on, uint8 (B, L): ``micro_batches`` batches, joined.

    A step never joins batches of two epochs; those that are left over at the end of one are dropped.
    """
    assert loader.batch_size  # None would mean windows, not batches
    steps = len(loader) // micro_batches  # in an epoch
    epoch, done = divmod(step, steps)
    while True:
        if ours := isinstance(loader.sampler, WindowSampler):  # it skips without reading
            loader.sampler.epoch = epoch
            loader.sampler.skip = done * micro_batches * loader.batch_size
        batches = islice(loader, 0 if ours else done * micro_batches, None)
        for _ in range(done, steps):
            yield torch.cat(list(islice(batches, micro_batches)))
        epoch, done = epoch + 1, 0
