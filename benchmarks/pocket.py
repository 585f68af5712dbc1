"""How good is the bundled model? Its samples against the grammar, its bound against the entropy.

Prints a Markdown table; the card of the shipped model has the bound from here.
"""

import argparse
import math
import time

import torch

from ddlm_core import stories
from ddlm_core.block_pipeline import BlockPipeline, default_steps
from ddlm_core.evaluation import estimate_bound, wilson


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", help="folder or bundled name (default: the bundled model)")
    p.add_argument("--samples", type=int, default=512, help="samples to judge (default: 512)")
    p.add_argument("--steps", type=int, help="denoising steps (default: 128, for a block 16)")
    p.add_argument("--schedule", default="cosine", help="fraction, cosine or linear")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    p.add_argument("--train-samples", type=int, default=256_000, help="stories it was trained on")
    p.add_argument("--quick", action="store_true", help="32 samples, 16 steps: does it run?")
    return p


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.samples, args.steps = 32, 16
    pipeline = BlockPipeline.from_pretrained(args.model, device="cpu")
    args.steps = args.steps or default_steps(pipeline.config)
    tokenizer, length = pipeline.tokenizer, pipeline.config.block_size

    start = time.perf_counter()
    tokens = pipeline.generate(
        args.samples,
        return_tokens=True,
        num_steps=args.steps,
        schedule=args.schedule,
        temperature=args.temperature,
        seed=args.seed,
    )
    seconds = (time.perf_counter() - start) / args.samples
    flawless = sum(stories.is_flawless(row, tokenizer) for row in tokens.tolist())
    share, low, high = wilson(flawless, args.samples)
    texts = tokenizer.decode_batch(tokens)

    # the stories that ddlm-train held out for validation and testing come after these
    seen = set(stories.sample(args.train_samples, seed=0))
    chance = sum(math.exp(stories.log_prob(story)) for story in seen) * args.samples
    repeats = sum(text in seen for text in texts)

    fresh = stories.sample(32 if args.quick else 2048, seed=10**6)
    windows = torch.stack([tokenizer.pad(story, length) for story in fresh])
    bound = estimate_bound(pipeline.model, windows, repeats=4, of="source")

    print("| figure | value |\n|---|---|")
    print(
        f"| samples | {args.samples}, {args.steps} steps, schedule {args.schedule}, "
        f"temperature {args.temperature:g}, seed {args.seed} |"
    )
    print(f"| flawless | {share:.3f} (95 % interval {low:.3f} to {high:.3f}) |")
    print(f"| distinct | {len(set(texts))} of {args.samples} |")
    print(f"| repeat a training story | {repeats} (chance alone: {chance:.2f}) |")
    print(f"| bound, nats per story | {bound:.2f}, of {len(fresh)} stories |")
    print(f"| exact entropy, nats per story | {stories.entropy():.2f} |")
    print(f"| seconds per sample | {seconds:.2f} |")


if __name__ == "__main__":
    main()
