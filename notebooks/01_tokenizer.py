# ---
# jupyter:
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
# **Why**: a network reads numbers. And this book ruins text by replacing characters with other ones
# ([chapter 3](03_noise.ipynb)), so we need a fixed, finite list of all that a character can be.
#
# Such a list is a *vocabulary*, its entries are *tokens*, and the position of a token in the list, counted
# from 0, is its *id*. What turns text into ids and back is a *tokenizer*.
#
# **How to read the code.** A chapter is also a module of the package `ddlm_core`, this one `ddlm_core.tokenizer`:
# the cells with definitions go into it, with the imports that they need. In a clone of the repository,
# `make export` writes it, together with its tests. A function named `test_…` is such a test. It also runs
# here, on the page, in the cell that defines it. A test that fails would stop the page with an error, so
# no output means that it passed.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio hypothesis"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## By hand: five tokens
#
# Take an alphabet of three letters, and two tokens that are no letters. `<UNK>` stands for every *unknown*
# character, one that is not on the list. `<PAD>` is *padding*: it fills up the space after a text that is
# shorter than it should be. Both have fixed places, 0 and 1:

# %%
tokens = ["<UNK>", "<PAD>", "a", "b", "c"]
position = {token: i for i, token in enumerate(tokens)}
ids = [position.get(character, 0) for character in "cab!"]  # 0 if it is not on the list
ids

# %% [markdown]
# The `!` has become `<UNK>`. If all texts are to have six tokens, two are missing:

# %%
ids += [1] * (6 - len(ids))
ids

# %% [markdown]
# The way back is a list look-up. An unknown character shows as `�`, the sign that Unicode reserves for
# this, and padding shows as nothing:

# %%
shown = ["�", "", "a", "b", "c"]
"".join(shown[i] for i in ids)

# %% [markdown]
# That is the whole idea. What remains is to choose the list, and to make it fast.
#
# ## Why characters, and not words
#
# Most language models cut text into words or pieces of words, tens of thousands of them. We take
# single characters, for three reasons.
#
# * **The vocabulary is small.** Chapter 3 writes the noise as a matrix with one row and one column per
#   token. With 106 tokens it has 11,236 entries: we can print it, multiply it, and check formulas against it. With
#   the 50,257 tokens of GPT-2 it has 2.5 billion. Small is what lets this book test its formulas
#   instead of trusting them.
# * **There is nothing to train.** A list of word pieces comes from a corpus, by a procedure with choices
#   of its own. Ours fits in four lines.
# * **One token is one character.** A text of 160 characters has 160 tokens, and noise that changes a token changes one letter,
#   in its place.
#
# The price: sequences are several times longer, and the network has to learn spelling. The stories of this
# book ([chapter 2](02_stories.ipynb)) are short, so we can pay it.

# %% [markdown]
# ## The vocabulary
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of tokens, 106 here |
# | $L$ | – | number of tokens in a text |
# | $B$ | – | number of texts that are handled together, a *batch* |
#
# After the two special tokens comes everything on a US keyboard, and then the seven typographic marks
# that printed stories use: four quotation marks, two dashes, and the ellipsis.

# %% tags=["export"]
import string

UNK_ID, PAD_ID = 0, 1
SPECIAL_TOKENS = ("<UNK>", "<PAD>")
_ON_THE_KEYBOARD = string.digits + string.ascii_letters + string.punctuation + " \t\n"
VOCAB: tuple[str, ...] = (*SPECIAL_TOKENS, *_ON_THE_KEYBOARD, *"“”‘’—–…")

# %% [markdown]
# A trained model knows its tokens by id only. Insert one in the middle, and all later ones mean
# something else. So the order is a promise, and a test holds us to it. It spells the list out once more,
# by code point: the number that Unicode gives to each character, in Python `ord("a")`, which is 97.


# %% tags=["test"]
def test_the_vocabulary_is_the_promised_one():
    assert VOCAB[:2] == ("<UNK>", "<PAD>")
    digits, lower, upper = range(48, 58), range(97, 123), range(65, 91)
    marks = [p for p in range(33, 127) if p not in {*digits, *lower, *upper}]
    quotes_dashes_dots = [0x201C, 0x201D, 0x2018, 0x2019, 0x2014, 0x2013, 0x2026]
    promised = [*digits, *lower, *upper, *marks, 32, 9, 10, *quotes_dashes_dots]
    assert [ord(character) for character in VOCAB[2:]] == promised
    assert len(VOCAB) == len(set(VOCAB)) == 106


test_the_vocabulary_is_the_promised_one()

# %% [markdown]
# A saved model takes its vocabulary along, as a list of strings, because ids without their list
# mean nothing. What comes back from a file may be anything, so we look before we use it. (A `UserError` is a
# `ValueError` that is written for the person at the keyboard: a command prints it as one line.) There may be 256
# tokens at most, so that an id fits in one byte: that is how a data set is stored.

# %% tags=["export"]
from collections.abc import Iterable

from ddlm_core.support.errors import UserError


def _checked_vocabulary(vocab: Iterable[str]) -> tuple[str, ...]:
    """The vocabulary as a tuple, or a UserError that says what is wrong with it."""
    vocab = tuple(vocab)
    if vocab[:2] != SPECIAL_TOKENS:
        raise UserError(f"a vocabulary starts with {SPECIAL_TOKENS}, got {vocab[:2]}")
    if len(vocab) > 256:
        raise UserError(f"an id is one byte, so there are at most 256 tokens, got {len(vocab)}")
    if odd := [token for token in vocab[2:] if not isinstance(token, str) or len(token) != 1]:
        raise UserError(f"every token after the first two is one character, got {odd[:5]}")
    if repeated := sorted({token for token in vocab if vocab.count(token) > 1}):
        raise UserError(f"every token occurs once, but these occur again: {repeated[:5]}")
    return vocab


# %% [markdown]
# ## One look-up in a table
#
# With the dictionary `position`, Python does one look-up per character. After a million stories you notice. There is a faster way,
# because a character already *is* a number, its code point $p$:

# %%
[ord(character) for character in "cab!"]

# %% [markdown]
# So let a table $T$ answer instead of a dictionary, with the id of the character at entry $p$ and `<UNK>`
# everywhere else. If $m$ is the largest code point that we know, it needs the entries $0$ to $m$, and one
# more, $m + 1$, for the strangers: every larger code point is *clipped* to it, and finds `<UNK>`.
#
# $$ \mathrm{id}(p) = T[\min(p,\; m + 1)] $$
#
# For our three letters, $m$ is 99:

# %%
import numpy as np

small_table = np.zeros(99 + 2, dtype=np.uint8)  # one byte an entry; 0 is <UNK>
small_table[[97, 98, 99]] = [2, 3, 4]
small_table[95:]  # the entries from 95 on; all before are 0

# %% [markdown]
# NumPy looks up a whole array of positions at once. Its `take` knows the minimum in the formula as
# `mode="clip"`. And it gets the code points without asking for each: the encoding UTF-32 is nothing but the
# code points, four bytes each (`le`: the low byte first; `<u4` reads them back the same way).
#
# One detail for damaged files. The encoding UTF-16 writes some characters as two halves, so-called surrogates. A
# damaged file can leave one alone, which UTF-32 refuses;
# `surrogatepass` lets it through. It is on no list, so it becomes `<UNK>` like all strangers.

# %% tags=["export"]
import numpy as np


def look_up(text: str, table: np.ndarray) -> np.ndarray:
    """Ids (L,) of a text of L characters, as uint8, by one look-up of all its code points.

    ``table`` (m + 2,), uint8, holds the id of code point p at entry p; all above m get the last one.
    """
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return table.take(code_points, mode="clip")


# %%
look_up("cab!", small_table)

# %% [markdown]
# The same four ids as by hand.

# %% [markdown]
# ## The tokenizer
#
# The way back starts with ids, and those come from everywhere: a tensor on a GPU, an array from a file,
# a list that you typed. Python would read the id $-1$ as "the last token", silently. We refuse it.

# %% tags=["export"]
from collections.abc import Sequence

from torch import Tensor


def _checked_ids(ids: Tensor | np.ndarray | Sequence, vocab_size: int, ndim: int) -> np.ndarray:
    """Ids as an array, once it is sure that they are integers in [0, vocab_size), in ndim axes."""
    is_tensor = isinstance(ids, Tensor)  # tolist() works on any device, for any dtype
    array = np.array(ids.tolist()).reshape(ids.shape) if is_tensor else np.asarray(ids)
    if array.ndim != ndim:
        raise ValueError(f"ids must have shape {('(L,)', '(B, L)')[ndim - 1]}, got {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, got {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(f"token ids lie in 0..{vocab_size - 1}, got {array.min()}..{array.max()}")
    return array


# %% [markdown]
# The class keeps the list and its table together. Its table has 8,232 entries, because the largest code point of ours
# belongs to `…`, 8,230.
#
# It looks up a long text in blocks. The code points of a text need four bytes a character, and the
# look-up eight more (`take` makes them 64-bit integers), so a text of a gigabyte would ask for twelve more. A
# block asks for about one megabyte at most, besides the ids (twice, for a moment, when the blocks are joined). What surprised us: we cut
# the text to save memory, and it became twice as fast too, probably because a block stays in the processor's
# cache. `python benchmarks/tokenizer.py` measured 370 million characters a second in blocks, 180 at once, and 13
# with the dictionary, on one core of an AMD EPYC; run it on yours.

# %% tags=["export"]
import torch


class CharacterLevelTokenizer:
    """Text to token ids, one id a character, and back: int64 tensors (L,), L the length of the text.

    ``vocab`` starts with ``SPECIAL_TOKENS``, then come distinct characters, at most 256 tokens in all.
    A vocabulary or a length that cannot work raises a UserError, ids that cannot a ValueError.
    """

    BLOCK = 1 << 16  # characters looked up at a time
    unk_token_id, pad_token_id = UNK_ID, PAD_ID

    def __init__(self, vocab: Iterable[str] = VOCAB) -> None:
        self.vocab = _checked_vocabulary(vocab)
        self.vocab_size = len(self.vocab)
        self.shown = ("\ufffd", "", *self.vocab[2:])  # what decode writes for each id
        code_points = [ord(token) for token in self.vocab[2:]]
        self.table = np.full(max(code_points, default=0) + 2, UNK_ID, dtype=np.uint8)
        self.table[code_points] = np.arange(2, self.vocab_size, dtype=np.uint8)

    def __len__(self) -> int:
        return self.vocab_size

    def encode_numpy(self, text: str) -> np.ndarray:
        """Ids (L,) as uint8, one byte a character: the form in which a data set is stored."""
        starts = range(0, len(text) + 1, self.BLOCK)  # + 1: no text at all is one block, too
        return np.concatenate([look_up(text[i : i + self.BLOCK], self.table) for i in starts])

    def encode(self, text: str) -> Tensor:
        """Ids as a model takes them: an int64 tensor (L,); unknown characters are ``<UNK>``."""
        return torch.from_numpy(self.encode_numpy(text).astype(np.int64))

    def pad(self, text: str, length: int) -> Tensor:
        """Ids, filled up with ``<PAD>`` to an int64 tensor (length,); a longer text is a UserError."""
        if len(text) > length:
            raise UserError(f"a text of {len(text)} characters does not fit in {length} tokens")
        return torch.cat([self.encode(text), torch.full((length - len(text),), PAD_ID)])

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids (L,); ``<UNK>`` gives U+FFFD (replacement character), ``<PAD>`` nothing."""
        return "".join([self.shown[i] for i in _checked_ids(ids, self.vocab_size, ndim=1).tolist()])

    def decode_batch(self, ids: Tensor | np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """The texts of the rows of ids (B, L)."""
        return [self.decode(row) for row in _checked_ids(ids, self.vocab_size, ndim=2)]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters that ``encode`` turns into ``<UNK>``, each once, in code-point order."""
        return sorted(set(text) - set(self.vocab))


# %%
tokenizer = CharacterLevelTokenizer()
tokenizer.encode("Hi, you…")

# %%
tokenizer.decode(tokenizer.encode("Hi, you…"))

# %% [markdown]
# A character that is not on the list keeps its place: one `�` each, and the text stays as long as it was.
# `unknown_characters` tells you beforehand what would be lost.

# %%
menu = "Café ☕, naïve “soufflé”"
tokenizer.decode(tokenizer.encode(menu)), tokenizer.unknown_characters(menu)

# %% [markdown]
# ## The picture: a story as a strip of cells
#
# This is what the model will see: not words, but a row of cells with a number in each. Below is a small
# story, padded to 80 tokens. Every cell shows its character and, under it, its id. The tint and the line at
# the foot of a cell tell its kind: solid for small letters, double for capitals, dotted for digits, dashed
# for punctuation, none for white space (`␣` space, `⏎` line end). The heart is not in our
# vocabulary: it is the one framed cell. The last cells are striped, with a dot: they are `<PAD>`, the
# story is over. To the model, `<PAD>` is a token like all others. It learns to write it, and that is how a
# story gets to say "the end". (Noise can also write a `<PAD>` into the middle. `decode` then skips it.)

# %% tags=["hide-input"]
from html import escape

from IPython.display import HTML

STRIPES = "repeating-linear-gradient(45deg,#fff 0 4px,#d5d5d5 4px 7px)"
KINDS = {  # kind: (the test for a token, the style of its cells); the first kind that fits counts
    "unknown": ("<UNK>".__eq__, "background:#fff;outline:3px solid #a33c00;outline-offset:-3px"),
    "padding": ("<PAD>".__eq__, f"background:{STRIPES}"),
    "white space": (str.isspace, "background:#e6e6e6"),
    "digit": (str.isdigit, "background:#f6ee9b;border-bottom:3px dotted #5f5600"),
    "capital": (str.isupper, "background:#f3cfe2;border-bottom:4px double #7d2f5c"),
    "small letter": (str.islower, "background:#d3ebfa;border-bottom:3px solid #0072b2"),
    "punctuation": (bool, "background:#fbdfae;border-bottom:3px dashed #8a5a00"),
}
GLYPHS = {"<UNK>": "\ufffd", "<PAD>": "·", " ": "␣", "\t": "⇥", "\n": "⏎"}
STYLE = """<style>
.strip {color: #111; line-height: 1.3; font-family: monospace}
.strip span {display: inline-block; box-sizing: border-box; width: 2.1em; height: 2.7em;
  margin: 2px; text-align: center; vertical-align: top}
.strip small {font-size: .7em}
.strip .legend span {width: auto; height: auto; padding: 1px 8px}
</style>"""


def strip(ids: Tensor, tokenizer: CharacterLevelTokenizer) -> HTML:
    """A row of cells, one per token, and a legend: one piece of HTML that needs nothing else."""
    cells = ""
    for i in ids.tolist():
        token = tokenizer.vocab[i]
        look = next(look for test, look in KINDS.values() if test(token))
        face = escape(GLYPHS.get(token, token))
        cells += f'<span style="{look}">{face}<br><small>{i}</small></span>'
    legend = "".join(f'<span style="{look}">{kind}</span>' for kind, (_, look) in KINDS.items())
    row = f'<div role="img" aria-label="{escape(tokenizer.decode(ids))}">{cells}</div>'
    return HTML(f'{STYLE}<div class="strip">{row}<div class="legend">{legend}</div></div>')


# %%
story = "“Who ate 3 figs?” said Mia.\nPip the cat hid a fig – his last… ♥"
strip(tokenizer.pad(story, 80), tokenizer)

# %% [markdown]
# ## The promise: nothing is lost
#
# For any text of our characters, decoding the encoding gives the text back. "Any" is a large word,
# so we do not pick the examples ourselves. [Hypothesis](https://hypothesis.readthedocs.io) makes up
# a hundred texts as `given` describes them, and when one fails, it looks for the shortest that still does. In
# the second test the texts hold anything that Unicode has. Each stranger must become one `�`, and no text may forge a special
# token: the five characters `<`, `P`, `A`, `D`, `>` are five ids, none of which is 1.

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
    for same in (ids, ids.tolist(), tokenizer.encode_numpy(text)):
        assert tokenizer.decode(same) == text
    padded = tokenizer.pad(text, len(text) + padding)
    assert padded.tolist() == [*ids.tolist(), *[tokenizer.pad_token_id] * padding]
    assert tokenizer.decode_batch(torch.stack([padded, padded])) == [text, text]


@repeatable
@hypothesis.given(st.text(st.characters(exclude_categories=()), max_size=200))
@hypothesis.example("a\ud800b")  # half of a character, from a damaged file
@hypothesis.example("<PAD><UNK>")
def test_unknown_characters_are_replaced_one_for_one(text):
    tokenizer = CharacterLevelTokenizer()
    known = set(VOCAB[2:])
    expected = "".join(c if c in known else "\ufffd" for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert tokenizer.unknown_characters(text) == sorted({c for c in text if c not in known})
    assert tokenizer.pad_token_id not in tokenizer.encode(text)


test_round_trip()
test_unknown_characters_are_replaced_one_for_one()

# %% [markdown]
# One thing can be tried in full: does the table say what a dictionary says? We ask for every code
# point that exists, all 1,114,112 of them, in one text of many blocks. (What is refused, and in which words, is
# checked in `tests/unit/test_tokenizer.py`.)


# %% tags=["test"]
import sys


def test_the_table_agrees_with_a_dictionary_on_all_of_unicode():
    position = {character: i for i, character in enumerate(VOCAB)}
    text = "".join(map(chr, range(sys.maxunicode + 1))) + "the end"
    tokenizer = CharacterLevelTokenizer()
    assert len(text) > 17 * tokenizer.BLOCK
    ids = tokenizer.encode_numpy(text)
    assert ids.dtype == np.uint8 and ids.tolist() == [position.get(c, UNK_ID) for c in text]


test_the_table_agrees_with_a_dictionary_on_all_of_unicode()

# %% [markdown]
# ## Change it safely
#
# Your stories are French? Append `*"éèêàçùîôâï"` **at the end** of `VOCAB`, so that the ids of the others
# stay. Two tests must fail: `test_the_vocabulary_is_the_promised_one`, because it lists the 106 tokens, and
# `test_bad_ids_are_refused`, because 106 has become a good id. (So do the three exercises below, which count on the old list.) Teach
# them the new list. The command:
# `make export && pytest tests/test_tokenizer.py tests/unit/test_tokenizer.py`.
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
len(french), french.unknown_characters(menu), french.decode(french.encode(menu))

# %% [markdown]
# **Exercise 2.** Someone who knows nothing about a text gives all $V$ tokens the same probability $1/V$.
# An outcome of probability $P$ takes $\log_2(1/P)$ bits to write down ($P = \tfrac18$, one of eight: 3 bits). How many is that per
# character? Remember the number: a model must do better. (Expected: $\log_2 106 = 6.728$.)

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
# (`strip` belongs to this page only.)
#
# Next: [a world that we know exactly](02_stories.ipynb).
