# Generated from notebooks/01_tokenizer.py by tools/export.py: edit that, then run `make export`.

"""Text as characters."""

import string
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "UNK_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "VOCAB",
    "check_vocabulary",
    "code_point_table",
    "look_up",
    "integer_array",
    "CharacterLevelTokenizer",
]

UNK_ID = 0
PAD_ID = 1
SPECIAL_TOKENS: tuple[str, str] = ("<UNK>", "<PAD>")

VOCAB: tuple[str, ...] = (
    *SPECIAL_TOKENS,
    *string.digits,
    *string.ascii_lowercase,
    *string.ascii_uppercase,
    *string.punctuation,
    *" \t\n",
    *"“”‘’—–…",
)


def check_vocabulary(vocab: Iterable[str]) -> tuple[str, ...]:
    """The vocabulary as a tuple, once it is sure that every token can be told from every other.

    Args:
        vocab: ``"<UNK>"`` and ``"<PAD>"``, then distinct single characters; at most 256 tokens,
            so that an id fits in one byte.

    Returns:
        The same tokens, in the same order.

    Raises:
        ValueError: if the two special tokens are not first, a later token is not one character, a
            token occurs twice, or there are more than 256.
    """
    vocab = tuple(vocab)
    if vocab[:2] != SPECIAL_TOKENS:
        raise ValueError(f"a vocabulary starts with {SPECIAL_TOKENS}, got {vocab[:2]}")
    if len(vocab) > 256:
        raise ValueError(f"an id is one byte, so there are at most 256 tokens, got {len(vocab)}")
    odd = [token for token in vocab[2:] if not isinstance(token, str) or len(token) != 1]
    if odd:
        raise ValueError(f"every token after the first two is one character, got {odd[:5]}")
    repeated = sorted({token for token in vocab if vocab.count(token) > 1})
    if repeated:
        raise ValueError(f"every token occurs once, but these occur again: {repeated[:5]}")
    return vocab


def code_point_table(vocab: tuple[str, ...]) -> np.ndarray:
    """The id of every code point, up to the largest one in the vocabulary and one further.

    Args:
        vocab: a checked vocabulary.

    Returns:
        A uint8 array: entry ``p`` is the id of the character ``chr(p)``, ``UNK_ID`` where there is
        none. Its last entry is always ``UNK_ID``: larger code points are clipped to it.
    """
    code_points = [ord(token) for token in vocab[2:]]
    table = np.full(max(code_points, default=0) + 2, UNK_ID, dtype=np.uint8)
    table[code_points] = np.arange(2, len(vocab), dtype=np.uint8)
    return table


def look_up(text: str, table: np.ndarray) -> np.ndarray:
    """Ids of a text by one table look-up over its code points.

    Args:
        text: any text, of length L.
        table: what ``code_point_table`` returns.

    Returns:
        A uint8 array of shape (L,).
    """
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return table.take(code_points, mode="clip")


def integer_array(ids: Tensor | np.ndarray | Sequence, vocab_size: int) -> np.ndarray:
    """Token ids from a tensor, an array or a list, as an array whose entries are known to be ids.

    Args:
        ids: integers in [0, vocab_size), of any shape.
        vocab_size: number of tokens.

    Returns:
        An integer array of the same shape.

    Raises:
        ValueError: if ``ids`` are not integers, or one is out of range.
    """
    if isinstance(ids, Tensor):
        if ids.is_floating_point():
            raise ValueError(f"token ids are integers, got {ids.dtype}")
        ids = ids.numpy(force=True)
    ids = np.asarray(ids)
    if ids.size == 0:
        return ids.astype(np.int64)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"token ids lie in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}")
    return ids


class CharacterLevelTokenizer:
    """Text to token ids, one id a character, and back.

    Args:
        vocab: ``"<UNK>"`` and ``"<PAD>"``, then distinct single characters.

    Raises:
        ValueError: if ``vocab`` is not of this form (see ``check_vocabulary``).
    """

    BLOCK = 1 << 16  # characters looked up at a time

    def __init__(self, vocab: Iterable[str] = VOCAB) -> None:
        self.vocab = check_vocabulary(vocab)
        self.table = code_point_table(self.vocab)
        self.shown = ("\ufffd", "", *self.vocab[2:])  # what decode writes for each id

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the two special ones included."""
        return len(self.vocab)

    @property
    def unk_token_id(self) -> int:
        """The id of every character that is not in the vocabulary."""
        return UNK_ID

    @property
    def pad_token_id(self) -> int:
        """The id that fills a window after the end of a text."""
        return PAD_ID

    def encode_numpy(self, text: str) -> np.ndarray:
        """Ids as one byte a character: the form in which a data set is stored.

        Args:
            text: any text, of length L.

        Returns:
            A uint8 array of shape (L,).
        """
        ids = np.empty(len(text), dtype=np.uint8)
        for start in range(0, len(text), self.BLOCK):
            block = slice(start, start + self.BLOCK)
            ids[block] = look_up(text[block], self.table)
        return ids

    def encode(self, text: str) -> Tensor:
        """Ids as the int64 tensor that a model takes.

        Args:
            text: any text, of length L.

        Returns:
            An int64 tensor of shape (L,).
        """
        return torch.from_numpy(self.encode_numpy(text).astype(np.int64))

    def pad(self, text: str, length: int) -> Tensor:
        """Ids of a text, filled up with ``<PAD>``.

        Args:
            text: any text of at most ``length`` characters.
            length: number of ids to return.

        Returns:
            An int64 tensor of shape (length,).

        Raises:
            ValueError: if the text is longer than ``length``: nothing is cut off silently.
        """
        if len(text) > length:
            raise ValueError(f"a text of {len(text)} characters does not fit in {length} tokens")
        ids = torch.full((length,), PAD_ID, dtype=torch.int64)
        ids[: len(text)] = self.encode(text)
        return ids

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids; ``<UNK>`` gives U+FFFD, the replacement character, ``<PAD>`` nothing.

        Args:
            ids: integers in [0, vocab_size), of shape (L,).

        Returns:
            A text of at most L characters.

        Raises:
            ValueError: if ``ids`` are not of shape (L,), not integers, or one is out of range.
        """
        ids = integer_array(ids, self.vocab_size)
        if ids.ndim != 1:
            raise ValueError(f"decode takes ids of shape (L,), got {ids.shape}; see decode_batch")
        return "".join([self.shown[i] for i in ids.tolist()])

    def decode_batch(self, ids: Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """The text of every row.

        Args:
            ids: integers in [0, vocab_size), of shape (B, L).

        Returns:
            B texts.

        Raises:
            ValueError: if ``ids`` are not of shape (B, L), not integers, or one is out of range.
        """
        ids = integer_array(ids, self.vocab_size)
        if ids.ndim != 2:
            raise ValueError(f"decode_batch takes ids of shape (B, L), got {ids.shape}")
        return [self.decode(row) for row in ids]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters that ``encode`` turns into ``<UNK>``.

        Args:
            text: any text.

        Returns:
            Each of them once, in code-point order.
        """
        return sorted(set(text) - set(self.vocab))
