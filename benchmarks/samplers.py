"""Which samplers of today write well, and which of them still write all that there is to write?

Samples of the bundled model, and some of `pocket-blocks`. Writes a JSON file, which chapter 11
shows: flawless samples, the distance of their openings to those of the grammar, and function
evaluations per sample.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sampling import batched, distance_of_stories, fresh_windows, judge, weights_id
from torch import Tensor

from ddlm_core import DiffusionPipeline
from ddlm_core.block_pipeline import BlockPipeline, Writer
from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.evaluation import wilson
from ddlm_core.modern_samplers import Annealed, TopP, entropy_bound_steps
from ddlm_core.sampler import sample_diffusion, sample_generators

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/modern_samplers.json"  # package data
STEPS = [{"num_steps": n, "churn": churn} for churn in (0.0, 1.0) for n in (16, 24, 64)]
MORE = {"num_steps": 24, "churn": 1.0}  # the last rows change one thing about these
ROWS: list[dict[str, Any]] = [
    *STEPS,
    {"bound": 0.1},
    {"bound": 0.3},
    {"bound": 1.0},
    {"bound": 0.1, "annealed": [0.8, 0.4]},  # about what DiffusionGemma does
    MORE | {"temperature": 0.8},
    MORE | {"top_p": 0.95},
    MORE | {"top_p": 0.9},
    MORE | {"annealed": [1.0, 0.5]},
]
IN_BLOCKS = (MORE | {"num_steps": 16}, {"bound": 0.1}, {"bound": 0.3}, {"bound": 1.0})
MOST = 48  # evaluations of a block, as DiffusionGemma has it
BATCH = 50


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--samples", type=int, default=200, help="of a sampler (default: 200)")
    p.add_argument("--compile", action="store_true", help="torch.compile and bfloat16: faster")
    p.add_argument("--fresh", action="store_true", help="also make the rows that OUTPUT has")
    p.add_argument("--output", type=Path, default=OUTPUT, help=f"(default: {OUTPUT.name})")
    p.add_argument("--quick", action="store_true", help="two samples of a few rows: does it run?")
    return p


def writer(pipeline: DiffusionPipeline, row: dict[str, Any]) -> Callable[..., tuple[Tensor, float]]:
    """A function from generators to texts (B, L) and the function evaluations of all of them."""
    how, model, noise = dict(row), pipeline.model, pipeline.config.noise
    if "top_p" in how:
        model = TopP(model, how.pop("top_p"))
    if "annealed" in how:
        model = Annealed(model, *how.pop("annealed"))

    def write(generators: list[torch.Generator]) -> tuple[Tensor, float]:
        size = (len(generators), pipeline.config.block_size)
        if "bound" in how:
            for step in entropy_bound_steps(model, noise, *size, generator=generators, **how):
                pass
            return step.tokens, step.evaluations.sum().item()
        options = how | {"schedule": "cosine", "generator": generators}
        return sample_diffusion(model, noise, *size, **options), size[0] * how["num_steps"]

    return write


def name(row: dict[str, Any]) -> str:
    """A row of the JSON file in words."""
    words = [f"entropy bound {row['bound']:g}" if "bound" in row else f"{row['num_steps']} steps"]
    if row.get("churn"):
        words.append("churn")
    if "temperature" in row:
        words.append(f"T = {row['temperature']:g}")
    if "top_p" in row:
        words.append(f"top-p {row['top_p']:g}")
    if "annealed" in row:
        words.append("T from {:g} to {:g}".format(*row["annealed"]))
    return ", ".join(words)


def measured(
    pipeline: DiffusionPipeline, row: dict[str, Any], samples: int, half: bool
) -> dict[str, Any]:
    """A row of the JSON file; if ``half``, in 16 bits."""
    start, write, texts, evaluations = time.perf_counter(), writer(pipeline, row), [], 0.0
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        for part in batched(sample_generators(0, samples), BATCH):
            tokens, used = write(part)
            texts.append(tokens)
            evaluations += used
    row = {"name": name(row)} | row | {"evaluations": round(evaluations / samples, 1)}
    row |= judge(torch.cat(texts), pipeline.tokenizer)
    return row | {"seconds_a_sample": round((time.perf_counter() - start) / samples, 2)}


def in_blocks(row: dict[str, Any], samples: int) -> dict[str, Any]:
    """A row of `pocket-blocks`; its evaluations are those of all blocks of a text."""
    pipeline, parts, evaluations = (
        BlockPipeline.from_pretrained("pocket-blocks", device="cpu"),
        [],
        0,
    )
    bound = row.get("bound")
    write = Writer(
        pipeline.model, "grid" if bound is None else "entropy_bound", bound or 0, 1.0, 1.0
    )
    how = {"num_steps": row.get("num_steps", MOST), "schedule": "cosine", "churn": 1.0}
    how |= {"write": write.steps, "stop_at_end": True}
    for part in batched(sample_generators(0, samples), BATCH):
        where = (pipeline.model, len(part), pipeline.config.block_size)
        for step in denoising_blocks(*where, generator=part, **how):
            used = step.evaluations.sum().item() if bound else len(part) * how["num_steps"]
            if step.sigma_bar == 0:  # a block is finished
                evaluations += used
        parts.append(step.tokens)
    row = {"name": name(row)} | row | {"evaluations": round(evaluations / samples, 1)}
    return row | judge(torch.cat(parts), pipeline.tokenizer)


def known_rows(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Rows by name that an earlier run made, with the same weights and as many samples."""
    if args.fresh or not args.output.is_file():
        return {}
    found = json.loads(args.output.read_text(encoding="utf-8"))
    same = (found["weights"], found["samples"]) == (weights_id(), args.samples)
    return {row["name"]: row for row in found["samplers"]} if same else {}


def table_row(row: dict[str, Any]) -> str:
    """A row of the JSON file as one of the table."""
    share, distance = wilson(row["flawless"], row["samples"]), row["openings_distance"]
    figures = f"{row['evaluations']} | {share:.3f} | {distance:.3f} | {row['word_entropy']:.3f}"
    return f"| {row['name']} | {figures} | {row['distinct']} | {row['seconds_a_sample']} |"


def main() -> None:
    args = parser().parse_args()
    rows = ROWS
    if args.quick:
        args.samples, rows = 2, [{"num_steps": 2, "churn": 1.0, "top_p": 0.9}, {"bound": 20.0}]
    pipeline = DiffusionPipeline.from_pretrained(device="cpu")
    if args.compile:
        pipeline.model.logits = torch.compile(pipeline.model.logits)
    tokenizer, made = pipeline.tokenizer, {} if args.quick else known_rows(args)
    mean, deviation = distance_of_stories(args.samples)
    fresh = fresh_windows(args.samples, tokenizer, pipeline.config.block_size)
    true = judge(fresh, tokenizer) | {"openings_distance": round(mean, 3)}
    true["openings_deviation"] = round(deviation, 3)
    result = {"weights": weights_id(), "samples": args.samples, "stories": true}
    print("| sampler | evaluations | flawless | openings | words, nats | distinct | seconds each |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row.get("num_steps", 24)):  # long runs at the end
        if name(row) not in made:
            made[name(row)] = measured(pipeline, row, args.samples, args.compile)
        print(table_row(made[name(row)]), flush=True)
        if not args.quick:
            result["samplers"] = [made[name(row)] for row in rows if name(row) in made]
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in IN_BLOCKS[1:2] if args.quick else IN_BLOCKS:
        found = in_blocks(row, args.samples)
        result["in blocks"] = [*result.get("in blocks", []), found]
        print(found, flush=True)
        if not args.quick:
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"true stories: openings {mean:.3f} ± {deviation:.3f}, words {true['word_entropy']} nats")


if __name__ == "__main__":
    main()
