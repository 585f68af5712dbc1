"""What a run is, and the files that it leaves: how a stop in the middle costs nothing."""

import json
import math
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import DataLoader

from ddlm_core.support.checkpoints import (
    LATEST,
    differences,
    find_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from ddlm_core.support.errors import UserError, error_context
from ddlm_core.support.files import atomic_write
from ddlm_core.support.progress import CURVE, LOG
from ddlm_core.support.store import fingerprint

# what may differ between a run and its continuation
HARMLESS = frozenset(
    [
        "num_workers",
        "batch_size",
        "gradient_accumulation_steps",
        "num_epochs",
        "max_steps",
        "learning_rate",
        "matrix_learning_rate",
        "gradient_clip",
        "mixed_precision",
        "torch_compile",
        "gradient_checkpointing",
        "sigma_min",
        "sigma_max",
        "checkpoint_dir",
        "save_every",
        "save_every_steps",
        "eval_every_steps",
        "log_every_steps",
        "progress",
        "model",
        "vocabulary",
        "init_from",
    ]  # windows_per_step and the network are compared instead of some of them
)
SAME_TEXT = frozenset(
    [
        "dataset_name",
        "val_dataset_name",
        "dataset_config",
        "text_column",
        "encoding",
        "separator",
        "train_samples",
        "val_samples",
    ]
)
BEST, FINAL = "best_model_hf", "final_model_hf"
WEIGHTS = ("checkpoint_*.pth*", f"{BEST}*", f"{FINAL}*")  # what would be missed
LEFT = (*WEIGHTS, LOG, CURVE, "tensorboard")  # all that a run leaves


class Network(Protocol):
    """A network that says in ``config`` what it is, such as that of chapter 6."""

    config: Any


class State(Protocol):
    """What changes during a run, such as ``TrainState`` of chapter 8."""

    step: int
    best: float  # lowest bound in nats per window
    average: Any  # a network with ``config`` and ``save_pretrained``

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from them; if they do not fit, a UserError, and nothing has changed."""


def check_fit(config: Any, model: Network, loader: DataLoader) -> None:
    """Raise a UserError if settings or data mean other noise or other tokens than the network."""
    for name in ("sigma_min", "sigma_max"):
        wanted, has = getattr(config, name), getattr(model.config, name)
        if wanted is not None and wanted != has:
            raise UserError(
                f"{name} is {wanted:g} in the settings, {has:g} in the network: name one"
            )
    vocab = getattr(loader.dataset, "vocab", None)
    if vocab is not None and vocab != model.config.vocab[: len(vocab)]:  # a mask state may follow
        hint = "setup_dataloaders(..., tokenizer=model.config.tokenizer)"
        raise UserError(f"the data have another vocabulary than the network: {hint}")


def describe_run(
    config: Any,
    model: Network,
    loaders: tuple[DataLoader, DataLoader | None],
    micro_batches: int,
) -> dict[str, Any]:
    """What a run is trained on, as plain values: two runs that differ in it are not the same run."""
    assert loaders[0].batch_size  # None would mean windows, not batches
    settings = asdict(config) | {"windows_per_step": micro_batches * loaders[0].batch_size}
    network = {f"model.{name}": value for name, value in asdict(model.config).items()}
    settings |= {k: v for k, v in network.items() if k not in ("model.step", "model.ema")}
    for name, loader in zip(("training_text", "validation_text"), loaders):
        tokens = None if loader is None else getattr(loader.dataset, "tokens", None)
        settings[name] = None if tokens is None else fingerprint(tokens)
    return settings


def check_same_run(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a UserError that names what differs between two runs of :func:`describe_run`."""
    texts = ("training_text", "validation_text")
    same_text = all(before.get(name) == now[name] for name in texts)
    if found := differences(before, now, HARMLESS | SAME_TEXT if same_text else HARMLESS):
        hint = "go on with its settings, or start anew (init_from= begins with given weights)"
        raise UserError(f"the checkpoint is of another run ({'; '.join(found)}): {hint}")


class RunFiles:
    """What a run leaves in its folder: checkpoints, and the averaged weights."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        """``run`` is what :func:`describe_run` says."""
        self.folder, self.run = folder, run
        self.changed: list[str] = []  # settings that differ from those of the checkpoint

    def save(self, state: State) -> None:
        """Write the latest checkpoint; the one before it is kept."""
        save_checkpoint(self.folder / LATEST, state.state_dict() | {"run": self.run})

    def save_weights(self, name: str, state: State) -> None:
        """Write the averaged weights as a folder that ``from_pretrained`` loads."""
        config = asdict(replace(state.average.config, step=state.step, ema=True))
        save = partial(state.average.save_pretrained, config=config)
        atomic_write(self.folder / name, save)

    def step_of(self, name: str) -> int | None:
        """After how many steps the weights in a folder were written; None if there are none."""
        with suppress(OSError, ValueError, KeyError):
            return json.loads((self.folder / name / "config.json").read_text("utf-8"))["step"]
        return None

    def load(self, path: Path, state: State, total_steps: int) -> Path:
        """Put a checkpoint of the same run into ``state``; which file it was read from.

        Raises:
            UserError: if it is damaged or of another run, or if there is nothing left to train and no
                final model; then nothing has changed.
        """
        content, source = find_checkpoint(path)
        if missing := {"run", "step"} - content.keys():
            raise UserError(f"{source} is no checkpoint of ddlm-train: it has no {sorted(missing)}")
        check_same_run(content["run"], self.run)
        step = content["step"]
        finished = self._is_ours(source) and self.step_of(FINAL) == total_steps
        if step > total_steps or (step == total_steps and not finished):
            found = f"the checkpoint is at step {step}, this run would end at step {total_steps}"
            raise UserError(f"{found}: raise max_steps or num_epochs")
        state.load_state_dict(content)
        self.changed = differences(content["run"], self.run, frozenset(["model"]))
        return source

    def set_aside(self, path: Path) -> None:
        """Keep a damaged checkpoint of this folder as ``*.damaged``; those of other folders stay."""
        if path.exists() and self._is_ours(path):
            path.replace(path.with_name(path.name + ".damaged"))

    def _is_ours(self, path: Path) -> bool:
        return path.parent.resolve() == self.folder.resolve()

    def take_folder(self, state: State, resumed: Path | None = None) -> str:
        """Make the folder that of this run alone: then no resume can go on with another one.

        What another run has left moves to ``earlier-N`` in it. A run that goes on from a checkpoint of
        another folder brings its log and its best model.

        Returns:
            Whose files were moved, and where to; empty if there were none.
        """
        if resumed is not None and self._is_ours(resumed):
            return ""
        with error_context(f"cannot use the folder {self.folder}", "name another checkpoint_dir"):
            self.folder.mkdir(parents=True, exist_ok=True)
            told = self._move_earlier_run()
            if resumed is not None:
                self._bring(resumed.parent, state)
        return told

    def _move_earlier_run(self) -> str:
        if not any(path for name in WEIGHTS for path in self.folder.glob(name)):
            return ""
        names = (self.folder / f"earlier-{number}" for number in range(1, 10**9))
        place = next(path for path in names if not path.exists())
        whose = "an earlier run"
        with suppress(UserError, OSError, KeyError):
            content = read_checkpoint(self.folder / LATEST)
            whose = f"a run of {content['step']:,} steps on {content['run']['dataset_name']}"
        place.mkdir()
        for name in LEFT:
            for path in self.folder.glob(name):
                path.rename(place / path.name)
        return f"{self.folder} had the files of {whose}: they are in {place} now"

    def _bring(self, source: Path, state: State) -> None:
        if (source / LOG).exists():
            shutil.copyfile(source / LOG, self.folder / LOG)
        if (source / BEST).is_dir():
            atomic_write(self.folder / BEST, partial(shutil.copytree, source / BEST))
        else:
            state.best = math.inf  # the best weights are not at hand: the next ones count
