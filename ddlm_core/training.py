# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""Training."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddlm_core.bound import Bound, validation_bound
from ddlm_core.data import batches_from
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.objective import NoisyBatch, TrainingLoss, draw_step
from ddlm_core.optimizers import build_optimizers, default_lr_schedule, update_average
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.errors import UserError
from ddlm_core.support.hardware import autocast, compiled, make_accelerator, pick_precision
from ddlm_core.support.progress import Report, StepResult, StopSignals
from ddlm_core.support.runs import BEST, FINAL, RunFiles, check_fit, describe_run
from ddlm_core.tokenizer import PAD_ID

__all__ = ["TrainState", "update_weights", "plan_steps", "accumulate_gradients", "Trainer"]


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


def update_weights(
    state: TrainState, config: TrainingConfig, loss: float, rate_factor: float = 1.0
) -> None:
    """Finish a step whose gradients are there: move the weights, then their average, and count it.

    Raises:
        FloatingPointError: if the loss or its gradient says that the run has diverged; the weights
            are still those of the step before.
    """
    scaler = state.scaler
    peaks = {"adamw": config.learning_rate, "muon": config.matrix_learning_rate}
    rate_of = {"adamw": "learning_rate", "muon": "matrix_learning_rate"}
    for optimizer in state.optimizers.values():
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip).item()
    uniform = math.log(state.model.config.vocab_size) * (1 + 2 * config.auxiliary_loss_weight)
    if not (loss < 10 * uniform and (math.isfinite(norm) or scaler.is_enabled())):
        found = f"at step {state.step} the loss is {loss:.4g}, its gradient {norm:.4g}"
        rates = [f"{rate_of[name]} ({peaks[name]:g})" for name in state.optimizers]
        raise FloatingPointError(f"{found}: lower {' or '.join(rates)}")
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
    total_steps = config.num_epochs * epoch
    total_steps = min(total_steps, config.max_steps or total_steps)
    return micro_batches, total_steps, min(config.save_every_steps, config.save_every * epoch)


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
        self.loss_fn = compiled(loss_fn, device) if config.torch_compile else loss_fn
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
                self.files.save_weights(BEST, state)
        if at_end:
            self.files.save_weights(FINAL, state)
        if stopped or at_end or self.step % self.save_interval == 0:
            self.files.save(state)
        return bound
