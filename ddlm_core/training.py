# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

"""Training."""

import copy
import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddlm_core.data import WindowSampler
from ddlm_core.forward import perturb_batch
from ddlm_core.loss import compute_loss, low_discrepancy_times, prior_kl
from ddlm_core.noise import GeometricNoise, corrupted_fraction
from ddlm_core.sampler import reverse_probs
from ddlm_core.tokenizer import PAD_ID

__all__ = ['TrainingConfig', 'proposal_times', 'draw_given', 'training_loss', 'build_optimizers', 'learning_rate_factor', 'update_average', 'Bound', 'window_nats', 'validation_bound', 'TrainingState', 'TrainingDiverged', 'train_step', 'batches_from', 'write_whole', 'save_weights', 'save_checkpoint', 'load_checkpoint', 'Trainer', 'checkpoint_blocks']  # fmt: skip


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


def batches_from(loader: DataLoader, first: int) -> Iterator[Tensor]:
    """Endless batches, epoch after epoch, from batch number ``first`` of the run on."""
    epoch, skip = divmod(first, len(loader))
    while True:
        if isinstance(loader.sampler, WindowSampler):
            loader.sampler.epoch, loader.sampler.skip = epoch, skip * loader.batch_size
        yield from loader
        epoch, skip = epoch + 1, 0


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
