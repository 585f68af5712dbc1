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
# *About 20 minutes. You need: Python, and what a function and an array are. You will have: a tokenizer that turns
# text into numbers and back, exactly.*
#
# **We have** text: letters, digits, quotation marks, line ends.
# **We want** a whole number for each character, and the text back from the numbers, exactly.
# **Why**: a network reads numbers. And our noise replaces characters with others
# ([chapter 3](03_noise.ipynb)), so we need a finite list of everything that a character can be.
#
# Such a list is a *vocabulary*, its entries are *tokens*, and the place of a token in the list, counted
# from 0, is its *id*. What turns text into ids and back is a *tokenizer*.
#
# **How to read the code.** Each chapter is also a module of the package `ddlm_core`: `make export` writes it
# from the cells with definitions, together with its tests. A function named `test_…` is such a test. It also runs
# here, on the page; no output means that it passed. Code that only checks its input is collapsed.

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
# Take three letters, and two tokens that are not letters. `<UNK>`, id 0, stands for every *unknown*
# (*out-of-vocabulary*) character. `<PAD>`, id 1, is *padding*: it fills the space after a text that is shorter
# than it should be.

# %%
tokens = ["<UNK>", "<PAD>", "a", "b", "c"]
char_to_id = {token: i for i, token in enumerate(tokens)}
ids = [char_to_id.get(character, 0) for character in "cab!"]  # 0 if not on the list
ids += [1] * (6 - len(ids))  # if a text must have six tokens, two are missing
ids, "".join(["�", "", "a", "b", "c"][i] for i in ids)

# %% [markdown]
# The `!` has become `<UNK>`, and two `<PAD>` follow. On the way back, `<UNK>` shows as `�` and padding as nothing.
#
# That is the whole idea. What remains is to choose the list, and to make the look-up fast.
#
# ## Why characters, and why no `<MASK>`
#
# Most language models use *subwords*, tens of thousands of them, from a list that an algorithm such as
# *byte-pair encoding* ([BPE](https://arxiv.org/abs/1508.07909)) learns from a corpus. We take single characters.
#
# * **The vocabulary is small.** Chapter 3 writes the noise as a matrix with one row and one column per
#   token. With 106 tokens it has 11,236 entries, and we can check every formula against it. With the 50,257
#   tokens of GPT-2 it has 2.5 billion.
# * **One token is one character.** Noise that changes a token changes one letter, in its place. If tokens were
#   *bytes*, a vocabulary of 256 without any `<UNK>`, noise could leave bytes that are not text at all.
#
# The price: sequences are several times longer, and the network has to learn spelling.
#
# If you know masked diffusion models, such as [MDLM](https://arxiv.org/abs/2406.07524) or
# [LLaDA](https://arxiv.org/abs/2502.09992), you will look for a `<MASK>`. There is none, because our noise is
# *uniform*: it replaces a character with a token from the list, all equally likely, and needs no extra one.
# [Appendix A](A_absorbing.ipynb) adds the mask. Nor is there a token for the beginning or the end of a text:
# `<PAD>` marks where it has ended.

# %% [markdown]
# ## The vocabulary
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $V$ | `vocab_size` | number of tokens, 106 here |
# | $L$ | – | length of a sequence, in tokens |
# | $B$ | – | number of sequences that are handled together, a *batch* |
#
# After the two special tokens comes everything on a US keyboard, and then seven typographic marks.

# %% tags=["export"]
import string

UNK_ID, PAD_ID = 0, 1
SPECIAL_TOKENS = ("<UNK>", "<PAD>")
_ON_THE_KEYBOARD = string.digits + string.ascii_letters + string.punctuation + " \t\n"
VOCAB: tuple[str, ...] = (*SPECIAL_TOKENS, *_ON_THE_KEYBOARD, *"“”‘’—–…")

# %% [markdown]
# A trained model knows its tokens by id only. So its vocabulary is saved with it. A vocabulary that comes from a
# file is checked first; among other things, it has at most 256 tokens, so that an id fits in one byte:

# %% tags=["export", "hide-input"]
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
# Text in another language gets a list of its own: `vocabulary_of` (folded) takes the most frequent characters.

# %% tags=["export", "hide-input"]
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ddlm_core.support.errors import error_context
from ddlm_core.support.text import normalized


def vocabulary_of(counts: Counter[str], size: int = 254) -> tuple[str, ...]:
    """The special tokens, then the ``size`` most frequent characters; of equal ones, by code point.

    U+FFFD and lone surrogates are left out: they stand for characters that are lost.
    """
    whole = [c for c in counts if c != "\ufffd" and not "\ud800" <= c <= "\udfff"]
    return (*SPECIAL_TOKENS, *sorted(whole, key=lambda c: (-counts[c], c))[:size])


def resolve_vocabulary(
    setting: str | Sequence[str], counts: Callable[[], Counter[str]], size: int = 254
) -> tuple[str, ...]:
    """The vocabulary that a setting asks for, special tokens first.

    Args:
        setting: ``ascii106``, which is ``VOCAB``; ``auto``, the most frequent characters of the text;
            a text file, whose characters they are; or a list of them.
        counts: counts the characters of the text; only called for ``auto``.
        size: characters at most: 254 and the special tokens fill a byte.

    Raises:
        UserError: no such file, or no list of single, distinct characters of that size.
    """
    if setting == "ascii106":
        return VOCAB
    if setting == "auto":
        return vocabulary_of(counts(), size)
    hint = "auto, ascii106, a text file that holds the characters, or a list of them"
    with error_context(f"cannot use vocabulary={setting!r:.80}", hint, ValueError):
        if isinstance(setting, str):
            found = [*dict.fromkeys(normalized(Path(setting).read_text("utf-8-sig")))]
        else:
            found = [normalized(str(c)) for c in setting if c not in SPECIAL_TOKENS]
        if not 1 <= len(found) <= size:
            raise UserError(f"need 1 to {size} characters, got {len(found)}")
        return _checked_vocabulary((*SPECIAL_TOKENS, *found))


# %% [markdown]
# ## One look-up in a table
#
# Asking the dictionary `char_to_id` once per character is slow. But a character already *is* a number, its
# *code point* $p$ in Unicode:

# %%
[ord(character) for character in "cab!"]

# %% [markdown]
# So let a table $T$ answer: entry $p$ holds the id of the character with code point $p$, or that of `<UNK>`. If
# $m$ is the largest code point in our list, the table has the entries $0$ to $m$, and one more: every larger code
# point is *clipped* to $m + 1$, and finds `<UNK>`.
#
# $$ \mathrm{id}(p) = T[\min(p,\; m + 1)] $$
#
# For our three letters, $m$ is 99:

# %%
import numpy as np

small_table = np.zeros(99 + 2, dtype=np.uint8)  # one byte per entry; 0 is <UNK>
small_table[[97, 98, 99]] = [2, 3, 4]
small_table[95:]  # the entries from 95 on

# %% [markdown]
# NumPy looks up a whole array at once, and `np.take(…, mode="clip")` applies the minimum. The code points come
# from the encoding UTF-32, which is nothing but the code points, four bytes each. (`surrogatepass` lets lone
# *surrogates* through, halves of characters from damaged files; they become `<UNK>`.)


# %% tags=["export"]
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
#
# ## The tokenizer
#
# The class keeps the list and its table together. `encode_numpy` gives the bytes in which a data set is stored,
# `encode` the 64-bit integers that a model takes. The way back refuses ids that are not in the list, because
# Python would silently read $-1$ as the last token:

# %% tags=["export", "hide-input"]
from torch import Tensor


def _checked_ids(ids: Tensor | np.ndarray | Sequence, vocab_size: int, ndim: int) -> np.ndarray:
    """Ids as an array, once it is sure that they are integers in [0, vocab_size), in ndim axes."""
    # tolist() works on any device, for any dtype
    array = (
        np.array(ids.tolist()).reshape(ids.shape) if isinstance(ids, Tensor) else np.asarray(ids)
    )
    if array.ndim != ndim:
        raise ValueError(f"ids must have shape {('(L,)', '(B, L)')[ndim - 1]}, got {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"token ids are integers, got {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(f"token ids lie in 0..{vocab_size - 1}, got {array.min()}..{array.max()}")
    return array


# %% tags=["export"]
import torch


class CharacterLevelTokenizer:
    """Text to token ids, one id per character, and back: int64 tensors (L,), L the length of the text.

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
        """Ids (L,) as uint8, one byte per character: the form in which a data set is stored."""
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
ids = tokenizer.encode("Hi, you…")
ids, tokenizer.decode(ids)

# %% [markdown]
# Each unknown character keeps its place, as one `�`. `unknown_characters` tells you beforehand what would be
# lost.

# %%
menu = "Café ☕, naïve “soufflé”"
tokenizer.decode(tokenizer.encode(menu)), tokenizer.unknown_characters(menu)

# %% [markdown]
# A text that is shorter than the model's *window* of $L$ tokens is padded. A longer one is cut into
# windows, side by side ([chapter 8](08_training.ipynb)).
#
# ## The picture: a story as a row of tokens
#
# This is what the model will see, here for a small story, padded to 80 tokens. Every cell shows its character
# and, under it, its id; `␣` is a space, `↵` a line end. The heart is not in our vocabulary: it is the one framed
# cell. The striped cells with a dot are `<PAD>`.
#
# If you come from `transformers`, note what is missing: no attention mask, no label `-100`. To the model, `<PAD>`
# is a token like any other. It is attended to, noised, and counted in the loss; the model writes it to say "the
# end". Noise may also put a `<PAD>` or an `<UNK>` into the middle, and a text that the model writes may keep one.

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
GLYPHS = {"<UNK>": "\ufffd", "<PAD>": "·", " ": "␣", "\t": "⇥", "\n": "↵"}
STYLE = """<style>
.tokens {color: #111; line-height: 1.3; font-family: monospace}
.tokens span {display: inline-block; box-sizing: border-box; width: 2.1em; height: 2.7em;
  margin: 2px; text-align: center; vertical-align: top}
.tokens small {font-size: .7em}
.tokens .legend span {width: auto; height: auto; padding: 1px 8px}
</style>"""


def show_tokens(ids: Tensor, tokenizer: CharacterLevelTokenizer) -> HTML:
    """A row of cells, one per token, and a legend: one piece of HTML that needs nothing else."""
    cells = ""
    for i in ids.tolist():
        token = tokenizer.vocab[i]
        look = next(look for test, look in KINDS.values() if test(token))
        face = escape(GLYPHS.get(token, token))
        cells += f'<span style="{look}">{face}<br><small>{i}</small></span>'
    legend = "".join(f'<span style="{look}">{kind}</span>' for kind, (_, look) in KINDS.items())
    row = f'<div role="img" aria-label="{escape(tokenizer.decode(ids))}">{cells}</div>'
    return HTML(f'{STYLE}<div class="tokens">{row}<div class="legend">{legend}</div></div>')


# %%
story = "“Who ate 3 figs?” said Mia.\nPip the cat hid a fig – his last… ♥"
show_tokens(tokenizer.pad(story, 80), tokenizer)

# %% [markdown]
# ## The check: a round trip loses nothing
#
# For any text of our characters, decoding the encoding gives the text back. "Any" is a big word, so
# [Hypothesis](https://hypothesis.readthedocs.io) makes up a hundred texts of the kind that `given` describes
# (*property-based testing*). In the second test they may hold any character of Unicode. Each unknown character
# must become one `�`, and no text may forge a special token: the five characters `<PAD>` are five ids. A third,
# collapsed test compares the table with a dictionary on all 1,114,112 code points.

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

# %% tags=["test", "hide-input"]
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
# Do your stories have accents? Append `*"éèêàçùîôâï"` **at the end** of `VOCAB`, so that the ids of the others
# stay. Three unit tests will fail: `test_the_vocabulary_is_the_promised_one` and `test_every_id_comes_back`,
# because they list 106 tokens, and `test_bad_ids_are_refused`, because 106 has become a valid id. Change their
# numbers to those of the new list. A model that is already trained keeps its old list, so you need to train a new
# one. The command: `make export && pytest tests/test_tokenizer.py tests/unit/test_tokenizer.py`.
#
# **Exercise 1.** Without changing `VOCAB`, make a tokenizer that also knows `é`. How many tokens does it have,
# and what is left unknown in `menu`? (Expected: 107, and the two characters `ï` and `☕`.)

# %% tags=["solution", "hide-input"]
french = CharacterLevelTokenizer([*VOCAB, "é"])
assert len(french) == 107
assert french.unknown_characters(menu) == ["ï", "☕"]
len(french), french.unknown_characters(menu), french.decode(french.encode(menu))

# %% [markdown]
# **Exercise 2.** The *uniform baseline*, a model that knows nothing, gives all $V$ tokens the same probability
# $1/V$. An outcome of probability $P$ takes $\log_2(1/P)$ bits to write down ($P = \tfrac18$, one of eight: 3 bits).
# How many bits is that per character? (Expected: $\log_2 106 = 6.728$. A model must do better.)

# %% tags=["solution", "hide-input"]
import math

bits = math.log2(len(tokenizer))
assert abs(bits - 6.728) < 1e-3
round(bits, 3)

# %% [markdown]
# ## Summary
#
# A character is a number already; a table of 8 kB turns that number into one of 106 ids. What we know comes
# back exactly, and what we do not know is marked.
#
# | name | meaning |
# |---|---|
# | `VOCAB` | the 106 tokens, in order |
# | `UNK_ID`, `PAD_ID`, `SPECIAL_TOKENS` | the two tokens that are not characters |
# | `vocabulary_of(counts)`, `resolve_vocabulary` | a list for a text of your own, or from a file |
# | `look_up(text, table)` | text → bytes through a table of code points |
# | `CharacterLevelTokenizer` | `vocab`, `vocab_size`, `encode`, `encode_numpy`, `pad`, `decode`, `decode_batch`, `unknown_characters`, … |
#
# ## Where this stands in the field
#
# Large models use subwords; masked diffusion models add a mask token. *Tokenizer-free* models read bytes: one by one
# in [ByT5](https://arxiv.org/abs/2105.13626), or
# grouped by the network in [BLT](https://arxiv.org/abs/2412.09871) and
# [H-Net](https://arxiv.org/abs/2507.07955). [D3PM](https://arxiv.org/abs/2107.03006), an early discrete
# diffusion model, also generates text at the level of characters. Our class is not a Hugging Face tokenizer: it
# needs no `transformers`, and its vocabulary is stored in the `config.json` of the model.
#
# Next: [a world that we know exactly](02_stories.ipynb).
