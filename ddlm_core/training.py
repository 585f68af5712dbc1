# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""Training."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import compute_loss, graph_of, low_discrepancy_times, masked_mean
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.sampler import reverse_probs
from ddlm_core.support.checkpoints import batches_from, load_checkpoint, measure_and_save
from ddlm_core.support.checks import check_settings
from ddlm_core.support.hardware import adamw, make_accelerator
from ddlm_core.support.progress import Progress
from ddlm_core.tokenizer import PAD_ID

__all__ = ['TrainingConfig', 'proposal_times', 'draw_condition', 'draw_noise', 'training_loss', 'Objective', 'build_optimizers', 'learning_rate_factor', 'update_average', 'Bound', 'window_nats', 'validation_bound', 'train_step', 'Trainer']  # fmt: skip


@dataclass
class TrainingConfig:
    """What a run needs to know; a value that makes no sense is a ``ValueError`` of one line."""

    dataset_name: str = "roneneldan/TinyStories"
    val_dataset_name: str | None = None
    text_column: str = "text"
    train_samples: int | None = None
    val_samples: int = 1000
    context_length: int = 256
    num_workers: int = 0
    batch_size: int = 64  # windows that a process takes at once
    gradient_accumulation_steps: int = 1  # batches of each process in a step
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
    condition_share: float = 0.1  # share of windows in which parts are given, for infilling
    objective: str = "guess"  # or "graded", or "score_entropy", the integrand of the bound
    mixed_precision: str = "auto"  # "no", "bf16", "fp16"; auto: what the hardware is fast at
    torch_compile: bool = False
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

    __post_init__ = check_settings


def proposal_times(
    batch_size: int,
    noise: GeometricNoise,
    power: float | None = 1.0,
    sampling_eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Times in [sampling_eps, 1] and their weights $dt/du$, float32 (B,); u is low-discrepancy.

    The corrupted fraction is $u^{power}$ in the range of the noise; no power: uniform times.
    """
    u = low_discrepancy_times(batch_size, generator).double()
    if power is None:
        width = 1 - sampling_eps
        return (sampling_eps + width * u).float(), torch.full_like(u, width).float()
    u = u.clamp(min=1e-9)
    low, high = resample_probability(noise.sigma_bar(torch.tensor([sampling_eps, 1.0]).double()))
    fraction = (low + (high - low) * u**power).clamp(max=high)
    sigma_bar = -torch.log1p(-fraction)
    slope = (high - low) * power * u ** (power - 1) / (1 - fraction)  # dσ/du
    t = noise.time(sigma_bar)
    return t.float(), (slope / noise.sigma(t)).float()


def draw_condition(shape: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """Which tokens are given, bool (B, L): spans between four cuts, in a ``share`` of the rows."""
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


def draw_noise(
    x_0: Tensor, config: TrainingConfig, model: nn.Module, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """All that is random in a step on windows (B, L): the arguments of :func:`training_loss`."""
    vocab_size, graph = model.config.vocab_size, graph_of(model)
    noise = graph.schedule(config.sigma_min, config.sigma_max)
    t, weight = proposal_times(len(x_0), noise, config.noise_power, config.sampling_eps, generator)
    sigma_bar, sigma = noise(t)
    mask = draw_condition(tuple(x_0.shape), config.condition_share, generator)
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, mask, generator, graph.sample_prior)
    return x_0, x_t, mask, sigma_bar, weight * sigma


def training_loss(model: nn.Module, drawn: Sequence[Tensor], objective: str = "guess") -> Tensor:
    """The objective on what :func:`draw_noise` gave, in nats per token (graded: 1.6 times): a scalar."""
    x_0, x_t, mask, sigma_bar, weight = drawn
    if objective == "score_entropy":
        losses = graph_of(model).loss(model(x_t, sigma_bar, mask), sigma_bar, x_t, x_0)
        losses = weight[:, None] * losses
    else:
        denoise = model.denoise_stacks if objective == "graded" else model.denoise
        log_q = denoise(x_t, sigma_bar, mask)
        losses = -log_q.gather(-1, x_0.expand(log_q.shape[:-1])[..., None])[..., 0]  # (…, B, L)
    if objective == "graded":
        losses = losses[0] + 0.3 * (losses[1] + losses[2])  # the judge, and both readers
    return masked_mean(losses, mask).mean()


class Objective(nn.Module):
    """The loss of a model as a module: what processes that share the work call."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        guesses = model.config.parametrization == "denoiser"  # else there is no guess to grade
        self.model, self.objective = model, config.objective if guesses else "score_entropy"
        model.gradient_checkpointing = config.gradient_checkpointing
        if config.torch_compile:
            model.logits = torch.compile(model.logits)

    def forward(self, *drawn: Tensor) -> Tensor:
        return training_loss(self.model, drawn, self.objective)


def build_optimizers(model: nn.Module, config: TrainingConfig) -> dict[str, Any]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        inside = p.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if inside and config.optimizer == "muon" else rest).append(p)
    kind, decay = adamw(config.use_8bit_optimizer), config.weight_decay
    found = {"adamw": kind(rest, config.learning_rate, config.betas, weight_decay=decay)}
    if matrices:
        found["muon"] = torch.optim.Muon(matrices, config.matrix_learning_rate, decay)
    return found


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
    model: nn.Module,
    x_0: Tensor,
    noise: Any,
    generator: torch.Generator,
    times: Any = proposal_times,
) -> Tensor:
    """One-sample estimates of the whole bound for windows (B, L), in nats per window: (B,)."""
    t, weight = (v.to(x_0.device) for v in times(len(x_0), noise, generator=generator))
    diffusion = weight * compute_loss(model, x_0, noise, t, generator=generator)
    first, vocab_size = noise.sigma_bar(torch.zeros_like(t)), model.config.vocab_size
    x_t = perturb_batch(x_0, first, vocab_size, None, generator, graph_of(model).sample_prior)
    x_t, which = x_t.unique(dim=0, return_inverse=True)  # almost all come through unchanged
    probs = reverse_probs(model, x_t, first[: len(x_t)], 0 * first[: len(x_t)])
    last = -probs[which].gather(-1, x_0[..., None]).log().mean((1, 2))
    return (
        diffusion + last + graph_of(model).prior_kl(noise.sigma_max, vocab_size).item()
    ) * x_0.shape[1]


def validation_bound(
    model: nn.Module, loader: DataLoader, noise: GeometricNoise, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    batches = islice(loader, math.ceil(max_windows / loader.batch_size))
    windows = torch.cat(list(batches))[:max_windows].long().split(loader.batch_size)
    nats = [window_nats(model, x_0.to(device), noise, generator) for x_0 in windows]
    per_window = torch.cat(nats).double().mean().item()
    characters = sum((x_0 != PAD_ID).sum().item() for x_0 in windows) / len(torch.cat(windows))
    return Bound(per_window, per_window / max(1, characters) / math.log(2))


def train_step(trainer: "Trainer", x_0: Tensor, stop: bool = False) -> tuple[float, bool]:
    """A step on the windows ``x_0``, uint8 (B, L); the loss, and if any process was told to stop."""
    config, engine = trainer.config, trainer.accelerator
    seed = hash((config.seed, trainer.step)) % 2**62
    torch.manual_seed(seed + engine.process_index)  # what dropout draws
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_noise(x_0.long(), config, trainer.model, generator)
    total = torch.tensor([0.0, stop], device=engine.device)
    for part in range(engine.process_index, trainer.parts, engine.num_processes):
        mine = [values[part :: trainer.parts].to(engine.device) for values in drawn]
        loss = trainer.objective(*mine) / config.gradient_accumulation_steps
        engine.backward(loss)
        total[0] += loss.detach()
    loss, stop = engine.reduce(total, "mean").tolist()
    _update(trainer, loss)
    return loss, stop > 0


def _update(trainer: "Trainer", loss: float) -> None:
    config, scaler = trainer.config, trainer.scaler
    for optimizer in trainer.optimizers.values():
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(trainer.model.parameters(), config.gradient_clip).item()
    if not (loss < 40 and (math.isfinite(norm) or scaler.is_enabled())):  # guessing takes log V
        found = f"at step {trainer.step} the loss is {loss:.4g}, its gradient {norm:.4g}"
        raise FloatingPointError(f"{found}: resume with a lower learning_rate")
    schedule = (trainer.step, trainer.total, config.warmup_steps, config.decay_fraction)
    peaks = {"adamw": config.learning_rate, "muon": config.matrix_learning_rate}
    for name, optimizer in trainer.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = peaks[name] * learning_rate_factor(*schedule)
        if math.isfinite(norm):  # both step or none, and then fp16 shrinks its scale
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    update_average(trainer.average, trainer.model, config.ema_decay, trainer.step)
    trainer.step += 1


@dataclass(eq=False, repr=False)
class Trainer:
    """Trains ``model`` on the batches of :func:`setup_dataloaders`."""

    model: nn.Module
    train_loader: DataLoader
    val_loader: DataLoader | None = None  # to measure the bound on
    config: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        config, self.step, self.best = self.config, 0, math.inf
        self.folder = Path(config.checkpoint_dir)
        engine = self.accelerator = make_accelerator(config.mixed_precision)
        self.parts = config.gradient_accumulation_steps * engine.num_processes
        if not (epoch := len(self.train_loader) // self.parts):
            raise ValueError(f"an epoch is shorter than a step, which takes {self.parts} batches")
        self.total = min(config.num_epochs * epoch, config.max_steps or math.inf)
        self.average = copy.deepcopy(self.model).to(engine.device).eval().requires_grad_(False)
        self.objective = engine.prepare(Objective(self.model, config))
        self.optimizers = build_optimizers(self.model, config)
        self.scaler = engine.scaler or torch.amp.GradScaler("cpu", enabled=False)

    def resume(self, path: str | Path) -> None:
        """Go on where the checkpoint ``path`` was written."""
        load_checkpoint(Path(path), self)

    def evaluate(self) -> Bound:
        """The validation bound of the averaged weights."""
        noise = graph_of(self.model).schedule(self.config.sigma_min, self.config.sigma_max)
        return validation_bound(self.average, self.val_loader, noise, self.config.eval_windows)

    def fit(self) -> Bound | None:
        """Train to the end; returns the last validation bound (in the first process)."""
        bound, stopped = None, False
        batches = batches_from(self.train_loader, self.parts, self.step)
        with Progress(self) as progress:
            while self.step < self.total and not stopped:
                loss, stopped = train_step(self, x_0 := next(batches), progress.stop)
                if self.accelerator.is_main_process:
                    bound = measure_and_save(self, stopped)
                    progress.note(loss, int((x_0 != PAD_ID).sum()), bound)
        self.accelerator.wait_for_everyone()
        if stopped:
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        return bound
