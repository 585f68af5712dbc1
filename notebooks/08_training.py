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
# # Training
#
# **We have** an exact loss ([chapter 5](05_loss.ipynb)), a network ([chapter 6](06_model.ipynb)) and a
# sampler ([chapter 7](07_sampler.ipynb)).
# **We want** weights: text goes in, a model comes out, and a stop in the middle costs nothing.
# **Why**: everything so far was exact for any network. Only now does the network learn what a story is.
#
# The first half turns any text into batches of tokens (module `data`). The second half uses them (modules `settings`,
# `objective`, `optimizers` and `training`).

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio pytest"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## From text to one long row of tokens
#
# By hand: two stories, *Hi.* and *Go!*, become one row. One `<PAD>` (here `␣`) follows each, so that a window of
# the row shows where a story ends:
#
# `H i . ␣ G o ! ␣`
#
# The stories of [chapter 2](02_stories.ipynb) are short enough to get a window each: there `<PAD>` fills up the
# window. In both cases nothing is dropped at the end of a story.
#
# A source is `pocket-stories`, local files, or a data set on the Hugging Face Hub. In `.jsonl` and `.parquet` files
# every row is a story. A `.txt` file is one running text, however many blank lines it has. Reading them is no part of
# the method, so `read_stories` is written by hand, in [`ddlm_core/support/sources.py`](../ddlm_core/support/sources.py). It
# gives pieces of text, each with a yes or no: does a story end after it? A second helper there, `in_blocks`, collects
# pieces until they hold about a million characters. For each block it gives the texts, the answers, and a *hash* of
# each story that ends, a fingerprint that the next section needs.
#
# The vocabulary has 106 tokens, so a byte (`uint8`) holds one, and a story takes no more room than its text did. We
# encode a whole block in one call, and then insert every `<PAD>` at once: `behind` names the place behind each story as
# many times as a `<PAD>` has to go there.

# %% tags=["export:data"]
from collections.abc import Iterable, Iterator

import numpy as np

from ddlm_core.support.errors import UserError
from ddlm_core.support.sources import Piece, in_blocks
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


def encode_stories(
    pieces: Iterable[Piece], tokenizer: CharacterLevelTokenizer, pad_to: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of some 10^6 tokens (uint8), with ends (int64) and hashes (uint64) of the stories.

    A ``<PAD>`` follows each story, or so many that it has ``pad_to`` tokens.

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
        tokens = np.insert(tokenizer.encode_numpy("".join(texts)), behind, PAD_ID)
        ends = end + np.cumsum(lengths + fill)
        end = ends[-1]
        yield tokens, ends[is_end], hashes


# %% [markdown]
# The two stories from above:

# %%
tokens, ends, hashes = next(
    encode_stories([("Hi.", True), ("Go!", True)], CharacterLevelTokenizer())
)
tokens.tolist(), ends.tolist()

# %% [markdown]
# TinyStories has two million stories. Read whole into memory they would fill gigabytes, so the text goes through in
# blocks of a megabyte: each is encoded and appended to a file. The trainer never loads that file. It maps it
# (`numpy.memmap`): the operating system brings in the pages that a window touches, and takes them away when memory gets
# short. The file stays in the cache of the Hugging Face libraries, under a name made from all that it depends on: which
# files, how long, changed when; which vocabulary and options. A second start finds it there. (It gets its name when it
# is whole, and not before. This is the work of [`ddlm_core/support/store.py`](../ddlm_core/support/store.py).)
#
# `python benchmarks/data.py` measures it on 2 GB of text made from our stories, on one core that other programs used as
# well. The first start took 217 s for rows of `.jsonl`, and 86 s for one `.txt`: 9 and 23 MB a second. Most of that is
# waiting, for the disk and for the other programs. On a file of 60 MB, counting only the seconds in which the processor
# worked for us, it is 88 and 107 MB a second. At most 274 MB of memory were taken, 152 MB of them by the libraries;
# most of the rest is the shuffled order of eight million windows, which comes below. A second start reads no text, but
# it looks for stories that occur twice: 30 s with the many stories of the `.jsonl`, 2 s with the one long text, on the
# same busy core.
#
# ## Stories to measure with
#
# Some stories are held out, to measure what the model makes of text that it has never seen. A large data set holds
# some stories twice. So we hold out the *last* stories, and of those only the ones that occur in no earlier part:
# first the stories to test with, then, of what is left, those to validate with.
#
# Is a story among two million others? We compare no texts for that. Each story got a *hash* above, 64 bits that look
# random but are the same for the same text. Two different stories agree in it by chance once in $2^{64}$ pairs. (If
# that happened, one story too many would be left out, no more.)
#
# The loop below works from the end of the row towards its beginning. It takes the stories to test with first, so each
# new part goes to the *front* of the list, and what lies before `border` is the text for the next round. The earlier
# hashes are compared a million at a time, so that memory stays small. If every story that was held out also occurs
# earlier, an empty part would be of no use: then we keep them all, and warn. Fewer than three stories mean running
# text. There is nothing to compare in it, and the last twentieths are cut off.

# %% tags=["export:data"]
import warnings


def split_stories(
    tokens: np.ndarray, ends: np.ndarray, hashes: np.ndarray, held_out: int, parts: int = 2
) -> list[np.ndarray]:
    """Training tokens, and ``parts`` that are held out (validation, test); they share no story.

    A part gets at most ``held_out`` stories and a tenth of all, or a twentieth of one running text.
    """
    if len(ends) < 3:  # running text
        twentieths = np.arange(20 - parts, 20)
        return np.split(tokens, len(tokens) * twentieths // 20)
    count = min(held_out, max(1, len(ends) // 10))
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


# %% tags=["test:data"]
def test_nothing_is_dropped_and_stories_stay_whole():
    told, tokenizer = [f"Story number {i}." for i in range(30)], CharacterLevelTokenizer()
    tokens, ends, hashes = next(encode_stories([(story, True) for story in told], tokenizer))
    parts = split_stories(tokens, ends, hashes, held_out=2)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [26, 2, 2]
    assert "".join(tokenizer.decode(part) for part in parts) == "".join(told)


test_nothing_is_dropped_and_stories_stay_whole()

# %% [markdown]
# ## Windows, in an order that can be resumed
#
# By hand: a row of 15 tokens and windows of 4. Cut at 0 there are three, `0–3` to `8–11`, and three tokens are left
# over; cut at 3, there are three as well, `3–6` to `11–14`; cut at 4, only two are left. In running text every epoch
# cuts at another place, from 0 to 4, so that no character always sits at the border of its window. Every epoch shall
# have as many windows, whatever the cut, so it takes one less than fits at best: here two. (Two windows from cut 3 end
# at token 10. Cut 4 is there so that some epochs read token 11, too. The few tokens beyond, always fewer than a window,
# are in no epoch.) Padded stories are always cut between them, and there all windows count.
#
# The order is a function of the seed and of the number of the epoch, and of nothing else. So a run that was stopped
# finds its place again with nothing stored but the number of the step. The trainer sets `epoch` before each epoch, and
# `skip` once, when it resumes; so `skip` is forgotten as soon as it has been used. `derive_seed` mixes the seed, a word
# for the purpose and the number of the epoch by numpy's `SeedSequence`: epoch 1 of seed 0 must not be epoch 0 of seed 1,
# and no order may share its chance with the noise of a step.

# %% tags=["export:data"]
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core.support.seeds import derive_seed
from ddlm_core.support.store import MappedArray


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, uint8, asked for by where they start; ``<PAD>`` beyond the end.

    ``vocab`` is what the tokens mean, if that is known: a trainer compares it with its network's.
    """

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
            raise UserError(f"{tokens} tokens are shorter than one window of {length}")
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


# %% [markdown]
# To *measure*, all windows are read in order, and the last one is filled up with `<PAD>`: every token counts once.


# %% tags=["export:data"]
def evaluation_loader(
    tokens: np.ndarray, length: int, batch_size: int, vocab: tuple[str, ...] | None = None
) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    windows, starts = TokenWindows(tokens, length, vocab), range(0, len(tokens), length)
    return DataLoader(windows, batch_size, sampler=starts)


# %% [markdown]
# `setup_dataloaders` puts the pieces together: read the text or find the stored tokens, split, cut. To *train*, a last
# batch that is not full is dropped (`drop_last`), so that all steps are of one size. If the text has fewer windows than
# a batch, the batch shrinks. Our own grammar never runs out of stories, so for it `train_samples` is the number of
# stories to train on (100,000 if nothing is said), and those held out come on top. (Of very few stories no more than a
# tenth is held out, and the rest is trained on.) Elsewhere it limits what is read, and the stories held out are among
# those.
#
# The tokens must mean to the network what they meant to the data. The vocabulary is part of a network's configuration,
# so another one is handed over: `setup_dataloaders(…, tokenizer=model.config.tokenizer)`.

# %% tags=["export:data"]
import random
from functools import partial
from hashlib import sha256
from pathlib import Path

from ddlm_core import stories
from ddlm_core.support.sources import read_stories, source_key
from ddlm_core.support.store import StoredText, stored

POCKET = "pocket-stories"  # the name of the grammar of chapter 2 as a source


def pocket_stories(n: int, seed: int) -> Iterator[Piece]:
    """The stories of ``stories.sample(n, seed)``, without a list of all of them."""
    grammar, rng = stories.STORIES, random.Random(seed)
    for _ in range(n):
        yield stories.tell(rng.choice(grammar.plots), rng, grammar), True


def stored_tokens(
    source: str,
    tokenizer: CharacterLevelTokenizer,
    *,
    split: str = "train",
    limit: int | None = None,
    column: str = "text",
    seed: int = 0,
    pad_to: int | None = None,
) -> StoredText:
    """Tokens, ends and hashes of a source's stories, memory-mapped; a second call reads no text."""
    if source == POCKET:
        grammar = sha256(Path(stories.__file__).read_bytes()).hexdigest()
        key = (source, limit, seed, grammar)
        read = partial(pocket_stories, limit or 100_000, seed)
    else:
        key = source_key(source, split, limit, column)
        read = partial(read_stories, source, split, limit, column)
    return stored((key, tokenizer.vocab, pad_to), lambda: encode_stories(read(), tokenizer, pad_to))


# %% tags=["export:data"]
from typing import NamedTuple


class Loaders(NamedTuple):
    """Batches to train on, to validate with and to test with, uint8 (B, L); and the tokenizer."""

    train: DataLoader
    val: DataLoader
    test: DataLoader
    tokenizer: CharacterLevelTokenizer


def setup_dataloaders(
    dataset_name: str = "roneneldan/TinyStories",
    *,
    train_samples: int | None = None,
    val_samples: int = 1000,
    context_length: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    val_dataset_name: str | None = None,
    text_column: str = "text",
    seed: int = 0,
    tokenizer: CharacterLevelTokenizer | None = None,
) -> Loaders:
    """Batches of windows of ``context_length`` tokens, from any text.

    Args:
        dataset_name: pocket-stories, a glob of .txt, .jsonl or .parquet files, or a name on the Hub.
        train_samples: stories to read (megabytes, for a ``.txt``); if not given all, or 100,000 of ours.
        val_samples: stories held out for validation, and again for testing.
        val_dataset_name: validate on ``val_samples`` of this source instead; testing stays as it is.
        tokenizer: that of the network, ``model.config.tokenizer``; by default that of chapter 1.

    Raises:
        UserError: if a file cannot be read as text, or if all of it is shorter than a window.
        OSError: if there is no such file, or if the Hub cannot be reached.
    """
    tokenizer, aligned = tokenizer or CharacterLevelTokenizer(), dataset_name == POCKET
    pad_to = context_length if aligned else None
    read = partial(stored_tokens, tokenizer=tokenizer, column=text_column, pad_to=pad_to)
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    text = read(dataset_name, limit=limit, seed=seed)
    parts = 2 if val_dataset_name is None else 1
    first, *held = split_stories(text.tokens[:], text.ends[:], text.hashes[:], val_samples, parts)
    if val_dataset_name is not None:
        other = read(val_dataset_name, split="validation", limit=val_samples, seed=seed + 1)
        held.insert(0, other.tokens[:])
    windows = TokenWindows(text.tokens.first(len(first)), context_length, tokenizer.vocab)
    sampler = WindowSampler(len(first), context_length, seed, aligned)
    full = min(batch_size, len(sampler))
    train = DataLoader(windows, full, sampler=sampler, num_workers=num_workers, drop_last=True)
    val, test = (
        evaluation_loader(part, context_length, batch_size, tokenizer.vocab) for part in held
    )
    return Loaders(train, val, test, tokenizer)


# %% [markdown]
# One thing is left: to go on in the middle. `batches_from` gives the windows of a step, and of all steps after it. A step
# may be dealt out in pieces (below), so it takes `micro_batches` batches of the loader and joins them. From the number
# of the step follow the epoch and the batches to skip.

# %% tags=["export:data"]
from itertools import islice


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


# %% [markdown]
# ## What a run needs to know
#
# One dataclass holds it. Do not read the list as a lesson: it is the table of contents of what follows. The next three
# sections explain `noise_power`, `condition_share` and `objective`. Then come the optimizers, their rates and the average
# (`ema_decay`), then a step (`gradient_clip`). What makes a run faster or smaller stands at the end. Of the rest,
# `sampling_eps` leaves out the cleanest times if it is above 0, as SEDD's code does (we need not), and `model` holds
# the sizes of the network of [chapter 6](06_model.ipynb).
#
# Every field is a key of the YAML files in `ddlm_core/configs`, and of the command: `ddlm-train batch_size=32`. The type of
# a field says what it may hold, and `check_fields` looks: a `Count` is a whole number from 1, a `Share` lies between 0 and
# 1, a `Literal` is one of the words. A *preset* is a YAML file that says what differs from the defaults, and `load_preset`
# reads one. The noise belongs to the network (`model.config`), which keeps it for sampling. `sigma_min` and `sigma_max`
# stand here for `ddlm-train` alone, which hands them on to the network that it makes.

# %% tags=["export:settings"]
import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from ddlm_core.model import DiscreteDiffusionConfig
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields, checked
from ddlm_core.support.presets import compose_preset

Count = Annotated[int, Limits(1)]
CountOrNone = Annotated[int | None, Limits(1)]
Natural = Annotated[int, Limits(0)]
Positive = Annotated[float, Limits(above=0)]
PositiveOrNone = Annotated[float | None, Limits(above=0)]
Share = Annotated[float, Limits(0, 1)]
Beta = Annotated[float, Limits(0, below=1)]


@dataclass(frozen=True)
class TrainingConfig:
    """What a run needs to know.

    Raises:
        UserError: one line, if a value makes no sense.
    """

    dataset_name: str = "roneneldan/TinyStories"
    val_dataset_name: str | None = None
    text_column: str = "text"
    train_samples: CountOrNone = None
    val_samples: Count = 1000
    context_length: Count = 256
    num_workers: Natural = 0
    batch_size: Count = 64  # windows that a process takes at once
    gradient_accumulation_steps: Count = 1  # batches of each process in a step
    num_epochs: Count = 1
    max_steps: CountOrNone = None  # ends before num_epochs if smaller
    optimizer: Literal["muon", "adamw"] = "muon"  # for the matrices of the blocks
    learning_rate: Positive = 3e-3  # of AdamW
    matrix_learning_rate: Positive = 0.03  # of Muon
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: Share = 0.0
    gradient_clip: Positive = 1.0
    warmup_steps: Natural = 50
    decay_fraction: Share = 0.5  # share of the run in which the learning rate falls to 0
    ema_decay: Share = 0.995
    noise_power: PositiveOrNone = 1.0  # proposal of noise levels; None: uniform in t
    sampling_eps: Share = 0.0  # training times lie in [sampling_eps, 1]
    condition_share: Share = 0.1  # share of windows in which parts are given, for infilling
    objective: Literal["cross_entropy", "score_entropy"] = "cross_entropy"
    auxiliary_loss_weight: Share = 0.0  # of each stack alone, beside the cross-entropy
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: what is fast here
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    use_8bit_optimizer: bool = False
    sigma_min: PositiveOrNone = None  # of the network that ddlm-train makes
    sigma_max: PositiveOrNone = None
    checkpoint_dir: str = "checkpoints"
    save_every: Count = 1  # epochs
    save_every_steps: Count = 500
    eval_every_steps: Count = 500
    eval_windows: Count = 256
    log_every_steps: Count = 10
    progress: bool = True
    seed: Natural = 0
    model: dict[str, Any] = field(default_factory=dict)  # fields of DiscreteDiffusionConfig

    def __post_init__(self) -> None:
        check_fields(self)
        betas = tuple(checked("betas", beta, Beta) for beta in self.betas)
        if len(betas) != 2 or not isinstance(self.model, dict):
            raise UserError(f"need two betas and a mapping model: {self.betas}, {self.model!r}")
        object.__setattr__(self, "betas", betas)  # a list, if it comes from a file


def every_key() -> dict[str, Any]:
    """Every key of a configuration with its default; a block_size of None is the context_length."""
    network = asdict(DiscreteDiffusionConfig())
    sizes = ("n_layer", "n_head", "n_embd", "cond_dim", "dropout", "bias", "conv_size")
    model = {"block_size": None} | {name: network[name] for name in sizes}
    return asdict(TrainingConfig()) | {"model": model}


def load_preset(name: str, **changes: Any) -> TrainingConfig:
    """The settings of ``ddlm-train --config-name NAME``, with changes; UserError: no such preset."""
    settings = compose_preset(name, every_key()) | changes
    settings["model"] = {k: v for k, v in settings["model"].items() if v is not None}
    return TrainingConfig(**settings)


# %% [markdown]
# ## Which noise levels to practice on
#
# The objective is an integral over $t$. With uniform times we spend more than a third of our steps on text that is
# almost clean ([chapter 3](03_noise.ipynb)), where there is almost nothing to learn.
#
# By hand: a function $g(t)$ that is 0 in the first half of $[0, 1]$ and 2 in the second. Its integral is 1. If we
# draw $t$ uniformly and look at $g(t)$, we see 0 or 2: right on average, and always wrong by 1. If we look only at
# the second half, and count each sample by the half that it stands for, we see $\tfrac12 \cdot 2 = 1$ every time.
#
# In general: draw $u$ uniformly, and let a rising function $t(u)$ say where to go. By substitution
#
# $$ \int_0^1 g(t)\,dt = \int_0^1 g(t(u))\,\frac{dt}{du}\,du = \mathbb E_u\Big[g(t(u))\,\frac{dt}{du}\Big]. $$
#
# The objective stays the same integral for every $t(u)$ that covers all $t$ where $g$ is not 0, if each sample gets the weight
# $dt/du$. What changes is only how much the estimate scatters.
#
# We choose the corrupted fraction $f = 1 - e^{-\bar\sigma}$ as $f = u^p$, squeezed into the range $[f_0, f_1]$ that
# the noise reaches: $f = f_0 + (f_1 - f_0)\,u^p$. The power $p = 1$ is uniform in the fraction of corrupted
# characters. Three derivatives in a row give the weight:
#
# $$ \frac{dt}{du} = \frac{dt}{d\bar\sigma}\cdot\frac{d\bar\sigma}{df}\cdot\frac{df}{du}
# = \frac{1}{\sigma(t)} \cdot \frac{1}{1-f} \cdot (f_1 - f_0)\,p\,u^{p-1}. $$

# %% [markdown]
# For each text of a batch of $B$ we draw one time. *Low-discrepancy* times share one random offset $u$, $t_b = (u + b/B) \bmod 1$, so that each is
# uniform and together they cover $[0, 1)$ evenly ([Variational Diffusion Models](https://arxiv.org/abs/2107.00630)).

# %% tags=["export:objective"]
import torch
from torch import Tensor


def low_discrepancy_times(
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Times, float32 (B,): each uniform in [0, 1), together evenly spread (VDM, Kingma et al. 2021)."""
    where = device if generator is None else generator.device
    offset = torch.rand(1, generator=generator, device=where)
    times = (offset + torch.arange(batch_size, device=where) / batch_size) % 1
    return times if device is None else times.to(device)


# %% tags=["export:objective"]
from ddlm_core.noise import NoiseSchedule, resample_probability


def proposal_times(
    batch_size: int,
    noise: NoiseSchedule,
    power: float | None = 1.0,
    sampling_eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Times in [sampling_eps, 1] and their importance weights $dt/du$, both float32 (B,).

    The corruption probability is $u^{power}$ in the range of the noise, u low-discrepancy; without
    a power, the times are uniform.
    """
    u = low_discrepancy_times(batch_size, generator).double()
    if power is None:
        width = 1 - sampling_eps
        return (sampling_eps + width * u).float(), torch.full_like(u, width).float()
    u = u.clamp(min=1e-9)
    low, high = resample_probability(noise.sigma_bar(torch.tensor([sampling_eps, 1.0]).double()))
    fraction = low + (high - low) * u**power
    sigma_bar = -torch.log1p(-fraction)
    slope = (high - low) * power * u ** (power - 1) / (1 - fraction)  # dσ/du
    t = noise.time(sigma_bar)
    return t.float(), (slope / noise.sigma(t)).float()


# %% tags=["test"]
import pytest

from ddlm_core.noise import GeometricNoise


@pytest.mark.parametrize("power", [None, 0.7, 1.0, 2.0])
def test_every_proposal_has_the_same_integral(power):
    noise, generator = GeometricNoise(), torch.Generator().manual_seed(0)
    t, weight = proposal_times(200_000, noise, power, generator=generator)
    assert t.min() >= -1e-6 and t.max() <= 1 + 1e-6
    for g, truth in (
        (lambda t: noise.sigma(t) * torch.exp(-noise.sigma_bar(t)), math.exp(-1e-4)),
        (lambda t: noise.sigma(t) * torch.exp(-3 * noise.sigma_bar(t)), math.exp(-3e-4) / 3),
    ):
        assert abs((weight * g(t)).double().mean().item() - truth) < 2e-3


for power in (None, 0.7, 1.0, 2.0):
    test_every_proposal_has_the_same_integral(power)

# %% [markdown]
# The picture: 64 samples from each. Uniform times crowd at both ends: at the left hardly a character is corrupted (38 %
# of them lie below 1 %, see exercise 1), and at the right hardly one is left to learn from. Power 1 spreads them
# evenly.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
noise = GeometricNoise()
for row, power in enumerate((None, 2.0, 1.0)):
    t, _ = proposal_times(64, noise, power, generator=torch.Generator().manual_seed(0))
    plt.plot(resample_probability(noise.sigma_bar(t)), [row] * 64, "|", markersize=18)
plt.yticks(range(3), ["uniform in t", "power 2", "power 1"])
plt.ylim(-0.7, 2.7)
plt.xlabel("corrupted fraction of the characters")
plt.show()

# %% [markdown]
# ## Everything random in a step, drawn at once
#
# We also want to fill in blanks. There the model sees characters that it can trust, whatever the noise level. In a
# share of the training windows we therefore keep random spans clean, and say so to the network (the mask of chapters 4
# to 6). Four random cuts part the window; its spans are given and hidden in turn. Spans, and not single letters,
# because that is what blanks look like in use: a beginning, an end, a gap in the middle. (A departure from the paper,
# which trains without. Four cuts and a tenth of the windows are our choice. On TinyStories, a minute of training
# without given spans ended 0.08 bits lower, less than we would believe of a single run.)
#
# By hand: a window of 10 with cuts at 2, 5, 7 and 7, beginning with a given span: `GG···GGGGG` (between 7 and 7 lies nothing).

# %% [markdown]
# Losses are averaged over the characters that are not given. `compute_loss` is the estimate of chapter 5's integral from one time and one
# corruption per text, as a mean over characters.


# %% tags=["export:objective"]
def masked_mean(values: Tensor, condition_mask: Tensor | None = None) -> Tensor:
    """Mean of each row of ``values``, (B, L), where ``condition_mask``, bool (B, L), is false: (B,).

    A row that is given as a whole has the mean 0.
    """
    if condition_mask is None:
        return values.mean(-1)
    free = ~condition_mask
    return values.masked_fill(condition_mask, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


# %% tags=["export:objective"]
from ddlm_core.forward import perturb_batch
from ddlm_core.graph import ScoreModel, graph_of


def compute_loss(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    t: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    r"""One-sample estimate of the diffusion part of the bound, in nats per character: (B,).

    $\sigma(t)\,\ell$ at one time and one corruption, averaged over positions (SEDD sums over them);
    unbiased for $\tfrac1L\int_0^1\sigma(t)\,\mathbb E \sum_i \ell_i\,dt$ if t, (B,), is uniform.
    ``condition_mask``, bool (B, L), is true where a token of ``x_0``, int64 (B, L), is given: neither
    corrupted nor counted. The model is handed it only if there is one. Other shapes raise a ValueError.
    """
    vocab_size = vocab_size or model.config.vocab_size
    if t is None:
        t = low_discrepancy_times(len(x_0), generator, x_0.device)
    (sigma_bar, sigma), graph = noise(t), graph_of(model)
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, condition_mask, generator, graph.sample_prior)
    given = () if condition_mask is None else (condition_mask,)
    losses = graph.loss(model(x_t, sigma_bar, *given), sigma_bar, x_t, x_0)  # (B, L)
    return sigma * masked_mean(losses, condition_mask)


# %% tags=["export:objective"]
def draw_condition(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """The condition mask, bool (B, L), true = given: spans between four cuts, in a ``share`` of the rows."""
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


# %% [markdown]
# A step may be too large for one pass: then it is done in parts (*gradient accumulation*), or by several processes. So
# we first draw all that is random for the whole step, and deal out the work afterwards. Whoever does which part, the
# step is the same; only the order of a few sums changes. (This holds without dropout: what dropout draws depends on the
# parts.) All is drawn on the CPU, so that a seed means the same noise on every machine. The last value is the full
# weight of score entropy, $\sigma(t)$ of the bound times $dt/du$ from above; the guess, below, does not use it.


# %% tags=["export:objective"]
from typing import NamedTuple

from torch import nn

from ddlm_core.model import DiscreteDiffusionTransformer


class NoisyBatch(NamedTuple):
    """Windows with all that is random in a step on them."""

    x_0: Tensor  # int64 (B, L)
    x_t: Tensor  # int64 (B, L)
    condition_mask: Tensor  # bool (B, L), true = given
    sigma_bar: Tensor  # float32 (B,)
    weight: Tensor  # float32 (B,), σ(t) dt/du


def draw_noise(
    x_0: Tensor,
    config: TrainingConfig,
    model: DiscreteDiffusionTransformer,
    generator: torch.Generator,
) -> NoisyBatch:
    """Draw all that is random in a step on windows x_0, int64 (B, L), by the noise of the network."""
    noise, graph = model.config.noise, graph_of(model)
    t, weight = proposal_times(len(x_0), noise, config.noise_power, config.sampling_eps, generator)
    sigma_bar, sigma = noise(t)
    mask = draw_condition(tuple(x_0.shape), config.condition_share, generator)
    vocab_size = model.config.vocab_size
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, mask, generator, graph.sample_prior)
    return NoisyBatch(x_0, x_t, mask, sigma_bar, weight * sigma)


# %% [markdown]
# ## The loss of a step: let a letter's own noise run its course
#
# We could now train on the integrand of the bound: score entropy, times its weight. That is the paper, and
# `objective="score_entropy"` below. It learns slowly. At low noise almost every letter is as it was, and costs almost
# nothing; the few corrupted ones carry a very large loss. A batch holds few of them, so its gradient is mostly luck.
# Our network allows something better. (A minute of training on TinyStories ends at 3.4 bits a character with score
# entropy, and at 2.9 with what follows; see "Which of these choices pay?".)
#
# Look at one position, and hold the letters around it still, noise and all. The guess $q$ is then fixed, for the
# network does not hear the letter at its own place ([chapter 6](06_model.ipynb)). Now let the noise of *this letter
# alone* grow, from $\tau = 0$ to infinity. Two distributions of the noisy letter change with it: $p_\tau(x)$, which
# starts at the clean letter $x_0$, and $r_\tau(x)$, which starts at $q$. By chapter 6, $r_\tau(x) \propto 1 + \kappa
# q_x$ with $\kappa = V/(e^\tau - 1)$. At $\tau = 0$ their KL divergence is $-\log q_{x_0}$. In the end both are
# uniform, and it is 0. How fast does it fall? With the rates $1/V$ of chapter 3, $\dot p(x) = \tfrac1V\sum_y p(y) -
# p(x)$, and $r$ alike. Write $a = p(y)/p(x)$ and $s = r(y)/r(x)$: these are the true ratio, given $x_0$, and our score,
# for an own noise $\tau$.
#
# $$ \begin{aligned} \frac{d}{d\tau}\sum_x p(x)\log\frac{p(x)}{r(x)}
#  &= \sum_x \dot p(x)\log\frac{p(x)}{r(x)} - \frac{p(x)}{r(x)}\,\dot r(x) \\
#  &= \frac1V\sum_{x,y} p(x)\,\big(\log a - \log s - s + 1\big). \end{aligned} $$
#
# ($\sum\dot p = 0$, because $p$ keeps summing to 1. In the sum with $p(y)$, $x$ and $y$ have changed names.) Now bring
# an $a$ to the front. Change the names once more: $p(x)\,a = p(y)$, so $\sum p(x)\,a\,(\log a - \log s) = -\sum
# p(x)(\log a - \log s)$ and $\sum p(x)\,a = \sum p(x)$. What comes out is minus the score entropy of chapter 5:
#
# $$ -\frac{d}{d\tau}\,KL(p_\tau\,\|\,r_\tau) = \mathbb E_{x\sim p_\tau}\,\frac1V\sum_y \big(s - a\log s + a(\log a - 1)\big)
#  = \mathbb E\,\ell_\tau. $$
#
# Add it up over all $\tau$. The divergence falls from $-\log q_{x_0}$ to 0, so
#
# $$ \int_0^\infty \mathbb E\,\ell_\tau\,d\tau = -\log q_{x_0}. $$
#
# **The surprise at the clean letter is score entropy, integrated over the noise of that letter.** If the letter has a
# clock of its own, nothing of it needs to be drawn. So the loss of a step is $-\log q_{x_0}$, the mean over all
# positions that are not given, also those that the noise left alone. Each text gets one level and one noisy text at it;
# one pass grades every position, each with its own letter unheard. There is no weight $dt/du$ here: the proposal now
# says how much each level counts, and power 1 lets all corrupted fractions count alike.
#
# (*Departure:* SEDD lets all letters age together, and so does the bound. Ours gives the letter in question a clock of
# its own. The best guess is the same for both: $p(x_0^i \mid$ the others$)$, at every level. So our loss is not the
# bound. The bound asks how good the guess is where the letter and the others have the same noise; ours takes every
# noise of the letter, for each noise of the others. A perfect guess is best for both, but two imperfect ones may be
# ranked differently. So we train on the one, and report the other. That a network which cannot hear its own letter may
# be graded so is the idea of [Sun et al. 2023](https://arxiv.org/abs/2211.16750), there with a view to ratios.)
#
# **Three guesses for one.** With the loss of the judge alone, a reader learns only what helps the sum of both readers,
# and the judge. But each reader could be asked by itself: the left one has read every letter before a place, like a
# GPT, and the right one every letter after it. With `auxiliary_loss_weight` above 0, all three go through the same norm and
# the same head, and so many times the surprise of each reader is added to that of the judge (an *auxiliary loss*; the
# preset `pocket` takes 0.3, a guess of ours, not tuned). So each
# reader must learn by itself what comes next, forwards or backwards, however noisy. The loss in the log is then that of
# 1.6 guesses: it starts at 7.46, not at 4.66. The bound is that of the judge, as always. On the stories of chapter 2,
# whose entropy is 19.0 nats, 1,000 steps end at 39.3 nats a story with it, and at 42.8 without. On TinyStories a minute
# shows no difference that we would believe, and (without the glance back of chapter 6) there was none between 1,500 and
# 3,000 steps either. So the preset `pocket` uses it, and the others do not. Nothing of it stays in the finished model:
# there are no new weights, and the sampler asks the judge alone. (Its price is three tables of log-probabilities in the
# place of one. The idea of giving inner layers a loss of their own is from [Lee et al.
# 2015](https://arxiv.org/abs/1409.5185).)
#
# Two details of the code. We average within each window first, and then over the windows: so each window counts alike,
# however much of it is given, and the parts of a step add up to the step. And the loss is wrapped in a module,
# `TrainingLoss`, because the library that lets several processes share the work watches the `forward` of one module. It
# only holds the network, and changes nothing in it. A network that gives scores has no guess to grade, so it gets score
# entropy, whatever the configuration says.

# %% tags=["export:objective"]
from collections.abc import Sequence


def training_loss(
    model: DiscreteDiffusionTransformer,
    drawn: Sequence[Tensor],
    objective: str = "cross_entropy",
    auxiliary_loss_weight: float = 0.0,
) -> Tensor:
    """The mean loss on a :class:`NoisyBatch`, in nats per token: a scalar.

    With an auxiliary weight w, the cross-entropy of each stack alone is added w times (deep
    supervision, Lee et al. 2015, arXiv:1409.5185).
    """
    x_0, x_t, mask, sigma_bar, weight = drawn
    if objective == "score_entropy":
        log_score = model(x_t, sigma_bar, mask)
        losses = weight[:, None] * graph_of(model).loss(log_score, sigma_bar, x_t, x_0)
    elif auxiliary_loss_weight == 0:
        losses = _surprise(model.denoise(x_t, sigma_bar, mask), x_0)
    else:
        merged, left, right = _surprise(model.denoise_stacks(x_t, sigma_bar, mask), x_0)
        losses = merged + auxiliary_loss_weight * (left + right)
    return masked_mean(losses, mask).mean()


def _surprise(log_q: Tensor, x_0: Tensor) -> Tensor:
    """Negative log-likelihood of the clean tokens (B, L) under log q (…, B, L, V): (…, B, L)."""
    return -log_q.gather(-1, x_0.expand(log_q.shape[:-1])[..., None])[..., 0]


class TrainingLoss(nn.Module):
    """:func:`training_loss` of a network as a module: what processes that share the work call."""

    def __init__(
        self,
        model: DiscreteDiffusionTransformer,
        objective: str = "cross_entropy",
        auxiliary_loss_weight: float = 0.0,
    ) -> None:
        super().__init__()
        has_denoiser = model.config.parametrization == "denoiser"
        self.model, self.auxiliary_loss_weight = model, auxiliary_loss_weight
        self.objective = objective if has_denoiser else "score_entropy"

    def forward(self, *drawn: Tensor) -> Tensor:
        """The loss of the tensors of a :class:`NoisyBatch`: a scalar."""
        return training_loss(self.model, drawn, self.objective, self.auxiliary_loss_weight)


# %% [markdown]
# Is the integral right? We take some guess of six letters, and add up the score entropy over a fine grid of noise:

# %% tags=["test"]
from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score, score_entropy_loss


def test_surprise_is_score_entropy_integrated_over_the_own_noise():
    tau = torch.logspace(-7, 1.6, 2001, dtype=torch.float64)
    log_q = torch.tensor([0.05, 0.3, 0.1, 0.2, 0.34, 0.01], dtype=torch.float64).log()
    for clean in range(6):
        x_0, area = torch.full((2001, 1), clean), 0.0
        weights = transition(x_0, tau, 6)[:, 0]  # (2001, 6): chances of the noisy letter
        for seen in range(6):
            x_t = torch.full_like(x_0, seen)
            log_score = denoiser_log_score(log_q.expand(2001, 1, 6), tau, x_t)
            area = area + weights[:, seen] * score_entropy_loss(log_score, tau, x_t, x_0)[:, 0]
        area = torch.trapezoid(area, tau).item()
        assert area == pytest.approx(-log_q[clean].item(), rel=1e-4)


test_surprise_is_score_entropy_integrated_over_the_own_noise()

# %% [markdown]
# ## Optimizers, learning rate, average
#
# - **[AdamW](https://arxiv.org/abs/1711.05101)** keeps two running averages for every weight, of its gradient and of
#   the square (`betas` says how long they remember). It moves by the first, divided by the root of the second: so each
#   weight moves by about the learning rate, however large its gradients are. It trains embeddings, norms and the head.
#   (The W is for weight decay, a pull towards 0. We leave it at 0: our run reads no story twice, and in a minute on
#   TinyStories it made no difference, as a row of [`benchmarks/README.md`](../benchmarks/README.md) shows.)
# - **[Muon](https://kellerjordan.github.io/posts/muon/)** looks at a matrix as a whole. The gradient of a matrix is
#   usually large in a few directions and tiny in the rest. Muon replaces the update (a running average of gradients) by
#   nearly the nearest orthogonal matrix, so that every direction moves by about as much, and what is rare gets its
#   share. It trains the matrices of attention and MLP in the blocks. Their third kind, which turns the noise level into
#   scales and shifts, is left to AdamW. So are the embeddings: a table of which each token uses one row is a matrix by
#   its shape only. The two learning rates measure different things; do not compare them.
# - The learning rate rises for some steps, stays, and falls linearly to 0 in the second part of the run. It rises
#   because the first averages of the optimizers rest on a few gradients. It falls because with small steps the luck of
#   single batches averages out.
# - We keep a moving average of the weights (EMA), $\bar w \leftarrow d\,\bar w + (1-d)\,w$. It has less noise than the
#   weights $w$, and is what we measure and publish. By hand, with $d = 0.9$: after a jump of $w$ from 0 to 1, $\bar w$
#   goes 0.1, 0.19, 0.271, … With $d = 0.995$ it looks back over some 200 steps. Early in a run that would still be the
#   random start, so in step $k$ we use $(1+k)/(10+k)$ as long as it is smaller: then the average looks back over a
#   tenth of the run. It is smaller up to step 1,790.

# %% tags=["export:optimizers"]
from ddlm_core.support.hardware import adamw


def build_optimizers(model: nn.Module, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        inside = p.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if inside and config.optimizer == "muon" else rest).append(p)
    kind, decay = adamw(config.use_8bit_optimizer), config.weight_decay
    found: dict[str, torch.optim.Optimizer] = {}
    found["adamw"] = kind(rest, config.learning_rate, config.betas, weight_decay=decay)
    if matrices:
        found["muon"] = torch.optim.Muon(matrices, config.matrix_learning_rate, decay)
    return found


# %% tags=["export:optimizers"]
from collections.abc import Callable
from functools import partial


def learning_rate_factor(
    step: int, total_steps: int, *, warmup_steps: int, decay_fraction: float
) -> float:
    """Share of the peak learning rate in a step: a linear rise, a plateau, a linear fall to 0."""
    fall = min(1.0, (total_steps - step) / max(1.0, decay_fraction * total_steps))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * max(0.0, fall)


def default_lr_schedule(config: TrainingConfig) -> Callable[[int, int], float]:
    """:func:`learning_rate_factor` as a function of the step and the number of steps."""
    warmup, decay = config.warmup_steps, config.decay_fraction
    return partial(learning_rate_factor, warmup_steps=warmup, decay_fraction=decay)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights a little towards the weights; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), model.parameters()):
        old.lerp_(new, 1 - decay)


# %% [markdown]
# ## The bound, in numbers that mean something
#
# The validation figure is the whole bound of chapter 5: the integral, the reconstruction at $t = 0$ and the prior at $t
# = 1$. It is an upper bound on the nats that the model needs for a window. For stories we compare it with the entropy
# of the grammar. For other text we give bits per character: nats, divided by $\log 2$ and by the number of characters
# that are no `<PAD>`.
#
# Each window is asked once: one time, one corruption, weighted as above. That is a lottery, but an honest one, and many
# windows make it a figure. For the reconstruction the network has to run a second time, at the least noise there is.
# [Chapter 9](09_evaluation.ipynb) asks for many samples of the *same* window, and at that noise nearly all copies of it
# are still equal: so each different text is asked once (`unique`), and its answer is handed to all copies (`which`).

# %% tags=["export"]
from collections.abc import Callable
from itertools import islice

from torch.utils.data import DataLoader

from ddlm_core.graph import ScoreModel
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.reverse import reverse_probs
from ddlm_core.tokenizer import PAD_ID


@dataclass(frozen=True)
class Bound:
    r"""An estimated upper bound on $-\log p$; windows are counted with their padding."""

    nats_per_window: float
    bits_per_character: float  # padding is no character


@torch.inference_mode()
def window_nats(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    generator: torch.Generator,
    times: Callable[..., tuple[Tensor, Tensor]] = proposal_times,
) -> Tensor:
    """One-sample estimates of the whole bound for windows int64 (B, L), in nats per window: (B,).

    ``times(B, noise, generator=…)`` gives times and their importance weights, each (B,).
    """
    t, weight = (v.to(x_0.device) for v in times(len(x_0), noise, generator=generator))
    diffusion = weight * compute_loss(model, x_0, noise, t, generator=generator)
    first, vocab_size = noise.sigma_bar(torch.zeros_like(t)), model.config.vocab_size
    graph = graph_of(model)
    x_t = perturb_batch(x_0, first, vocab_size, None, generator, graph.sample_prior)
    x_t, which = x_t.unique(dim=0, return_inverse=True)  # almost all come through unchanged
    probs = reverse_probs(model, x_t, first[: len(x_t)], 0 * first[: len(x_t)])
    last = -probs[which].gather(-1, x_0[..., None]).log().mean((1, 2))
    prior = graph.prior_kl(noise.sigma_max, vocab_size).item()
    return (diffusion + last + prior) * x_0.shape[1]


# %% tags=["export"]
def validation_bound(
    model: DiscreteDiffusionTransformer, loader: DataLoader, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    assert loader.batch_size  # None would mean windows, not batches
    batches = islice(loader, math.ceil(max_windows / loader.batch_size))
    windows = torch.cat(list(batches))[:max_windows].long().split(loader.batch_size)
    noise = model.config.noise
    nats = [window_nats(model, x_0.to(device), noise, generator) for x_0 in windows]
    per_window = torch.cat(nats).double().mean().item()
    characters = sum((x_0 != PAD_ID).sum().item() for x_0 in windows) / len(torch.cat(windows))
    return Bound(per_window, per_window / max(1, characters) / math.log(2))


# %% [markdown]
# An untrained network says *every character is as likely as any other*. Then the bound must be
# $L \log V$ nats for $L$ characters. It is an average over random noise, one noise level for each window, and some levels
# give rare, large values ([chapter 9](09_evaluation.ipynb) has more on that). So we look at many windows:


# %%
from ddlm_core.data import evaluation_loader
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer

torch.manual_seed(0)
network = DiscreteDiffusionConfig(block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
tokens = torch.randint(2, 106, (20_000,)).numpy().astype("uint8")
bound = validation_bound(
    DiscreteDiffusionTransformer(network), evaluation_loader(tokens, 10, 500), max_windows=2000
)
print(f"{bound.nats_per_window:.1f} nats per window; 10 log 106 = {10 * math.log(106):.1f}")

# %% [markdown]
# ## What changes in a step
#
# `TrainState` holds all that changes during a run, and nothing else: the weights, their average, what the optimizers
# remember, the scale of fp16 (below), the best bound so far, the number of the step. That is what a checkpoint has to
# hold. If one of its parts does not fit the network, `load_state_dict` leaves everything as it was.
#
# Random numbers are no part of it: those of step $k$ come from a generator that is made from the seed and $k$. With the
# order of the windows this is what makes resuming exact.

# %% tags=["export"]
import copy
from textwrap import shorten

from ddlm_core.support.errors import UserError


class TrainState:
    """All that changes during a run of a network: what a checkpoint holds."""

    def __init__(
        self,
        model: DiscreteDiffusionTransformer,
        config: TrainingConfig,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """The network lies on the device it trains on."""
        self.model, self.scaler = model, scaler
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = build_optimizers(model, config)
        self.step, self.best = 0, math.inf  # steps that are done, lowest bound in nats per window

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "average": self.average, "scaler": self.scaler}
        return parts | self.optimizers

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; the tensors are those of the run, not copies."""
        content = {name: part.state_dict() for name, part in self._parts().items()}
        return content | {"step": self.step, "best": self.best}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            UserError: if a part does not fit; then nothing has changed.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(content)
        except BaseException as error:
            self._load(before)
            if isinstance(error, (RuntimeError, KeyError, ValueError)):
                reason = shorten(str(error), 200)
                raise UserError(
                    f"this belongs to another network or optimizer: {reason}"
                ) from error
            raise

    def _load(self, content: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        self.step, self.best = content["step"], content["best"]


# %% [markdown]
# What happens to the gradient? If all of it together is longer than `gradient_clip`, it is shortened to that length, so
# one strange batch cannot throw the run off. With numbers of 16 bits there is one more thing to do. Many processors
# multiply them faster than those of 32. *bf16* has the range of float32 with fewer digits, and needs no care. *fp16*
# has more digits and a small range, in which small gradients become 0. So there the loss is first multiplied by a large
# number, the scale, and the gradients are divided by it afterwards (`unscale_`), before we measure how long they are.
# Where no fp16 is used, the `scaler` does nothing.
#
# The run ends, before the weights change, if the loss is no number any more, or ten times that of the uniform baseline
# (to guess every character takes $\log 106 = 4.66$ nats per token, and so much again for each auxiliary loss, times its
# weight). Ten is our choice, for score entropy has a heavy tail. A gradient that is no finite number ends the run as
# well, except with fp16: there it happens now and then. Then the step is skipped, by both optimizers, and the `scaler`
# goes on with a smaller scale. (Each optimizer would skip by itself if *its* gradients overflow. But we shorten all
# gradients by one common factor, and an overflow in one half would spoil the other.)


# %% tags=["export"]
def update_weights(
    state: TrainState, config: TrainingConfig, loss: float, rate_factor: float = 1.0
) -> None:
    """Finish a step whose gradients are there: move the weights, then their average, and count it.

    Raises:
        FloatingPointError: if the loss or its gradient says that the run has diverged; the weights
            are still those of the step before.
    """
    scaler = state.scaler
    for optimizer in state.optimizers.values():
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip).item()
    uniform = math.log(state.model.config.vocab_size) * (1 + 2 * config.auxiliary_loss_weight)
    if not (loss < 10 * uniform and (math.isfinite(norm) or scaler.is_enabled())):
        found = f"at step {state.step} the loss is {loss:.4g}, its gradient {norm:.4g}"
        raise FloatingPointError(f"{found}: resume with a lower learning_rate")
    peaks = {"adamw": config.learning_rate, "muon": config.matrix_learning_rate}
    for name, optimizer in state.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = peaks[name] * rate_factor
        if math.isfinite(norm):  # both step or none, and then fp16 shrinks its scale
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    update_average(state.average, state.model, config.ema_decay, state.step)
    state.step += 1


# %% [markdown]
# ## Checkpoints
#
# A checkpoint is written to a temporary file beside its place. Once that is whole, the checkpoint before it is renamed to
# `checkpoint_previous.pth`, and the new one gets its name. A rename happens whole or not at all; and if the machine dies
# between the two, the next start finds the previous one, says so, and goes on from there. It does the same if the disk
# lost a few bits: every piece of the file has a checksum, and reading compares all of them. The damaged file is kept
# under another name (`*.damaged`); reading itself changes nothing.
#
# The format is torch's own, which has a pickle inside. A pickle can run code when it is read, so we read it with
# `weights_only=True`, which refuses everything but tensors and plain values. The averaged weights also go to a folder
# that `from_pretrained` reads ([chapter 10](10_pipeline.ipynb)).
#
# Going on is exact only if it is the same run. So a checkpoint also holds what it was trained on: the settings, the
# network, a fingerprint of the text, how many windows a step takes. `resume` refuses what differs and names it. Some
# settings may differ. `HARMLESS` are those that say where a run writes, how often and how fast it computes, how long it
# is; and those that a run which diverged needs to go on: learning rates and `gradient_clip`. `SAME_TEXT` are those that
# only say where the text comes from: they may differ if the text is the same.
#
# Writing, reading and comparing are no part of the method, so they are done by hand, in
# [`ddlm_core/support/runs.py`](../ddlm_core/support/runs.py) and
# [`checkpoints.py`](../ddlm_core/support/checkpoints.py) beside it.

# %% [markdown]
# ## The trainer
#
# A step may be too large for one device. So it is dealt out in `micro_batches`, all drawn beforehand: of two processes
# the first takes pieces 0, 2, 4, … `backward` adds up the gradients of the pieces that a process takes, so each loss is
# divided by their number; the library averages the sums over the processes, once a step (`no_sync` holds it back until
# the last piece). The loss and the wish to stop travel together: if the mean of the wishes is above 0, someone was told
# to stop, and all stop after the same step. Only dropout asks torch's global generator, so the step seeds that one too.
#
# The loop itself is short. Every so often it measures the bound, and saves. A signal that asks it to stop (Ctrl-C, or
# SIGTERM, which a cluster sends before it takes the machine away) only raises a flag: the step is finished, a
# checkpoint written, and then `train` raises `KeyboardInterrupt`. So no step is ever half done. Progress bar, log and
# curve are drawn by [`ddlm_core/support/progress.py`](../ddlm_core/support/progress.py).
#
# With several processes (one on each GPU), each takes its pieces of a step, and
# [accelerate](https://huggingface.co/docs/accelerate) averages the gradients. All of them hold the same weights; the
# first one measures, writes and prints. (Only the loss is handed to `prepare`, and not, as usual, the optimizers and the
# data: our own draws have already decided who gets which windows.)
#
# Three things can be exchanged without touching the class: `loss_fn` (a module that holds the network and takes a
# `NoisyBatch`), `lr_schedule` (from the step and the number of steps to the share of the peak learning rate), and
# `callbacks` (called with a `StepResult` after each step, in the first process).

# %% tags=["export"]
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ddlm_core.data import batches_from
from ddlm_core.support.hardware import autocast, make_accelerator, pick_precision
from ddlm_core.support.progress import Report, StepResult, StopSignals
from ddlm_core.support.runs import RunFiles, check_fit, describe_run


def plan_steps(config: TrainingConfig, batches: int, processes: int) -> tuple[int, int, int]:
    """Micro-batches in a step, steps of the run, steps between two checkpoints; UserError: none."""
    micro_batches = config.gradient_accumulation_steps * processes
    if not (epoch := batches // micro_batches):
        raise UserError(f"an epoch is shorter than a step, which takes {micro_batches} batches")
    total_steps = config.num_epochs * epoch
    total_steps = min(total_steps, config.max_steps or total_steps)
    return micro_batches, total_steps, min(config.save_every_steps, config.save_every * epoch)


# %% [markdown]
# `draw_step` draws a step, and `accumulate_gradients` does this process's share of it:


# %% tags=["export:objective"]
from ddlm_core.support.seeds import derive_seed


def draw_step(
    x_0: Tensor,
    config: TrainingConfig,
    model: DiscreteDiffusionTransformer,
    step: int,
    process: int = 0,
) -> NoisyBatch:
    """The noise of a step on windows x_0, the same in every process; it also seeds the dropout."""
    torch.manual_seed(derive_seed(config.seed, "dropout", step, process))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "noise", step))
    return draw_noise(x_0.long(), config, model, generator)


# %% tags=["export"]
def accumulate_gradients(
    loss_fn: Callable[..., Tensor],
    drawn: NoisyBatch,
    micro_batches: int,
    accelerator: Any,
    scaler: torch.amp.GradScaler,
    precision: str,
) -> Tensor:
    """Add up the gradients of this process's micro-batches; their mean loss, a scalar."""
    device = accelerator.device
    mine = range(accelerator.process_index, micro_batches, accelerator.num_processes)
    total = torch.zeros((), device=device)
    for part in mine:
        batch = [values[part::micro_batches].to(device) for values in drawn]
        with nullcontext() if part == mine[-1] else accelerator.no_sync(loss_fn):
            with autocast(precision, device):
                loss = loss_fn(*batch) / len(mine)
            scaler.scale(loss).backward()
        total += loss.detach()
    return total


# %% [markdown]
# Now the trainer puts it all together:


# %% tags=["export"]
class Trainer:
    """Trains a network on the batches of :func:`setup_dataloaders`.

    Args:
        val_loader: windows to measure the bound on; without, nothing is measured.
        loss_fn: a module that holds the network and takes the tensors of a :class:`NoisyBatch`; by
            default :class:`TrainingLoss`.
        lr_schedule: share of the peak learning rates, of the step and the number of steps; by default
            :func:`learning_rate_factor`.
        callbacks: called with a :class:`StepResult` after each step, in the first process.

    Raises:
        UserError: if settings, network and data do not belong together, or an epoch is no step.
    """

    def __init__(
        self,
        model: DiscreteDiffusionTransformer,
        train_loader: DataLoader,
        val_loader: DataLoader | None = None,
        config: TrainingConfig | None = None,
        *,
        loss_fn: nn.Module | None = None,
        lr_schedule: Callable[[int, int], float] | None = None,
        callbacks: Sequence[Callable[[StepResult], None]] = (),
    ) -> None:
        config = self.config = config or TrainingConfig()
        check_fit(config, model, train_loader)
        self.model, self.train_loader, self.val_loader = model, train_loader, val_loader
        self.callbacks, self.accelerator = callbacks, make_accelerator()
        device, processes = self.accelerator.device, self.accelerator.num_processes
        plan = plan_steps(config, len(train_loader), processes)
        self.micro_batches, self.total_steps, self.save_interval = plan
        self.precision = pick_precision(config.mixed_precision, device)
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.state = TrainState(model.to(device), config, scaler)
        self.average = self.state.average  # what is measured and published
        model.gradient_checkpointing = config.gradient_checkpointing
        loss_fn = loss_fn or TrainingLoss(model, config.objective, config.auxiliary_loss_weight)
        loss_fn = self.accelerator.prepare(loss_fn)
        self.loss_fn = torch.compile(loss_fn) if config.torch_compile else loss_fn
        self.lr_schedule = lr_schedule or default_lr_schedule(config)
        run = describe_run(config, model, (train_loader, val_loader), self.micro_batches)
        self.files = RunFiles(Path(config.checkpoint_dir), run)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.state.step

    def resume(self, path: str | Path) -> None:
        """Go on where the checkpoint ``path`` was written; it must be of the same run.

        Raises:
            UserError: if it is damaged or of another run; then the trainer is as it was.
        """
        source = self.files.load(Path(path), self.state, self.total_steps)
        self.accelerator.wait_for_everyone()  # all have read
        if source != Path(path) and self.accelerator.is_main_process:
            self.files.set_aside(Path(path))

    def evaluate(self) -> Bound:
        """The validation bound of the averaged weights."""
        if self.val_loader is None:
            raise UserError("there is nothing to measure on: give the trainer a val_loader")
        return validation_bound(self.average, self.val_loader, self.config.eval_windows)

    def train_step(self, x_0: Tensor, stop: bool = False) -> tuple[float, bool]:
        """A step on windows uint8 (B, L): the loss, and whether any process was told to stop."""
        drawn = draw_step(x_0, self.config, self.model, self.step, self.accelerator.process_index)
        how = (self.micro_batches, self.accelerator, self.state.scaler, self.precision)
        loss = accumulate_gradients(self.loss_fn, drawn, *how)
        both = torch.stack([loss, torch.full_like(loss, stop)])
        loss, stop = self.accelerator.reduce(both, "mean").tolist()
        update_weights(self.state, self.config, loss, self.lr_schedule(self.step, self.total_steps))
        return loss, stop > 0

    def train(self) -> Bound | None:
        """Train to the end; the last validation bound, in the first process.

        Raises:
            KeyboardInterrupt: after a signal, once the step is done and saved.
            FloatingPointError: if the run has diverged.
        """
        bound, stopped, main = None, False, self.accelerator.is_main_process
        batches = batches_from(self.train_loader, self.micro_batches, self.step)
        how = (self.config.log_every_steps, self.config.progress)
        report = Report(self.files.folder, self.step, self.total_steps, *how) if main else None
        with StopSignals() as signals, report or nullcontext():
            while self.step < self.total_steps and not stopped:
                loss, stopped = self.train_step(x_0 := next(batches), bool(signals))
                if report:
                    bound = self._measure_and_save(stopped)
                    result = StepResult(self.step, loss, int((x_0 != PAD_ID).sum()), bound)
                    report(result)
                    for tell in self.callbacks:
                        tell(result)
        self.accelerator.wait_for_everyone()
        if stopped:
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        return bound

    def _measure_and_save(self, stopped: bool) -> Bound | None:
        """Do what is due after a step; the validation bound, if it was measured."""
        at_end, bound, state = self.step == self.total_steps, None, self.state
        if self.val_loader and (at_end or self.step % self.config.eval_every_steps == 0):
            bound = self.evaluate()
            if bound.nats_per_window < state.best:
                state.best = bound.nats_per_window
                self.files.save_weights("best_model_hf", state)
        if at_end:
            self.files.save_weights("final_model_hf", state)
        if stopped or at_end or self.step % self.save_interval == 0:
            self.files.save(state)
        return bound


# %% tags=["test"]
import signal

from ddlm_core.support.checkpoints import LATEST
from ddlm_core.testing import same_bits, tiny_trainer


def test_resume_is_exact(tmp_path):
    """State and losses: the same bits as without the stop, dropout included."""
    whole, second = tiny_trainer(tmp_path / "whole"), tiny_trainer(tmp_path / "halves")
    whole.train()

    def interrupt(result):
        if result.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 6"):
        tiny_trainer(tmp_path / "halves", callbacks=[interrupt]).train()
    second.resume(tmp_path / "halves" / LATEST)
    assert second.step == 6
    second.train()
    assert same_bits(whole.state.state_dict(), second.state.state_dict())


# %% [markdown]
# Stop in the middle, go on, and compare with a run that was never stopped: weights, average, optimizers and losses
# must be the same to the last bit. (Another test kills the command with `kill -9` in the middle of a save.)

# %%
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    test_resume_is_exact(Path(folder))
"the same bits"

# %% [markdown]
# ## Train on the story world
#
# Now for real, with a network small enough for a CPU. The preset says how long: `DDLM_PRESET=smoke` is a handful of
# steps, as in the tests. 600 steps of 16 windows are 9,600 stories, so each is read at most once. (The trainer takes
# batches as the loader makes them; the command makes both from one configuration.) `padded=True` notes in the
# checkpoint that every window was one story, filled up with `<PAD>`. The learning rates are higher than the defaults,
# which are meant for larger networks and longer runs.

# %%
import os

from ddlm_core import stories

smoke = os.environ.get("DDLM_PRESET") == "smoke"
steps = 6 if smoke else 600
train, val, _, tokenizer = setup_dataloaders(
    "pocket-stories",
    train_samples=500 if smoke else 20_000,
    val_samples=16 if smoke else 128,
    context_length=160,
    batch_size=16,
)
folder = TemporaryDirectory()


def practice(steps, **changes):
    """Train a small network in the folder; the bound before and after, and the trainer."""
    torch.manual_seed(0)
    network = DiscreteDiffusionConfig(block_size=160, n_layer=4, n_head=3, n_embd=96, padded=True)
    settings = {"learning_rate": 5e-3, "matrix_learning_rate": 0.05, "progress": False}
    settings |= {"eval_every_steps": max(2, steps // 6), "eval_windows": 128}
    config = TrainingConfig(max_steps=steps, checkpoint_dir=folder.name, **(settings | changes))
    trainer = Trainer(DiscreteDiffusionTransformer(network), train, val, config)
    return trainer.evaluate(), trainer.train(), trainer


before, after, trainer = practice(steps)
print(f"before:  {before.nats_per_window:6.1f} nats a story")
print(f"after:   {after.nats_per_window:6.1f}, with {steps} steps")
print(f"entropy: {stories.entropy():6.1f}, the best that any model can do")

# %% [markdown]
# The first line should be $160 \log 106 = 746$. It is an average over at most 128 noisy windows, no more: with other
# seeds an untrained network got from 716 to 793. Read the second line with the same care. (The stories to validate with
# are a little rarer than average, because those that also occur in training were taken out. So even the best model
# would be somewhat above 19.0 here.)
#
# The curve falls fast at first, then slowly.

# %% tags=["hide-input"]
import json

log = (Path(folder.name) / "train_log.jsonl").read_text().splitlines()
measured = [line for line in map(json.loads, log) if "nats_per_window" in line]
plt.plot(
    [0, *(line["step"] for line in measured)],
    [before.nats_per_window, *(line["nats_per_window"] for line in measured)],
    "o-",
    label="validation bound",
)
plt.axhline(stories.entropy(), linestyle="--", color="C1", label="entropy of the stories")
plt.xlabel("training steps")
plt.ylabel("nats a story")
plt.ylim(bottom=0)
plt.legend()
plt.show()

# %% [markdown]
# What it writes after this short run has the look of a story. A sentence may be right, but names and weather change on
# the way, and words come apart. The bound, too, is still far above the entropy.

# %%
from ddlm_core.sampler import sample_diffusion, sample_generators

tokens = sample_diffusion(
    trainer.average,
    trainer.average.config.noise,
    batch_size=2,
    seq_len=160,
    num_steps=8 if smoke else 64,
    schedule="cosine",
    generator=sample_generators(seed=0, batch_size=2),
)
for text in tokenizer.decode_batch(tokens):
    print(text)

# %% [markdown]
# ## Which proposal is best?
#
# Two questions. How much does one sample of the loss scatter, now that the network is trained? And how low is the
# bound, if a new network practices with each proposal for the same, short time?

# %%
windows, generator = torch.cat(list(val)).long(), torch.Generator()
print("proposal        mean  scatter of a sample  bound after a short run, nats a story")
for name, power in (("uniform in t", None), ("power 2", 2.0), ("power 1", 1.0)):
    t, weight = proposal_times(8 * len(windows), noise, power, generator=generator.manual_seed(0))
    with torch.inference_mode():
        loss = compute_loss(trainer.average, windows.repeat(8, 1), noise, t, generator=generator)
    sample = weight * loss  # nats a token
    changes = {"noise_power": power, "objective": "score_entropy", "eval_every_steps": 1000}
    _, bound, _ = practice(4 if smoke else 150, **changes)
    print(f"{name:14}{sample.mean():6.3f}{sample.std():14.3f}{bound.nats_per_window:22.1f}")
folder.cleanup()

# %% [markdown]
# The means agree up to chance, as they must: it is the same integral. With power 1 a sample scatters less than half as
# much as with uniform times. After the same short run on score entropy both powers are ahead of uniform times; the two
# are too close together for one run to tell them apart. **We choose power 1**, which scatters least: the validation
# bound of a run is measured with it. ([Chapter 9](09_evaluation.ipynb), which wants an honest interval, adds uniform
# times.)
#
# For the guess this settles nothing. There the loss has no weight, and the power decides how much each level *counts*.
# After a minute on TinyStories (next section) power 2 is ahead by 0.14 bits, too little to be sure with one run. We
# keep power 1 there as well, because it is simplest.
#
# ## Which of these choices pay?
#
# One at a time: take the recipe of this chapter, change one thing, train for a minute on one core, and measure the
# bound on text that was held out. `python benchmarks/learning.py` does that for some thirty changes. These are some of them,
# for a network of 1.55 million weights, on 1.4 million characters of TinyStories
# ([`benchmarks/README.md`](../benchmarks/README.md) has all, with the command and the seed):
#
# | changed | bits a character after a minute |
# |---|---|
# | nothing | 2.79 |
# | score entropy in place of the guess | 3.22 |
# | score entropy, times uniform in $t$ | 3.30 |
# | score entropy, and one stack of blocks that hear everything | 4.20 |
# | AdamW for the matrices, too | 3.31 |
# | no glance back | 2.88 |
# | readers are graded, too | 2.75 |
# | no rotary positions | 2.78 |
# | power 2: more low noise | 2.65 |
# | power 0.5: more high noise | 2.97 |
# | `torch.compile` | 2.57 |
# | float32 in place of bfloat16 | 2.86 |
# | cosine in place of the linear fall | 2.84 |
# | SwiGLU in place of GELU | 2.79 |
#
# Two warnings. These are single runs, and the number of steps that fit into a minute of a shared core varies by a
# tenth: do not believe a difference of less than 0.15. (The minute with `torch.compile` begins after the compiling,
# which took another 45 seconds: the row shows what a long run gains.) And a minute is short: what moves boldly (no fall
# of the learning rate, 2.64; a batch half as large, 2.56) looks good after it, and need not after an hour. What is left
# is clear enough. Two things matter: *what* is learned (the guess, 0.4 bits) and *how matrices move* (Muon, 0.5; AdamW
# got the learning rate that it has for all else, 0.005). Two rows change two things at once, and belong beside the row
# on score entropy: a stack in which every letter hears itself (it has no glance back either) costs another 1.0 there.
# For uniform times, and for SwiGLU, a minute shows no difference that we would believe.
#
# One row surprised us. Before the readers glanced back ([chapter 6](06_model.ipynb)), the same minute without rotary
# positions cost 0.45 bits. Now it costs nothing. Presumably because the glance tells a reader the order of the last
# letters, and so soon it needs no more. (We keep the rotation. What it is worth after an hour, a minute does not tell.)
#
# For the glance and the graded readers we looked longer, at 1,000 steps, which take about six minutes. On the stories
# of chapter 2 these end at 46.5 nats with neither, at 42.8 with the glance (in 6 % more time), and at 39.3 with both
# (in another 10 %).
#
# How far is this from where it began? The recipe that many tutorials copy (a head for scores, the loss with the slip of
# [chapter 5](05_loss.ipynb), times uniform in $t$, a small constant learning rate, no average) is in the benchmark as
# well: 800 steps of 32 windows took it 257 seconds on one core, to 4.61 bits. Our first prototype (a guess of the clean
# letter, the exact loss, AdamW, levels uniform in the corrupted fraction) took 262 seconds, to 3.48. The recipe of this
# chapter was at 2.56 bits after 88 seconds, 256 steps of 16 windows. All three are measured with the exact bound, on
# the same text; the first two networks have 1.06 million weights, as the prototype had. (The guess has a price: the
# bound of a network that is trained on it scatters more, by rare, large samples at the clean end. [Chapter
# 9](09_evaluation.ipynb) deals with them.)
#
# ## On a GPU
#
# The command has presets: `ddlm-train --config-name smoke` (seconds), `pocket` (half an hour on two cores; the bundled
# model), `cpu` (hours), `gpu` and `gpu-large`. Before you rent a machine, compute what you need. The `gpu` preset is 10
# layers of width 640, windows of 256 characters, 64 at a time. We run it once on one window and once on two, and count.
# PyTorch counts the matrix products for us (not those inside of attention, which add some 8 %, and not Muon's own
# arithmetic, some 15 %, both by formula), and lets us look at each value that the forward pass keeps for the gradient
# (`saved_tensors_hooks`): we note how many bytes it takes, once for each address. Some of these values, such as the
# copies of the weights in 16 bits, are there once, however many windows there are. So what grows with the batch is the
# *difference* between two windows and one.

# %%
from torch.utils.flop_counter import FlopCounterMode

network = DiscreteDiffusionConfig(block_size=256, n_layer=10, n_head=10, n_embd=640, cond_dim=128)
model, config = DiscreteDiffusionTransformer(network), TrainingConfig()
own = {parameter.data_ptr() for parameter in model.parameters()}


def cost(windows):
    """Operations of a step on so many windows, and bytes that its forward pass keeps."""
    x_0, kept = torch.randint(2, 106, (windows, 256)), {}  # kept: address → bytes

    def keep(x):
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    drawn = draw_noise(x_0, config, model, torch.Generator().manual_seed(0))
    with counter, hooks, torch.autocast("cpu", torch.bfloat16):
        training_loss(model, drawn).backward()
    return counter.get_total_flops(), sum(kept.values())


(_, bytes_1), (flops_2, bytes_2) = cost(1), cost(2)
parameters = sum(p.numel() for p in model.parameters())
matrices = sum(p.numel() for p in build_optimizers(model, config)["muon"].param_groups[0]["params"])
flops, batch_bytes = flops_2 * 32, bytes_1 + (bytes_2 - bytes_1) * 63
# weights, gradients, average, and what the optimizers remember: one number (Muon) or two (AdamW)
state_bytes = 4 * (3 * parameters + matrices + 2 * (parameters - matrices))
print(f"parameters:      {parameters / 1e6:.1f} million")
print(f"FLOPs in a step: {flops / 1e12:.1f} · 10¹² (64 windows of 256)")
print(f"memory:          {state_bytes / 1e9:.1f} GB, and {batch_bytes / 1e9:.1f} GB for a batch")

# %% [markdown]
# One epoch of TinyStories, about 1.9 billion characters, is some 116,000 such steps. What follows is an **estimate**,
# for a GPU that reaches 30 % of the speed on its data sheet (dense, 16 bit). Nothing in this book has been run on a
# GPU yet.

# %%
for card, peak in (("T4", 65e12), ("RTX 4090", 165e12), ("H100", 989e12)):
    hours = 1.9e9 / 256 / 64 * flops / (0.3 * peak) / 3600
    print(f"{card:9} {hours:5.1f} hours an epoch (estimated)")

# %% [markdown]
# What makes it faster or smaller, as keys of the configuration:
#
# - `mixed_precision`: bf16 where the hardware multiplies it fast, else fp16 on a GPU (`auto`). What stays in 32 bits
#   uses TF32 there: newer NVIDIA cards then multiply with fewer digits, and faster.
# - `torch_compile=true` fuses operations. On one core of a CPU, the network of 1.55 million weights (16 windows of 160,
#   bf16, before it glanced back) took 0.26 s a step instead of 0.324 s, after 45 s of compilation: worth it from some
#   700 steps on.
# - `gradient_accumulation_steps=4` with a quarter of the `batch_size`: the same step in less memory.
#   `gradient_checkpointing=true` computes the inner values of a block twice instead of keeping them.
# - `torchrun --nproc_per_node 4 -m ddlm_core.apps.train` uses four GPUs (`accelerate launch` several machines), or, where
#   there is none, four cores. The global batch is `batch_size` × `gradient_accumulation_steps` × processes, and without
#   dropout the losses in training depend on that product alone: a test trains with one process and with two. (The bound
#   is measured batch by batch, so its noise depends on `batch_size`.) Two processes with 8 stories each take 0.21 s a
#   step on our two cores; one process with 16 takes 0.33 s on one core, and 0.27 s if PyTorch may use both (all three
#   compiled).
#
# The model that ships with the package was trained on the two cores of a CPU, with the preset `pocket`. Its
# [model card](../ddlm_core/pretrained/pocket-stories/README.md) has the command, the log and the figures.
#
# ## Change it safely
#
# Make the learning rate fall along a half cosine: edit `learning_rate_factor`, and run `make export && pytest tests/`.
# `test_learning_rate_and_average` must fail until you tell it the new values; the shape at the ends still has to
# hold. (To try it without editing: `Trainer(…, lr_schedule=lambda step, total: …)`.)
#
# **Exercise 1.** How much of the time do uniform times spend where less than 1 % of the characters are corrupted?
# (Expected: 0.378.) And proposals with power 1? (Expected: 0.01.)

# %% tags=["solution", "hide-input"]
generator, shares = torch.Generator().manual_seed(0), []
for power in (None, 1.0):
    t, _ = proposal_times(100_000, noise, power, generator=generator)
    shares.append((resample_probability(noise.sigma_bar(t)) < 0.01).double().mean().item())
assert abs(shares[0] - 0.378) < 1e-3 and abs(shares[1] - 0.01) < 1e-3
[round(share, 3) for share in shares]

# %% [markdown]
# **Exercise 2.** The average of the weights forgets the start: after how many steps does it hold less than 1 % of
# the weights of step 0, with a decay of 0.995? (Expected: with the fast first steps of `update_average`, 3; with
# a constant decay it would take 919.)

# %% tags=["solution", "hide-input"]
left, steps_taken = 1.0, 0
while left >= 0.01:
    left *= min(0.995, (1 + steps_taken) / (10 + steps_taken))
    steps_taken += 1
constant = math.ceil(math.log(0.01) / math.log(0.995))
assert (steps_taken, constant) == (3, 919)
steps_taken, constant

# %% [markdown]
# **Exercise 3.** A story of 90 characters occurs twice in a data set of 30 stories, as number 5 and as number 29.
# Three stories each are held out. How many are left to validate and to test with? (Expected: 3 and 2.)

# %% tags=["solution", "hide-input"]
told = [f"Story {i}." for i in range(30)]
told[5] = told[29] = "a" * 90
encoded = next(encode_stories([(story, True) for story in told], CharacterLevelTokenizer()))
parts = split_stories(*encoded, 3)
counts = [int((part == PAD_ID).sum()) for part in parts[1:]]
assert counts == [3, 2]
counts

# %% [markdown]
# ## Summary
#
# | name | module | meaning |
# |---|---|---|
# | `setup_dataloaders`, `Loaders` | `data` | any text → batches for training, validation and testing |
# | `encode_stories`, `split_stories` | `data` | the steps inside it |
# | `TokenWindows`, `WindowSampler`, `batches_from` | `data` | windows, in an order that depends on seed and epoch alone |
# | `TrainingConfig`, `load_preset` | `settings` | what a run needs to know; the settings of a preset |
# | `Trainer` | `training` | the run: `train`, `resume`, `evaluate`, `train_step` |
# | `proposal_times` | `objective` | noise levels to practice on, with weights that keep the bound |
# | `draw_condition`, `draw_noise`, `NoisyBatch` | `objective` | spans that are given, for infilling; all the chance of a step |
# | `training_loss`, `TrainingLoss` | `objective` | the surprise at the clean letter (or score entropy); the same as a module |
# | `build_optimizers`, `learning_rate_factor`, `update_average` | `optimizers` | how weights move, how far, and what is kept of it |
# | `accumulate_gradients`, `update_weights` | `training` | the two halves of a step |
# | `TrainState` | `training` | what changes during a run |
# | `validation_bound`, `Bound` | `training` | nats per window, bits per character |
# | `stored`, `RunFiles`, `Report` | `support` (by hand) | a second start reads no text, a run that is stopped loses no step, a run is shown |
#
# Next: [how good is it, really?](09_evaluation.ipynb).
