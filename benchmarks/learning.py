"""Which choices make a network learn faster? Each alone, for the same seconds of training.

Every variant first times a few steps (a compiled one is compiled in them), then trains for as many
steps as fit into `--seconds`: so a variant that costs more a step gets fewer of them. Seconds are
those of the processor, so that other programs do not count. The figure is the bound on held-out
text, with the averaged weights. `--scale` trains three others: the recipe that is copied most, our
first prototype, and ours with a third of the prototype's time.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ddlm_core import (
    DiscreteDiffusionConfig,
    DiscreteDiffusionTransformer,
    Trainer,
    TrainingConfig,
    setup_dataloaders,
)
from ddlm_core import model as model_module
from ddlm_core.blocks import make_config
from ddlm_core.data import batches_from
from ddlm_core.loss import kappa
from ddlm_core.model import Modulation, modulate, neighbors, rope_angles


class Plain(DiscreteDiffusionTransformer):
    """A bidirectional stack of blocks: every position attends to all others and to itself."""

    def logits(self, input_ids: Tensor, sigma_bar: Tensor, mask: Any = None, *_: Any) -> Tensor:
        x = self.embedding(input_ids) + self.position_embedding[: input_ids.shape[1]]
        x = x if mask is None else x + mask[..., None] * self.condition_embedding
        cond, length = self.noise_embedding(sigma_bar), x.shape[1]
        angles = rope_angles(length, self.config.n_embd // self.config.n_head)
        for block in self.blocks:
            x = block(x, None, cond, angles, torch.ones(length, length, dtype=torch.bool))
        return self.head(modulate(x, *self.modulation(cond))).float()


class WithConvolution(DiscreteDiffusionTransformer):
    """Each stack starts from three letters, weighted channel by channel, in place of one."""

    def __init__(self, config: DiscreteDiffusionConfig) -> None:
        super().__init__(config)
        self.farther = nn.Parameter(torch.zeros(2, 2, config.n_embd))  # side, distance

    def logits(self, input_ids: Tensor, sigma_bar: Tensor, mask: Any = None, *_: Any) -> Tensor:
        def wide(x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            left, right = neighbors(x, places)
            for k in (1, 2):
                left = (
                    left
                    + self.farther[0, k - 1] * nn.functional.pad(x, (0, 0, k + 1, 0))[:, : -k - 1]
                )
                right = (
                    right
                    + self.farther[1, k - 1] * nn.functional.pad(x, (0, 0, 0, k + 1))[:, k + 1 :]
                )
            return left, right

        with patch.object(model_module, "neighbors", wide):
            return super().logits(input_ids, sigma_bar, mask)


class WithTally(DiscreteDiffusionTransformer):
    """Each letter says something by what it is and where; all but the own are added up."""

    def __init__(self, config: DiscreteDiffusionConfig) -> None:
        super().__init__(config)
        d = config.n_embd
        self.says = nn.Embedding(config.block_size * config.vocab_size, d)
        self.modulate = Modulation(config.cond_dim, d, 2)
        self.think = nn.Sequential(
            nn.Linear(d, 4 * d, False), nn.GELU(), nn.Linear(4 * d, d, False)
        )
        nn.init.zeros_(self.says.weight)

    def logits(self, input_ids: Tensor, sigma_bar: Tensor, mask: Any = None, *_: Any) -> Tensor:
        said = self.says(input_ids + torch.arange(input_ids.shape[1]) * self.config.vocab_size)
        shift, scale = self.modulate(self.noise_embedding(sigma_bar))
        tally = self.think((said.sum(1, keepdim=True) - said) * (1 + scale) + shift)

        def told(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
            return tuple(side + tally for side in neighbors(x, places))

        with patch.object(model_module, "neighbors", told):
            return super().logits(input_ids, sigma_bar, mask)


class Same(nn.RMSNorm):
    """No norm at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Gated(nn.Module):
    """SwiGLU (Shazeer 2020), two thirds as wide, so with as many weights."""

    def __init__(self, d: int) -> None:
        super().__init__()
        hidden = 8 * d // 3
        self.up, self.down = nn.Linear(d, 2 * hidden, False), nn.Linear(hidden, d, False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(nn.functional.silu(gate) * value)


def no_qk_norm(model: nn.Module) -> None:
    for block in model.blocks:
        size = block.attention.query_norm.normalized_shape
        block.attention.query_norm, block.attention.key_norm = Same(size), Same(size)


def gated(model: nn.Module) -> None:
    for block in model.blocks:
        block.feed_forward = Gated(model.config.n_embd)


def tied(model: nn.Module) -> None:
    model.head.weight = model.embedding.weight


def within_16(block: nn.Module, args: tuple) -> tuple:
    x, context, cond, angles, attn_mask = args
    place = torch.arange(x.shape[1])
    return x, context, cond, angles, attn_mask & ((place[:, None] - place).abs() < 16)


def local_stacks(model: nn.Module) -> None:
    """The first block of each stack attends to 16 letters only."""
    depth = (len(model.blocks) - 1) // 2
    for block in (model.blocks[0], model.blocks[depth]):
        block.register_forward_pre_hook(within_16)


class Ramp:
    """Batches of the loader, cut in half (windows or letters) in the first third of the run."""

    def __init__(self, loader: Any, steps: int, dim: int) -> None:
        self.loader, self.steps, self.dim = loader, steps, dim
        self.sampler, self.batch_size, self.taken = loader.sampler, loader.batch_size, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            self.taken += 1
            early = self.taken <= self.steps / 3
            yield batch.chunk(2, self.dim)[0] if early else batch


def cosine(step: int, total: int) -> float:
    return min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / total)) / 2


def constant(*_: int) -> float:
    return 1.0


def buggy_loss(log_score: Tensor, sigma_bar: Tensor, x_t: Tensor, x_0: Tensor) -> Tensor:
    """Score entropy with the bug of chapter 5, as several tutorials have it."""
    vocab_size = log_score.shape[-1]
    stay = 1 + kappa(sigma_bar, vocab_size)[..., None]  # the ratio at x_0, if it moved
    at_x_t, at_x_0 = (log_score.gather(-1, x[..., None])[..., 0] for x in (x_t, x_0))
    positive = (log_score.exp().sum(-1) - at_x_t.exp()) / (vocab_size - 1)
    middle = (log_score.sum(-1) - at_x_t) / (vocab_size - 1)
    middle_moved = stay * at_x_0 / (vocab_size - 1) + middle * (vocab_size - 2) / (vocab_size - 1)
    constant = (-stay.log() - 1) / stay
    constant_moved = (stay * (stay.log() - 1) - (vocab_size - 2)) / (vocab_size - 1)
    unmoved = positive - middle / stay + constant
    return torch.where(x_t == x_0, unmoved, positive - middle_moved + constant_moved)


class CopiedLoss(nn.Module):
    """In place of ``TrainingLoss``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *drawn: Tensor) -> Tensor:
        x_0, x_t, _, sigma_bar, weight = drawn
        losses = buggy_loss(self.model(x_t, sigma_bar), sigma_bar, x_t, x_0)
        return (weight[:, None] * losses).mean()


class Variant(NamedTuple):
    """What differs from the recipe that is shipped."""

    settings: dict[str, Any] = {}  # of TrainingConfig
    network: dict[str, Any] = {}  # of DiscreteDiffusionConfig
    change: Callable[[nn.Module], None] | None = None  # to the finished network
    patches: tuple[tuple[Any, str, Any], ...] = ()  # module, name, what stands there instead
    kind: type[DiscreteDiffusionTransformer] = DiscreteDiffusionTransformer
    lr_schedule: Callable[[int, int], float] | None = None  # in place of the trainer's own
    loss_fn: Callable[[nn.Module], nn.Module] | None = None
    ramp: int | None = None  # the dimension to cut in half at first


OLD = {"optimizer": "adamw", "objective": "score_entropy", "condition_share": 0.0}
SCALE = {
    "copied recipe": Variant(
        OLD | {"learning_rate": 1e-4, "noise_power": None, "ema_decay": 0.0},
        {"n_layer": 4, "conv_size": 0, "parametrization": "score"},
        kind=Plain,
        lr_schedule=constant,
        loss_fn=CopiedLoss,
    ),
    "prototype": Variant(
        OLD | {"learning_rate": 2e-3, "ema_decay": 0.99},
        {"n_layer": 4, "conv_size": 0},
        kind=Plain,
        lr_schedule=cosine,
    ),
}
VARIANTS = {
    "as shipped": Variant(),
    # what is learned
    "score entropy in place of cross-entropy": Variant({"objective": "score_entropy"}),
    "score entropy, times uniform in t": Variant(
        {"objective": "score_entropy", "noise_power": None}
    ),
    "bidirectional stack, score entropy": Variant(
        {"objective": "score_entropy"}, {"conv_size": 0}, kind=Plain
    ),
    "auxiliary loss, weight 0.3": Variant({"auxiliary_loss_weight": 0.3}),
    "no conditioning spans": Variant({"condition_share": 0.0}),
    "more low noise: power 2": Variant({"noise_power": 2.0}),
    "more high noise: power 0.5": Variant({"noise_power": 0.5}),
    # how
    "AdamW for the matrices, too": Variant({"optimizer": "adamw"}),
    "learning rates times 2": Variant({"learning_rate": 0.01, "matrix_learning_rate": 0.1}),
    "learning rates times 1/2": Variant({"learning_rate": 0.0025, "matrix_learning_rate": 0.025}),
    "weight decay 0.1": Variant({"weight_decay": 0.1}),
    "no decay of the learning rate": Variant({"decay_fraction": 1e-6}),
    "decay from the start": Variant({"decay_fraction": 1.0}),
    "cosine decay": Variant(lr_schedule=cosine),
    "weights, not their average": Variant({"ema_decay": 0.0}),
    "batch half as large": Variant({"batch_size": 0.5}),
    "batch twice as large": Variant({"batch_size": 2}),
    "batch ramp": Variant(ramp=0),
    "length ramp": Variant(ramp=1),
    "float32": Variant({"mixed_precision": "no"}),
    "torch.compile": Variant({"torch_compile": True}),
    # the network
    "no QK-norm": Variant(change=no_qk_norm),
    "RMSNorm in place of LayerNorm": Variant(
        patches=(
            (
                model_module,
                "modulate",
                lambda x, shift, scale: (
                    nn.functional.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift
                ),
            ),
        )
    ),
    "no short convolution": Variant(network={"conv_size": 0}),
    "no rotary positions": Variant(patches=((model_module, "apply_rope", lambda x, angles: x),)),
    "gated feed-forward (SwiGLU)": Variant(change=gated),
    "tied embedding and head": Variant(change=tied),
    "wide: 3 blocks of 184": Variant(network={"n_layer": 3, "n_embd": 184}),
    "deep: 12 blocks of 88": Variant(network={"n_layer": 12, "n_embd": 88}),
    "first blocks attend to 16 letters": Variant(change=local_stacks),
    "stacks start from 3 letters": Variant(kind=WithConvolution),
    "a tally of all other letters": Variant(kind=WithTally),
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", default="pocket-stories", help="source (default: pocket-stories)")
    p.add_argument("--val", help="text to validate on (default: a part of the source)")
    p.add_argument("--seconds", type=float, default=90, help="of training a variant (default: 90)")
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--length", type=int, help="characters in a window (default: 160, text: 128)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--only", nargs="*", help="parts of the names of variants (default: all)")
    p.add_argument(
        "--scale", action="store_true", help="the three runs that set the scale, instead"
    )
    p.add_argument("--steps", type=int, default=800, help="of the prototype with --scale")
    p.add_argument("--output", type=Path, help="add the rows to this JSON file")
    p.add_argument("--quick", action="store_true", help="three seconds each: does it run?")
    return p


def make_trainer(args: argparse.Namespace, variant: Variant, seed: int, folder: str) -> Trainer:
    settings = {"learning_rate": 0.005, "matrix_learning_rate": 0.05} | variant.settings
    settings["batch_size"] = int(args.batch_size * settings.get("batch_size", 1))
    config = TrainingConfig(
        dataset_name=args.data,
        context_length=args.length,
        num_epochs=10_000,
        eval_every_steps=10**9,
        save_every_steps=10**9,
        save_every=10**9,
        eval_windows=32 if args.quick else 512,
        checkpoint_dir=folder,
        progress=False,
        seed=seed,
        **settings,
    )
    torch.manual_seed(seed)
    samples = 50_000 if args.data == "pocket-stories" else None
    train, val, _, _ = setup_dataloaders(
        args.data,
        train_samples=samples,
        val_samples=512,
        context_length=args.length,
        batch_size=config.batch_size,
        val_dataset_name=args.val,
    )
    model = variant.kind(make_config(block_size=args.length, **variant.network))
    if variant.change:
        variant.change(model)
    loss_fn = variant.loss_fn(model) if variant.loss_fn else None
    return Trainer(model, train, val, config, loss_fn=loss_fn, lr_schedule=variant.lr_schedule)


def timed(trainer: Trainer, steps: int) -> float:
    """Seconds of the next steps, those of all threads over their number; nothing is saved."""
    batches = batches_from(trainer.train_loader, trainer.micro_batches, trainer.step)
    start = time.process_time()
    for _ in range(steps):
        trainer.train_step(next(batches))
    return (time.process_time() - start) / torch.get_num_threads()


def run(args: argparse.Namespace, name: str, variant: Variant, seed: int, steps: int = 0) -> dict:
    """Train for ``args.seconds``, or for so many steps; the row of the table."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        for where in variant.patches:
            stack.enter_context(patch.object(*where))
        if not steps:  # a trainer of its own tells how many steps fit
            trial = make_trainer(args, variant, seed, folder)
            timed(trial, 2)  # compiles
            pilot = 1 if args.quick else 10
            steps = max(4, round(args.seconds / (timed(trial, pilot) / pilot)))
        trainer = make_trainer(args, variant, seed, folder)
        trainer.total_steps = steps
        if variant.ramp is not None:  # the cut third takes half as long
            trainer.total_steps = round(steps * 6 / 5)
            trainer.train_loader = Ramp(trainer.train_loader, trainer.total_steps, variant.ramp)
        seconds = timed(trainer, trainer.total_steps)
        bound = trainer.evaluate()
        nats = bound.nats_per_window
        return {
            "variant": name,
            "seed": seed,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "batch": trainer.config.batch_size,
            "steps": trainer.total_steps,
            "seconds": round(seconds, 1),
            "nats_per_window": round(nats, 2),
            "nats_per_character": round(bound.bits_per_character * math.log(2), 4),
            "bits_per_character": round(bound.bits_per_character, 4),
        }


def line(row: dict) -> str:
    """A row of the Markdown table."""
    return (
        f"| {row['variant']} | {row['seed']} | {row['parameters'] / 1e6:.2f} M | {row['steps']} × "
        f"{row['batch']} | {row['seconds']:.0f} | {row['nats_per_window']:.1f} | "
        f"{row['nats_per_character']:.3f} | {row['bits_per_character']:.3f} |"
    )


def scale_runs(args: argparse.Namespace) -> Iterator[dict]:
    """The copied recipe and the prototype at 800 steps of 32; ours with a third of the time."""
    args.batch_size, steps = (4, 6) if args.quick else (32, args.steps)
    for name, variant in SCALE.items():
        yield (row := run(args, name, variant, args.seeds[0], steps))
    args.seconds, args.batch_size = row["seconds"] / 3, args.batch_size // 2
    yield run(args, "as shipped, a third of the time", VARIANTS["as shipped"], args.seeds[0])


def main() -> None:
    args = parser().parse_args()
    args.length = args.length or (160 if args.data == "pocket-stories" else 128)
    args.seconds = 3 if args.quick else args.seconds
    where = f"{Path(args.data).name}, windows of {args.length}"
    print(f"{where}, {args.seconds:.0f} s a run, {torch.get_num_threads()} threads\n")
    print("| variant | seed | weights | steps | seconds | nats per window | nats per char | bits |")
    print("|---|---|---|---|---|---|---|---|")
    chosen = args.only or [""]
    names = [name for name in VARIANTS if any(part in name for part in chosen)]
    pairs = ((name, seed) for name in names for seed in args.seeds)
    each = (run(args, name, VARIANTS[name], seed) for name, seed in pairs)
    for row in scale_runs(args) if args.scale else each:
        print(line(row), flush=True)
        if args.output:
            stored = json.loads(args.output.read_text()) if args.output.exists() else []
            args.output.write_text(
                json.dumps([*stored, row | {"data": Path(args.data).name}], indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
