"""What `gpu.py` measures, one function a part; each runs in a process of its own.

A part takes the options of the command line and returns plain values: `rows` for the table, perhaps
`problems`, one line each, and what else the JSON file should know.
"""

import argparse
import copy
import gc
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from sampling import fresh_windows, judge, weights_id, write
from step import matmul_peak, seconds, step_flops, trainer_of, wait
from torch import Tensor, nn

from ddlm_core import DiffusionPipeline, stories
from ddlm_core.apps.train import network_settings
from ddlm_core.block_pipeline import BlockPipeline, default_steps
from ddlm_core.blocks import make_config, make_network
from ddlm_core.config import GRAPHS
from ddlm_core.data import POCKET, batches_from
from ddlm_core.evaluation import estimate_bound, wilson
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.objective import draw_noise, training_loss
from ddlm_core.optimizers import build_optimizers
from ddlm_core.sampler import sample_diffusion, sample_generators
from ddlm_core.settings import TrainingConfig, load_preset
from ddlm_core.support.checkpoints import LATEST, PREVIOUS
from ddlm_core.support.errors import UserError
from ddlm_core.support.files import atomic_write
from ddlm_core.support.hardware import autocast, pick_device, pick_precision
from ddlm_core.support.progress import LOG, read_log
from ddlm_core.support.runs import FINAL, RunFiles
from ddlm_core.testing import same_bits, tiny_network, tiny_trainer
from ddlm_core.training import Trainer

Result = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
HOME_MB = 16  # what a model may weigh to be taken home
PRESETS = ("pocket", "pocket-blocks", "cpu", "cpu-blocks", "default", "gpu", "gpu-large")
PEAKS = {  # 10¹² FLOP a second by the data sheets: dense, 16 bits, sums in 32 bits
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}
QUICK = {  # of a run that only shows that it works
    "model": {"n_layer": 3, "n_head": 2, "n_embd": 16, "cond_dim": 8},
    "batch_size": 4,
    "val_samples": 8,
    "eval_windows": 8,
    "warmup_steps": 5,
    "num_workers": 0,
    "torch_compile": False,
}


def settings_of(preset: str, args: argparse.Namespace, **changes: Any) -> TrainingConfig:
    """Those of a preset with changes; with --quick, of a tiny network."""
    if args.quick:
        wanted = load_preset(preset).model | changes.get("model", {})
        changes |= QUICK | {"model": wanted | QUICK["model"]}
    return load_preset(preset, **{"progress": False} | changes)


def memory_of(device: torch.device) -> float | None:
    """The most gigabytes that tensors have taken since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    taken = torch.cuda.max_memory_allocated(device) / 1e9
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return round(taken, 3)


def said(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# environment


def data_sheet_peak(device: torch.device) -> float | None:
    """FLOP a second that the maker promises for matrices of 16 bits; None if we do not know."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    found = (peak * 1e12 for card, peak in PEAKS.items() if re.search(rf"\b{card}\b", name))
    return next(found, None)


def told_by(*command: str) -> str | None:
    """The first line that a program prints; None if there is no such program, or it fails."""
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else None


def environment(args: argparse.Namespace) -> Result:
    """What the machine is, and what it can multiply."""
    device = pick_device(None)
    facts: dict[str, Any] = {
        "device": str(device),
        "date": time.strftime("%Y-%m-%d"),
        "commit": told_by("git", "rev-parse", "HEAD"),
        "weights of pocket-stories": weights_id(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
    }
    facts |= {name: version(name) for name in ("torch", "accelerate", "numpy")}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts |= {
            "GPU": about.name,
            "GPUs": torch.cuda.device_count(),
            "memory, GB": round(about.total_memory / 1e9, 1),
            "multiprocessors": about.multi_processor_count,
            "capability": f"{about.major}.{about.minor}",
            "driver": told_by(*query),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
            "bf16 in hardware": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    peak, size = data_sheet_peak(device), 8192 if device.type == "cuda" else 256
    facts["10¹² FLOP/s by the data sheet, 16 bits"] = peak and peak / 1e12
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = f"10¹² FLOP/s of a matrix product measured, {str(dtype).removeprefix('torch.')}"
        facts[name] = matmul_peak(dtype, size, device) / 1e12
    return {"rows": [{"figure": name, "value": value} for name, value in facts.items()]}


# agreement


def compare(
    name: str, model: DiscreteDiffusionTransformer, device: torch.device, n: int
) -> Iterator[tuple[str, float, float]]:
    """What differs between CPU and device: the check, the difference, the most that is allowed."""
    both = (model, copy.deepcopy(model).to(device))
    config = model.config
    x_0 = fresh_windows(n, config.tokenizer, config.block_size)
    drawn = draw_noise(x_0, TrainingConfig(), model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_q = [m.denoise(drawn.x_t.to(d), drawn.sigma_bar.to(d)).cpu() for m, d in on(both)]
    yield f"{name}: log q", (log_q[0] - log_q[1]).abs().max().item(), 1e-3
    how = {"num_steps": 24, "schedule": "cosine"}
    texts = [
        sample_diffusion(
            *(m, config.noise, n, config.block_size), generator=sample_generators(0, n), **how
        ).cpu()
        for m in both
    ]
    other = (texts[0] != texts[1]).any(-1).double().mean().item()
    yield f"{name}: share of texts of a seed with another letter", other, 0.1
    nats = [estimate_bound(m, x_0.to(d)).mean for m, d in on(both)]
    yield f"{name}: bound, nats per window", abs(nats[0] - nats[1]), 1e-3
    losses, gradients = [], []
    for m, d in on(both):
        m.requires_grad_(True)
        loss = training_loss(m, [part.to(d) for part in drawn])
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in m.parameters()]))
    yield f"{name}: training loss, nats per token", abs(losses[0] - losses[1]), 1e-3
    far = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    yield f"{name}: gradient, relative", far.item(), 1e-2
    for precision in ("bf16", "fp16") if device.type == "cuda" else ("bf16",):
        with torch.no_grad(), autocast(precision, device):
            loss = training_loss(both[1], [part.to(device) for part in drawn]).item()
        yield f"{name}: training loss in {precision} against float32", abs(loss - losses[0]), 0.02


def on(models: tuple[nn.Module, ...]) -> list[tuple[Any, torch.device]]:
    """Each with the device it lies on."""
    return [(model, next(model.parameters()).device) for model in models]


def resumed_run() -> float:
    """How far a run that was cut off ends from one that was not: the largest difference of a weight."""

    def stop(done: Any) -> None:
        if done.step == 6:
            raise InterruptedError

    with TemporaryDirectory() as name:
        whole = tiny_trainer(Path(name) / "whole")
        whole.train()
        cut = tiny_trainer(Path(name) / "cut", callbacks=[stop])
        try:
            cut.train()
        except InterruptedError:
            cut = tiny_trainer(Path(name) / "cut")
            cut.resume(Path(name) / "cut" / LATEST)
            cut.train()
    if same_bits(whole.state.state_dict(), cut.state.state_dict()):
        return 0.0
    pairs = zip(whole.average.parameters(), cut.average.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def agreement(args: argparse.Namespace) -> Result:
    """Whether the device computes what the CPU computes."""
    device, n = pick_device(None), 4 if args.quick else 64
    models = {f"tiny, {name}": tiny_network(graph=name).eval() for name in GRAPHS}
    models["pocket-stories"] = DiffusionPipeline.from_pretrained(device="cpu").model
    found = [row for name, model in models.items() for row in compare(name, model, device, n)]
    found.append(("a run that is cut off and resumed: weights", resumed_run(), 1e-4))
    rows = [{"check": what, "difference": far, "allowed": most} for what, far, most in found]
    problems = [f"{what}: {far:.3g} > {most:g}" for what, far, most in found if not far <= most]
    return {"rows": rows, "problems": problems}


# steps


def kept_bytes(model: DiscreteDiffusionTransformer, config: TrainingConfig, windows: int) -> int:
    """Bytes that the forward pass on so many windows keeps for the gradient, in 16 bits on a CPU."""
    own, kept = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    x_0 = torch.randint(2, 100, (windows, config.context_length))
    drawn = draw_noise(x_0, config, model, torch.Generator().manual_seed(0))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with hooks, autocast("bf16", torch.device("cpu")):
        training_loss(model, drawn, config.objective, config.auxiliary_loss_weight).backward()
    return sum(kept.values())


def predicted_memory(config: TrainingConfig) -> float:
    """Gigabytes of a step, counted as on the deeper page "What a run costs"."""
    model = make_network(make_config(**network_settings(config)))
    one, two = (kept_bytes(model, config, windows) for windows in (1, 2))
    parameters = sum(p.numel() for p in model.parameters())
    moved = build_optimizers(model, config)["muon"].param_groups[0]["params"]
    matrices = sum(matrix.numel() for matrix in moved)
    state = 4 * (3 * parameters + matrices + 2 * (parameters - matrices))
    return (state + one + (two - one) * (config.batch_size - 1)) / 1e9


def timed_steps(trainer: Trainer, least: float, count: int = 5) -> float:
    """Seconds of a step with its batch, over at least so many seconds and steps."""
    batches = batches_from(trainer.train_loader, trainer.micro_batches, trainer.step)
    first = trainer.step

    def work() -> None:
        end = time.perf_counter() + least
        while trainer.step < first + count or time.perf_counter() < end:
            trainer.train_step(next(batches))

    return seconds(work) / (trainer.step - first)


def measured_step(config: TrainingConfig, least: float, peaks: dict[str, float | None]) -> Result:
    """What a step takes; `peaks` are FLOP a second to compare it with."""
    trainer = trainer_of(config, validate=False)
    device, network = trainer.accelerator.device, trainer.model.config
    prepared = seconds(lambda: timed_steps(trainer, 0, 3))  # compiles
    memory_of(device)
    taken = timed_steps(trainer, least)
    tokens = config.batch_size * config.context_length
    parameters = sum(p.numel() for p in trainer.model.parameters())
    speed = step_flops(network, config.batch_size, parameters) / taken
    done = config.torch_compile and hasattr(trainer.loss_fn, "_orig_mod")
    shares = {name: peak and round(speed / peak, 4) for name, peak in peaks.items()}
    return {
        "compiled": "yes" if done else "no compiler" if config.torch_compile else "no",
        "s before the first steps were done": prepared,
        "ms a step": 1e3 * taken,
        "tokens a second": round(tokens / taken),
        "10¹² FLOP/s": speed / 1e12,
        **shares,
        "GB": memory_of(device),
    }


def preset_steps(preset: str, args: argparse.Namespace) -> Result:
    """A training step of a preset in each precision, compiled or not."""
    device, rows, problems = pick_device(None), [], []
    few = {"dataset_name": POCKET, "train_samples": 2000, "val_samples": 10, "num_workers": 0}
    config = settings_of(preset, args, **few)
    predicted = predicted_memory(config)
    size = 8192 if device.type == "cuda" else 256
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        peaks = {"of the data sheet": data_sheet_peak(device)}
        peaks["of a matrix product here"] = matmul_peak(dtype, size, device)
        for compiled in (False, True):
            row = {"preset": preset, "windows": f"{config.batch_size} × {config.context_length}"}
            row |= {"precision": precision, "compiled": "yes" if compiled else "no"}
            if args.quick and compiled and preset != "pocket":
                continue  # a compiler takes its time
            how = {"mixed_precision": precision, "torch_compile": compiled}
            try:
                changed = replace(config, **how)
                row |= measured_step(changed, 0.2 if args.quick else 5, peaks)
            except (UserError, torch.OutOfMemoryError) as error:
                row["note"] = said(error)
            except Exception as error:  # noqa: BLE001  the other rows are still wanted
                row["note"] = said(error)
                problems.append(f"{preset}, {precision}, compiled {row['compiled']}: {said(error)}")
            rows.append(row | {"GB, predicted": round(predicted, 3)})
            torch._dynamo.reset()
            memory_of(device)
    return {"rows": rows, "problems": problems}


# training


class Recipe(NamedTuple):
    """What is trained, and how it is judged."""

    judge: Callable[[str, argparse.Namespace], Result]
    settings: dict[str, Any] = {}  # of TrainingConfig, beside those of the preset
    preset: str = "gpu"
    network: Callable[[DiscreteDiffusionConfig], nn.Module] = make_network
    loss_fn: Callable[[nn.Module], nn.Module] | None = None  # None: that of `Trainer`
    reads_text: bool = False  # it trains on --text


def folder_of(name: str, args: argparse.Namespace) -> Path:
    """Where a run has its checkpoints and its final model."""
    return args.output / "work" / name


def make_plan(name: str, args: argparse.Namespace) -> dict[str, int | float]:
    """How many steps fit into the minutes, and how often to save and to measure; decided once."""
    path = folder_of(name, args) / "plan.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    total = 60 * args.minutes
    with TemporaryDirectory() as folder:
        trainer = recipe_trainer(name, args, checkpoint_dir=folder, train_samples=2000)
        lost = seconds(lambda: timed_steps(trainer, 0, 3))  # compiles, and will again
        step = timed_steps(trainer, min(10, total / 10), 20)
        lost += EVALUATIONS * seconds(trainer.evaluate)
        pause = min(120, total / 10)  # seconds between two checkpoints
        lost += total / pause * seconds(lambda: trainer.files.save(trainer.state))
        windows = trainer.config.batch_size * trainer.micro_batches
    steps = max(10, int((0.95 * total - lost) / step))  # a margin, for steps differ
    plan = {
        "max_steps": steps,
        "train_samples": min(steps * windows, 1_000_000),
        "save_every_steps": max(1, round(pause / step)),
        "eval_every_steps": math.ceil(steps / EVALUATIONS),
        "seconds_a_step": step,
    }
    atomic_write(path, lambda part: part.write_text(json.dumps(plan, indent=1)))
    return plan


def recipe_trainer(name: str, args: argparse.Namespace, **changes: Any) -> Trainer:
    """The trainer of a recipe."""
    recipe = RECIPES[name]
    wanted = {"torch_compile": True, "num_epochs": 10**6, "save_every": 10**6}
    if torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 20e9:
        wanted |= {"batch_size": 32, "gradient_accumulation_steps": 2}  # as in chapter 10
    if recipe.reads_text:
        wanted |= {"dataset_name": args.text, "val_dataset_name": args.valid_text}
        changes["train_samples"] = None  # all of it
    config = settings_of(recipe.preset, args, **wanted | recipe.settings | changes)
    return trainer_of(config, recipe.network, recipe.loss_fn)


def take_home(name: str, trainer: Trainer, args: argparse.Namespace) -> tuple[float, str]:
    """Save the averaged weights in half precision, if they are light enough: megabytes, where to."""
    size = 2 * sum(p.numel() for p in trainer.average.parameters()) / 1e6
    if size > HOME_MB:
        return size, f"too large: {Path('work', name, FINAL)}, in full precision"
    half = copy.deepcopy(trainer.average).half().cpu()
    state = SimpleNamespace(average=half, step=trainer.step)
    RunFiles(args.output / "models", {}).save_weights(name, state)
    return size, f"models/{name}"


def train(name: str, args: argparse.Namespace) -> Result:
    """Train for the minutes, from the last checkpoint if there is one."""
    folder, plan = folder_of(name, args), make_plan(name, args)
    changes = {key: value for key, value in plan.items() if key != "seconds_a_step"}
    trainer = recipe_trainer(name, args, checkpoint_dir=str(folder), **changes)
    if any((folder / file).exists() for file in (LATEST, PREVIOUS)):
        trainer.resume(folder / LATEST)
    began = trainer.step
    memory_of(trainer.accelerator.device)  # from here on
    bound = trainer.train() or trainer.evaluate()
    wait()
    log, (size, place) = read_log(folder / LOG), take_home(name, trainer, args)
    speeds = sorted(line["characters_per_second"] for line in log)
    row = {
        "recipe": name,
        "weights": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step,
        "windows": f"{trainer.config.batch_size} × {trainer.config.context_length}",
        "epochs": trainer.step * trainer.micro_batches / len(trainer.train_loader),
        "precision": trainer.precision,
        "compiled": "yes" if hasattr(trainer.loss_fn, "_orig_mod") else "no",
        "seconds": log[-1]["seconds"],
        "characters a second": speeds[len(speeds) // 2],
        "GB": memory_of(trainer.accelerator.device),
        "bound, nats per window": bound.nats_per_window,
        "bits per character": bound.bits_per_character,
        "MB in 16 bits": size,
        "to take home": place,
    }
    curve = [line for line in log if "bits_per_character" in line]
    return {"rows": [row], "plan": plan, "resumed_from": began, "curve": curve}


def judge_stories(name: str, args: argparse.Namespace) -> Result:
    """The bound against the entropy, and flawless samples at several steps."""
    pipeline = BlockPipeline.from_pretrained(folder_of(name, args) / FINAL)
    device, precision = pipeline.device, pick_precision("auto", pipeline.device)
    count = 8 if args.quick else 2048
    fresh = fresh_windows(count, pipeline.tokenizer, pipeline.config.block_size).to(device)
    nats = estimate_bound(pipeline.model, fresh, repeats=4, of="source")
    figures: dict[str, Any] = {
        f"bound on {count} fresh stories, nats per story": f"{nats:.2f}",
        "gap to the entropy of the grammar, nats": nats.mean - stories.entropy(),
    }
    more: dict[str, Any] = {"bound": nats._asdict(), "entropy": stories.entropy(), "samplers": []}
    of_blocks = getattr(pipeline.config, "block_length", 0)
    for num_steps in (2, 4) if args.quick else (8, 16, 32) if of_blocks else (16, 24, 64):
        how = {"num_steps": num_steps, "schedule": "cosine", "method": "analytic", "churn": 1.0}
        tokens, taken = write(pipeline, args.samples, how, precision, 4 if args.quick else 250)
        row = how | judge(tokens, pipeline.tokenizer) | {"seconds_a_sample": taken}
        more["samplers"].append(row | {"precision": precision})
        share = wilson(row["flawless"], row["samples"])
        what = f"{num_steps} steps{' a block' if of_blocks else ''}, of {args.samples}"
        figures |= {f"flawless in {what}": f"{share:.3f}", f"distinct in {what}": row["distinct"]}
        figures[f"entropy of the words in {what}, nats"] = row["word_entropy"]
        figures[f"distance of the openings in {what}"] = row["openings_distance"]
    rows = [{"recipe": name, "figure": key, "value": value} for key, value in figures.items()]
    return {"rows": rows, **more}


def judge_text(name: str, args: argparse.Namespace) -> Result:
    """Bits per character of the validation text, and some texts to read."""
    pipeline = BlockPipeline.from_pretrained(folder_of(name, args) / FINAL)
    text = Path(args.valid_text).read_text(encoding="utf-8")[: 500 if args.quick else 40_000]
    bits = pipeline.bits_per_character(text)
    what = f"bits per character of the first {len(text):,} characters of --valid-text"
    rows = [{"recipe": name, "figure": what, "value": f"{bits:.3f}"}]
    num_steps = 4 if args.quick else min(64, default_steps(pipeline.config))
    texts = pipeline.generate(3, num_steps=num_steps, seed=0)
    return {"rows": rows, "bits_per_character": bits._asdict(), "texts": texts}


POCKET_STORIES = {"dataset_name": POCKET, "context_length": 160, "val_samples": 512}
FITS_HOME = {"n_layer": 8, "n_head": 8, "n_embd": 256, "cond_dim": 64}  # 7.2 million weights
RECIPES = {
    "pocket-gpu": Recipe(judge_stories, POCKET_STORIES),
    "pocket-small": Recipe(judge_stories, POCKET_STORIES | {"model": FITS_HOME}),
    "pocket-small-blocks": Recipe(
        judge_stories, POCKET_STORIES | {"model": FITS_HOME | {"block_length": 20}}
    ),
    "text-gpu": Recipe(judge_text, reads_text=True),
}
EVALUATIONS = 8  # of the validation bound during a run


# sampling


def sampling_speed(args: argparse.Namespace) -> Result:
    """Texts a second against the size of a batch: the bundled network, and that of the preset `gpu`."""
    config = settings_of("gpu", args, context_length=160)
    large = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**network_settings(config)))
    pipelines = {"pocket-stories": DiffusionPipeline.from_pretrained()}
    pipelines["as the preset gpu, untrained"] = DiffusionPipeline(large)
    rows: list[dict[str, Any]] = []
    for name, pipeline in pipelines.items():
        precision = pick_precision("auto", pipeline.device)
        for size in (1, 4) if args.quick else (1, 8, 64, 256, 1024):
            how = {"num_steps": 4 if args.quick else 24, "schedule": "cosine", "churn": 1.0}
            row = {"network": name, "batch": size, "steps": how["num_steps"]}
            rows.append(row | {"precision": precision})
            try:
                write(pipeline, size, how | {"num_steps": 2}, precision, size)
                memory_of(pipeline.device)
                _, taken = write(pipeline, size, how, precision, size)
            except torch.OutOfMemoryError as error:
                rows[-1]["note"] = said(error)
                break
            rows[-1] |= {"texts a second": 1 / taken, "GB": memory_of(pipeline.device)}
    return {"rows": rows}


# tests


def failing_tests(names: list[str], hidden: bool) -> tuple[str, list[str]]:
    """What pytest says in its last line, and the tests that fail; perhaps without the GPU."""
    nothing = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""} if hidden else {}
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *names]
    environ = os.environ | nothing | {"COLUMNS": "1000", "PYTEST_ADDOPTS": ""}
    how = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environ, **how)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    found = [re.match(r"(?:FAILED|ERROR) (.+?)(?: - .*)?$", line) for line in lines]
    failed = [match[1] for match in found if match]
    if done.returncode and not failed:
        raise RuntimeError(f"pytest could not run: {' '.join(lines[-3:])}")
    return lines[-1].strip("= "), failed


def unit_tests(args: argparse.Namespace) -> Result:
    """The tests of chapters and modules, where networks and trainers take the GPU by themselves.

    Files where a test fails run once more without the GPU, to tell its failures from others.
    """
    chapters = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_*.py"))
    names = ["tests/unit/test_forward.py"] if args.quick else ["tests/unit", *chapters]
    summary, failed = failing_tests(names, hidden=False)
    files = sorted({name.split("::")[0] for name in failed})
    _, without = failing_tests(files, hidden=True) if files else ("", [])
    anyway = [name for name in failed if name in without]
    rows = [{"tests": " ".join(names), "pytest": summary, "failed": len(failed)}]
    rows[0]["failed without the GPU, too"] = len(anyway)
    return {"rows": rows, "problems": failed, "failed_without_gpu": anyway}
