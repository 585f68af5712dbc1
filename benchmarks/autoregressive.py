"""A left-to-right model beside the diffusion model: same network, data, optimizers and seconds.

Left to right, all blocks of chapter 6's network read from the left (`left_to_right.py`), and the
figure is exact; of diffusion it is a bound. Each run trains for as many seconds of a core, compiling
aside, and is measured on the way on the same held-out windows (`by_the_clock.py`). Then it writes
(`writing.py`). `--diffusion bundled` takes the bundled model in place of a run: its curve is that
of its log, and its seconds are steps times the seconds of a step here: the budget of the others,
if `--seconds` or `--steps` do not say another.

Killed and started again, the same command goes on where it was. The `best` point is chosen on the
windows it is measured on. Rows go to `runs` in the file that chapter 9 reads.
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
from sampling import fresh_windows, weights_id
from torch import Tensor
from writing import by_diffusion, left_to_right

from ddlm_core.apps.train import text_settings
from ddlm_core.data import POCKET, setup_dataloaders
from ddlm_core.evaluation import Estimate, bits_per_character, estimate_bound, mean_of, wilson
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.pipeline import load_model
from ddlm_core.settings import TrainingConfig, load_preset
from ddlm_core.support.models import bundled_models
from ddlm_core.support.progress import LOG, read_log
from ddlm_core.support.runs import BEST, FINAL
from ddlm_core.tokenizer import CharacterLevelTokenizer

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/autoregressive.json"  # package data
KINDS = ("left-to-right", "diffusion")
TINY = {"n_layer": 3, "n_head": 2, "n_embd": 16, "cond_dim": 8}  # of --quick


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", default=POCKET, help="source (default: pocket-stories)")
    p.add_argument("--val", help="text to measure on (default: a part of the source)")
    p.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS, help="(default: both)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument(
        "--seconds", type=float, help="of a core for a run (default: those of the bundled model)"
    )
    p.add_argument("--steps", type=int, help="so many steps, whatever they take")
    p.add_argument("--batch-size", type=int, help="windows in a step (default: the preset's)")
    p.add_argument("--compile", action="store_true", help="torch.compile; compiling is not counted")
    p.add_argument("--points", type=int, default=12, help="of the learning curve (default: 12)")
    p.add_argument("--samples", type=int, default=200, help="stories to write (default: 200)")
    p.add_argument("--windows", type=int, default=512, help="to measure on (default: 512)")
    p.add_argument(
        "--diffusion",
        choices=("bundled", "train"),
        default="bundled",
        help="its partner: the bundled model (default), or trained here by the same loop",
    )
    p.add_argument(
        "--sampling-steps",
        type=int,
        nargs="+",
        default=[16, 24, 64],
        help="of the diffusion model; the last makes its row (default: 16 24 64)",
    )
    p.add_argument("--folder", type=Path, default=Path("checkpoints/autoregressive"))
    p.add_argument("--output", type=Path, help="JSON file (default: that of the package)")
    p.add_argument(
        "--quick", action="store_true", help="tiny networks, 2 seconds: do all paths run?"
    )
    return p


def data_name(args: argparse.Namespace) -> str:
    return POCKET if args.data == POCKET else "TinyStories"


def unit(args: argparse.Namespace) -> str:
    return "nats" if args.data == POCKET else "bits"  # per story, per character


def pilot_of(args: argparse.Namespace) -> int:
    return 1 if args.quick else 40  # steps that are timed


def settings(args: argparse.Namespace, seed: int, folder: Path) -> TrainingConfig:
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


def held_out(args: argparse.Namespace) -> Tensor:
    """Windows that no run has seen, int64 (N, L): stories, or the first of the text."""
    config = settings(args, 0, args.folder)
    if args.data == POCKET:
        return fresh_windows(args.windows, CharacterLevelTokenizer(), config.context_length)
    return torch.cat(list(setup_dataloaders(**text_settings(config)).val))[: args.windows].long()


def measured(
    model: DiscreteDiffusionTransformer, windows: Tensor, causal: bool, repeats: int = 8
) -> Estimate:
    """Nats per story, or bits per character of a text: exact, or a bound; the interval of a source."""
    if causal:
        nats = mean_of(exact_nats(model, windows))
    else:
        nats = estimate_bound(model, windows, repeats, of="source")
    return nats if model.config.padded else bits_per_character(nats, windows)


def rounded(estimate: Estimate) -> list[float]:
    return [round(value, 4) for value in estimate]


def complete(
    args: argparse.Namespace, row: dict[str, Any], model: DiscreteDiffusionTransformer, path: Path
) -> dict[str, Any]:
    """The row with what the model writes, if it is not known yet."""
    if "seconds_a_text" not in row:
        if row["kind"] == "diffusion":
            row |= by_diffusion(model, args)
        else:
            row |= left_to_right(model, args, anew=row["seed"] == args.seeds[0])
        write_json(path, row)
    say(*(f"{name}: {value};" for name, value in row.items() if name != "curve"))
    return row


def trained(args: argparse.Namespace, kind: str, seed: int, windows: Tensor) -> dict[str, Any]:
    """The row of a run; in its folder it grows point by point."""
    folder, causal = args.folder / f"{data_name(args)}-{kind}-{seed}", kind == "left-to-right"
    config, path = settings(args, seed, folder), folder / "row.json"
    wanted = {"steps": args.steps} if args.steps else {"seconds": args.seconds}
    plan = planned(
        folder,
        wanted | {"batch": config.batch_size, "compiled": config.torch_compile},
        lambda: seconds_per_step(config, causal, pilot_of(args)),
    )
    say(f"{folder.name}: {plan['steps']:,} steps of {plan['seconds_per_step']:.3f} s by the pilot")
    trainer = make_trainer(replace(config, max_steps=plan["steps"]), causal)
    row: dict[str, Any] = {"data": data_name(args), "kind": kind, "seed": seed, "budget": wanted}
    row |= {"steps": plan["steps"], "batch": config.batch_size, "compiled": plan["compiled"]}
    row |= {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    if path.is_file():  # what was measured of a finished run is kept
        row = json.loads(path.read_text(encoding="utf-8")) | row

    def tell(clock: dict[str, Any]) -> None:
        row.update(seconds=round(clock["seconds"], 1), curve=clock["curve"])
        write_json(path, row)

    def value(model: DiscreteDiffusionTransformer, at_end: bool = True) -> Estimate:
        return measured(model, windows, causal, 8 if at_end else 2)

    train_by_clock(trainer, points_of(plan["steps"], args.points), value, tell)
    model, best = (load_model(folder / part) for part in (FINAL, BEST))
    if unit(args) not in row or "best" not in row:
        if causal:
            check_causal(model, config.context_length)
        row[unit(args)] = rounded(value(model))
        seconds = next(s for s, step, _ in row["curve"] if step == best.config.step)
        row["best"] = {"seconds": seconds, "steps": best.config.step}
        last = best.config.step == row["steps"]
        row["best"] |= {unit(args): row[unit(args)] if last else rounded(value(best))}
        write_json(path, row)
    return complete(args, row, model, path)


def bundled(args: argparse.Namespace, windows: Tensor) -> dict[str, Any]:
    """The row of the bundled diffusion model, on the clock of this machine by an estimate.

    What it writes is still missing.
    """
    folder = args.folder / f"{data_name(args)}-diffusion-bundled"
    config, path = settings(args, 0, folder), folder / "row.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    each = seconds_per_step(config, False, pilot_of(args))
    source = bundled_models()[name := bundled_name(args)]
    key = "nats_per_window" if args.data == POCKET else "bits_per_character"
    log = [entry for entry in read_log(source / LOG) if key in entry]
    curve = [[round(e["step"] * each, 1), e["step"], round(e[key], 4)] for e in log]
    model = load_model(source)
    row: dict[str, Any] = {"data": data_name(args), "kind": "diffusion", "seed": 0}
    row |= {"budget": {"model": name}, "steps": model.config.step, "batch": config.batch_size}
    row |= {"compiled": config.torch_compile}
    row |= {"parameters": sum(p.numel() for p in model.parameters()), "seconds": curve[-1][0]}
    row |= {"seconds_by_estimate": True, "seconds_per_step": round(each, 4), "curve": curve}
    row |= {"weights": weights_id(name)}
    row[unit(args)] = rounded(measured(model, windows, causal=False))
    write_json(path, row)
    return row


def bundled_name(args: argparse.Namespace) -> str:
    return "pocket-stories" if args.data == POCKET else "tinystories-cpu"


def publish(args: argparse.Namespace, row: dict[str, Any]) -> None:
    """Put a finished row in the place of an earlier one of the same run; all else in the file stays."""
    output = args.output or OUTPUT
    if args.quick and not args.output:
        return
    found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    same = {key: row[key] for key in ("data", "kind", "seed", "budget")}.items()
    rows = [other for other in found.get("runs", []) if not same <= other.items()]
    write_json(output, found | {"runs": [*rows, row]})


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind and seed; the bundled model has one."""
    windows, rows = held_out(args), []
    if not args.steps and args.seconds is None:
        args.seconds = bundled(args, windows)["seconds"]
    for kind in sorted(args.kind):
        alone = kind == "diffusion" and args.diffusion == "bundled"
        for seed in args.seeds[:1] if alone else args.seeds:
            if alone:
                model = load_model(bundled_models()[bundled_name(args)])
                path = args.folder / f"{data_name(args)}-diffusion-bundled/row.json"
                row = complete(args, bundled(args, windows), model, path)
            else:
                row = trained(args, kind, seed, windows)
            publish(args, row)
            rows.append(row)
    return rows


def table_row(args: argparse.Namespace, row: dict[str, Any]) -> str:
    """A row of the JSON file as one of the table."""
    value, best = Estimate(*row[unit(args)]), row.get("best", {}).get(unit(args), [None])[0]
    share = f"{wilson(row['flawless'], row['samples']):.3f}" if "flawless" in row else ""
    each = f"{row['seconds_a_text']:.2f} | {row['seconds_a_text_in_batches']:.3f}"
    ran = f"{row['steps']:,} × {row['batch']} | {row['seconds']:,.0f}"
    return f"| {row['kind']}, {row['seed']} | {ran} | {value:.3f} | {best} | {share} | {each} |"


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(1)  # then seconds of the processor are those of a core
    with TemporaryDirectory() as folder:
        if args.quick:
            args.folder, args.seconds, args.samples = Path(folder), 2, 4
            args.windows, args.points, args.sampling_steps = 16, 3, [2, 3]
        rows = run_all(args)
    print(f"\n| kind, seed | steps | seconds | {unit(args)} | best | flawless | ", end="")
    print("seconds a text | in batches |\n|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(table_row(args, row))


if __name__ == "__main__":
    main()
