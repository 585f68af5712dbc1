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

# %% tags=["export:data"]
import glob
import json
from collections.abc import Iterator
from pathlib import Path

from ddlm_core import stories

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


# %% tags=["export:data"]
from itertools import islice


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


# %% tags=["export:data"]
from collections.abc import Iterable

import numpy as np

from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


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


# %% tags=["export:data"]
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


# %% tags=["export:data"]
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


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


# %% tags=["export:data"]
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


# %% tags=["export:data"]
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


# %% [markdown]
# ## The trainer

# %% tags=["export"]
import copy
import math
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import prior_kl
from ddlm_core.sampler import reverse_probs


@dataclass
class DataConfig:
    """Which text a run learns from: the arguments of :func:`setup_dataloaders`."""

    dataset_name: str = "roneneldan/TinyStories"
    val_dataset_name: str | None = None
    text_column: str = "text"
    train_samples: int | None = None
    val_samples: int = 1000
    context_length: int = 256
    num_workers: int = 0
    batch_size: int = 64


# %% tags=["export"]
@dataclass
class TrainingConfig(DataConfig):
    """What a run needs to know; every field is a key of the YAML files in ``ddlm_core/configs``.

    Raises:
        ValueError: if a value makes no sense, in one line that names it.
    """

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
    noise_power: float | None = 1.5  # proposal of noise levels; None: uniform in t
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
        check_training_config(self)


# %% tags=["export"]
AT_LEAST_ONE = (
    *("context_length", "batch_size", "gradient_accumulation_steps", "num_epochs", "val_samples"),
    *("eval_windows", "save_every", "save_every_steps", "eval_every_steps", "log_every_steps"),
)
ABOVE_ZERO = ("learning_rate", "matrix_learning_rate", "gradient_clip")
SHARES = ("decay_fraction", "ema_decay", "sampling_eps", "given_share", "weight_decay")
CHOICES = {"optimizer": ("muon", "adamw"), "mixed_precision": ("auto", "no", "bf16", "fp16")}


def check_training_config(config: "TrainingConfig") -> None:
    """Raise a ``ValueError`` of one line for a run that cannot work."""
    values = vars(config)
    whole = {name: 1 for name in AT_LEAST_ONE} | {"num_workers": 0, "warmup_steps": 0}
    for name, least in whole.items():
        if not isinstance(values[name], int) or values[name] < least:
            raise ValueError(f"{name} must be a whole number from {least}, got {values[name]!r}")
    for name in ABOVE_ZERO:
        if not values[name] > 0:
            raise ValueError(f"{name} must be above 0, got {values[name]!r}")
    for name in SHARES:
        if not 0 <= values[name] <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {values[name]!r}")
    for name, known in CHOICES.items():
        if values[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {values[name]!r}")


# %% tags=["export"]
from ddlm_core.loss import compute_loss, low_discrepancy_times
from ddlm_core.noise import GeometricNoise, corrupted_fraction


def proposal_times(
    batch_size: int,
    noise: GeometricNoise,
    power: float | None = 1.5,
    sampling_eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Times for a batch, and the weights that keep the objective the same integral.

    With $u$ uniform, the corrupted fraction is $u^{power}$, rescaled to the range of the noise;
    the weight is $dt/du$. Without a power, times are uniform and all weights 1.

    Args:
        batch_size: number of times B.
        noise: the schedule.
        power: above 1 puts more samples at almost clean text; None for uniform times.
        sampling_eps: the smallest time.
        generator: source of randomness.

    Returns:
        Times and weights, float32 of shape (B,).
    """
    u = low_discrepancy_times(batch_size, generator).double()
    if power is None:
        return (sampling_eps + (1 - sampling_eps) * u).float(), torch.full_like(
            u, 1 - sampling_eps
        ).float()
    u = u.clamp(min=1e-9)
    low, high = corrupted_fraction(noise.sigma_bar(torch.tensor([sampling_eps, 1.0]).double()))
    fraction = (low + (high - low) * u**power).clamp(max=high)
    sigma_bar = -torch.log1p(-fraction)
    per_u = (high - low) * power * u ** (power - 1) / (1 - fraction)  # dσ̄/du
    return noise.time(sigma_bar).float(), (per_u / (sigma_bar * noise.log_growth)).float()


# %% tags=["export"]
def draw_given(shape: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """Which tokens are given in training: in a ``share`` of the rows, random spans.

    Four random cuts part a row into spans; they are given and hidden in turn.

    Returns:
        Bool of shape (B, L), true where a token is given.
    """
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


# %% tags=["export"]
def training_loss(
    model: nn.Module,
    x_0: Tensor,
    config: TrainingConfig,
    vocab_size: int,
    generator: torch.Generator,
) -> Tensor:
    """The objective on one batch ``x_0``, int64 (B, L), in nats per token: a scalar."""
    noise = GeometricNoise(config.sigma_min, config.sigma_max)
    t, weight = proposal_times(len(x_0), noise, config.noise_power, config.sampling_eps, generator)
    mask = draw_given(tuple(x_0.shape), config.given_share, generator)
    t, weight, mask = t.to(x_0.device), weight.to(x_0.device), mask.to(x_0.device)
    return (weight * compute_loss(model, x_0, noise, t, mask, generator, vocab_size)).mean()


# %% tags=["export"]
def adamw_class(config: TrainingConfig) -> Callable[..., torch.optim.Optimizer]:
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


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon should train a parameter: the matrices inside the blocks."""
    return parameter.ndim == 2 and name.startswith("blocks.") and "modulation" not in name


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if config.optimizer == "muon" and is_matrix(name, p)]
    rest = [p for name, p in named if config.optimizer != "muon" or not is_matrix(name, p)]
    lr, decay = config.learning_rate, config.weight_decay
    optimizers = [adamw_class(config)(rest, lr=lr, betas=config.betas, weight_decay=decay)]
    if matrices:
        lr = config.matrix_learning_rate
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]  # scaled by learning_rate_factor in every step
    return optimizers


# %% tags=["export"]
def learning_rate_factor(step: int, total: int, warmup: int, decay_fraction: float) -> float:
    """Share of the peak learning rate: a linear rise, a plateau, a linear fall to 0."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = min(1.0, (total - step) / max(1.0, decay_fraction * total))
    return rise * max(0.0, fall)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights a little towards the weights; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), model.parameters()):
        old.lerp_(new, 1 - decay)


# %% tags=["export"]
@dataclass(frozen=True)
class Bound:
    r"""An upper bound on $-\log p$ of some text, estimated.

    Args:
        nats_per_window: nats for a whole window, padding included.
        bits_per_character: the same in bits, divided by the characters that are no ``<PAD>``.
    """

    nats_per_window: float
    bits_per_character: float


@torch.inference_mode()
def window_nats(
    model: nn.Module, x_0: Tensor, noise: GeometricNoise, generator: torch.Generator
) -> Tensor:
    """One-sample estimates of the whole bound, in nats per window: shape (B,)."""
    vocab_size = model.config.vocab_size
    t, weight = proposal_times(len(x_0), noise, generator=generator)
    t, weight = t.to(x_0.device), weight.to(x_0.device)
    diffusion = weight * compute_loss(model, x_0, noise, t, generator=generator)
    zero = torch.zeros_like(t)
    x_t = perturb_batch(x_0, noise.sigma_bar(zero), vocab_size, generator=generator)
    last = reverse_probs(model, x_t, noise.sigma_bar(zero), zero).gather(-1, x_0[..., None])
    reconstruction = -last[..., 0].log().mean(-1)
    prior = prior_kl(noise.sigma_max, vocab_size).item()
    return (diffusion + reconstruction + prior) * x_0.shape[1]


def validation_bound(
    model: nn.Module, loader: DataLoader, noise: GeometricNoise, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first windows of a loader; the same seed, the same noise."""
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


# %% tags=["export"]
@dataclass
class TrainingState:
    """All that changes during a run."""

    model: nn.Module
    average: nn.Module  # the moving average of its weights
    optimizers: list[torch.optim.Optimizer]
    step: int = 0  # optimizer steps done
    best: float = math.inf  # lowest validation bound so far, nats per window


def step_generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one training step, a function of seed and step alone: exact resume."""
    return torch.Generator().manual_seed(hash((seed, step)) % 2**63)


def batches_from(loader: DataLoader, first: int) -> Iterator[Tensor]:
    """Endless batches, epoch after epoch, from batch number ``first`` of the run on."""
    per_epoch = len(loader)
    epoch, skip = divmod(first, per_epoch)
    while True:
        if isinstance(loader.sampler, WindowSampler):
            loader.sampler.epoch, loader.sampler.skip = epoch, skip * loader.batch_size
        yield from loader
        epoch, skip = epoch + 1, 0


# %% tags=["export"]
class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


def train_step(
    state: TrainingState,
    batches: Iterator[Tensor],
    config: TrainingConfig,
    accelerator: Any,
    total: int,
) -> float:
    """One step of the optimizers on ``gradient_accumulation_steps`` batches; returns the loss.

    Raises:
        TrainingDiverged: if the loss is not finite; the weights are left as they were.
    """
    generator = step_generator(config.seed, state.step)
    vocab_size, loss = state.average.config.vocab_size, 0.0
    for _ in range(config.gradient_accumulation_steps):
        x_0 = next(batches).to(accelerator.device).long()
        with accelerator.autocast():
            part = training_loss(state.model, x_0, config, vocab_size, generator)
        accelerator.backward(part / config.gradient_accumulation_steps)
        loss += part.item() / config.gradient_accumulation_steps
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at step {state.step}: try a lower learning_rate and "
            f"matrix_learning_rate; the last checkpoint in {config.checkpoint_dir} is good"
        )
    accelerator.clip_grad_norm_(state.model.parameters(), config.gradient_clip)
    take_step(state, config, total)
    return loss


def take_step(state: TrainingState, config: TrainingConfig, total: int) -> None:
    """Let the optimizers use the gradients, at the learning rate of this step."""
    factor = learning_rate_factor(state.step, total, config.warmup_steps, config.decay_fraction)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad()
    update_average(state.average, state.model, config.ema_decay, state.step)
    state.step += 1


# %% tags=["export"]
def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file or folder beside ``path``, then put it in its place in one go."""
    part = path.with_name(path.name + ".part")
    remove(part)
    write(part)
    old = path.with_name(path.name + ".old")
    if path.is_dir():
        remove(old)
        path.rename(old)
    part.replace(path)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """Put a checkpoint into a state.

    Raises:
        ValueError: if the file is no checkpoint, or one of another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state.model.load_state_dict(content["model"])
        state.average.load_state_dict(content["average"])
        for optimizer, saved in zip(state.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        state.step, state.best = content["step"], content["best"]
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no checkpoint that this run can resume: {reason}") from error


def save_weights(folder: Path, state: TrainingState) -> None:
    """Write the averaged weights as a folder that ``from_pretrained`` loads."""
    config = replace(state.average.config, step=state.step, ema=True)
    write_whole(folder, lambda part: state.average.save_pretrained(part, config=asdict(config)))


# %% tags=["export"]
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
        self.config, self.train_loader, self.val_loader = (
            config or TrainingConfig(),
            train_loader,
            val_loader,
        )
        self.accelerator = accelerator_for(self.config)
        average = copy.deepcopy(model).to(self.accelerator.device).eval().requires_grad_(False)
        optimizers = build_optimizers(model, self.config)
        model, *optimizers = self.accelerator.prepare(model, *optimizers)
        self.state = TrainingState(model, average, optimizers)
        self.folder = Path(self.config.checkpoint_dir)
        self.total = total_steps(train_loader, self.config)
        self.started = time.perf_counter()

    def resume(self, path: str | Path) -> None:
        """Go on where the checkpoint ``path`` was written."""
        load_checkpoint(Path(path), self.state)

    def evaluate(self) -> Bound:
        """The validation bound of the averaged weights."""
        noise = GeometricNoise(self.config.sigma_min, self.config.sigma_max)
        return validation_bound(
            self.state.average, self.val_loader, noise, self.config.eval_windows
        )

    def fit(self) -> Bound | None:
        """Train to the end; returns the last validation bound."""
        self.started = time.perf_counter()
        return run(self)


# %% tags=["export"]
def accelerator_for(config: TrainingConfig) -> Any:
    """An ``accelerate.Accelerator`` with the precision that the config asks for."""
    from accelerate import Accelerator

    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_fast_bf16() else "no"
    return Accelerator(mixed_precision=precision)


def has_fast_bf16() -> bool:
    """Whether the GPU, or without one the CPU, multiplies matrices faster in bfloat16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def total_steps(loader: DataLoader, config: TrainingConfig) -> int:
    """Optimizer steps of the whole run."""
    steps = config.num_epochs * len(loader) // config.gradient_accumulation_steps
    return min(steps, config.max_steps or steps)


# %% tags=["export"]
class RunLog:
    """One JSON object a line in ``train_log.jsonl``; lines after the resumed step are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_whole(path, lambda part: part.write_text("".join(line + "\n" for line in kept)))
        self.path = path

    def add(self, **values: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def check_in(trainer: "Trainer", log: RunLog, **values: float) -> Bound | None:
    """Measure the validation bound, write it to the log, and keep the weights if they are best."""
    state = trainer.state
    if trainer.val_loader is None:
        log.add(step=state.step, **values)
        return None
    bound = trainer.evaluate()
    log.add(step=state.step, **values, **asdict(bound))
    if bound.nats_per_window < state.best:
        state.best = bound.nats_per_window
        save_weights(trainer.folder / "best_model_hf", state)
    return bound


# %% tags=["export"]
def run(trainer: "Trainer") -> Bound | None:
    """The training loop; an interrupt saves a checkpoint first."""
    state, config = trainer.state, trainer.config
    latest = trainer.folder / "checkpoint_latest.pth"
    log, bound = RunLog(trainer.folder / "train_log.jsonl", state.step), None
    batches = batches_from(trainer.train_loader, state.step * config.gradient_accumulation_steps)
    with progress_bar(trainer) as bar:
        try:
            while state.step < trainer.total:
                loss = train_step(state, batches, config, trainer.accelerator, trainer.total)
                bound = note(trainer, log, loss, bar) or bound
                if due(state.step, save_interval(trainer), trainer.total):
                    save_checkpoint(latest, state, config)
        except KeyboardInterrupt:
            save_checkpoint(latest, state, config)
            raise
    save_weights(trainer.folder / "final_model_hf", state)
    return bound


# %% tags=["export"]
def progress_bar(trainer: "Trainer") -> Any:
    """A tqdm bar over the steps of the run."""
    from tqdm.auto import tqdm

    silent = not trainer.config.progress
    return tqdm(total=trainer.total, initial=trainer.state.step, unit="step", disable=silent)


def note(trainer: "Trainer", log: RunLog, loss: float, bar: Any) -> Bound | None:
    """Tell the progress bar and the log about a step; measure the bound where that is due."""
    config, step = trainer.config, trainer.state.step
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    bar.update()
    seconds = round(time.perf_counter() - trainer.started, 3)
    if due(step, config.eval_every_steps, trainer.total):
        bound = check_in(trainer, log, loss=loss, seconds=seconds)
        if bound is not None:
            bar.set_description(f"{bound.bits_per_character:.3f} bits/char")
        return bound
    if due(step, config.log_every_steps, trainer.total):
        log.add(step=step, loss=loss, seconds=seconds)
    return None


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return step % every == 0 or step == total


def save_interval(trainer: "Trainer") -> int:
    """Steps between two checkpoints: the smaller of the two that the config names."""
    epoch = len(trainer.train_loader) // trainer.config.gradient_accumulation_steps
    return min(trainer.config.save_every_steps, trainer.config.save_every * max(1, epoch))
