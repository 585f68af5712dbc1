"""Does Euler's step write better stories than the analytic one? Samples of the bundled model.

Prints a Markdown table of flawless samples: both steps get the same seeds, so the same start,
and no churn. Beside the shares: how many texts only one of the two wrote without a flaw.
"""

import argparse
import time

import torch
from sampling import batched

from ddlm_core import DiffusionPipeline, stories
from ddlm_core.evaluation import wilson
from ddlm_core.reverse import METHODS
from ddlm_core.sampler import sample_diffusion, sample_generators


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--samples", type=int, default=200, help="for each row (default: 200)")
    p.add_argument("--steps", type=int, nargs="+", default=[16, 32, 64])
    p.add_argument("--schedules", nargs="+", default=["cosine"], help="time grids")
    p.add_argument("--quick", action="store_true", help="two samples of two steps: does it run?")
    return p


def flawless(
    pipeline: DiffusionPipeline, samples: int, method: str, schedule: str, num_steps: int
) -> tuple[list[bool], float]:
    """For each sample whether it is flawless; and the seconds that one took."""
    start, good = time.perf_counter(), []
    noise, length = pipeline.config.noise, pipeline.config.block_size
    how = {"num_steps": num_steps, "schedule": schedule, "method": method}
    for part in batched(sample_generators(0, samples), 50):
        tokens = sample_diffusion(pipeline.model, noise, len(part), length, generator=part, **how)
        good += [stories.is_flawless(row, pipeline.tokenizer) for row in tokens.tolist()]
    return good, (time.perf_counter() - start) / samples


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.samples, args.steps = 2, [2]
    pipeline = DiffusionPipeline.from_pretrained(device="cpu")
    print(f"{torch.get_num_threads()} thread(s)")
    print("| grid | steps | samples | analytic | euler | only analytic | only euler | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for schedule in args.schedules:
        for num_steps in args.steps:
            runs = [flawless(pipeline, args.samples, m, schedule, num_steps) for m in METHODS]
            (one, seconds), (other, more) = runs
            shares = [f"{wilson(sum(good), args.samples):.3f}" for good, _ in runs]
            only = [
                sum(a and not b for a, b in zip(*pair)) for pair in ((one, other), (other, one))
            ]
            row = [schedule, num_steps, args.samples, *shares, *only, f"{(seconds + more) / 2:.2f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
