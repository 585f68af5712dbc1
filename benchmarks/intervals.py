"""Do the intervals of the bound cover, and what does a narrower one cost? Before and now.

"Before" is the estimator of the first edition: every letter drawn, levels half uniform in t and half in
the corruption probability, one interval whose error takes all draws for independent. Three worlds: nine
words (the truth is exact), pocket-stories, and a text file (it is a long run). Seconds are those of the
processor. Prints a Markdown table; `--output` also writes it as JSON, after each row.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlm_core import DiffusionPipeline, stories
from ddlm_core.evaluation import Estimate, estimate_bound, mean_of
from ddlm_core.forward import perturb_batch
from ddlm_core.graph import ScoreModel, graph_of
from ddlm_core.noise import GeometricNoise, resample_probability
from ddlm_core.objective import compute_loss, low_discrepancy_times
from ddlm_core.reverse import reverse_probs
from ddlm_core.tiny_world import three_letter_world

WORLDS = ("words", "pocket", "widths", "text")
SIZES = (  # of the nine words: windows and levels of each
    ("text", 32, 8),
    ("text", 1, 64),
    ("text", 1, 256),
    ("text", 2, 64),
    ("source", 64, 8),
    ("source", 160, 8),
)
HEAD = "| world | interval of | estimator | windows × levels | runs | coverage | half width | sd | seconds |"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", type=Path, help="a text file that the model has not seen")
    p.add_argument("--text-model", default="tinystories-cpu", help="folder or bundled name")
    p.add_argument("--characters", type=int, default=40_000, help="of the text (default: 40,000)")
    p.add_argument(
        "--worlds", nargs="+", choices=WORLDS, default=WORLDS, help="which rows (default: all)"
    )
    p.add_argument("--runs", type=int, default=1000, help="on the nine words (default: 1000)")
    p.add_argument("--model-runs", type=int, default=400, help="of each model (default: 400)")
    p.add_argument("--output", type=Path, help="JSON file")
    p.add_argument("--quick", action="store_true", help="little of everything: does it run?")
    return p


# Before


def old_times(count: int, noise: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half uniform in t, half in the corruption probability, with weights: float32 (count,) each."""
    u = low_discrepancy_times(count, generator).double()
    t = torch.linspace(0, 1, 1025, dtype=torch.float64)
    f = resample_probability(noise.sigma_bar(t))
    share = (t + (f - f[0]) / (f[-1] - f[0])) / 2
    k = torch.searchsorted(share, u, right=True)
    weight = (t[k] - t[k - 1]) / (share[k] - share[k - 1])
    return (t[k - 1] + weight * (u - share[k - 1])).float(), weight.float()


@torch.inference_mode()
def old_draws(model: ScoreModel, x_0: Tensor, repeats: int, generator: torch.Generator) -> Tensor:
    """Draws of the bound, nats per window: float64 (repeats, N)."""
    x_0, noise, graph = x_0.repeat(repeats, 1), model.config.noise, graph_of(model)
    t, weight = old_times(len(x_0), noise, generator)
    nats = weight * compute_loss(model, x_0, noise, t, generator=generator)
    first, vocab_size = noise.sigma_bar(torch.zeros_like(t)), model.config.vocab_size
    x_t = perturb_batch(x_0, first, vocab_size, None, generator, graph.sample_prior)
    x_t, which = x_t.unique(dim=0, return_inverse=True)
    probs = reverse_probs(model, x_t, first[: len(x_t)], 0 * first[: len(x_t)])
    last = -probs[which].gather(-1, x_0[..., None]).log().mean((1, 2))
    prior = graph.prior_kl(noise.sigma_max, vocab_size).item()
    return ((nats + last + prior) * x_0.shape[1]).view(repeats, -1).double()


def old_bound(model: ScoreModel, tokens: Tensor, repeats: int, seed: int) -> Estimate:
    """The larger of two errors that take draws, or windows, for independent."""
    generator = torch.Generator().manual_seed(seed)
    parts = tokens.split(max(1, 64 // repeats))
    nats = torch.cat([old_draws(model, part, repeats, generator) for part in parts], dim=1)
    of_noise = nats.diff(dim=0).square().mean() / 2 / nats.numel()
    of_windows = nats.mean(0).var() / len(tokens) if len(tokens) > 1 else of_noise
    return mean_of(nats, max(of_noise, of_windows).item() ** 0.5)


# Measuring


def row_of(found: Sequence[Estimate], truths: Sequence[float], seconds: float) -> dict[str, Any]:
    """Coverage, mean half width and standard deviation of estimates, each with its truth."""
    errors = torch.tensor([e.mean - truth for e, truth in zip(found, truths)])
    return {
        "runs": len(found),
        "coverage": sum(e.low <= x <= e.high for e, x in zip(found, truths)) / len(found),
        "half_width": sum(e.high - e.mean for e in found) / len(found),
        "sd": errors.std().item(),
        "seconds": seconds / len(found),
    }


def on_words(of: str, windows: int, repeats: int, runs: int, before: bool) -> dict[str, Any]:
    """The same words of the tiny world in each run, or new ones for a source."""
    world, g = three_letter_world(), torch.Generator().manual_seed(0)
    world.config.noise, surprisal = GeometricNoise(), -world.probs.log()
    entropy, found, truths = (world.probs @ surprisal).item(), [], []
    words, start = torch.multinomial(world.probs, windows, True, generator=g), time.process_time()
    for seed in range(runs):
        if of == "source":
            words = torch.multinomial(world.probs, windows, True, generator=g)
        truths.append(surprisal[words].mean().item() if of == "text" else entropy)
        tokens = world.words[words]
        if before:
            found.append(old_bound(world, tokens, repeats, seed))
        else:
            found.append(estimate_bound(world, tokens, repeats, seed, of=of))
    return row_of(found, truths, time.process_time() - start)


def runs_of(measure: Callable[[int], Estimate], runs: int) -> tuple[list[Estimate], float]:
    """Estimates with seeds 0, 1, …, and the seconds of all."""
    start = time.process_time()
    return [measure(seed) for seed in range(runs)], time.process_time() - start


def on_model(
    model: ScoreModel, pool: Tensor, unit: float, runs: int, windows: int
) -> Iterator[dict[str, Any]]:
    """Rows of so many windows of a text, and of a source that is ``pool``; ``unit``: of a nat.

    What is true of the windows is the mean of all runs: for 400 of them its error is a twentieth
    of a run's. What is true of the source is one long run over the pool; each run draws 64 of it.
    """
    few, g = pool[: min(windows, len(pool))], torch.Generator().manual_seed(1)
    found, seconds = runs_of(lambda seed: estimate_bound(model, few, 8, seed).scaled(unit), runs)
    truth = sum(estimate.mean for estimate in found) / runs
    how = {"of": "text", "size": f"{len(few)} × 8", "truth": truth}
    yield how | {"estimator": "now"} | row_of(found, [truth] * runs, seconds)
    fewer = max(2, runs // 4)
    found, seconds = runs_of(lambda seed: old_bound(model, few, 2, seed).scaled(unit), fewer)
    how |= {"size": f"{len(few)} × 2"}
    yield how | {"estimator": "before"} | row_of(found, [truth] * fewer, seconds)

    size = min(64, len(pool))
    truth = estimate_bound(model, pool, 48, seed=10**6).mean * unit
    drawn = [pool[torch.randint(len(pool), (size,), generator=g)] for _ in range(runs)]
    how = {"of": "source", "size": f"{size} × 2", "truth": truth}
    measure = partial(estimate_bound, model, repeats=2, of="source")
    found, seconds = runs_of(lambda k: measure(tokens=drawn[k], seed=k).scaled(unit), runs)
    yield how | {"estimator": "now"} | row_of(found, [truth] * runs, seconds)
    found, seconds = runs_of(lambda k: old_bound(model, drawn[k], 2, k).scaled(unit), fewer)
    yield how | {"estimator": "before"} | row_of(found, [truth] * fewer, seconds)


def widths(model: ScoreModel, pool: Tensor, unit: float, runs: int) -> Iterator[dict[str, Any]]:
    """Width against seconds, for all of ``pool`` as a text: a few runs of each size, no coverage."""
    for name, repeats in (
        ("before", 2),
        ("before", 8),
        ("now", 2),
        ("now", 4),
        ("now", 8),
        ("now", 16),
    ):
        measure = partial(old_bound if name == "before" else estimate_bound, model, pool, repeats)
        found, seconds = runs_of(measure, runs)
        found = [estimate.scaled(unit) for estimate in found]
        row = row_of(found, [math.nan] * runs, seconds) | {"coverage": None}
        row["sd"] = torch.tensor([estimate.mean for estimate in found]).std().item()
        yield {"of": "text", "estimator": name, "size": f"{len(pool)} × {repeats}"} | row


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.runs, args.model_runs, args.characters = 10, 4, 1600
    rows: list[dict[str, Any]] = []

    def report(world: str, row: dict[str, Any]) -> None:
        rows.append({"world": world} | row)
        where = f"{world} | {row['of']} | {row['estimator']} | {row['size']} | {row['runs']}"
        covered = "" if row["coverage"] is None else f"{row['coverage']:.3f}"
        what = f"{row['half_width']:.4f} | {row['sd']:.4f} | {row['seconds']:.3f}"
        print(f"| {where} | {covered} | {what} |", flush=True)
        if args.output:
            args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    print(HEAD + "\n|" + "---|" * 9)
    for of, windows, repeats in SIZES if "words" in args.worlds else ():
        for before in (False, True):
            row = on_words(of, windows, repeats, args.runs, before)
            how = {"of": of, "estimator": "before" if before else "now"}
            report("nine words, nats", how | {"size": f"{windows} × {repeats}"} | row)
    if "pocket" in args.worlds:
        pocket = DiffusionPipeline.from_pretrained("pocket-stories", device="cpu")
        length = pocket.config.block_size
        fresh = stories.sample(8 if args.quick else 256, seed=10**6)
        windows = torch.stack([pocket.tokenizer.pad(story, length) for story in fresh]).long()
        for row in on_model(pocket.model, windows, 1.0, args.model_runs, 32):
            report("pocket-stories, nats", row)
    if args.data and {"widths", "text"} & set(args.worlds):
        judge = DiffusionPipeline.from_pretrained(args.text_model, device="cpu")
        text, length = args.data.read_text(encoding="utf-8"), judge.config.block_size
        tokens = judge.tokenizer.pad(text[: args.characters], args.characters).long()
        windows = tokens[: len(tokens) // length * length].view(-1, length)
        unit = 1 / length / math.log(2)
        few = 2 if args.quick else 6
        if "widths" in args.worlds:
            for row in widths(judge.model, windows, unit, few):
                report("text, bits per character", row)
        if "text" in args.worlds:
            for row in on_model(judge.model, windows, unit, args.model_runs, 16):
                report("text, bits per character", row)
        start = time.process_time()
        estimate = judge.bits_per_character(text[: args.characters])
        print(f"bits_per_character: {estimate:.4f}, {time.process_time() - start:.1f} seconds")


if __name__ == "__main__":
    main()
