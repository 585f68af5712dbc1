"""What does a training step cost, and how much of it is arithmetic?

Compares a step of `Trainer` with the bare forward + backward + optimizer of the same network on the
same batch, counts the tensors of logits size that the loss allocates, and says which share of this
machine's measured matrix-product peak a step reaches. Then it tries what the machine can be told:
threads, precision, compilation, allocator. The profile says where the rest of the time goes.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddlm_core import (
    DiscreteDiffusionConfig,
    DiscreteDiffusionTransformer,
    Trainer,
    TrainingConfig,
    score_entropy_loss,
    setup_dataloaders,
)
from ddlm_core.apps.train import network_settings, text_settings
from ddlm_core.blocks import make_config, make_network
from ddlm_core.objective import draw_noise, training_loss
from ddlm_core.optimizers import build_optimizers
from ddlm_core.support.hardware import autocast


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch-size", type=int, default=16)
    p.add_argument("--runs", type=int, default=15, help="pairs of steps (default: 15)")
    p.add_argument("--quick", action="store_true", help="three pairs, no other settings")
    p.add_argument("--alone", nargs=2, metavar=("PRECISION", "COMPILE"), help=argparse.SUPPRESS)
    return p


def wait() -> None:
    """A GPU does its work later than it is told to: let it finish."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(work: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def matmul_peak(dtype: torch.dtype, size: int = 1024, device: str | torch.device = "cpu") -> float:
    """FLOP a second of a large matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: a @ b) for _ in range(12)]
    return 2 * size**3 / min(times)


def step_flops(config: DiscreteDiffusionConfig, batch: int, parameters: int) -> float:
    """6 FLOP a weight and token, and 12 L d a token and layer in attention."""
    tokens, length = batch * config.block_size, config.block_size
    return tokens * (6 * parameters + 12 * config.n_layer * length * config.n_embd)


class LargeTensors(TorchDispatchMode):
    """Counts operations that give a new tensor of at least ``numel`` elements."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {a.data_ptr() for a in args if isinstance(a, Tensor)}
        for out in result if isinstance(result, tuple | list) else [result]:
            large = isinstance(out, Tensor) and out.numel() >= self.numel
            if large and out.data_ptr() not in inputs:  # not a view of what was there
                self.names.append(func.__name__)
        return result


def loss_tensors(batch: int, length: int, vocab: int, objective: str) -> list[str]:
    """The operations of forward and backward of the loss that make a tensor of logits size."""
    logits = torch.randn(batch, length, vocab, requires_grad=True)
    x_0, x_t = torch.randint(vocab, (2, batch, length)).unbind()
    sigma_bar, mask = torch.ones(batch), torch.zeros(batch, length, dtype=torch.bool)
    model = SimpleNamespace(denoise=lambda *_: logits.log_softmax(-1))
    with LargeTensors(batch * length * vocab) as counter:
        if objective == "cross_entropy":
            training_loss(model, (x_0, x_t, mask, sigma_bar, sigma_bar), objective).backward()
        else:  # of log-scores, without the way from log q to them
            score_entropy_loss(logits, sigma_bar, x_t, x_0).sum().backward()
    return counter.names


def bare_step(trainer: Trainer, x_0: Tensor) -> Callable[[], None]:
    """Noise, loss, gradients and optimizers of the same network, and nothing else."""
    config = trainer.config
    model = DiscreteDiffusionTransformer(trainer.model.config)
    optimizers = build_optimizers(model, config).values()
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        drawn = draw_noise(x_0, config, model, generator)
        with autocast(trainer.precision, trainer.accelerator.device):
            loss = training_loss(model, drawn, config.objective)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def make_trainer(batch_size: int, **settings: object) -> tuple[Trainer, Tensor]:
    """The trainer of the small network, and a batch."""
    config = TrainingConfig(
        dataset_name="pocket-stories",
        train_samples=1000,
        val_samples=10,
        context_length=160,
        batch_size=batch_size,
        progress=False,
        **settings,
    )
    trainer = trainer_of(config, validate=False)
    return trainer, next(iter(trainer.train_loader)).long()


def trainer_of(
    config: TrainingConfig,
    network: Callable[[DiscreteDiffusionConfig], nn.Module] = make_network,
    loss_fn: Callable[[nn.Module], nn.Module] | None = None,
    validate: bool = True,
) -> Trainer:
    """The trainer that ``ddlm-train`` would make of a configuration."""
    data = setup_dataloaders(**text_settings(config))
    torch.manual_seed(config.seed)
    model = network(make_config(**network_settings(config)))
    loss = loss_fn(model) if loss_fn else None
    return Trainer(model, data.train, data.val if validate else None, config, loss_fn=loss)


ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
SETTINGS = {  # environment, precision, compiled
    "one thread": ({"OMP_NUM_THREADS": "1"}, "auto", "no"),
    "two threads": ({"OMP_NUM_THREADS": "2"}, "auto", "no"),
    "one thread, float32": ({"OMP_NUM_THREADS": "1"}, "no", "no"),
    "one thread, torch.compile": ({"OMP_NUM_THREADS": "1"}, "auto", "yes"),
    "one thread, memory kept by malloc": ({"OMP_NUM_THREADS": "1"} | ALLOCATOR, "auto", "no"),
}


def alone(args: argparse.Namespace) -> None:
    """Print the median seconds of a step, and the share of processor time in the kernel."""
    precision, compiled = args.alone
    trainer, x_0 = make_trainer(
        args.batch_size, mixed_precision=precision, torch_compile=compiled == "yes"
    )
    for _ in range(2):
        trainer.train_step(x_0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    median = statistics.median(seconds(lambda: trainer.train_step(x_0)) for _ in range(args.runs))
    after = resource.getrusage(resource.RUSAGE_SELF)
    kernel, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    print(f"{median:.3f} s, {kernel / (kernel + user):.0%} of the processor's time in the kernel")


def profile_table(trainer: Trainer, x_0: Tensor) -> None:
    """Print which operations take more than 2 % of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(3):
            trainer.train_step(x_0)
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print("\n| operation | share of a step |\n|---|---|")
    for row in rows:
        if row.self_cpu_time_total > 0.02 * total:
            print(f"| {row.key} | {row.self_cpu_time_total / total:.0%} |")


def main() -> None:
    args = parser().parse_args()
    if args.alone:
        return alone(args)
    runs = 3 if args.quick else args.runs
    trainer, x_0 = make_trainer(args.batch_size)
    network = trainer.model.config
    bare = bare_step(trainer, x_0)

    def ours() -> None:
        trainer.train_step(x_0)

    for work in (ours, bare):
        work()
    pairs = [(seconds(ours), seconds(bare)) for _ in range(runs)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs))
    parameters = sum(p.numel() for p in trainer.model.parameters())
    flops = step_flops(network, args.batch_size, parameters)
    precision = trainer.precision
    peak = matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
    counts = {
        objective: loss_tensors(args.batch_size, 160, network.vocab_size, objective)
        for objective in ("cross_entropy", "score_entropy")
    }

    print("| figure | value |\n|---|---|")
    print(f"| threads, precision | {torch.get_num_threads()}, {precision} |")
    print(f"| step of `Trainer` | {mine:.3f} s |")
    print(f"| bare forward, backward, optimizer | {theirs:.3f} s |")
    print(f"| ratio, median of {runs} pairs | {statistics.median(a / b for a, b in pairs):.3f} |")
    print(f"| characters a second | {x_0.numel() / mine:,.0f} |")
    for objective, names in counts.items():
        print(f"| tensors of logits size, {objective} | {len(names)}: {', '.join(names)} |")
    print(f"| arithmetic of a step | {flops / 1e9:.1f} GFLOP |")
    print(f"| matrix-product peak here | {peak / 1e9:.0f} GFLOP/s |")
    print(f"| share of the peak | {flops / mine / peak:.0%} |")
    for name, (environment, *how) in {} if args.quick else SETTINGS.items():
        line = [sys.executable, __file__, "--runs", str(runs), "--alone", *how]
        told = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True)
        print(f"| a step, {name} | {told.stdout.strip() or 'failed'} |", flush=True)
    profile_table(trainer, x_0)


if __name__ == "__main__":
    main()
