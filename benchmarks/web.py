"""What does a model in the page cost? In headless Chromium, on one thread, from a server on this machine.

Prints bytes, seconds until the model answers, milliseconds per evaluation, and seconds for a first story.
With --compare 12 also how many of the stories of twelve seeds are those of Python. An evaluation of a model
of blocks is one of a block at the end of those characters, which it reads.
"""

import argparse
import functools
import gzip
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onnx
import torch
from playwright.sync_api import sync_playwright

from ddlm_core.apps.export import export
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.support.weights import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MEASURE = """async ({length, count, steps, seqLen}) => {
  const start = performance.now(), {loadModel, generate} = await import('/web/index.js');
  const model = await loadModel('/model/'), loaded = performance.now();
  const text = Int32Array.from({length}, (_, i) => 2 + i % 50), taken = [];
  const size = model.config.blockLength ?? length, read = Math.floor((length - 1) / size) * size;
  const asked = model.after ? model.after(text.slice(0, read)) : model, tokens = text.slice(read);
  for (let i = 0; i < count; i++) {
    const before = performance.now();
    await asked.logits(tokens, 0.5);
    taken.push(performance.now() - before);
  }
  taken.sort((a, b) => a - b);
  const before = performance.now(), story = await generate(model, {seed: 0, numSteps: steps, seqLen});
  const seconds = (performance.now() - before) / 1e3;
  const [fastest, median] = [taken[0], taken[count >> 1]];
  return {load: (loaded - start) / 1e3, fastest, median, story: seconds, text: story};
}"""

STORIES = """async (runs) => {
  const {loadModel, generateStreaming} = await import('/web/index.js');
  const model = await loadModel('/model/'), stories = [];
  for (const [seed, numSteps] of runs) {
    const texts = [];
    for await (const {text} of generateStreaming(model, {seed, numSteps})) texts.push(text);
    stories.push(texts);
  }
  return stories;
}"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="pocket-stories")
    p.add_argument("--weights", nargs="+", default=WEIGHTS)
    p.add_argument("--length", type=int, default=160, help="characters of an evaluation")
    p.add_argument("--count", type=int, default=50, help="evaluations (default: 50)")
    p.add_argument(
        "--steps", type=int, default=24, help="steps of the story, or of each block (24)"
    )
    p.add_argument("--seq-len", type=int, help="characters of the story (default: a window)")
    p.add_argument("--compare", type=int, default=0, help="seeds whose stories Python writes, too")
    p.add_argument("--quick", action="store_true", help="few of everything")
    return p


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def sizes(paths: list[Path]) -> str:
    """Megabytes as they are, and as a server sends them that compresses."""
    contents = [path.read_bytes() for path in paths]
    packed = sum(len(gzip.compress(content, 9)) for content in contents)
    return f"{sum(map(len, contents)) / 1e6:.2f} | {packed / 1e6:.2f}"


def in_a_page(site: Path, script: str, argument: Any) -> Any:
    """What a script finds in a fresh browser."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/page.html")
        page.set_default_timeout(0)
        found = page.evaluate(script, argument)
        browser.close()
    server.shutdown()
    return found


def rounded(pipeline: BlockPipeline, network: Path) -> None:
    """Round the weights that an exported network holds in 16 bits, as it does."""
    tables = (t for t in onnx.load(network).graph.initializer if t.name.endswith(".half"))
    halves = [onnx.numpy_helper.to_array(table) for table in tables]
    known = {half.tobytes() for half in halves} | {half.T.tobytes() for half in halves}
    for table in pipeline.model.state_dict().values():
        if table.half().numpy().tobytes() in known:
            table.copy_(table.half())


def compared(site: Path, model: str, weights: str, seeds: int) -> Iterator[str]:
    """How many stories of a page are those of Python, with the same weights and with those of the package."""
    runs = [(seed, steps) for steps in (24, 64) for seed in range(seeds)]
    ours = in_a_page(site, STORIES, runs)
    for which in dict.fromkeys(("float32", weights)):
        pipeline = BlockPipeline.from_pretrained(model, device="cpu")
        if which == "float16":
            rounded(pipeline, site / "model/model.onnx")
        theirs = [
            [step.texts[0] for step in pipeline.generate_streaming(seed=seed, num_steps=steps)]
            for seed, steps in runs
        ]
        ends = sum(a[-1] == b[-1] for a, b in zip(ours, theirs, strict=True))
        every = sum(a == b for a, b in zip(ours, theirs, strict=True))
        yield f"| {weights} | {which} | {ends} of {len(runs)} | {every} |"


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.weights, args.count, args.steps = args.weights[:1], 3, 3
    options = {"length": args.length, "count": args.count, "steps": args.steps}
    options["seqLen"] = args.seq_len
    runtime = [ROOT / "_vendor/onnxruntime" / name for name in RUNTIME]
    print("| file | MB | MB, gzipped |\n|---|---|---|")
    print(f"| runtime | {sizes(runtime)} |")
    print(f"| web/ | {sizes(sorted((ROOT / 'web').glob('*.js')))} |")
    rows, same = [], []
    torch.set_num_threads(1)
    for weights in args.weights:
        with tempfile.TemporaryDirectory() as folder:
            site = Path(folder)
            (site / "page.html").write_text("<!doctype html><title>A page</title>")
            (site / "web").symlink_to(ROOT / "web")
            (site / "onnxruntime").symlink_to(ROOT / "_vendor/onnxruntime")
            list(export(args.model, site / "model", weights))
            print(f"| network, {weights} | {sizes([site / 'model/model.onnx'])} |", flush=True)
            found = in_a_page(site, MEASURE, options)
            keys = ("load", "fastest", "median", "story")
            rows.append(f"| {weights} | " + " | ".join(f"{found[key]:.1f}" for key in keys) + " |")
            if args.compare and weights != "int8":
                same += compared(site, args.model, weights, args.compare)
            said = json.dumps(found["text"], ensure_ascii=False)
    story = f"s for a story in {args.steps} steps"
    print(
        f"\n| weights | s to load | ms per evaluation, fastest | median | {story} |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))
    print(f"\nseed 0: {said}")
    if same:
        print(
            "\n| weights in the page | in Python | same story | same in every step |\n|---|---|---|---|"
        )
        print("\n".join(same))


if __name__ == "__main__":
    main()
