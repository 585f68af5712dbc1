# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
# ruff: noqa: E501
"""Training: settings."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from ddlm_core.model import DiscreteDiffusionConfig
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields, checked
from ddlm_core.support.presets import compose_preset

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
    text_column: str | None = None  # None: "text", or the only one that holds text
    dataset_config: str | None = None  # of a data set with several configurations
    encoding: str = "utf-8"  # of files without a byte order mark
    separator: str = "<|endoftext|>"  # ends a story inside running text; empty: nothing does
    vocabulary: str | list[str] = "ascii106"  # auto: the characters of the text
    init_from: str | None = None  # a model whose weights it begins with
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
    """Every key of a configuration with its default; no block_size is the context_length, no block_length one block."""
    network = asdict(DiscreteDiffusionConfig())
    sizes = ("n_layer", "n_head", "n_embd", "cond_dim", "dropout", "bias", "conv_size")
    model = {"block_size": None, "block_length": None} | {name: network[name] for name in sizes}
    return asdict(TrainingConfig()) | {"model": model}


def load_preset(name: str, **changes: Any) -> TrainingConfig:
    """The settings of ``ddlm-train --config-name NAME``, with changes; UserError: no such preset."""
    settings = compose_preset(name, every_key()) | changes
    settings["model"] = {k: v for k, v in settings["model"].items() if v is not None}
    return TrainingConfig(**settings)
