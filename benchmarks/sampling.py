"""What does a faster sampler cost? Samples of the bundled model for many samplers and steps.

Writes a JSON file, which chapter 9 shows: shares of flawless samples, and how varied they are.
"""

import argparse
import hashlib
import json
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlm_core import DiffusionPipeline, stories
from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockDiffusionTransformer
from ddlm_core.evaluation import Estimate, estimate_bound, wilson, word_entropy
from ddlm_core.sampler import sample_diffusion, sample_generators
from ddlm_core.support.hardware import autocast
from ddlm_core.support.models import bundled_models
from ddlm_core.tokenizer import CharacterLevelTokenizer

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/sampling.json"  # ships with the package
SAMPLERS = [  # method, schedule, temperature, churn, numbers of steps
    ("analytic", "cosine", 1.0, 1.0, [8, 16, 24, 64]),
    ("analytic", "cosine", 1.0, 0.0, [8, 16, 24, 64]),
    ("analytic", "cosine", 0.8, 1.0, [24, 64]),
    ("analytic", "linear", 1.0, 0.0, [24, 256]),
    ("analytic", "cosine", 1.0, 0.5, [24]),
    ("analytic", "linear", 1.0, 1.0, [24]),
    ("analytic", "fraction", 1.0, 1.0, [24]),
    ("analytic", "fraction", 1.0, 0.0, [24]),
    ("euler", "cosine", 1.0, 0.0, [24]),
    ("analytic", "cosine", 0.5, 0.0, [8, 24, 64]),
    ("analytic", "cosine", 0.5, 1.0, [24]),
    ("analytic", "cosine", 1.0, 1.0, [256]),
]
OPENINGS_OF = 200  # the distance depends on the number of texts, so it is that of the first
MANY = 4  # the first samplers get all samples, the others a quarter


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--samples", type=int, default=1000, help="of a sampler (default: 1000)")
    p.add_argument("--windows", type=int, default=512, help="held-out stories for the bound")
    p.add_argument("--train-samples", type=int, default=256_000, help="stories it was trained on")
    p.add_argument("--compile", action="store_true", help="torch.compile and bfloat16: faster")
    p.add_argument("--fresh", action="store_true", help="also make the rows that OUTPUT has")
    p.add_argument(
        "--openings", action="store_true", help="only add them to the rows of OUTPUT without"
    )
    p.add_argument("--output", type=Path, help="JSON file (default: that of the package)")
    p.add_argument("--quick", action="store_true", help="a few samples: does it run?")
    return p


def weights_id(name: str = "pocket-stories") -> str:
    """The first digits of the hash of bundled weights, to tell whose numbers these are."""
    weights = bundled_models()[name] / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


@cache
def openings() -> dict[str, float]:
    """The first two words of a story: each pair that the grammar writes, with its exact probability."""
    chances: Counter[str] = Counter()
    for skeleton, p, _ in stories.skeletons():
        start = " ".join(skeleton.split()[:2])
        names = sorted(set(re.findall(r"\{(\w+)", start)))
        ways = list(product(*(stories.VARIABLES[name] for name in names)))
        for way in ways:
            drawn = dict(zip(names, way))
            parts = stories.parts_of(start)
            text = "".join(stories.options(part, stories.STORIES, drawn)[0][1] for part in parts)
            chances[" ".join(text.split()[:2])] += p / len(ways)
    return dict(chances)


def openings_distance(texts: list[str]) -> float:
    """Total variation between the first two words of the texts and those of all stories.

    Few texts have a large one, however true they are: compare with ``distance_of_stories``.
    """
    seen, true = Counter(" ".join(text.split()[:2]) for text in texts), openings()
    return sum(abs(seen[o] / len(texts) - true.get(o, 0.0)) for o in seen | true) / 2


def distance_of_stories(n: int, seeds: int = 100) -> tuple[float, float]:
    """The same for n true stories: mean and standard deviation over seeds."""
    found = [openings_distance(stories.sample(n, 10**7 + seed)) for seed in range(seeds)]
    return statistics.mean(found), statistics.stdev(found)


def judge(tokens: Tensor, tokenizer: CharacterLevelTokenizer) -> dict[str, Any]:
    """For samples (n, L): how many are flawless, how many distinct, and how varied they are."""
    texts = tokenizer.decode_batch(tokens)
    return {
        "samples": len(texts),
        "flawless": sum(stories.is_flawless(row, tokenizer) for row in tokens.tolist()),
        "distinct": len(set(texts)),
        "word_entropy": round(word_entropy(texts), 3),
        "openings_distance": round(openings_distance(texts), 3),
    }


def fresh_windows(n: int, tokenizer: CharacterLevelTokenizer, length: int) -> Tensor:
    """Stories that no training run has asked for, int64 (n, length)."""
    return torch.stack([tokenizer.pad(s, length) for s in stories.sample(n, seed=10**6)])


def batched(items: list, size: int) -> Iterator[list]:
    """Itertools has it from Python 3.12 on."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def repeats(texts: list[str], train_samples: int) -> dict[str, float]:
    """How many texts are training stories, and how many would be if the model were perfect."""
    seen = set(stories.sample(train_samples, seed=0))  # what ddlm-train holds out comes after these
    chance = sum(math.exp(stories.log_prob(story)) for story in seen) * len(texts)
    return {"repeats": sum(text in seen for text in texts), "chance": round(chance, 3)}


def write(
    pipeline: DiffusionPipeline,
    samples: int,
    how: dict[str, Any],
    precision: str = "no",
    size: int = 50,
) -> tuple[Tensor, float]:
    """Samples (n, L) on the CPU, so many at a time, and the seconds that one took; steps of each block."""
    start, model, batches = time.perf_counter(), pipeline.model, []
    noise, length = pipeline.config.noise, pipeline.config.block_size
    with autocast(precision, pipeline.device):
        for part in batched(sample_generators(0, samples), size):
            if isinstance(model, BlockDiffusionTransformer):
                *_, step = denoising_blocks(model, len(part), length, generator=part, **how)
                tokens = step.tokens
            else:
                tokens = sample_diffusion(model, noise, len(part), length, generator=part, **how)
            batches.append(tokens.cpu())
    return torch.cat(batches), (time.perf_counter() - start) / samples


def known_rows(output: Path) -> list[dict[str, Any]]:
    """Rows that an earlier run made with the same weights, complete."""
    found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    rows = found["samplers"] if found.get("weights") == weights_id() else []
    return [row for row in rows if "openings_of" in row]


def with_openings(tokens: Tensor, tokenizer: CharacterLevelTokenizer) -> dict[str, Any]:
    """The distance of the openings of the first samples, and of how many."""
    texts = tokenizer.decode_batch(tokens[:OPENINGS_OF])
    return {"openings_distance": round(openings_distance(texts), 3), "openings_of": len(texts)}


def add_openings(pipeline: DiffusionPipeline, output: Path, precision: str, samples: int) -> None:
    """Draw the first samples of all rows again that lack them, and write the file after each."""
    result = json.loads(output.read_text(encoding="utf-8"))
    if result["weights"] != weights_id():
        raise SystemExit(f"{output} is of other weights: leave --openings away")
    for row in result["samplers"]:
        if "openings_of" not in row:
            how = {name: row[name] for name in ("num_steps", "schedule", "method")}
            how |= {"temperature": row["temperature"], "churn": row["churn"]}
            tokens, _ = write(pipeline, samples, how, precision)
            row |= with_openings(tokens, pipeline.tokenizer)
            output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(table_row(row), flush=True)


def table_row(row: dict[str, Any]) -> str:
    """A row of the JSON file as one of the table."""
    share, name = wilson(row["flawless"], row["samples"]), f"{row['method']}, {row['schedule']}"
    how = f"{row['churn']:g} | {row['temperature']:g} | {row['num_steps']} | {row['samples']}"
    varied = f"{row['word_entropy']:.3f} | {row['openings_distance']:.3f}"
    return f"| {name} | {how} | {share:.3f} | {varied} | {row['seconds_a_sample']:.2f} |"


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.samples, args.windows, args.train_samples = 4, 8, 1000
    pipeline = DiffusionPipeline.from_pretrained(device="cpu")
    if args.compile:
        pipeline.model.logits = torch.compile(pipeline.model.logits)
    tokenizer, precision = pipeline.tokenizer, "bf16" if args.compile else "no"
    if args.openings:
        add_openings(pipeline, args.output or OUTPUT, precision, 4 if args.quick else OPENINGS_OF)
        return
    fresh = fresh_windows(max(args.samples, args.windows), tokenizer, pipeline.config.block_size)
    result: dict[str, Any] = {
        "weights": weights_id(),
        "bound": estimate_bound(pipeline.model, fresh[: args.windows], of="source")._asdict(),
        "windows": args.windows,
        "stories": judge(fresh[: args.samples], tokenizer),
        "samplers": [],
    }
    known = [] if args.fresh or args.quick else known_rows(args.output or OUTPUT)
    print("| sampler | churn | T | steps | samples | flawless | words, nats | openings | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, (method, schedule, temperature, churn, steps) in enumerate(SAMPLERS):
        samples = args.samples if number < MANY else max(4, args.samples // 4)
        for num_steps in [2, 4] if args.quick else steps:
            how: dict[str, Any] = {"num_steps": num_steps, "schedule": schedule, "method": method}
            how |= {"temperature": temperature, "churn": churn}
            same = (how | {"samples": samples}).items()
            # the texts of the first sampler are needed below, so its rows are always made
            if number and (rows := [row for row in known if same <= row.items()]):
                result["samplers"] += rows
                print(table_row(rows[0]), flush=True)
                continue
            tokens, seconds = write(pipeline, samples, how, precision)
            row = how | judge(tokens, tokenizer) | with_openings(tokens, tokenizer)
            row |= {"seconds_a_sample": round(seconds, 2)}
            result["samplers"].append(row)
            print(table_row(result["samplers"][-1]), flush=True)
            if number == 0:  # in the end, of the longest run
                rows = list(zip(tokenizer.decode_batch(tokens), tokens.tolist()))
                broken = [text for text, row in rows if not stories.is_flawless(row, tokenizer)]
                result["broken"] = broken[:100]
                longest = [text for text, _ in rows]
    result |= repeats(longest, args.train_samples)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if args.output or not args.quick:
        (args.output or OUTPUT).write_text(text, encoding="utf-8")
    bound, fresh_row = Estimate(**result["bound"]), result["stories"]
    print(f"\nwords of {fresh_row['samples']} fresh stories: {fresh_row['word_entropy']} nats")
    print(
        f"bound on {args.windows} fresh stories: {bound:.2f} nats, entropy {stories.entropy():.2f}"
    )
    print(f"training stories among the texts of the first sampler: {result['repeats']}, ", end="")
    print(f"by chance {result['chance']}")


if __name__ == "__main__":
    main()
