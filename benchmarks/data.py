"""How long does it take to prepare a large text, and in how much memory?

Writes 2 GB of text into a temporary folder, as .jsonl and as .txt, and starts on it twice: the
first start prepares the tokens, the second finds them in the cache. The text is made of stories of
the grammar: 100,000 are sampled once and then told again and again, each time with a running number
(to sample 2 GB would take hours). A row of the .jsonl holds eight of them, so it is about as long
as a story of TinyStories. `--from` measures files of your own instead.

Each start is a process of its own. A thread in it reads its anonymous memory (RssAnon: what is no
file's) every 5 ms. Other programs on the same core make a start take longer; the seconds that the
CPU worked for it count only its own. (Linux only.)
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path

from ddlm_core import stories

ROW = 8  # stories in a row of the .jsonl
CHILD = """
import json, sys, threading, time
from pathlib import Path

import ddlm_core.support.store
from ddlm_core.data import setup_dataloaders

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1000

def watch():
    while True:
        samples.append(anonymous())
        time.sleep(0.005)

setup_dataloaders("pocket-stories", train_samples=20, val_samples=4)  # to import everything
before, samples = anonymous(), []
threading.Thread(target=watch, daemon=True).start()
start, worked = time.perf_counter(), time.process_time()
loader, *_ = setup_dataloaders(sys.argv[1])
next(iter(loader))
seconds, worked = time.perf_counter() - start, time.process_time() - worked
most = max([*samples, anonymous()])
print(json.dumps([seconds, worked, before, most, len(loader.dataset.tokens)]))
"""


def write_text(path: Path, size: int, told: list[str]) -> None:
    """Write ``size`` bytes of numbered stories."""
    numbers, written = count(), 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            row = [f"{n}. {told[n % len(told)]}" for n in islice(numbers, ROW)]
            text = "\n".join(row) + "\n"
            is_text = path.suffix == ".txt"
            written += file.write(text if is_text else json.dumps({"text": text}) + "\n")


def start(path: str, cache: Path) -> tuple[float, float, float, float, int]:
    """Seconds to the first batch, and of CPU; memory before and at most (MB); tokens."""
    environment = os.environ | {"HF_ASSETS_CACHE": str(cache)}
    call = [sys.executable, "-c", CHILD, path]
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=2000, help="of text (default: 2000)")
    parser.add_argument("--quick", action="store_true", help="20 MB, to see that it works")
    parser.add_argument("--from", dest="files", nargs="+", help="measure these files instead")
    args = parser.parse_args()
    size = (20 if args.quick else args.megabytes) * 10**6
    print("| text | MB | start | seconds | of CPU | MB/s of CPU | peak memory | of it new |")
    print("|---|---|---|---|---|---|---|---|")
    told = [] if args.files else stories.sample(2000 if args.quick else 100_000, seed=0)
    with tempfile.TemporaryDirectory() as name:
        for source in args.files or ("stories.jsonl", "stories.txt"):
            path = Path(source) if args.files else Path(name) / source
            if not args.files:
                write_text(path, size, told)
            mega = path.stat().st_size / 1e6
            for which in ("first", "second"):
                seconds, worked, before, most, _ = start(str(path), Path(name) / "cache")
                speed = f"{mega / worked:.0f}" if which == "first" else "–"
                times = f"{seconds:.2f} | {worked:.2f} | {speed}"
                memory = f"{most:.0f} MB | {most - before:.0f} MB"
                print(
                    f"| {path.name} | {mega:.0f} | {which} | {times} | {memory} |",
                    flush=True,
                )
            if not args.files:
                path.unlink()
    print(f"\n{time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
