"""Two noises, one budget: the uniform graph and the absorbing one, trained and measured alike.

Network, optimizers, batch and seed are those of the bundled model (`ddlm-train --config-name
pocket`), with fewer steps and so a shorter average of the weights; every story is seen once. Only
`model.graph` differs. Writes a JSON file, which appendix A shows, after each run; runs that it
already holds are kept.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sampling import batched, fresh_windows, judge

from ddlm_core import stories
from ddlm_core.data import setup_dataloaders
from ddlm_core.evaluation import Estimate, estimate_bound, wilson
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.sampler import sample_diffusion, sample_generators
from ddlm_core.settings import TrainingConfig, load_preset
from ddlm_core.training import Trainer

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/absorbing.json"  # ships with the package


def train(config: TrainingConfig, graph: str) -> tuple[DiscreteDiffusionTransformer, dict]:
    """The averaged weights of a run; its seconds, and the validation bounds on the way."""
    loader, held_out, _, _ = setup_dataloaders(
        config.dataset_name,
        train_samples=config.train_samples,
        val_samples=config.val_samples,
        context_length=config.context_length,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    torch.manual_seed(config.seed)
    network = {"block_size": config.context_length, "padded": True} | config.model
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**network, graph=graph))
    with TemporaryDirectory() as folder:
        trainer = Trainer(model, loader, held_out, replace(config, checkpoint_dir=folder))
        trainer.train()
        lines = Path(folder, "train_log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    curve = [[e["step"], round(e["nats_per_window"], 2)] for e in log if "nats_per_window" in e]
    parameters = sum(p.numel() for p in model.parameters())
    said = {"parameters": parameters, "train_seconds": round(log[-1]["seconds"]), "curve": curve}
    return trainer.average.cpu(), said


def sampled(model: DiscreteDiffusionTransformer, n: int, num_steps: int, schedule: str) -> dict:
    """What the grammar says to ``n`` samples."""
    start, noise, length = time.perf_counter(), model.config.noise, model.config.block_size
    how: dict[str, Any] = {"num_steps": num_steps, "schedule": schedule}
    parts = [
        sample_diffusion(model, noise, len(part), length, generator=part, **how)
        for part in batched(sample_generators(0, n), 32)
    ]
    seconds = round((time.perf_counter() - start) / n, 2)
    return how | judge(torch.cat(parts), model.config.tokenizer) | {"seconds_a_sample": seconds}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--steps", type=int, default=1000, help="of training (default: 1000)")
    p.add_argument("--samples", type=int, default=64, help="for each schedule (default: 64)")
    p.add_argument("--windows", type=int, default=256, help="held-out stories (default: 256)")
    p.add_argument("--sampling-steps", type=int, nargs="+", default=[32, 128])
    p.add_argument("--output", type=Path, default=OUTPUT, help=f"(default: {OUTPUT.name})")
    p.add_argument("--graphs", nargs="+", default=["uniform", "absorbing"], help="(default: both)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    p.add_argument("--compile", action="store_true", help="torch.compile")
    p.add_argument("--quick", action="store_true", help="two steps, two samples: does it run?")
    return p


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.steps, args.samples, args.windows, args.sampling_steps = 2, 2, 8, [4]
    chosen: dict[str, Any] = {"max_steps": args.steps, "ema_decay": 0.99, "progress": False}
    chosen |= {"train_samples": args.steps * load_preset("pocket").batch_size, "val_samples": 64}
    chosen |= {"eval_every_steps": max(1, args.steps // 10), "eval_windows": 64}
    chosen |= {"torch_compile": args.compile}
    config = load_preset("pocket", **chosen)
    result: dict[str, Any] = {"entropy": round(stories.entropy(), 3), "windows": args.windows}
    result |= {"steps": args.steps, "batch": config.batch_size}
    before = json.loads(args.output.read_text()) if args.output.exists() else {}
    alike = all(before.get(key) == value for key, value in result.items())
    runs = before.get("runs", []) if alike else []
    for seed in args.seeds:
        for graph in args.graphs:
            if any((run["graph"], run["seed"]) == (graph, seed) for run in runs):
                continue
            model, found = train(replace(config, seed=seed), graph)
            found = {"graph": graph, "seed": seed} | found
            windows = fresh_windows(args.windows, model.config.tokenizer, config.context_length)
            bound = estimate_bound(model, windows, of="source")
            found["nats"] = [round(value, 3) for value in bound]
            print(f"{graph}, {seed}: {bound:.2f} nats, {found['train_seconds']} s", flush=True)
            found["samples"] = [
                sampled(model, args.samples, num_steps, schedule)
                for num_steps in args.sampling_steps
                for schedule in ("cosine", "fraction")
            ]
            runs.append(found)
            if not args.quick:
                text = json.dumps(result | {"runs": runs}, indent=1) + "\n"
                args.output.write_text(text, encoding="utf-8")
    print("| graph, seed | bound, nats per story | steps, schedule | flawless | openings |")
    print("|---|---|---|---|---|")
    for found in runs:
        bound = f"{found['graph']}, {found['seed']} | {Estimate(*found['nats']):.1f}"
        for run in found["samples"]:
            share = wilson(run["flawless"], run["samples"])
            how = f"{run['num_steps']}, {run['schedule']}"
            print(f"| {bound} | {how} | {share:.3f} | {run['openings_distance']} |")


if __name__ == "__main__":
    main()
