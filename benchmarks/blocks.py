"""Block lengths from one token to the window: what each learns in the same time, and what it writes.

`--train` trains a network for each block length for the same seconds of a core (as `learning.py`
does) and measures the bound on held-out text. `--write MODEL …` lets trained models write stories
with few steps and with many, and measures how many are flawless, how varied they are, and what they
cost. Rows that the JSON file of chapter 11 has already are not made again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from learning import Variant, run
from sampling import batched, distance_of_stories, judge
from torch import Tensor

from ddlm_core import stories
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionTransformer
from ddlm_core.evaluation import wilson
from ddlm_core.sampler import denoising_steps, sample_generators
from ddlm_core.sampling_options import cut_at_end
from ddlm_core.tokenizer import PAD_ID

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/block_writing.json"  # package data
LENGTHS = (1, 2, 5, 10, 20, 40, 80, 160)
STEPS = {"window": (8, 16, 24, 64), "block": (1, 2, 4, 8, 12, 16, 24, 30, 32), "token": (1,)}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--train", action="store_true", help="train and measure the bounds")
    p.add_argument("--data", default="pocket-stories", help="source (default: pocket-stories)")
    p.add_argument("--val", help="text to validate on (default: a part of the source)")
    p.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="block lengths")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--seconds", type=float, default=150, help="of training a run (default: 150)")
    p.add_argument(
        "--write", nargs="*", default=[], metavar="MODEL", help="models that write stories"
    )
    p.add_argument("--samples", type=int, default=400, help="of each row (default: 400)")
    p.add_argument("--output", type=Path, default=OUTPUT, help="JSON file (default: the package's)")
    p.add_argument("--quick", action="store_true", help="seconds each: does it run?")
    return p


def trained(args: argparse.Namespace, length: int, seed: int) -> dict[str, Any]:
    """The bound of a network with blocks of ``length`` tokens, after the seconds that all get."""
    network = {"block_length": length}
    variant = Variant(network=network, kind=BlockDiffusionTransformer)
    row = run(args, f"blocks of {length}", variant, seed)
    kept = ("seed", "steps", "batch", "seconds", "nats_per_window", "bits_per_character")
    data = "pocket-stories" if args.data == "pocket-stories" else "TinyStories"
    return {"data": data, "block_length": length} | {name: row[name] for name in kept}


def in_windows(rows: list[dict[str, Any]]) -> None:
    """Add what each row costs in evaluations of a whole window, if there is a row of such."""
    whole = [row for row in rows if row["model"] == "pocket-stories"]
    if whole:
        unit = sum(row["seconds"] for row in whole) / sum(row["evaluations"] for row in whole)
        for row in rows:
            row["windows"] = round(row["seconds"] / unit, 2)


def blocks_of(tokens: Tensor, length: int) -> Tensor:
    """How many blocks each text (n, L) needs, the one in which it ends included: int64 (n,)."""
    written = (cut_at_end(tokens) != PAD_ID).sum(1)
    return (written // length + 1).clamp(max=-(-tokens.shape[1] // length))


def written(pipeline: BlockPipeline, samples: int, steps: int) -> tuple[Tensor, float, float]:
    """Samples (n, L), fifty at a time, with as many steps for each block.

    Also what each costs on average, if no block is written behind its end: evaluations, core seconds.
    """
    model, config, parts = pipeline.model, pipeline.config, []
    length, seconds, evaluations = getattr(config, "block_length", config.block_size), 0.0, 0
    how: dict[str, Any] = {"num_steps": steps, "schedule": "cosine", "churn": 1.0}
    for part in batched(sample_generators(0, samples), 50):
        start = time.process_time()
        if isinstance(model, BlockDiffusionTransformer):
            where = (model, len(part), config.block_size)
            run = denoising_blocks(*where, stop_at_end=True, generator=part, **how)
        else:
            where = (model, config.noise, len(part), config.block_size)
            run = denoising_steps(*where, generator=part, **how)
        for step in run:
            pass
        spent = (time.process_time() - start) / torch.get_num_threads()
        needed = blocks_of(step.tokens, length)
        seconds += spent * (needed.sum() / needed.max() / len(part)).item()  # others waited
        evaluations += steps * int(needed.sum())
        parts.append(step.tokens)
    return torch.cat(parts), evaluations / samples, seconds / samples


def seconds_alone(pipeline: BlockPipeline, steps: int, texts: int) -> float:
    """Seconds of a core for a text that is written by itself, as a reader waits for it."""
    pipeline.generate(num_steps=steps, seed=texts)  # the first one takes longer
    start = time.process_time()
    for seed in range(texts):
        pipeline.generate(num_steps=steps, seed=seed)
    return (time.process_time() - start) / texts / torch.get_num_threads()


def writing(
    args: argparse.Namespace, name: str, known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of one model."""
    pipeline = BlockPipeline.from_pretrained(name, device="cpu")
    length = getattr(pipeline.config, "block_length", pipeline.config.block_size)
    kind = "token" if length == 1 else "window" if length == pipeline.config.block_size else "block"
    rows = []
    for steps in STEPS[kind][:2] if args.quick else STEPS[kind]:
        key = {"model": Path(name).name, "block_length": length, "num_steps": steps}
        if any(key.items() <= row.items() for row in known):
            continue
        tokens, evaluations, seconds = written(pipeline, args.samples, steps)
        cost = {"evaluations": round(evaluations, 1), "seconds": round(seconds, 4)}
        cost["seconds_alone"] = round(seconds_alone(pipeline, steps, min(10, args.samples)), 3)
        cost["characters"] = round((cut_at_end(tokens) != PAD_ID).sum(1).float().mean().item(), 1)
        rows.append(key | judge(tokens, pipeline.tokenizer) | cost)
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    args = parser().parse_args()
    args.batch_size, args.length = (4, 160) if args.quick else (16, 160)
    args.seconds, args.samples = (3, 4) if args.quick else (args.seconds, args.samples)
    found: dict[str, Any] = {"entropy": round(stories.entropy(), 3), "bounds": [], "writing": []}
    if args.output.is_file() and not args.quick:
        found |= json.loads(args.output.read_text(encoding="utf-8"))

    def keep() -> None:
        if not args.quick or args.output != OUTPUT:
            args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    if args.train:
        data = "pocket-stories" if args.data == "pocket-stories" else "TinyStories"
        for seed in args.seeds:
            for length in args.lengths[:2] if args.quick else args.lengths:
                key = {"data": data, "block_length": length, "seed": seed}
                if not any(key.items() <= row.items() for row in found["bounds"]):
                    found["bounds"].append(row := trained(args, length, seed))
                    print(row, flush=True)
                    keep()
    if args.write:  # what as many true stories would have
        mean, deviation = distance_of_stories(args.samples)
        true = {"openings_distance": round(mean, 3), "openings_deviation": round(deviation, 3)}
        found["stories"] = {"samples": args.samples} | true
    for name in args.write:
        found["writing"] += writing(args, name, found["writing"])
        in_windows(found["writing"])
        keep()
    for row in found["writing"]:
        share = wilson(row["flawless"], row["samples"])
        print(
            f"| {row['model']} | {row['num_steps']} | {row.get('windows', 0):.1f} | {share:.3f} |"
        )


if __name__ == "__main__":
    main()
