"""A left-to-right model beside the diffusion model: same network, data, optimizers and seconds.

Left to right, all blocks of chapter 6's network read from the left (`left_to_right.py`), and the
figure is exact; of diffusion it is a bound. Each run trains for `--seconds` of a core
(`by_the_clock.py`), is measured on the way on the same held-out windows, and writes in the end:
flawless stories, and what a text costs. `--diffusion bundled` takes the bundled model in place of
a run; its curve is that of its log, and its seconds are steps times seconds per step, measured here.
Killed and started again, the same command goes on where it was. Writes a file for chapter 9.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from by_the_clock import (
    make_trainer,
    planned,
    points_of,
    say,
    seconds_per_step,
    train_by_clock,
    write_json,
)
from left_to_right import check_causal, exact_nats
from sampling import fresh_windows
from torch import Tensor

from ddlm_core import DiffusionPipeline
from ddlm_core.apps.train import text_settings
from ddlm_core.data import POCKET, setup_dataloaders
from ddlm_core.evaluation import Estimate, bits_per_character, estimate_bound, mean_of
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.pipeline import load_model
from ddlm_core.settings import TrainingConfig, load_preset
from ddlm_core.support.runs import BEST, FINAL

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/autoregressive.json"  # package data
KINDS = ("left-to-right", "diffusion")
TINY = {"n_layer": 3, "n_head": 2, "n_embd": 16, "cond_dim": 8}  # of --quick


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", default=POCKET, help="source (default: pocket-stories)")
    p.add_argument("--val", help="text to measure on (default: a part of the source)")
    p.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS, help="(default: both)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--seconds", type=float, default=3000, help="of a core for a run (3000)")
    p.add_argument("--steps", type=int, help="so many steps, whatever they take")
    p.add_argument("--batch-size", type=int, help="windows in a step (default: the preset's)")
    p.add_argument("--compile", action="store_true", help="torch.compile; compiling is not counted")
    p.add_argument("--points", type=int, default=12, help="of the learning curve (default: 12)")
    p.add_argument("--samples", type=int, default=200, help="texts to write (default: 200)")
    p.add_argument("--windows", type=int, default=512, help="to measure on (default: 512)")
    p.add_argument(
        "--diffusion",
        choices=("bundled", "train"),
        default="bundled",
        help="its partner: the bundled model (default), or trained here by the same loop",
    )
    p.add_argument("--folder", type=Path, default=Path("checkpoints/autoregressive"))
    p.add_argument("--output", type=Path, help="JSON file (default: that of the package)")
    p.add_argument(
        "--quick", action="store_true", help="tiny networks, two runs: do all paths run?"
    )
    return p


def settings(args: argparse.Namespace, kind: str, seed: int, folder: Path) -> TrainingConfig:
    """Those of the preset, with what the command line says."""
    chosen: dict[str, Any] = {"dataset_name": args.data, "val_dataset_name": args.val}
    chosen |= {"batch_size": args.batch_size} if args.batch_size else {}
    if args.quick:
        chosen |= {"model": TINY, "train_samples": 500, "val_samples": 16, "batch_size": 4}
    config = load_preset("pocket" if args.data == POCKET else "cpu", **chosen)
    return replace(
        config,
        seed=seed,
        num_epochs=10_000,
        torch_compile=config.torch_compile or args.compile,
        checkpoint_dir=str(folder),
        progress=False,
    )


def held_out(args: argparse.Namespace, config: TrainingConfig) -> Tensor:
    """Windows that no run has seen, int64 (N, L): stories, or the first of the text."""
    if args.data == POCKET:
        tokenizer = DiffusionPipeline.from_pretrained(device="cpu").tokenizer
        return fresh_windows(args.windows, tokenizer, config.context_length)
    val = setup_dataloaders(**text_settings(config)).val
    return torch.cat(list(val))[: args.windows].long()


def measured(
    model: DiscreteDiffusionTransformer, windows: Tensor, causal: bool, repeats: int
) -> Estimate:
    """Nats per story, or bits per character of a text; exact, or a bound."""
    if causal:
        nats = mean_of(exact_nats(model, windows))
    else:
        nats = estimate_bound(model, windows, repeats, of="source")
    return nats if model.config.padded else bits_per_character(nats, windows)


def rounded(estimate: Estimate) -> list[float]:
    return [round(value, 4) for value in estimate]


def trained(args: argparse.Namespace, kind: str, seed: int, windows: Tensor) -> dict[str, Any]:
    """The row of a run; in its folder it grows point by point."""
    folder, causal = args.folder / name_of(args, kind, seed), kind == "left-to-right"
    config = settings(args, kind, seed, folder)
    wanted = {"steps": args.steps} if args.steps else {"seconds": args.seconds}
    wanted |= {"batch": config.batch_size, "compiled": config.torch_compile}
    plan = planned(
        folder, wanted, lambda: seconds_per_step(config, causal, 1 if args.quick else 20)
    )
    say(f"{folder.name}: {plan['steps']:,} steps of {plan['seconds_per_step']:.3f} s by the pilot")
    trainer = make_trainer(replace(config, max_steps=plan["steps"]), causal)
    row: dict[str, Any] = {"data": data_name(args), "kind": kind, "seed": seed}
    row |= {"steps": plan["steps"], "batch": config.batch_size, "compiled": plan["compiled"]}
    row |= {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    path = folder / "row.json"
    if path.is_file():  # what was measured of the finished run is kept
        row = json.loads(path.read_text(encoding="utf-8")) | row

    def tell(clock: dict[str, Any]) -> None:
        row.update(seconds=round(clock["seconds"], 1), curve=clock["curve"])
        write_json(path, row)

    def value(model: DiscreteDiffusionTransformer, at_end: bool) -> Estimate:
        return measured(model, windows, causal, 8 if at_end else 2)

    train_by_clock(trainer, points_of(plan["steps"], args.points), value, tell)
    model, best = (load_model(folder / part) for part in (FINAL, BEST))
    if causal:
        check_causal(model, config.context_length)
    row[unit(args)] = rounded(value(model, True))
    row["best"] = {"steps": best.config.step, unit(args): rounded(value(best, True))}
    write_json(path, row)
    return row


def data_name(args: argparse.Namespace) -> str:
    return POCKET if args.data == POCKET else "TinyStories"


def unit(args: argparse.Namespace) -> str:
    return "nats" if args.data == POCKET else "bits"


def name_of(args: argparse.Namespace, kind: str, seed: int) -> str:
    return f"{data_name(args)}-{kind}-{seed}"


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind and seed."""
    windows = held_out(args, settings(args, KINDS[0], 0, args.folder))
    rows = []
    for seed in args.seeds:
        for kind in args.kind:
            if kind == "left-to-right" or args.diffusion == "train":
                rows.append(trained(args, kind, seed, windows))
                say(rows[-1])
    return rows


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(1)  # then seconds of the processor are those of a core
    if args.quick:
        args.seconds, args.samples, args.windows, args.points = 3, 4, 8, 3
    if not args.quick:
        run_all(args)
        return
    with TemporaryDirectory() as folder:
        args.folder = Path(folder)
        run_all(args)


if __name__ == "__main__":
    main()
