# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Text as characters
#
# **We have** text: letters, digits, quotation marks, line ends.
# **We want** a whole number for each character, and the text back from the numbers, exactly.
# **Why**: a network reads numbers. And the noise of [chapter 3](03_noise.ipynb) replaces one
# character by another, so it needs a fixed, finite list of all that a character can be.
#
# Such a list is a *vocabulary*, its entries are *tokens*, and the position of a token in the list is
# its *id*. What turns text into ids and back is a *tokenizer*.

# %% [markdown]
# ## By hand
#
# Take an alphabet of three letters. A dictionary gives each one its position, and a list gives it
# back:

# %%
alphabet = ["a", "b", "c"]
position = {letter: i for i, letter in enumerate(alphabet)}
[position[letter] for letter in "cabba"]

# %%
"".join(alphabet[i] for i in [2, 0, 1, 1, 0])

# %% [markdown]
# That is the whole idea. What remains is to choose the list, to decide what happens to a character
# that is not on it, and to make it fast.

# %% [markdown]
# ## Why characters, and not words
#
# Most language models cut text into words or pieces of words, tens of thousands of them. We take
# single characters, for three reasons.
#
# * **The vocabulary is small.** Chapter 3 writes the noise as a matrix with one row and one column per
#   token. With 106 tokens it has 11,236 entries: we can print it, multiply it and compare with it. With
#   the 50,257 tokens of GPT-2 it has 2.5 billion. Small is what lets this book test its formulas
#   instead of trusting them.
# * **There is nothing to train.** A list of word pieces comes from a corpus, by a procedure with choices
#   of its own. Ours fits in four lines.
# * **One token is one character.** A text of 160 characters has 160 tokens, and when noise hits a token
#   you see which letter it was.
#
# The price: sequences are several times longer, and the network has to learn spelling. Our stories are
# short, so we can pay it.

# %% [markdown]
# ## The vocabulary
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of tokens, 106 here |
# | $L$ | length | number of characters in a text |
# | $x_0$ | `x_0` | the ids of a clean text, each in $\{0, \dots, V-1\}$ |
#
# Two tokens stand for no character, so they come first, at fixed places:
#
# * `<UNK>`, id 0, the *unknown* character: everything that is not on the list becomes this token.
# * `<PAD>`, id 1, *padding*: it fills the window after a story has ended. It is an ordinary token to the
#   model, which learns to write it, and that is how a story gets to say "the end".
#
# Then everything on an English keyboard, and the seven typographic marks that printed stories use.

# %% tags=["export"]
import string

UNK_ID, PAD_ID = 0, 1
SPECIAL_TOKENS = ("<UNK>", "<PAD>")
_ON_THE_KEYBOARD = string.digits + string.ascii_letters + string.punctuation + " \t\n"
VOCAB: tuple[str, ...] = (*SPECIAL_TOKENS, *_ON_THE_KEYBOARD, *"“”‘’—–…")

# %% [markdown]
# A trained model knows its tokens by id only. Insert one in the middle and all later ones mean
# something else. So the order is part of the promise, and a test pins it, spelled out once more by
# code point rather than by the names used above.


# %% tags=["test"]
def test_the_vocabulary_is_the_promised_one():
    assert VOCAB[:2] == ("<UNK>", "<PAD>")
    code_points = [ord(character) for character in VOCAB[2:]]
    digits, lower, upper = range(48, 58), range(97, 123), range(65, 91)
    letters_and_digits = {*digits, *lower, *upper}
    marks = [point for point in range(33, 127) if point not in letters_and_digits]
    quotes_dashes_dots = [0x201C, 0x201D, 0x2018, 0x2019, 0x2014, 0x2013, 0x2026]
    assert code_points == [*digits, *lower, *upper, *marks, 32, 9, 10, *quotes_dashes_dots]
    assert len(VOCAB) == len(set(VOCAB)) == 106


test_the_vocabulary_is_the_promised_one()

# %% [markdown]
# A model that is saved takes its vocabulary along, as a plain list of strings, because ids without
# their list are noise. What comes back from a file may be anything, so we look before we use it. An id
# must fit in one byte (a byte has 256 values), which is how a data set will be stored.

# %% tags=["export"]
from collections.abc import Iterable


def _check_vocabulary(vocab: Iterable[str]) -> tuple[str, ...]:
    """The vocabulary as a tuple, once it is sure that each token can be told from all others."""
    vocab = tuple(vocab)
    if vocab[:2] != SPECIAL_TOKENS:
        raise ValueError(f"a vocabulary starts with {SPECIAL_TOKENS}, got {vocab[:2]}")
    if len(vocab) > 256:
        raise ValueError(f"an id is one byte, so there are at most 256 tokens, got {len(vocab)}")
    if odd := [token for token in vocab[2:] if not isinstance(token, str) or len(token) != 1]:
        raise ValueError(f"every token after the first two is one character, got {odd[:5]}")
    if repeated := sorted({token for token in vocab if vocab.count(token) > 1}):
        raise ValueError(f"every token occurs once, but these occur again: {repeated[:5]}")
    return vocab


# %% tags=["test"]
import pytest


def test_a_vocabulary_that_cannot_work_is_refused():
    assert _check_vocabulary(list(VOCAB)) == VOCAB
    assert _check_vocabulary(["<UNK>", "<PAD>", *map(chr, range(254))])[-1] == chr(253)
    for vocab, reason in (
        ([], "starts with"),
        ("abc", "starts with"),
        (["<PAD>", "<UNK>", "a"], "starts with"),
        (["<UNK>", "<PAD>", "a", "b", "a"], "occurs once.*'a'"),
        (["<UNK>", "<PAD>", "a", "the"], "one character.*'the'"),
        (["<UNK>", "<PAD>", "a", ""], "one character"),
        (["<UNK>", "<PAD>", "a", 7], "one character.*7"),
        (["<UNK>", "<PAD>", *map(chr, range(255))], "at most 256 tokens, got 257"),
    ):
        with pytest.raises(ValueError, match=reason):
            _check_vocabulary(vocab)


test_a_vocabulary_that_cannot_work_is_refused()

# %% [markdown]
# ## One look-up in a table
#
# The dictionary above asks Python once per character. After a million stories you notice. There is
# a faster way, because a character already *is* a number: Unicode gives every one its *code point*.

# %%
[ord(letter) for letter in "cabba"]

# %% [markdown]
# So let a table answer instead of a dictionary: entry $p$ holds the id of the character with code point
# $p$. For our three letters, with 0 for "not on the list", it is mostly zeros:

# %%
import numpy as np

small_table = np.zeros(ord("c") + 2, dtype=np.uint8)
small_table[[ord("a"), ord("b"), ord("c")]] = [1, 2, 3]
small_table

# %% [markdown]
# Indexing an array with an array of positions looks all of them up at once. One entry too many is on
# purpose: it stays 0, and every code point beyond the end is *clipped* to it. So the table ends right
# after the largest code point that we know, and still answers for every character there is.

# %%
code_points = np.array([ord(letter) for letter in "cabba…"])
small_table.take(code_points, mode="clip")

# %% [markdown]
# The same for a whole vocabulary. The largest code point of ours belongs to `…`, 8230, so the table
# takes 8 kB.


# %% tags=["export"]
import numpy as np


def _code_point_table(vocab: tuple[str, ...]) -> np.ndarray:
    """Entry p is the id of ``chr(p)``: uint8, one longer than the largest code point needs."""
    code_points = [ord(token) for token in vocab[2:]]
    table = np.full(max(code_points, default=0) + 2, UNK_ID, dtype=np.uint8)
    table[code_points] = np.arange(2, len(vocab), dtype=np.uint8)
    return table


# %% [markdown]
# And the code points of a text, without asking for each? The encoding UTF-32 is nothing but the code
# points, four bytes each; `le` puts the low byte first and `<u4` reads them back the same way.
# `surrogatepass` lets broken halves of a character through, which occur in text from damaged files: they
# are on no list, so they become `<UNK>` like all strangers, instead of an error.


# %% tags=["export"]
def look_up(text: str, table: np.ndarray) -> np.ndarray:
    """Ids of a text of L characters, uint8 of shape (L,), by one look-up of its code points."""
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return table.take(code_points, mode="clip")


# %% [markdown]
# Does the table say what the dictionary says? For every code point that exists, all 1,114,112 of them:


# %% tags=["test"]
import sys


def test_the_table_agrees_with_a_dictionary_on_all_of_unicode():
    table = _code_point_table(VOCAB)
    position = {character: i for i, character in enumerate(VOCAB)}
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert look_up(everything, table).tolist() == [position.get(c, UNK_ID) for c in everything]
    assert look_up("", table).shape == (0,)


test_the_table_agrees_with_a_dictionary_on_all_of_unicode()

# %% [markdown]
# ## Checking ids
#
# The way back starts with ids, and those come from everywhere: a tensor on a GPU, an array from a file,
# a list that you typed. Python would read the id $-1$ as "the last token", silently. We refuse it.

# %% tags=["export"]
from collections.abc import Sequence

from torch import Tensor


def _integer_array(ids: Tensor | np.ndarray | Sequence, vocab_size: int) -> np.ndarray:
    """Ids of any shape as an array, once it is sure that they are integers in [0, vocab_size)."""
    if isinstance(ids, Tensor):
        if ids.is_floating_point():
            raise ValueError(f"token ids are integers, got {ids.dtype}")
        ids = ids.numpy(force=True)
    ids = np.asarray(ids)
    if ids.size == 0:  # nothing to look at; an empty list would count as floats
        return ids
    if ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, got {ids.dtype}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"token ids lie in 0..{vocab_size - 1}, got {ids.min()}..{ids.max()}")
    return ids


# %% [markdown]
# ## The tokenizer
#
# The class keeps the list and its table together. It looks a long text up in blocks: the code points
# need four bytes a character and the look-up eight more, so a text of a gigabyte would ask for twelve. A
# block asks for less than one megabyte, whatever the text. What surprised us: we cut the text to save
# memory, and it became two and a half times as fast, because a block stays in the processor's cache.

# %% tags=["export"]
import torch


class CharacterLevelTokenizer:
    """Text to token ids, one id a character, and back: int64 tensors (L,), L the length of the text.

    Ids of characters that are not in ``vocab`` are ``unk_token_id``. Text that is too long to
    ``pad``, ids out of range, not integers or of the wrong shape raise a ValueError.

    Args:
        vocab: ``"<UNK>"`` and ``"<PAD>"``, then distinct single characters, at most 256 tokens in
            all; else a ValueError.
    """

    BLOCK = 1 << 16  # characters looked up at a time
    unk_token_id, pad_token_id = UNK_ID, PAD_ID

    def __init__(self, vocab: Iterable[str] = VOCAB) -> None:
        self.vocab = _check_vocabulary(vocab)
        self.vocab_size = len(self.vocab)
        self.table = _code_point_table(self.vocab)
        self.shown = ("\ufffd", "", *self.vocab[2:])  # what decode writes for each id

    def __len__(self) -> int:
        return self.vocab_size

    def encode_numpy(self, text: str) -> np.ndarray:
        """Ids (L,) as uint8, one byte a character: the form in which a data set is stored."""
        ids = np.empty(len(text), dtype=np.uint8)
        for start in range(0, len(text), self.BLOCK):
            block = slice(start, start + self.BLOCK)
            ids[block] = look_up(text[block], self.table)
        return ids

    def encode(self, text: str) -> Tensor:
        """Ids as a model takes them: an int64 tensor (L,)."""
        return torch.from_numpy(self.encode_numpy(text).astype(np.int64))

    def pad(self, text: str, length: int) -> Tensor:
        """Ids, filled up with ``<PAD>`` to an int64 tensor (length,); nothing is cut off."""
        if len(text) > length:
            raise ValueError(f"a text of {len(text)} characters does not fit in {length} tokens")
        filling = torch.full((length - len(text),), PAD_ID)
        return torch.cat([self.encode(text), filling])

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids (L,); ``<UNK>`` gives U+FFFD (replacement character), ``<PAD>`` nothing."""
        ids = _integer_array(ids, self.vocab_size)
        if ids.ndim != 1:
            raise ValueError(f"decode takes ids of shape (L,), got {ids.shape}; see decode_batch")
        return "".join([self.shown[i] for i in ids.tolist()])

    def decode_batch(self, ids: Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """The texts of the rows of ids (B, L)."""
        ids = _integer_array(ids, self.vocab_size)
        if ids.ndim != 2:
            raise ValueError(f"decode_batch takes ids of shape (B, L), got {ids.shape}")
        return [self.decode(row) for row in ids]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters that ``encode`` turns into ``<UNK>``, each once, in code-point order."""
        return sorted(set(text) - set(self.vocab))


# %%
tokenizer = CharacterLevelTokenizer()
tokenizer.encode("Hi, you…")

# %%
tokenizer.decode(tokenizer.encode("Hi, you…"))

# %% [markdown]
# ## The promise: nothing is lost
#
# For any text made of our characters, decoding the encoding gives the text back. "Any" is a large word,
# so we do not pick the examples ourselves. [Hypothesis](https://hypothesis.readthedocs.io) makes up
# hundreds of texts, and when one fails, it looks for the shortest that still does.

# %% tags=["test"]
import hypothesis
import hypothesis.strategies as st

# The same examples every time, no file with past ones, no limit on the time of one.
repeatable = hypothesis.settings(derandomize=True, database=None, deadline=None)


@repeatable
@hypothesis.given(st.text(alphabet=VOCAB[2:], max_size=500), st.integers(0, 20))
def test_round_trip(text, padding):
    tokenizer = CharacterLevelTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64 and ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode_numpy(text)) == text
    assert tokenizer.decode(ids.tolist()) == text
    padded = tokenizer.pad(text, len(text) + padding)
    assert padded.tolist() == [*ids.tolist(), *[tokenizer.pad_token_id] * padding]
    assert tokenizer.decode_batch(torch.stack([padded, padded])) == [text, text]


test_round_trip()

# %% [markdown]
# Strangers become `<UNK>`, one for one, and come back as `�`, the sign that Unicode reserves for "there
# was a character here". So the length never changes, and `unknown_characters` tells you beforehand
# what would be lost.

# %%
menu = "Café ☕, naïve “soufflé”"
tokenizer.decode(tokenizer.encode(menu)), tokenizer.unknown_characters(menu)

# %% [markdown]
# Text cannot forge a special token: the five characters `<`, `P`, `A`, `D`, `>` are five ids, none of
# which is 1.


# %% tags=["test"]
@repeatable
@hypothesis.given(st.text(st.characters(exclude_categories=()), max_size=200))
@hypothesis.example("a\ud800b")  # half of a character, from a damaged file
@hypothesis.example("<PAD><UNK>")
@hypothesis.example("Caf\u00e9 \U0001f600 \r\n")
def test_unknown_characters_are_replaced_one_for_one(text):
    tokenizer = CharacterLevelTokenizer()
    known = set(VOCAB[2:])
    expected = "".join(c if c in known else "\ufffd" for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.unknown_characters(text) == sorted({c for c in text if c not in known})
    assert tokenizer.pad_token_id not in tokenizer.encode(text)


def test_a_text_longer_than_a_block_is_read_whole():
    tokenizer = CharacterLevelTokenizer()
    length = 2 * tokenizer.BLOCK + 17
    text = ("The moon – “my moon” – rose… " * (length // 20))[:length]
    assert len(text) == length and tokenizer.decode(tokenizer.encode_numpy(text)) == text


def test_a_vocabulary_from_a_file_works_the_same():
    stored = ["<UNK>", "<PAD>", "\U0001f98a", "b", "\x00"]
    tokenizer = CharacterLevelTokenizer(stored)
    assert len(tokenizer) == tokenizer.vocab_size == 5 and list(tokenizer.vocab) == stored
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer.encode("b\U0001f98a\x00a").tolist() == [3, 2, 4, 0]
    assert tokenizer.decode([3, 1, 2, 1, 4, 0]) == "b\U0001f98a\x00\ufffd"
    assert tokenizer.encode_numpy("b").dtype == np.uint8


test_unknown_characters_are_replaced_one_for_one()
test_a_text_longer_than_a_block_is_read_whole()
test_a_vocabulary_from_a_file_works_the_same()

# %% [markdown]
# And bad input is refused in words, before it does harm:


# %% tags=["test"]
import pytest


def test_bad_ids_are_refused():
    tokenizer = CharacterLevelTokenizer()
    for ids, reason in (
        ([5, 106], "0..105, got 5..106"),
        (torch.tensor([-1, 3]), "0..105, got -1..3"),
        (np.array([300], dtype=np.uint16), "got 300..300"),
        ([0.5, 1.0], "integers, got float64"),
        (torch.zeros(3, dtype=torch.bfloat16), "integers, got torch.bfloat16"),
        (torch.ones(3, dtype=torch.bool), "integers, got bool"),
        ("Hi", "integers"),
        (torch.tensor(7), r"shape \(L,\), got \(\)"),
        ([[1, 2]], r"shape \(L,\), got \(1, 2\); see decode_batch"),
    ):
        with pytest.raises(ValueError, match=reason):
            tokenizer.decode(ids)
    with pytest.raises(ValueError, match=r"shape \(B, L\), got \(2,\)"):
        tokenizer.decode_batch([1, 2])
    with pytest.raises(ValueError, match="3 characters does not fit in 2"):
        tokenizer.pad("abc", 2)
    assert tokenizer.decode([]) == "" and tokenizer.decode_batch(torch.zeros(0, 4).long()) == []


test_bad_ids_are_refused()

# %% [markdown]
# ## The picture: a story as a strip of cells
#
# This is what the model will see: not words, but a row of cells with a number in each. Below is a small
# story, padded to 80 tokens. Every cell shows its character and, underneath, its id. The kind of
# character is shown by the tint and by the line under the cell: solid for small letters, double for
# capitals, dotted for digits, dashed for punctuation, none for the white space (`␣` space, `⏎`
# line end); `<PAD>` is a striped cell with a small dot, `<UNK>` a framed `�`. The heart in the story is
# not in our vocabulary, so it is the one framed cell, and the last cells are striped: the story is over.

# %% tags=["hide-input"]
from html import escape

from IPython.display import HTML

KINDS = {  # kind: (the test for a token, the style of its cells)
    "unknown": (
        lambda token: token == "<UNK>",
        "background:#fff;outline:3px solid #a33c00;outline-offset:-3px",
    ),
    "padding": (
        lambda token: token == "<PAD>",
        "background:repeating-linear-gradient(45deg,#fff 0 4px,#d5d5d5 4px 7px)",
    ),
    "white space": (str.isspace, "background:#e6e6e6"),
    "digit": (str.isdigit, "background:#f6ee9b;border-bottom:3px dotted #5f5600"),
    "capital": (str.isupper, "background:#f3cfe2;border-bottom:4px double #7d2f5c"),
    "small letter": (str.islower, "background:#d3ebfa;border-bottom:3px solid #0072b2"),
    "punctuation": (lambda token: True, "background:#fbdfae;border-bottom:3px dashed #8a5a00"),
}
GLYPHS = {"<UNK>": "\ufffd", "<PAD>": "·", " ": "␣", "\t": "⇥", "\n": "⏎"}


def kind(token: str) -> str:
    """The first kind whose test the token passes."""
    return next(name for name, (test, _) in KINDS.items() if test(token))


def strip(ids: torch.Tensor, tokenizer: CharacterLevelTokenizer) -> HTML:
    """A row of cells, one per token, and a legend: one piece of HTML that needs nothing else."""
    style = ".strip{color:#111;line-height:1.3;font-family:monospace}"
    style += ".strip span{display:inline-block;width:2.1em;margin:2px;text-align:center;"
    style += "box-sizing:border-box;height:2.7em;vertical-align:top}.strip small{font-size:.7em}"
    style += (
        ".strip .legend{margin-top:.6em}.strip .legend span{width:auto;height:auto;padding:1px 8px}"
    )
    names = {name: name.replace(" ", "-") for name in KINDS}
    for name, (_, look) in KINDS.items():
        style += f".strip .{names[name]}{{{look}}}"
    cells = [
        f'<span class="{names[kind(tokenizer.vocab[i])]}">'
        f"{escape(GLYPHS.get(tokenizer.vocab[i], tokenizer.vocab[i]))}<br><small>{i}</small></span>"
        for i in ids.tolist()
    ]
    legend = [f'<span class="{names[name]}">{name}</span>' for name in KINDS]
    return HTML(
        f"<style>{style}</style><div class='strip'>"
        f'<div role="img" aria-label="{escape(tokenizer.decode(ids))}">{"".join(cells)}</div>'
        f'<div class="legend">{"".join(legend)}</div></div>'
    )


# %%
story = "“Who ate 3 figs?” said Mia.\nPip the cat hid a fig – his last… ♥"
strip(tokenizer.pad(story, 80), tokenizer)

# %% [markdown]
# ## How fast?
#
# Measured with `python benchmarks/tokenizer.py` on a CPU (one core of an AMD EPYC), in millions of
# characters per second; one character is one byte once it is stored.
#
# | text (50 million characters) | look-up in blocks | look-up of the whole text | dictionary loop |
# |---|---|---|---|
# | random, all 104 characters | 650 | 250 | 18 |
# | English-like sentences | 650 | 240 | 20 |
#
# No test asserts these numbers: they belong to a machine. Run the benchmark on yours.

# %% [markdown]
# ## Change it safely
#
# Your stories are French? Append `*"éèêàçùîôâï"` **at the end** of `VOCAB`, so that the ids of the others
# stay. Two tests must fail: `test_the_vocabulary_is_the_promised_one`, because it lists the 106 tokens, and
# `test_bad_ids_are_refused`, because 106 has become a good id. Teach them the new list. The command:
# `make export && pytest tests/test_tokenizer.py`.
#
# One thing that a test cannot save you from: a model trained with the old list cannot use the new one.
# That is why a checkpoint stores its own.
#
# **Exercise 1.** Without changing `VOCAB`, make a tokenizer that also knows `é`. How many tokens has it,
# and what is left unknown in `menu`? (Expected: 107, and the two characters `ï` and `☕`.)

# %% tags=["solution", "hide-input"]
french = CharacterLevelTokenizer([*VOCAB, "é"])
assert len(french) == 107
assert french.unknown_characters(menu) == ["ï", "☕"]
french.decode(french.encode(menu))

# %% [markdown]
# **Exercise 2.** Someone who knows nothing about a text gives all $V$ tokens the same probability $1/V$.
# How many bits does that cost per character? Remember the number: a model must do better. (Expected:
# $\log_2 106 = 6.728$.)

# %% tags=["solution", "hide-input"]
import math

bits = math.log2(len(tokenizer))
assert abs(bits - 6.728) < 1e-3
round(bits, 3)

# %% [markdown]
# **Exercise 3.** `é` can be written as one code point, or as `e` followed by a combining accent: they look
# the same. Encode `"caf\u00e9"` and `"cafe\u0301"`. How many ids does each give, and how many `<UNK>`?
# (Expected: 4 and 5 ids, one `<UNK>` each. The number of characters is not what the eye counts.)

# %% tags=["solution", "hide-input"]
one, two = tokenizer.encode("caf\u00e9"), tokenizer.encode("cafe\u0301")
assert (len(one), len(two)) == (4, 5)
assert (one == UNK_ID).sum() == (two == UNK_ID).sum() == 1
one.tolist(), two.tolist()

# %% [markdown]
# ## Summary
#
# A character is a number already; a table of 8 kB turns that number into one of 106 ids. Nothing that
# we know is lost, and what we do not know is marked.
#
# | name | meaning |
# |---|---|
# | `VOCAB` | the 106 tokens, in order |
# | `UNK_ID`, `PAD_ID`, `SPECIAL_TOKENS` | the two tokens that are no characters, ids 0 and 1 |
# | `look_up(text, table)` | text → bytes through a table of code points |
# | `CharacterLevelTokenizer` | `vocab`, `vocab_size`, `unk_token_id`, `pad_token_id`, `encode`, `encode_numpy`, `pad`, `decode`, `decode_batch`, `unknown_characters` |
#
# Next: [a world that we know exactly](02_stories.ipynb).
