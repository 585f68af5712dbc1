"""Which choices of chapter 8 make a network learn faster? Each alone: equal steps, one seed.

Trains the network of `configs/model/small.yaml` again and again and prints the bound as a table. By
default on the stories of chapter 2; `--data` takes files of real text.
"""

import argparse
import time
from tempfile import TemporaryDirectory

import torch

from ddlm_core import (
    DiscreteDiffusionConfig,
    DiscreteDiffusionTransformer,
    Trainer,
    TrainingConfig,
    setup_dataloaders,
)

VARIANTS = {
    "as shipped": {},
    "score entropy in place of the guess": {"objective": "score_entropy"},
    "score entropy, times uniform in t": {"objective": "score_entropy", "noise_power": None},
    "AdamW for the matrices, too": {"optimizer": "adamw"},
    "half the learning rates": {"learning_rate": 0.0025, "matrix_learning_rate": 0.025},
    "no given spans": {"given_share": 0.0},
    "no decay of the learning rate": {"decay_fraction": 1e-6},
    "weights, not their average": {"ema_decay": 0.0},
    "float32": {"mixed_precision": "no"},
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", default="pocket-stories", help="source (default: pocket-stories)")
    p.add_argument("--val", help="text to validate on (default: a part of the source)")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--length", type=int, default=160, help="characters in a window")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", nargs="*", help="names of variants (default: all)")
    p.add_argument("--quick", action="store_true", help="8 steps: does it run?")
    return p


def run(args: argparse.Namespace, changes: dict) -> tuple[float, float, float]:
    """Nats a window, bits a character, and seconds of training."""
    with TemporaryDirectory() as folder:
        settings = {"learning_rate": 0.005, "matrix_learning_rate": 0.05} | changes
        config = TrainingConfig(
            dataset_name=args.data,
            context_length=args.length,
            batch_size=args.batch_size,
            num_epochs=1000,
            max_steps=args.steps,
            eval_every_steps=10**6,
            save_every_steps=10**6,
            save_every=1000,
            checkpoint_dir=folder,
            progress=False,
            seed=args.seed,
            **settings,
        )
        torch.manual_seed(args.seed)
        samples = 16 * args.steps if args.data == "pocket-stories" else None
        train, val, _, _ = setup_dataloaders(
            args.data, samples, 256, args.length, args.batch_size, val_dataset_name=args.val
        )
        network = DiscreteDiffusionConfig(block_size=args.length)
        trainer = Trainer(DiscreteDiffusionTransformer(network), train, val, config)
        start = time.perf_counter()
        bound = trainer.fit()
        return bound.nats_per_window, bound.bits_per_character, time.perf_counter() - start


def main() -> None:
    args = parser().parse_args()
    args.steps = 8 if args.quick else args.steps
    print(
        f"{args.data}, {args.steps} steps of {args.batch_size} x {args.length}, seed {args.seed}\n"
    )
    print("| variant | nats a window | bits a character | seconds |\n|---|---|---|---|")
    for name in args.only or VARIANTS:
        nats, bits, seconds = run(args, VARIANTS[name])
        print(f"| {name} | {nats:.1f} | {bits:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
