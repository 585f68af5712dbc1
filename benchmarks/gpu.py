"""All that is to be measured on a GPU, in one command: for half an hour on a rented machine.

  python benchmarks/gpu.py                      the parts below, with 10 minutes of training a recipe
  python benchmarks/gpu.py --minutes 20 --recipes pocket-gpu
  python benchmarks/gpu.py --text stories.txt --valid-text others.txt
  python benchmarks/gpu.py --quick              the same path in some two minutes, on a CPU too

It needs no network. The parts, in this order:

  environment  GPU, driver, versions, what a matrix product reaches here
  agreement    do CPU and GPU compute the same: log q, texts of a seed, bound, gradients, resuming
  train        each recipe for the given minutes: pocket-gpu (stories of our grammar, the preset
               `gpu`), pocket-small (the same with 7 million weights), pocket-small-blocks (that in
               blocks of 20), text-gpu (your --text)
  judge        the bound against the entropy, flawless samples in 16, 24 and 64 steps (of blocks:
               8, 16 and 32 each)
  speed        texts a second against the size of a batch
  step         a training step of each preset in bf16 and fp16, compiled or not: tokens a second,
               share of the peak, memory against what was predicted
  tests        the tests of chapters and modules, with the GPU

After each part the folder --output holds gpu.json and gpu.md with all that is known so far, and
models/ with what was trained and weighs at most 16 MB in 16 bits: take these home. Its folder work/
has logs and checkpoints. Each part runs in a process of its own: one that fails leaves its error, and
the next goes on. The same command again goes on where the last one was cut off, by whatever: what is
there is not measured again, a training goes on from its last checkpoint (some two minutes are
lost), and what has failed is tried once more. To measure a part again, delete its file in parts/.

Exit status: 0 if all is well, 1 if a part failed or found a problem, 130 if it was interrupted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gpu_parts
import torch

from ddlm_core.support.files import atomic_write

KINDS = ("environment", "agreement", "train", "judge", "speed", "step", "tests")
SAME = ("quick", "minutes", "samples")  # what all results of a folder have in common


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--minutes", type=float, help="of training, for each recipe (default: 10)")
    names = {"nargs": "+", "metavar": "NAME"}
    p.add_argument("--recipes", choices=gpu_parts.RECIPES, **names, help="(default: all)")
    p.add_argument("--only", choices=KINDS, default=KINDS, **names, help="parts (default: all)")
    p.add_argument("--text", help="file to train text-gpu on")
    p.add_argument("--valid-text", help="file to measure it on, one that is held out")
    p.add_argument("--samples", type=int, help="texts to judge at each number of steps (1000)")
    p.add_argument(
        "--output", type=Path, help="folder (default: outputs/gpu, or outputs/gpu-quick)"
    )
    p.add_argument("--quick", action="store_true", help="tiny networks, seconds: does it run?")
    p.add_argument("--part", help=argparse.SUPPRESS)  # what a child process is started for
    return p


def options() -> argparse.Namespace:
    """What the command line says, with the defaults of --quick or of a whole run."""
    args = parser().parse_args()
    args.minutes = args.minutes or (0.1 if args.quick else 10)
    args.samples = args.samples or (4 if args.quick else 1000)
    args.output = args.output or Path("outputs", "gpu-quick" if args.quick else "gpu")
    args.output = args.output.resolve()
    args.recipes = args.recipes or list(gpu_parts.RECIPES)
    for name in ("text", "valid_text"):
        if (path := getattr(args, name)) and not Path(path).is_file():
            raise SystemExit(f"there is no file {path}")
        setattr(args, name, path and str(Path(path).resolve()))
    return args


class Part(NamedTuple):
    """A measurement: what does it, how many seconds it may take, and why it is left out, if it is."""

    work: Callable[[argparse.Namespace], dict[str, Any]]
    limit: float = 900
    lacking: str = ""


def parts_of(args: argparse.Namespace) -> dict[str, Part]:
    """All parts by their names, in the order in which they run."""
    parts = {
        "environment": Part(gpu_parts.environment),
        "agreement": Part(gpu_parts.agreement),
    }
    for name in args.recipes:
        recipe = gpu_parts.RECIPES[name]
        lacks = recipe.reads_text and not (args.text and args.valid_text)
        lacking = "it needs --text and --valid-text" if lacks else ""
        limit = 900 + 90 * args.minutes
        parts[f"train {name}"] = Part(partial(gpu_parts.train, name), limit, lacking)
        parts[f"judge {name}"] = Part(partial(recipe.judge, name), lacking=lacking)
    parts["speed"] = Part(gpu_parts.sampling_speed)
    for preset in gpu_parts.PRESETS:
        parts[f"step {preset}"] = Part(partial(gpu_parts.preset_steps, preset))
    parts["tests"] = Part(gpu_parts.unit_tests)
    return {name: part for name, part in parts.items() if name.split()[0] in args.only}


# a part in its process


def file_of(name: str, args: argparse.Namespace) -> Path:
    """Where the result of a part lies."""
    return args.output / "parts" / f"{name.replace(' ', '-')}.json"


def save(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    atomic_write(path, lambda part: part.write_text(text, encoding="utf-8"))


def end_with_parent() -> None:
    """The pipe to this process closes when the one that holds it has gone, whatever ended it."""
    os.read(0, 1)
    os._exit(1)


def run_here(args: argparse.Namespace) -> None:
    """Measure the part that this process was started for."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    start, result = time.perf_counter(), parts_of(args)[args.part].work(args)
    found = {"status": "done", "seconds": round(time.perf_counter() - start, 1), **result}
    save(file_of(args.part, args), found)


def run_child(name: str, part: Part, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a part in another process; what it found, or its error."""
    log = args.output / "work" / "logs" / f"{file_of(name, args).stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cache = {"HF_ASSETS_CACHE": str(args.output / "work" / "cache")}  # of prepared texts
    command, error = [sys.executable, *sys.argv, "--part", name], ""
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            command, env=cache | os.environ, stdin=subprocess.PIPE, stdout=file, stderr=file
        )
        try:
            code = child.wait(part.limit)
            error = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            child.kill()
            error = f"took more than {part.limit:.0f} s"
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)  # a training saves its last step
            child.wait(60)
            raise
    if not error:
        return known(name, args)
    told = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return {"status": "failed", "error": f"{error}: {told[-1] if told else ''}", "log": told[-30:]}


# the folder


def known(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The result of a part that was measured before; empty if it was not."""
    path = file_of(name, args)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_folder(args: argparse.Namespace) -> None:
    """Stop if the folder has the results of another kind of run."""
    settings, path = {name: getattr(args, name) for name in SAME}, args.output / "parts/run.json"
    if not path.exists():
        save(path, settings)
    if (before := json.loads(path.read_text(encoding="utf-8"))) != settings:
        raise SystemExit(f"{args.output} has results with {before}: name another --output")


def shown(value: Any) -> str:
    """A value as a cell of a Markdown table."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows that need not have the same columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(row.get(column)) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def write_down(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """gpu.json and gpu.md, with all that is known."""
    settings = {name: getattr(args, name) for name in SAME}
    save(args.output / "gpu.json", {"settings": settings, "parts": results})
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    lines = ["# Measured by `benchmarks/gpu.py`", "", told]
    for kind in KINDS:
        mine = {name: result for name, result in results.items() if name.split()[0] == kind}
        rows = [row for result in mine.values() for row in result.get("rows", [])]
        lines += ["", f"## {kind}", ""] * bool(mine) + table(rows) * bool(rows)
        for name, result in mine.items():
            if result["status"] != "done":
                lines += ["", f"{name}: {result['status']} ({result.get('error', '')})"]
            lines += [f"\n{name}: **{problem}**" for problem in result.get("problems", [])]
    text = "\n".join(lines) + "\n"
    atomic_write(args.output / "gpu.md", lambda part: part.write_text(text, encoding="utf-8"))


def finish(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> int:
    """Say what there is to take home, and what went wrong: the exit status."""
    kept = [path for path in (args.output / "models").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in kept) / 1e6
    print(f"to take home: gpu.json, gpu.md, models ({size:.1f} MB) in {args.output}")
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    problems = [name for name, result in results.items() if result.get("problems")]
    for what, names in (("failed", failed), ("with problems", problems)):
        if names:
            print(f"{what}: {', '.join(names)}")
    return 1 if failed or problems else 0


def main() -> int:
    args = options()
    if args.part:
        run_here(args)
        return 0
    if not args.quick and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch can use; --quick shows that all runs")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_folder(args)
    parts = parts_of(args)
    everything = parts_of(argparse.Namespace(**vars(args) | {"only": KINDS}))
    results = {name: found for name in everything if (found := known(name, args))}
    for name, part in parts.items():
        if name in results:
            print(f"{name}: measured before", flush=True)
            continue
        start = time.perf_counter()
        if part.lacking:
            results[name] = {"status": "skipped", "error": part.lacking}
        else:
            results[name] = run_child(name, part, args)
        write_down(results, args)
        found = results[name]
        note = found.get("error") or f"{len(found.get('problems', []))} problems"
        print(f"{name}: {found['status']}, {time.perf_counter() - start:.0f} s, {note}", flush=True)
    write_down({name: results[name] for name in everything if name in results}, args)
    return finish(results, args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
