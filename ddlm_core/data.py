# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""Training: data."""

import random
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core import stories
from ddlm_core.support.sources import Piece, in_blocks, read_stories, source_key
from ddlm_core.support.store import stored
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = ['encode_stories', 'split_stories', 'TokenWindows', 'WindowSampler', 'evaluation_loader', 'POCKET', 'pocket_stories', 'stored_tokens', 'setup_dataloaders']  # fmt: skip


def encode_stories(
    pieces: Iterable[Piece], tokenizer: CharacterLevelTokenizer, pad_to: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of some 10^6 tokens (uint8), with ends (int64) and hashes (uint64) of the stories.

    A ``<PAD>`` follows each story, or so many that it has ``pad_to`` tokens.
    """
    end = 0
    for texts, is_end, hashes in in_blocks(pieces):
        lengths = np.array([len(text) for text in texts])
        fill = is_end * (1 if pad_to is None else pad_to - lengths)
        if (fill < 0).any():
            raise ValueError(f"a story of {lengths.max()} characters does not fit in {pad_to}")
        places = np.repeat(np.cumsum(lengths), fill)  # of every <PAD>
        tokens = np.insert(tokenizer.encode_numpy("".join(texts)), places, PAD_ID)
        ends = end + np.cumsum(lengths + fill)
        end = ends[-1]
        yield tokens, ends[is_end], hashes


def split_stories(
    tokens: np.ndarray, ends: np.ndarray, hashes: np.ndarray, held_out: int, parts: int = 2
) -> list[np.ndarray]:
    """Training tokens, and ``parts`` that are held out (validation, test); they share no story.

    A part gets at most ``held_out`` stories and a tenth of all, or a twentieth of one running text.
    """
    if len(ends) < 3:
        return np.split(tokens, [len(tokens) * share // 20 for share in range(20 - parts, 20)])
    count, held = min(held_out, max(1, len(ends) // 10)), []
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
    """Windows of ``length`` tokens, asked for by where they start, ``<PAD>`` beyond the end."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        fill = (0, self.length - len(window))  # before and behind
        return torch.from_numpy(np.pad(window, fill, constant_values=PAD_ID))


class WindowSampler(Sampler[int]):
    """Starts of the windows of ``epoch``, shuffled, without ``skip``; cut anew unless ``aligned``."""

    def __init__(self, tokens: int, length: int, seed: int = 0, aligned: bool = False) -> None:
        if tokens < length:
            raise ValueError(f"{tokens} tokens are shorter than one window of {length}")
        self.tokens, self.length, self.seed, self.aligned = tokens, length, seed, aligned
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return max(1, self.tokens // self.length - (not self.aligned))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        slack = 0 if self.aligned else min(self.length, self.tokens - self.length)
        shift = int(torch.randint(slack + 1, (), generator=generator))
        order = torch.randperm(len(self), generator=generator)
        order, self.skip = order[self.skip :], 0
        for part in order.split(1 << 16):  # as Python numbers, millions of starts take much memory
            yield from (shift + part * self.length).tolist()


def evaluation_loader(tokens: np.ndarray, length: int, batch_size: int) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    windows, starts = TokenWindows(tokens, length), range(0, len(tokens), length)
    return DataLoader(windows, batch_size, sampler=starts)


POCKET = "pocket-stories"  # the name of the grammar of chapter 2 as a source


def pocket_stories(n: int, seed: int) -> Iterator[Piece]:
    """The stories of ``stories.sample(n, seed)``, without a list of all of them."""
    grammar, rng = stories.STORIES, random.Random(seed)
    for _ in range(n):
        yield stories.tell(rng.choice(grammar.plots), rng, grammar), True


def stored_tokens(
    source: str,
    split: str,
    limit: int | None,
    column: str,
    seed: int,
    tokenizer: CharacterLevelTokenizer,
    pad_to: int | None = None,
) -> tuple[np.ndarray, ...]:
    """Tokens, ends and hashes of a source's stories, memory-mapped; a second call reads no text."""
    if source == POCKET:
        grammar = sha256(Path(stories.__file__).read_bytes()).hexdigest()
        key = (source, limit, seed, grammar)
        read = partial(pocket_stories, limit or 100_000, seed)
    else:
        key = source_key(source, split, limit, column)
        read = partial(read_stories, source, split, limit, column)
    return stored((key, tokenizer.vocab, pad_to), lambda: encode_stories(read(), tokenizer, pad_to))


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
    """Training, validation and test batches, uint8 (B, context_len), and the tokenizer.

    Args:
        dataset_name: pocket-stories, a glob of .txt, .jsonl or .parquet files, or a name on the Hub.
        train_samples: stories to read (megabytes, for a ``.txt``); if not given all, or 100,000 of ours.
        val_samples: stories held out for validation, and again for testing.
        val_dataset_name: validate on ``val_samples`` of this source instead; testing stays as it is.
    """
    tokenizer, aligned = CharacterLevelTokenizer(), dataset_name == POCKET
    pad_to = context_len if aligned else None
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    text = stored_tokens(dataset_name, "train", limit, text_column, seed, tokenizer, pad_to)
    train, *held = split_stories(*text, val_samples, parts=2 if val_dataset_name is None else 1)
    if val_dataset_name is not None:
        other = (val_dataset_name, "validation", val_samples, text_column, seed + 1)
        held.insert(0, stored_tokens(*other, tokenizer, pad_to)[0])
    sampler = WindowSampler(len(train), context_len, seed, aligned)
    options = {"sampler": sampler, "drop_last": True, "num_workers": num_workers}
    loader = DataLoader(TokenWindows(train, context_len), min(batch_size, len(sampler)), **options)
    return loader, *(evaluation_loader(part, context_len, batch_size) for part in held), tokenizer
