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
# The chapter has two halves. The first turns any text into batches of tokens (module `data`). The second
# uses them (module `training`).

# %% [markdown]
# ## From text to one long row of tokens
#
# By hand: two stories, *Hi.* and *Go!*, and a window of four tokens. If they are cut from one running text,
# we write one `<PAD>` after each, so that a window shows where a story ends:
#
# `H i . ␣ | G o ! ␣` (here `␣` stands for `<PAD>`).
#
# The stories of [chapter 2](02_stories.ipynb) are short enough to get a window each. There we fill up with
# `<PAD>` to the end of the window. Nothing is dropped at the end of a story in either case.
#
# A source is `pocket-stories`, local files, or a data set on the Hugging Face Hub. A `.txt` file is one
# running text, however many blank lines it has; in `.jsonl` and `.parquet` every row is a story.

# %% tags=["export:data"]
import json
from collections.abc import Iterator
from pathlib import Path

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
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text_of(line, column, f"{path}, line {number}"), True
    elif path.suffix == ".parquet":
        from datasets import load_dataset

        rows = load_dataset("parquet", data_files=str(path), split="train")
        yield from ((row[column], True) for row in rows)
    else:
        raise ValueError(f"{path}: need a .txt, .jsonl or .parquet file")


# %% tags=["export:data"]
def _text_of(line: str, column: str, where: str) -> str:
    try:
        return json.loads(line)[column]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where}: need a JSON object with a field {column!r}") from None


# %% tags=["export:data"]
import glob
from itertools import islice

from ddlm_core import stories

POCKET = "pocket-stories"


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


# %% tags=["export:data"]
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
            f"without a network, {POCKET!r} and paths of local .txt, .jsonl and .parquet files work"
        ) from error
    return ((row[column], True) for row in rows)


# %% tags=["export:data"]
from collections.abc import Iterable

import numpy as np

from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


def encode_stories(
    pieces: Iterable[Piece], tokenizer: CharacterLevelTokenizer, pad_to: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One row of tokens (uint8), and where its stories end (int64).

    One ``<PAD>`` follows each story, or as many as fill it up to ``pad_to`` tokens.
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
    return np.concatenate([np.zeros(0, np.uint8), *rows]), np.array(ends, dtype=np.int64)


def split_stories(tokens: np.ndarray, ends: np.ndarray, held_out: int) -> list[np.ndarray]:
    """Training, validation and test tokens that share no story; the last ``held_out`` stories each.

    At most a tenth each; a single running text gives a twentieth each.
    """
    first, second = len(tokens) * 18 // 20, len(tokens) * 19 // 20
    if len(ends) > 2:
        count = min(held_out, max(1, len(ends) // 10))
        first, second = int(ends[-2 * count - 1]), int(ends[-count - 1])
    return [tokens[:first], tokens[first:second], tokens[second:]]


# %% [markdown]
# The two stories from above, and what a broken line of a `.jsonl` file says:

# %%
tokens, ends = encode_stories([("Hi.", True), ("Go!", True)], CharacterLevelTokenizer())
tokens.tolist(), ends.tolist()

# %% tags=["test:data"]
import pytest


def test_files_are_read_whole(tmp_path):
    text = "A bear sat.\n\nIt was cold.\r\n"
    (tmp_path / "a.txt").write_text(text, newline="")
    rows = ["One.", "Two “words”.", ""]
    lines = "\n".join(json.dumps({"text": row}) for row in rows) + "\n\n"
    (tmp_path / "b.jsonl").write_text(lines, encoding="utf-8")
    assert "".join(piece for piece, _ in read_file(tmp_path / "a.txt")) == text
    assert [end for _, end in read_file(tmp_path / "a.txt")] == [False, True]  # one story
    assert list(read_file(tmp_path / "b.jsonl")) == [(row, True) for row in rows]
    both = list(read_stories(str(tmp_path / "*")))
    assert len(both) == 5 and list(read_stories(str(tmp_path / "*"), limit=2)) == both[:2]


def test_parquet_is_read_through_datasets(tmp_path):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_dict({"story": ["One.", "Two."]}).to_parquet(tmp_path / "c.parquet")
    assert list(read_file(tmp_path / "c.parquet", "story")) == [("One.", True), ("Two.", True)]


def test_bad_sources_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(ValueError, match="line 2: need a JSON object with a field 'text'"):
        list(read_file(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="need a .txt, .jsonl or .parquet file"):
        list(read_file(tmp_path / "a.csv"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        list(read_stories(str(tmp_path / "none.txt")))


# %% tags=["test:data"]
def test_nothing_is_dropped_and_no_story_is_shared():
    told = [f"Story number {i}." for i in range(30)]
    tokenizer = CharacterLevelTokenizer()
    tokens, ends = encode_stories([(story, True) for story in told], tokenizer)
    parts = split_stories(tokens, ends, held_out=2)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [26, 2, 2]
    assert "".join(tokenizer.decode(part) for part in parts) == "".join(told)
    assert all(part[-1] == PAD_ID for part in parts)  # cut where stories end
    running = split_stories(tokens, ends[-1:], held_out=2)
    assert sum(map(len, running)) == len(tokens) and min(map(len, running)) > 0
    with pytest.raises(ValueError, match="does not fit in 3"):
        encode_stories([("long", True)], tokenizer, pad_to=3)


test_nothing_is_dropped_and_no_story_is_shared()

# %% [markdown]
# ## Windows, in an order that can be resumed
#
# A batch is made of windows of the row. In running text every epoch cuts at other places, so that no
# character always sits at the border of its window; padded stories are always cut between them. The order is
# a function of the seed and the number of the epoch, and of nothing else. So a run that was stopped finds its
# place again without any stored state.

# %% tags=["export:data"]
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, asked for by where they start, ``<PAD>`` beyond the end."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        missing = self.length - len(window)
        return torch.from_numpy(np.pad(window, (0, missing), constant_values=PAD_ID))


# %% tags=["export:data"]
class WindowSampler(Sampler[int]):
    """Where the windows of epoch ``epoch`` start, in random order, without the first ``skip``.

    A function of ``seed`` and ``epoch`` alone. Unless ``aligned``, every epoch cuts elsewhere.
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


# %% tags=["test:data"]
@pytest.mark.parametrize("aligned", [True, False])
def test_windows_cover_the_text_once_and_can_be_resumed(aligned):
    sampler = WindowSampler(tokens=1000, length=10, seed=1, aligned=aligned)
    first, again = list(sampler), list(sampler)
    assert first == again and len(first) == len(sampler) == (100 if aligned else 99)
    assert first != sorted(first)  # shuffled
    covered = sorted(first)
    assert all(b - a == 10 for a, b in zip(covered, covered[1:])) and covered[-1] + 10 <= 1000
    sampler.skip = 7
    assert list(sampler) == first[7:] and list(sampler) == first  # skipped once
    sampler.epoch = 1
    assert list(sampler) != first
    cuts = {min(sampler) % 10 for sampler.epoch in range(20)}
    assert (len(cuts) == 1) == aligned


for aligned in (True, False):
    test_windows_cover_the_text_once_and_can_be_resumed(aligned)


# %% tags=["export:data"]
def training_loader(
    tokens: np.ndarray, length: int, batch_size: int, seed: int, aligned: bool, num_workers: int = 0
) -> DataLoader:
    """Batches of random windows, uint8 (B, L)."""
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens is shorter than one window of {length}")
    sampler = WindowSampler(len(tokens), length, seed, aligned)
    size, windows = min(batch_size, len(sampler)), TokenWindows(tokens, length)
    return DataLoader(windows, size, sampler=sampler, drop_last=True, num_workers=num_workers)


def evaluation_loader(tokens: np.ndarray, length: int, batch_size: int) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    starts = range(0, len(tokens), length)
    return DataLoader(TokenWindows(tokens, length), batch_size=batch_size, sampler=starts)


# %% tags=["export:data"]
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
        dataset_name: ``"pocket-stories"``; a path or glob of ``.txt``, ``.jsonl`` or ``.parquet``
            files; or the name of a data set on the Hugging Face Hub with a text column.
        train_samples: stories to read (megabytes, for a ``.txt``); all if not given.
        val_samples: stories held out for validation, and again for testing.
        context_len: tokens in a window.
        batch_size: windows in a batch.
        num_workers: processes that load batches; 0 loads them in this one.
        val_dataset_name: validate on all of this source instead; testing stays as it is.
        text_column: name of the field that holds the text.
        seed: of the order of the windows, and of ``pocket-stories``.

    Raises:
        OSError: if no file matches, or the Hub cannot be reached.
        ValueError: if a file cannot be read, or the text is shorter than a window.
    """
    tokenizer, aligned = CharacterLevelTokenizer(), dataset_name == POCKET
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


# %% tags=["test:data"]
def test_loaders_give_stories_and_running_text(tmp_path):
    train, val, test, tokenizer = setup_dataloaders(
        POCKET, train_samples=40, val_samples=4, context_len=160, batch_size=8
    )
    batch = next(iter(train))
    assert batch.dtype == torch.uint8 and batch.shape == (8, 160)
    assert all(stories.is_flawless(row, tokenizer) for row in batch.tolist())
    told = {s for part in (train, val, test) for b in part for s in tokenizer.decode_batch(b)}
    assert told == set(stories.sample(48, seed=0))
    (tmp_path / "a.txt").write_text("The lamb ran and ran. " * 100)
    train, val, _, _ = setup_dataloaders(str(tmp_path / "a.txt"), context_len=32, batch_size=4)
    assert next(iter(train)).shape == (4, 32)
    assert tokenizer.decode(next(iter(val))[0]) in "The lamb ran and ran. " * 100
    with pytest.raises(ValueError, match="shorter than one window"):
        setup_dataloaders(str(tmp_path / "a.txt"), context_len=9999)


# %% [markdown]
# ## What a run needs to know
#
# One dataclass holds it. Every field is a key of the YAML files in `ddlm_core/configs`, and of the command:
# `ddlm-train batch_size=32`.

# %% tags=["export"]
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass
class TrainingConfig:
    """What a run needs to know.

    Raises:
        ValueError: if a value makes no sense, in one line that names it.
    """

    dataset_name: str = "roneneldan/TinyStories"
    val_dataset_name: str | None = None
    text_column: str = "text"
    train_samples: int | None = None
    val_samples: int = 1000
    context_length: int = 256
    num_workers: int = 0
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    num_epochs: int = 1
    max_steps: int | None = None  # ends before num_epochs if smaller
    optimizer: str = "muon"  # for the matrices of the blocks; or "adamw" for everything
    learning_rate: float = 3e-3  # of AdamW
    matrix_learning_rate: float = 0.03  # of Muon
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    warmup_steps: int = 50
    decay_fraction: float = 0.5  # share of the run in which the learning rate falls to 0
    ema_decay: float = 0.995
    noise_power: float | None = 1.0  # proposal of noise levels; None: uniform in t
    sampling_eps: float = 0.0  # training times lie in [sampling_eps, 1]
    given_share: float = 0.1  # share of windows in which parts are given, for infilling
    mixed_precision: str = "auto"  # "no", "bf16", "fp16"; auto: bf16 where that is fast
    gradient_checkpointing: bool = False
    use_8bit_optimizer: bool = False
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    checkpoint_dir: str = "checkpoints"
    save_every: int = 1  # epochs
    save_every_steps: int = 500
    eval_every_steps: int = 500
    eval_windows: int = 256
    log_every_steps: int = 10
    progress: bool = True
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.betas = tuple(self.betas)
        _check(self)


# %% tags=["export"]
_COUNTS = (
    *("context_length", "batch_size", "gradient_accumulation_steps", "num_epochs", "val_samples"),
    *("eval_windows", "save_every", "save_every_steps", "eval_every_steps", "log_every_steps"),
)
_ABOVE_ZERO = ("learning_rate", "matrix_learning_rate", "gradient_clip", "noise_power")
_SHARES = ("decay_fraction", "ema_decay", "sampling_eps", "given_share", "weight_decay")
_CHOICES = {"optimizer": ("muon", "adamw"), "mixed_precision": ("auto", "no", "bf16", "fp16")}


def _check(config: TrainingConfig) -> None:
    least = {name: 1 for name in _COUNTS} | {"num_workers": 0, "warmup_steps": 0, "seed": 0}
    least |= {name: 1 for name in ("max_steps", "train_samples") if vars(config)[name] is not None}
    for name, lowest in least.items():
        if not isinstance(value := vars(config)[name], int) or value < lowest:
            raise ValueError(f"{name} must be a whole number from {lowest}, got {value!r}")
    for name in _ABOVE_ZERO:
        if not ((value := vars(config)[name]) is None and name == "noise_power" or value > 0):
            raise ValueError(f"{name} must be above 0, got {value!r}")
    for name in _SHARES:
        if not 0 <= (value := vars(config)[name]) <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    for name, known in _CHOICES.items():
        if (value := vars(config)[name]) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


# %% tags=["test"]
import pytest


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"max_steps": -1},
        {"learning_rate": 0.0},
        {"noise_power": -1.0},
        {"ema_decay": 1.5},
        {"optimizer": "sgd"},
        {"mixed_precision": "int3"},
        {"context_length": 2.5},
    ],
)
def test_bad_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
        TrainingConfig(**wrong)


test_bad_configs_are_refused({"batch_size": 0})

# %% [markdown]
# ## Which noise levels to practice on
#
# The objective is an integral over $t$. With uniform times we spend a third of our steps on text that is
# almost clean ([chapter 3](03_noise.ipynb)), where there is almost nothing to learn. So we draw $u$ uniformly,
# and let a function $t(u)$ say where to go. By substitution
#
# $$ \int_0^1 g(t)\,dt = \int_0^1 g(t(u))\,\frac{dt}{du}\,du = \mathbb E_u\Big[g(t(u))\,\frac{dt}{du}\Big]: $$
#
# the objective stays the same integral for every choice of $t(u)$, if each sample gets the weight $dt/du$.
# What changes is only how much the estimate scatters.
#
# We choose the corrupted fraction $f = 1 - e^{-\bar\sigma}$ as $f = u^p$, squeezed into the range that the
# noise reaches. $p = 1$ is uniform in the fraction of corrupted characters. Then
#
# $$ \frac{dt}{du} = \frac{dt}{d\bar\sigma}\,\frac{d\bar\sigma}{df}\,\frac{df}{du}
# = \frac{1}{\sigma(t)} \cdot \frac{1}{1-f} \cdot p\,u^{p-1}. $$

# %% tags=["export"]
import torch
from torch import Tensor

from ddlm_core.loss import low_discrepancy_times
from ddlm_core.noise import GeometricNoise, corrupted_fraction


def proposal_times(
    batch_size: int,
    noise: GeometricNoise,
    power: float | None = 1.0,
    sampling_eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Times for a batch and their weights $dt/du$, float32 (B,).

    The corrupted fraction is $u^{power}$ in the range of the noise, u low-discrepancy; without a
    power, times are uniform in [sampling_eps, 1].
    """
    u = low_discrepancy_times(batch_size, generator).double()
    if power is None:
        width = 1 - sampling_eps
        return (sampling_eps + width * u).float(), torch.full_like(u, width).float()
    u = u.clamp(min=1e-9)
    low, high = corrupted_fraction(noise.sigma_bar(torch.tensor([sampling_eps, 1.0]).double()))
    fraction = (low + (high - low) * u**power).clamp(max=high)
    sigma_bar = -torch.log1p(-fraction)
    slope = (high - low) * power * u ** (power - 1) / (1 - fraction)  # dσ̄/du
    return noise.time(sigma_bar).float(), (slope / (sigma_bar * noise.log_growth)).float()


# %% tags=["test"]
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
    late, _ = proposal_times(1000, noise, power, sampling_eps=0.3, generator=generator)
    assert late.min() > 0.299


for power in (None, 0.7, 1.0, 2.0):
    test_every_proposal_has_the_same_integral(power)

# %% [markdown]
# The picture: 64 samples from each. Uniform times crowd at the left, where hardly a character is corrupted.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
noise = GeometricNoise()
for row, power in enumerate((None, 2.0, 1.0)):
    t, _ = proposal_times(64, noise, power, generator=torch.Generator().manual_seed(0))
    plt.plot(corrupted_fraction(noise.sigma_bar(t)), [row] * 64, "|", markersize=18)
plt.yticks(range(3), ["uniform in t", "power 2", "power 1"])
plt.ylim(-0.7, 2.7)
plt.xlabel("corrupted fraction of the characters")
plt.show()

# %% [markdown]
# ## Some parts are given
#
# We also want to fill in blanks. There the model sees characters that it can trust, whatever the noise level.
# In a share of the training windows we therefore keep random spans clean and say so to the network (the mask of
# chapters 4 to 6). Four random cuts part the window; its spans are given and hidden in turn. (A departure from the
# paper, which trains without.)

# %% tags=["export"]
from torch import nn

from ddlm_core.loss import compute_loss


def draw_given(shape: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """Which tokens are given, bool (B, L): spans between four cuts, in a ``share`` of the rows."""
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


def training_loss(
    model: nn.Module, x_0: Tensor, config: TrainingConfig, vocab: int, generator: torch.Generator
) -> Tensor:
    """The objective on one batch ``x_0``, int64 (B, L), in nats per token: a scalar."""
    noise = GeometricNoise(config.sigma_min, config.sigma_max)
    t, weight = proposal_times(len(x_0), noise, config.noise_power, config.sampling_eps, generator)
    mask = draw_given(tuple(x_0.shape), config.given_share, generator)
    t, weight, mask = t.to(x_0.device), weight.to(x_0.device), mask.to(x_0.device)
    return (weight * compute_loss(model, x_0, noise, t, mask, generator, vocab)).mean()


# %% tags=["test"]
def test_given_spans():
    given = draw_given((4000, 50), 0.25, torch.Generator().manual_seed(0))
    touched = given.any(-1).double().mean().item()
    assert 0.2 < touched < 0.27  # a chosen row may happen to have no given span
    assert 0.4 < given[given.any(-1)].double().mean().item() < 0.6
    assert (given[:, 1:] != given[:, :-1]).sum(-1).max() <= 4
    assert not draw_given((100, 50), 0.0, torch.Generator().manual_seed(0)).any()


test_given_spans()

# %% [markdown]
# ## Optimizers, learning rate, average
#
# - **[AdamW](https://arxiv.org/abs/1711.05101)** divides each gradient by its typical size. It trains embeddings,
#   norms and the head.
# - **[Muon](https://kellerjordan.github.io/posts/muon/)** replaces the update of a matrix by the nearest
#   orthogonal one, so that every direction moves by as much. It trains the matrices of the blocks.
# - The learning rate rises for some steps, stays, and falls linearly to 0 in the second part of the run.
# - We keep a moving average of the weights (EMA). It has less noise than the weights, and is what we save.

# %% tags=["export"]
from collections.abc import Callable


def _adamw(config: TrainingConfig) -> Callable[..., torch.optim.Optimizer]:
    """AdamW, with 8-bit state if that is asked for and can be had."""
    if config.use_8bit_optimizer:
        try:
            from bitsandbytes.optim import AdamW8bit

            if torch.cuda.is_available():
                return AdamW8bit
        except ImportError:
            pass
        print("use_8bit_optimizer is off: it needs a CUDA GPU and bitsandbytes")
    return torch.optim.AdamW


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        inside = p.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if inside and config.optimizer == "muon" else rest).append(p)
    lr, decay = config.learning_rate, config.weight_decay
    optimizers = [_adamw(config)(rest, lr=lr, betas=config.betas, weight_decay=decay)]
    if matrices:
        lr = config.matrix_learning_rate
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak"] = group["lr"]  # scaled by learning_rate_factor in every step
    return optimizers


# %% tags=["export"]
def learning_rate_factor(step: int, total: int, warmup: int, decay_fraction: float) -> float:
    """Share of the peak learning rate: a linear rise, a plateau, a linear fall to 0."""
    fall = min(1.0, (total - step) / max(1.0, decay_fraction * total))
    return min(1.0, (step + 1) / max(1, warmup)) * max(0.0, fall)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights a little towards the weights; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), model.parameters()):
        old.lerp_(new, 1 - decay)


# %% tags=["test"]
def test_learning_rate_and_average():
    factors = [learning_rate_factor(step, 100, 10, 0.4) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert factors[80] == pytest.approx(0.5) and factors[100] == 0
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    before = old.weight.detach().clone()
    update_average(old, new, decay=0.9, step=10**6)
    assert torch.allclose(old.weight, 0.9 * before + 0.1 * new.weight)
    update_average(old, new, decay=0.9, step=0)
    assert torch.allclose(old.weight, 0.1 * (0.9 * before + 0.1 * new.weight) + 0.9 * new.weight)


test_learning_rate_and_average()

# %% [markdown]
# ## The bound, in numbers that mean something
#
# The validation figure is the whole bound of chapter 5: the integral, the reconstruction at $t = 0$ and the
# prior at $t = 1$. It is an upper bound on the nats that the model needs for a window. For stories we compare it
# with the entropy of the grammar. For other text we give bits per character:
# nats, divided by $\log 2$ and by the number of characters that are no `<PAD>`.

# %% tags=["export"]
from torch.utils.data import DataLoader

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import prior_kl
from ddlm_core.sampler import reverse_probs
from ddlm_core.tokenizer import PAD_ID


@dataclass(frozen=True)
class Bound:
    r"""An estimated upper bound on $-\log p$; windows are counted with their padding."""

    nats_per_window: float
    bits_per_character: float


@torch.inference_mode()
def window_nats(
    model: nn.Module, x_0: Tensor, noise: GeometricNoise, generator: torch.Generator
) -> Tensor:
    """One-sample estimates of the whole bound for windows (B, L), in nats per window: (B,)."""
    t, weight = (v.to(x_0.device) for v in proposal_times(len(x_0), noise, generator=generator))
    diffusion = weight * compute_loss(model, x_0, noise, t, generator=generator)
    zero = torch.zeros_like(t)
    first = noise.sigma_bar(zero)
    x_t = perturb_batch(x_0, first, model.config.vocab_size, generator=generator)
    last = reverse_probs(model, x_t, first, zero).gather(-1, x_0[..., None])[..., 0]
    prior = prior_kl(noise.sigma_max, model.config.vocab_size).item()
    return (diffusion - last.log().mean(-1) + prior) * x_0.shape[1]


# %% tags=["export"]
def validation_bound(
    model: nn.Module, loader: DataLoader, noise: GeometricNoise, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    nats, windows, characters = 0.0, 0, 0
    for batch in loader:
        x_0 = batch[: max_windows - windows].long().to(device)
        nats += window_nats(model, x_0, noise, generator).sum().item()
        windows += len(x_0)
        characters += int((x_0 != PAD_ID).sum())
        if windows >= max_windows:
            break
    return Bound(nats / max(1, windows), nats / max(1, characters) / math.log(2))


# %% [markdown]
# An untrained network says *every character is as likely as any other*. Then the bound must be
# $L \log V$ nats for $L$ characters. It is an average over random noise, so we look at many windows:

# %% tags=["test"]
from ddlm_core.data import evaluation_loader, setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer


def test_bound_of_an_untrained_network():
    torch.manual_seed(0)
    config = DiscreteDiffusionConfig(block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
    model = DiscreteDiffusionTransformer(config)
    loader = evaluation_loader(torch.randint(2, 106, (20_000,)).numpy().astype("uint8"), 10, 500)
    bound = validation_bound(model, loader, config.noise, 2000)
    assert bound.nats_per_window == pytest.approx(10 * math.log(106), rel=0.02)
    assert bound.bits_per_character == pytest.approx(math.log2(106), rel=0.02)


test_bound_of_an_untrained_network()

# %% [markdown]
# ## A step
#
# All randomness of step $k$ comes from a generator that is made from the seed and $k$. With the order of the
# windows it is the second half of exact resume: nothing random has to be saved. (Python hashes tuples of whole
# numbers the same way in every process; only texts are salted.)


# %% tags=["export"]
@dataclass
class TrainingState:
    """All that changes during a run."""

    model: nn.Module
    average: nn.Module  # the moving average of its weights
    optimizers: list[torch.optim.Optimizer]
    step: int = 0  # optimizer steps done
    best: float = math.inf  # lowest validation bound so far, nats per window


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def train_step(
    state: TrainingState, batches: Iterator[Tensor], config: TrainingConfig, engine: Any, total: int
) -> float:
    """One step of the optimizers; returns the loss. ``engine`` is an ``accelerate.Accelerator``."""
    generator = torch.Generator().manual_seed(hash((config.seed, state.step)) % 2**63)
    parts, loss = config.gradient_accumulation_steps, 0.0
    for _ in range(parts):
        x_0 = next(batches).to(engine.device).long()
        with engine.autocast():
            vocab = state.average.config.vocab_size
            part = training_loss(state.model, x_0, config, vocab, generator) / parts
        engine.backward(part)
        loss += part.item()
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at step {state.step}: try a lower learning_rate and "
            f"matrix_learning_rate; the last checkpoint in {config.checkpoint_dir} is good"
        )
    engine.clip_grad_norm_(state.model.parameters(), config.gradient_clip)
    factor = learning_rate_factor(state.step, total, config.warmup_steps, config.decay_fraction)
    _update(state, factor, config.ema_decay)
    return loss


def _update(state: TrainingState, factor: float, ema_decay: float) -> None:
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad()
    update_average(state.average, state.model, ema_decay, state.step)
    state.step += 1


# %% tags=["export"]
from collections.abc import Iterator

from ddlm_core.data import WindowSampler


def batches_from(loader: DataLoader, first: int) -> Iterator[Tensor]:
    """Endless batches, epoch after epoch, from batch number ``first`` of the run on."""
    epoch, skip = divmod(first, len(loader))
    while True:
        if isinstance(loader.sampler, WindowSampler):
            loader.sampler.epoch, loader.sampler.skip = epoch, skip * loader.batch_size
        yield from loader
        epoch, skip = epoch + 1, 0


# %% [markdown]
# ## Checkpoints
#
# A checkpoint is written to a temporary file beside its place, and then renamed. A rename happens whole or not at
# all, so a crash in the middle leaves the old checkpoint. It holds tensors and plain values only, and is read with
# `weights_only=True`: a pickle could run code, this cannot. The averaged weights also go to a folder that
# `from_pretrained` reads ([chapter 10](10_pipeline.ipynb)).

# %% tags=["export"]
import pickle
import shutil
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file or folder beside ``path``, then put it in its place in one go."""
    part, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    _remove(part)
    write(part)
    if path.is_dir():
        _remove(old)
        path.rename(old)
    part.replace(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_weights(folder: Path, state: TrainingState) -> None:
    """Write the averaged weights as a folder that ``from_pretrained`` loads."""
    config = asdict(replace(state.average.config, step=state.step, ema=True))
    write_whole(folder, lambda part: state.average.save_pretrained(part, config=config))


# %% tags=["export"]
def save_checkpoint(path: Path, state: TrainingState, config: TrainingConfig) -> None:
    """Write everything that resuming needs: tensors and plain values only."""
    content = {
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step,
        "best": state.best,
        "config": asdict(config),
    }
    write_whole(path, lambda part: torch.save(content, part))


def load_checkpoint(path: Path, state: TrainingState) -> None:
    """Put a checkpoint into a state; a ``ValueError`` says why if it does not fit."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state.model.load_state_dict(content["model"])
        state.average.load_state_dict(content["average"])
        for optimizer, saved in zip(state.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        state.step, state.best = content["step"], content["best"]
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no checkpoint that this run can resume: {reason}") from error


# %% tags=["test"]
def test_write_whole_keeps_the_old_file_if_writing_fails(tmp_path):
    def fail(part):
        part.write_text("half")
        raise KeyboardInterrupt

    write_whole(tmp_path / "a", lambda part: part.write_text("old"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    write_whole(tmp_path / "a", lambda part: part.write_text("new"))
    for _ in range(2):  # a folder, and the same folder again
        write_whole(tmp_path / "b", lambda part: (part.mkdir(), (part / "x").write_text("x")))
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "b" / "x").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# %% [markdown]
# ## The trainer
#
# The loop itself is short. Every so often it measures the bound, writes a line to `train_log.jsonl`, and saves.

# %% tags=["export"]
import copy
import time


class Trainer:
    """Trains a network; a thin shell over the functions of this module.

    Args:
        model: the network.
        train_loader: batches of tokens, from :func:`setup_dataloaders`.
        val_loader: batches to estimate the bound on; None for no validation.
        config: the run.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: DataLoader,
        val_loader: DataLoader | None = None,
        config: TrainingConfig | None = None,
    ) -> None:
        self.config = config = config or TrainingConfig()
        self.train_loader, self.val_loader = train_loader, val_loader
        self.accelerator = _accelerator(config)
        average = copy.deepcopy(model).to(self.accelerator.device).eval().requires_grad_(False)
        if config.gradient_checkpointing:
            checkpoint_blocks(model)
        model, *optimizers = self.accelerator.prepare(model, *build_optimizers(model, config))
        self.state = TrainingState(model, average, optimizers)
        self.folder = Path(config.checkpoint_dir)
        epoch = max(1, len(train_loader) // config.gradient_accumulation_steps)
        self.total = min(config.num_epochs * epoch, config.max_steps or math.inf)
        self.save_interval = min(config.save_every_steps, config.save_every * epoch)
        self.started = time.perf_counter()

    def resume(self, path: str | Path) -> None:
        """Go on where the checkpoint ``path`` was written."""
        load_checkpoint(Path(path), self.state)

    def evaluate(self) -> Bound:
        """The validation bound of the averaged weights."""
        noise = GeometricNoise(self.config.sigma_min, self.config.sigma_max)
        windows = self.config.eval_windows
        return validation_bound(self.state.average, self.val_loader, noise, windows)

    def fit(self) -> Bound | None:
        """Train to the end; returns the last validation bound."""
        return _run(self)


# %% tags=["export"]
def _accelerator(config: TrainingConfig) -> Any:
    """An ``accelerate.Accelerator``; precision "auto" is bf16 where the hardware multiplies it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # it is global: two trainers could not differ in precision
    precision = config.mixed_precision
    if precision == "auto":
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = features.get("avx512_bf16") or features.get("amx_bf16")
        if torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if fast else "no"
    return Accelerator(mixed_precision=precision)


def checkpoint_blocks(model: nn.Module) -> None:
    """Let every block forget its inner values and compute them again for the gradients."""
    from torch.utils.checkpoint import checkpoint

    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(
            forward, *args, use_reentrant=False
        )


# %% tags=["export"]
import json


def _start_log(path: Path, step: int) -> None:
    """Keep the lines of ``train_log.jsonl`` up to ``step``; what came after is done again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
    write_whole(path, lambda part: part.write_text(kept))


def _note(trainer: Trainer, loss: float, bar: Any) -> Bound | None:
    """Tell the progress bar and the log about a step; measure the bound where that is due."""
    config, state = trainer.config, trainer.state
    at_end, bound = state.step == trainer.total, None
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    bar.update()
    seconds = round(time.perf_counter() - trainer.started, 3)
    line = {"step": state.step, "loss": loss, "seconds": seconds}
    if trainer.val_loader is not None and (at_end or state.step % config.eval_every_steps == 0):
        bound = trainer.evaluate()
        bar.set_description(f"{bound.bits_per_character:.3f} bits/char")
        if bound.nats_per_window < state.best:
            state.best = bound.nats_per_window
            save_weights(trainer.folder / "best_model_hf", state)
    if bound or at_end or state.step % config.log_every_steps == 0:
        with (trainer.folder / "train_log.jsonl").open("a") as file:
            file.write(json.dumps(line | (asdict(bound) if bound else {})) + "\n")
    return bound


# %% tags=["export"]
def _run(trainer: Trainer) -> Bound | None:
    """The training loop; an interrupt saves a checkpoint first."""
    from tqdm.auto import tqdm

    state, config, total, bound = trainer.state, trainer.config, trainer.total, None
    latest = trainer.folder / "checkpoint_latest.pth"
    _start_log(trainer.folder / "train_log.jsonl", state.step)
    trainer.started = time.perf_counter()
    batches = batches_from(trainer.train_loader, state.step * config.gradient_accumulation_steps)
    with tqdm(total=total, initial=state.step, unit="step", disable=not config.progress) as bar:
        try:
            while state.step < total:
                loss = train_step(state, batches, config, trainer.accelerator, total)
                bound = _note(trainer, loss, bar) or bound
                if state.step % trainer.save_interval == 0 or state.step == total:
                    save_checkpoint(latest, state, config)
        except KeyboardInterrupt:
            save_checkpoint(latest, state, config)
            raise
    save_weights(trainer.folder / "final_model_hf", state)
    return bound


# %% tags=["test"]
def tiny_trainer(folder, **changes):
    """A network of a few thousand weights that reads 16 stories."""
    torch.manual_seed(0)
    train, val, _, _ = setup_dataloaders(
        "pocket-stories", train_samples=20, val_samples=4, context_len=160, batch_size=4
    )
    network = DiscreteDiffusionConfig(block_size=160, n_layer=1, n_head=2, n_embd=16, cond_dim=8)
    settings = {"batch_size": 4, "num_epochs": 9, "max_steps": 8, "eval_windows": 4}
    settings |= {"context_length": 160, "mixed_precision": "no", "progress": False}
    settings |= {"eval_every_steps": 4, "save_every_steps": 3, "log_every_steps": 1}
    config = TrainingConfig(checkpoint_dir=str(folder), **(settings | changes))
    return Trainer(DiscreteDiffusionTransformer(network), train, val, config)


def same(a, b):
    """Whether two nested structures hold the same bits."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# %% tags=["test"]
def test_resume_is_exact(tmp_path):
    tiny_trainer(tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt):
        stopped = tiny_trainer(tmp_path / "halves")
        stopped.train_loader = interrupted(stopped.train_loader, after=5)
        stopped.fit()
    second = tiny_trainer(tmp_path / "halves")
    second.resume(tmp_path / "halves" / "checkpoint_latest.pth")
    assert second.state.step == 5
    second.fit()
    whole, halves = (
        torch.load(tmp_path / name / "checkpoint_latest.pth", weights_only=True)
        for name in ("whole", "halves")
    )
    for key in ("model", "average", "optimizers", "step", "best"):
        assert same(whole[key], halves[key]), key
    logs = [(tmp_path / name / "train_log.jsonl").read_text() for name in ("whole", "halves")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 8


class interrupted:
    """A loader during which the user presses Ctrl-C after some batches."""

    def __init__(self, loader, after):
        self.loader, self.after = loader, after

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.after == 0:
                raise KeyboardInterrupt
            self.after -= 1
            yield batch


# %% tags=["test"]
def test_what_a_run_leaves(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=4)
    bound = trainer.fit()
    assert bound == trainer.evaluate()  # same seed, same noise
    names = ["best_model_hf", "checkpoint_latest.pth", "final_model_hf", "train_log.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    config = json.loads((tmp_path / "final_model_hf" / "config.json").read_text())
    assert config["step"] == 4 and config["ema"] is True and len(config["vocab"]) == 106
    again = tiny_trainer(tmp_path, max_steps=4)
    again.resume(tmp_path / "checkpoint_latest.pth")
    assert again.fit() is None and again.state.step == 4  # nothing left to do


def test_bad_checkpoints_and_bad_losses(tmp_path):
    trainer = tiny_trainer(tmp_path)
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    for name in ("bad.pth", "missing.pth"):
        with pytest.raises(ValueError, match="is no checkpoint that this run can resume"):
            trainer.resume(tmp_path / name)
    with torch.no_grad():
        trainer.state.model.head.bias.fill_(float("nan"))
    weight = trainer.state.model.embedding.weight.clone()
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        trainer.fit()
    assert torch.equal(weight, trainer.state.model.embedding.weight)


def test_training_lowers_the_bound_in_every_mode(tmp_path):
    for i, changes in enumerate(
        ({"optimizer": "adamw"}, {"gradient_checkpointing": True}, {"noise_power": None})
    ):
        trainer = tiny_trainer(tmp_path / str(i), max_steps=30, learning_rate=0.02, **changes)
        before = trainer.evaluate().nats_per_window
        assert trainer.fit().nats_per_window < 0.9 * before


# %% [markdown]
# Stop in the middle, go on, and compare with a run that was never stopped: weights, average, optimizers and losses
# must be the same to the last bit.

# %%
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    test_resume_is_exact(Path(folder))
"the same bits"

# %% [markdown]
# ## Train on the story world
#
# Now for real, with a network small enough for a CPU. The preset says how long: `DDLM_PRESET=smoke` is a
# handful of steps, as in the tests.

# %%
import os

from ddlm_core import stories

smoke = os.environ.get("DDLM_PRESET") == "smoke"
steps = 6 if smoke else 600
train, val, _, tokenizer = setup_dataloaders(
    "pocket-stories",
    train_samples=500 if smoke else 20_000,
    val_samples=128,
    context_len=160,
    batch_size=16,
)
torch.manual_seed(0)
network = DiscreteDiffusionConfig(block_size=160, n_layer=4, n_head=3, n_embd=96, padded=True)
model = DiscreteDiffusionTransformer(network)
folder = TemporaryDirectory()
config = TrainingConfig(
    dataset_name="pocket-stories",
    context_length=160,
    batch_size=16,
    max_steps=steps,
    learning_rate=5e-3,
    matrix_learning_rate=0.05,
    eval_every_steps=max(2, steps // 6),
    eval_windows=128,
    checkpoint_dir=folder.name,
    progress=False,
)
trainer = Trainer(model, train, val, config)
before = trainer.evaluate()
after = trainer.fit()
print(f"before:  {before.nats_per_window:6.1f} nats a story")
print(f"after:   {after.nats_per_window:6.1f}, with {steps} steps")
print(f"entropy: {stories.entropy():6.1f}, the best that any model can do")

# %% [markdown]
# The curve falls fast at first (which characters are common, how words are spelled), then slowly (who lost
# what, and who found it).

# %% tags=["hide-input"]
lines = [
    json.loads(line) for line in (Path(folder.name) / "train_log.jsonl").read_text().splitlines()
]
measured = [line for line in lines if "nats_per_window" in line]
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
# What it writes after this short run has the look of a story, and hardly a right sentence. That is honest: the
# bound is still far above the entropy.

# %%
from ddlm_core.sampler import sample_diffusion, sample_generators

tokens = sample_diffusion(
    trainer.state.average,
    network.noise,
    batch_size=2,
    seq_len=160,
    num_steps=8 if smoke else 64,
    schedule="cosine",
    generator=sample_generators(seed=0, batch_size=2),
)
for text in tokenizer.decode_batch(tokens):
    print(text)
folder.cleanup()

# %% [markdown]
# The model that ships with the package is larger and trained longer, with `ddlm-train --config-name pocket`. Its
# [model card](../ddlm_core/pretrained/pocket-stories/README.md) has the command, the log and the figures. All of
# this was run on a CPU; nothing here has been run on a GPU yet.
#
# ## Change it safely
#
# Make the learning rate fall along a half cosine: edit `learning_rate_factor`.
# `test_learning_rate_and_average` must fail until you tell it the new values; the shape at the ends still has to
# hold. Then run `make export && pytest tests/test_training.py`.
#
# **Exercise 1.** How much of the time do uniform times spend where less than 1 % of the characters are corrupted?
# (Expected: 0.378.) And proposals with power 1? (Expected: 0.01.)

# %% tags=["solution", "hide-input"]
noise, generator = GeometricNoise(), torch.Generator().manual_seed(0)
shares = []
for power in (None, 1.0):
    t, _ = proposal_times(100_000, noise, power, generator=generator)
    shares.append((corrupted_fraction(noise.sigma_bar(t)) < 0.01).double().mean().item())
assert abs(shares[0] - 0.378) < 1e-3 and abs(shares[1] - 0.01) < 1e-3
[round(share, 3) for share in shares]

# %% [markdown]
# **Exercise 2.** The average of the weights forgets the start: after how many steps does it hold less than 1 % of
# the weights of step 0, with a decay of 0.995? (Expected: with the fast first steps of `update_average`, 5; with
# a constant decay it would take 919.)

# %% tags=["solution", "hide-input"]
left, steps_taken = 1.0, 0
while left >= 0.01:
    left *= min(0.995, (1 + steps_taken) / (10 + steps_taken))
    steps_taken += 1
constant = math.ceil(math.log(0.01) / math.log(0.995))
assert constant == 919
steps_taken, constant

# %% [markdown]
# ## Summary
#
# | name | module | meaning |
# |---|---|---|
# | `setup_dataloaders` | `data` | any text → batches for training, validation and testing |
# | `read_stories`, `encode_stories`, `split_stories` | `data` | the steps inside it |
# | `TokenWindows`, `WindowSampler` | `data` | windows, in an order that depends on seed and epoch alone |
# | `TrainingConfig`, `Trainer` | `training` | what a run needs to know; the run |
# | `proposal_times` | `training` | noise levels to practice on, with weights that keep the objective |
# | `draw_given` | `training` | spans that are given, for infilling |
# | `validation_bound`, `Bound` | `training` | nats a window, bits per character |
# | `save_checkpoint`, `load_checkpoint`, `write_whole` | `training` | a stop costs nothing |
#
# Next: [from weights to stories](10_pipeline.ipynb).
