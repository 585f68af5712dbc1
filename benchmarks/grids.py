"""Where should the steps lie, and what else could a function evaluation buy? Exact, no samples.

Prints the total variation distance between the language of chapter 7's tiny world and what a run
writes, for many kinds of run with the same number of evaluations of the ideal network.
"""

import argparse

import torch
from torch import Tensor

from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import analytic_probs
from ddlm_core.sampler import noise_levels
from ddlm_core.tiny_world import (
    TinyWorld,
    product_of_positions,
    three_letter_world,
    total_variation,
    word_kernel,
    written,
)

NOISE = GeometricNoise()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, nargs="+", default=[8, 16, 24, 32, 64, 128, 256])
    p.add_argument("--updates", type=int, default=400, help="to optimize a grid (default: 400)")
    p.add_argument("--quick", action="store_true", help="three step counts, short search")
    return p


def step_kernel(world: TinyWorld, now: Tensor, after: Tensor) -> Tensor:
    """(W, W): one analytic step back, with gradients to the noise levels."""
    log_q = world.denoise(world.words, now.expand(len(world.words)))
    return product_of_positions(world, analytic_probs(log_q, world.words, now, after))


def distance(world: TinyWorld, levels: Tensor) -> Tensor:
    probs = torch.full_like(world.probs, 1 / len(world.probs))
    for now, after in zip(levels[:-1], levels[1:]):
        probs = probs @ step_kernel(world, now, after)
    return (probs - world.probs).abs().sum() / 2


def optimized(world: TinyWorld, num_steps: int, updates: int) -> Tensor:
    """The noise levels of this many steps that bring a run closest to the language (Adam)."""
    start = noise_levels(NOISE, num_steps, "cosine")[1:-1]
    ratios = torch.cat([NOISE.sigma_bar(torch.ones(1).double()), start]).log().diff().neg()
    falls = (
        ratios.log().requires_grad_()
    )  # logs of how much lower each level is, so they stay sorted
    optimizer = torch.optim.Adam([falls], 0.03)
    best, found = torch.inf, start
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - update / updates)
        inner = NOISE.sigma_max * torch.exp(-falls.exp().cumsum(0))
        first = torch.tensor([NOISE.sigma_max], dtype=torch.float64)
        levels = torch.cat([first, inner, first * 0])
        error = distance(world, levels)
        if error.item() < best:
            best, found = error.item(), levels.detach()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return found


def corrected(world: TinyWorld, num_steps: int, schedule: str) -> float:
    """Half of the evaluations go to correctors: noise of half a step is added and removed again."""
    levels = noise_levels(NOISE, num_steps // 2, schedule)
    probs = torch.full_like(world.probs, 1 / len(world.probs))
    for now, after in zip(levels[:-1], levels[1:]):
        again = (now + after) / 2
        probs = probs @ step_kernel(world, now, after)
        probs = probs @ word_kernel(world, again - after) @ step_kernel(world, again, after)
    return total_variation(probs, world.probs)


def rows(world: TinyWorld, steps: list[int], updates: int) -> dict[str, list[float]]:
    """Name of a kind of run to its distance for each number of function evaluations."""
    table = {}
    for schedule in ("linear", "fraction", "cosine"):
        for method in ("analytic", "euler"):
            runs = (written(world, noise_levels(NOISE, n, schedule), method=method) for n in steps)
            table[f"{method}, {schedule}"] = [total_variation(p, world.probs) for p in runs]
    runs = (written(world, noise_levels(NOISE, n, "cosine", denoise_last=False)) for n in steps)
    table["analytic, cosine, last noise left in"] = [total_variation(p, world.probs) for p in runs]
    table["analytic, cosine, half of them correctors"] = [
        corrected(world, n, "cosine") for n in steps
    ]
    for churn in (0.5, 1.0):
        runs = (written(world, noise_levels(NOISE, n, "cosine"), churn=churn) for n in steps)
        table[f"analytic, cosine, churn {churn:g}"] = [
            total_variation(p, world.probs) for p in runs
        ]
    table["analytic, optimized for this world"] = [
        distance(world, optimized(world, n, updates)).item() for n in steps
    ]
    return table


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.steps, args.updates = [8, 24, 32], 50
    world = three_letter_world()
    print("| run | NFE " + " | ".join(str(n) for n in args.steps) + " |")
    print("|---|" + "---|" * len(args.steps))
    for name, values in rows(world, args.steps, args.updates).items():
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |", flush=True)
    if not args.quick:
        levels = optimized(world, 24, args.updates)
        shares = -torch.expm1(-levels)
        print("\nfractions of redrawn letters where the optimized 24 steps stop:")
        print(" ".join(f"{share:.3f}" for share in shares.tolist()))


if __name__ == "__main__":
    main()
