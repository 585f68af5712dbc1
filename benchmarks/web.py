"""What does a model in the page cost? In headless Chromium, on one thread, from a server on this machine.

Prints bytes, seconds until the model answers, milliseconds per evaluation, and seconds for a first story.
"""

import argparse
import functools
import gzip
import json
import shutil
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

from ddlm_core.apps.export import export
from ddlm_core.support.weights import WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MEASURE = """async ({length, count, steps}) => {
  const start = performance.now(), {loadModel, generate} = await import('/web/index.js');
  const model = await loadModel('/model/'), loaded = performance.now();
  const tokens = Int32Array.from({length}, (_, i) => 2 + i % 50), taken = [];
  for (let i = 0; i < count; i++) {
    const before = performance.now();
    await model.logits(tokens, 0.5);
    taken.push(performance.now() - before);
  }
  taken.sort((a, b) => a - b);
  const before = performance.now(), text = await generate(model, {seed: 0, numSteps: steps});
  const story = (performance.now() - before) / 1e3;
  return {load: (loaded - start) / 1e3, fastest: taken[0], median: taken[count >> 1], story, text};
}"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="pocket-stories")
    p.add_argument("--weights", nargs="+", default=WEIGHTS)
    p.add_argument("--length", type=int, default=160, help="characters of an evaluation")
    p.add_argument("--count", type=int, default=50, help="evaluations (default: 50)")
    p.add_argument("--steps", type=int, default=24, help="steps of the story (default: 24)")
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


def measured(site: Path, options: dict[str, int]) -> dict[str, float]:
    """What a fresh browser finds."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/page.html")
        found = page.evaluate(MEASURE, options)
        browser.close()
    server.shutdown()
    return found


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.weights, args.count, args.steps = args.weights[:1], 3, 3
    options = {"length": args.length, "count": args.count, "steps": args.steps}
    runtime = [ROOT / "_vendor/onnxruntime" / name for name in RUNTIME]
    print("| file | MB | MB, gzipped |\n|---|---|---|")
    print(f"| runtime | {sizes(runtime)} |")
    print(f"| web/ | {sizes(sorted((ROOT / 'web').glob('*.js')))} |")
    rows = []
    for weights in args.weights:
        with tempfile.TemporaryDirectory() as folder:
            site = Path(folder)
            (site / "page.html").write_text("<!doctype html><title>A page</title>")
            (site / "web").symlink_to(ROOT / "web")
            (site / "onnxruntime").symlink_to(ROOT / "_vendor/onnxruntime")
            list(export(args.model, site / "model", weights))
            print(f"| network, {weights} | {sizes([site / 'model/model.onnx'])} |", flush=True)
            found = measured(site, options)
            keys = ("load", "fastest", "median", "story")
            rows.append(f"| {weights} | " + " | ".join(f"{found[key]:.1f}" for key in keys) + " |")
            said = json.dumps(found["text"], ensure_ascii=False)
    story = f"s for a story in {args.steps} steps"
    print(
        f"\n| weights | s to load | ms per evaluation, fastest | median | {story} |\n|---|---|---|---|---|"
    )
    print("\n".join(rows))
    print(f"\nseed 0: {said}")


if __name__ == "__main__":
    main()
