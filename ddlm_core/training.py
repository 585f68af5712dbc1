# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Training."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddlm_core.data import batches_from
from ddlm_core.forward import perturb_batch
from ddlm_core.loss import compute_loss, graph_of, low_discrepancy_times, masked_mean
from ddlm_core.model import DiscreteDiffusionConfig
from ddlm_core.noise import NoiseSchedule, resample_probability
from ddlm_core.sampler import reverse_probs
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields, checked
from ddlm_core.support.hardware import adamw, autocast, make_accelerator, pick_precision
from ddlm_core.support.presets import compose_preset
from ddlm_core.support.progress import Report, StepResult, StopSignals
from ddlm_core.support.runs import RunFiles, check_fit, describe_run
from ddlm_core.support.seeds import derive_seed
from ddlm_core.tokenizer import PAD_ID

__all__ = [
    "Count",
    "CountOrNone",
    "Natural",
    "Positive",
    "PositiveOrNone",
    "Share",
    "Beta",
    "TrainingConfig",
    "every_key",
    "load_preset",
    "proposal_times",
    "draw_condition",
    "NoisyBatch",
    "draw_noise",
    "training_loss",
    "TrainingLoss",
    "build_optimizers",
    "learning_rate_factor",
    "default_lr_schedule",
    "update_average",
    "Bound",
    "window_nats",
    "validation_bound",
    "TrainState",
    "update_weights",
    "plan_steps",
    "draw_step",
    "accumulate_gradients",
    "Trainer",
]

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


def draw_condition(shape: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """The condition mask, bool (B, L), true = given: spans between four cuts, in a ``share`` of the rows."""
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


class NoisyBatch(NamedTuple):
    """Windows with all that is random in a step on them."""

    x_0: Tensor  # int64 (B, L)
    x_t: Tensor  # int64 (B, L)
    condition_mask: Tensor  # bool (B, L), true = given
    sigma_bar: Tensor  # float32 (B,)
    weight: Tensor  # float32 (B,), σ(t) dt/du


def draw_noise(
    x_0: Tensor, config: TrainingConfig, model: nn.Module, generator: torch.Generator
) -> NoisyBatch:
    """Draw all that is random in a step on windows x_0, int64 (B, L), by the noise of the network."""
    noise, graph = model.config.noise, graph_of(model)
    t, weight = proposal_times(len(x_0), noise, config.noise_power, config.sampling_eps, generator)
    sigma_bar, sigma = noise(t)
    mask = draw_condition(tuple(x_0.shape), config.condition_share, generator)
    vocab_size = model.config.vocab_size
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, mask, generator, graph.sample_prior)
    return NoisyBatch(x_0, x_t, mask, sigma_bar, weight * sigma)


def training_loss(
    model: nn.Module,
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
        model: nn.Module,
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


def build_optimizers(model: nn.Module, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
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


def learning_rate_factor(
    step: int, total_steps: int, *, warmup_steps: int, decay_fraction: float
) -> float:
    """Share of the peak learning rate in a step: a linear rise, a plateau, a linear fall to 0."""
    fall = min(1.0, (total_steps - step) / max(1.0, decay_fraction * total_steps))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * max(0.0, fall)


def default_lr_schedule(config: TrainingConfig) -> Callable[[int, int], float]:
    """:func:`learning_rate_factor` as a function of the step and the number of steps."""
    rates = {"warmup_steps": config.warmup_steps, "decay_fraction": config.decay_fraction}
    return partial(learning_rate_factor, **rates)


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
    bits_per_character: float  # padding is no character


@torch.inference_mode()
def window_nats(
    model: nn.Module,
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


def validation_bound(
    model: nn.Module, loader: DataLoader, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    batches = islice(loader, math.ceil(max_windows / loader.batch_size))
    windows = torch.cat(list(batches))[:max_windows].long().split(loader.batch_size)
    noise = model.config.noise
    nats = [window_nats(model, x_0.to(device), noise, generator) for x_0 in windows]
    per_window = torch.cat(nats).double().mean().item()
    characters = sum((x_0 != PAD_ID).sum().item() for x_0 in windows) / len(torch.cat(windows))
    return Bound(per_window, per_window / max(1, characters) / math.log(2))


class TrainState:
    """All that changes during a run of a network: what a checkpoint holds."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, scaler: torch.amp.GradScaler
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


def plan_steps(config: TrainingConfig, batches: int, processes: int) -> tuple[int, int, int]:
    """Micro-batches in a step, steps of the run, steps between two checkpoints; UserError: none."""
    micro_batches = config.gradient_accumulation_steps * processes
    if not (epoch := batches // micro_batches):
        raise UserError(f"an epoch is shorter than a step, which takes {micro_batches} batches")
    total_steps = min(config.num_epochs * epoch, config.max_steps or math.inf)
    return micro_batches, total_steps, min(config.save_every_steps, config.save_every * epoch)


def draw_step(
    x_0: Tensor, config: TrainingConfig, model: nn.Module, step: int, process: int = 0
) -> NoisyBatch:
    """The noise of a step on windows x_0, the same in every process; it also seeds the dropout."""
    torch.manual_seed(derive_seed(config.seed, "dropout", step, process))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "noise", step))
    return draw_noise(x_0.long(), config, model, generator)


def accumulate_gradients(
    loss_fn: nn.Module,
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
        model: nn.Module,
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
        step, process = self.step, self.accelerator.process_index
        drawn = draw_step(x_0, self.config, self.model, step, process)
        how = (self.micro_batches, self.accelerator, self.state.scaler, self.precision)
        loss = accumulate_gradients(self.loss_fn, drawn, *how)
        both = torch.stack([loss, torch.full_like(loss, stop)])
        loss, stop = self.accelerator.reduce(both, "mean").tolist()
        update_weights(self.state, self.config, loss, self.lr_schedule(step, self.total_steps))
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
                if main:
                    bound = self._measure_and_save(stopped)
                    result = StepResult(self.step, loss, int((x_0 != PAD_ID).sum()), bound)
                    for tell in (report, *self.callbacks):
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
