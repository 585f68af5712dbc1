"""The JavaScript of web/ does what the chapters' Python does: same random numbers, same tokens."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import vendor
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.tokenizer import PAD_ID
from pages import lacking
from web import record, record_lengths

pytest.importorskip("onnx", reason="an export needs it")
pytest.importorskip("onnxruntime", reason="an export needs it")

ROOT = Path(__file__).parents[2]
WEB, RUNTIME, HERE = ROOT / "web", ROOT / "_vendor/onnxruntime", ROOT / "tests/web"
JUDGED = [
    "Tom had a red ball.",
    "x" * 40,
    "The cat and the dog went to the big park to play with a kite.",
    "The end.\n<|endoftext|>\nTom had a ball.<|endoftext|>",
]
CHECKS = ["random", "seeds", "tokenizer", "noise", "corruption", "tables", "sampler", "blocks"]
CHECKS += ["templates", "refusals", "order", "live", "bound"]
CHECKS += ["ranges", "columns", "nats", "choices", "lengths"]
COMPARED = ["plain", "padded", "masks", "blocks", "endings"]  # models that choose between lengths
TYPESCRIPT = "typescript@5.9.3"


@pytest.fixture(scope="module")
def node() -> str:
    """Node.js, with the runtime in place."""
    if not (program := shutil.which("node")) or not shutil.which("npm"):
        lacking("Node.js: `apt-get install nodejs npm`")
    vendor.main()
    return str(program)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tiny_network) -> Path:
    """A folder with record.json and the exported models that it tells of."""
    folder = tmp_path_factory.mktemp("recorded")
    found = record.record(tiny_network) | {"live": []}
    for name, kind in (
        ("plain", {}),
        ("padded", {"padded": True}),
        ("masks", {"graph": "absorbing"}),
        ("scores", {"parametrization": "score"}),
        ("blocks", {"block_length": 4}),
        ("endings", {"block_length": 6, "padded": True}),
        ("halves", {}),  # with these weights in Python too, 16 bits are as good as 32
    ):
        network, weights = tiny_network(n_layer=3, **kind), "float32"
        if name == "halves":
            network, weights = network.half().float(), "float16"
        network.save_pretrained(folder / "source" / name, config=asdict(network.config))
        asked = record.LIVE
        if "block_length" in kind:
            network.head.bias.data[PAD_ID] += 4.0  # so that texts end
            fits = 40 if "padded" in kind else 100
            asked = [o for o in record.BLOCKS if len(o.get("template", "")) <= fits]
            asked = [o for o in asked if o.get("seq_len", 0) <= fits]
        options = [o for o in asked if kind.get("graph") is None or not o.get("churn")]
        options = [o for o in options if name != "scores" or not o.get("temperature")]
        source, target = folder / "source" / name, folder / name
        found["live"].append(record.live(source, target, JUDGED, options, weights))
    compared = {
        name: BlockPipeline.from_pretrained(folder / "source" / name, device="cpu")
        for name in COMPARED
    }
    found["lengths"] = record_lengths.record(compared)
    shutil.copytree(folder / "plain", folder / "broken")
    with (folder / "broken/model.onnx").open("r+b") as file:
        file.truncate(1000)
    (folder / "record.json").write_text(json.dumps(record.plain(found)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def said(node, recorded) -> dict[str, str]:
    """What each check found, in Node."""
    command = [node, HERE / "run.mjs", f"{WEB}/", f"{RUNTIME}/", f"{recorded}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_javascript_does_what_python_does(said, check):
    assert said.get(check) == "ok"


@pytest.mark.slow
def test_no_check_is_forgotten(said):
    assert list(said) == CHECKS


# --- in a page


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(node, recorded) -> Iterator[str]:
    """The folders beside each other, as on a site, on a plain server."""
    for name, folder in (("web", WEB), ("onnxruntime", RUNTIME), ("tests", HERE)):
        (recorded / name).symlink_to(folder)
    (recorded / "page.html").write_text(
        "<!doctype html><title>A page</title><link rel=icon href=data:,>"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=recorded))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


IN_A_PAGE = """async () => {
  const [{checks}, ddlm] = await Promise.all([import('/tests/checks.js'), import('/web/index.js')]);
  const record = await (await fetch('/record.json')).json();
  const models = {};
  const fresh = (name) => ddlm.loadModel(`/${name}/`);
  const load = (name, again = false) => (again ? fresh(name) : (models[name] ??= fresh(name)));
  const said = {};
  for (const name of Object.keys(checks)) {
    try {
      await checks[name](ddlm, record, load);
      said[name] = 'ok';
    } catch (error) {
      said[name] = error.stack;
    }
  }
  return said;
}"""


@pytest.fixture(scope="module")
def said_in_a_page(browser, site) -> dict[str, str]:
    """What each check found in Chromium, with the network in a worker."""
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto(f"{site}/page.html")
        return tab.evaluate(IN_A_PAGE)


@pytest.mark.parametrize("check", CHECKS)
def test_a_page_does_what_python_does(said_in_a_page, check):
    assert said_in_a_page.get(check) == "ok"


LOADING = """async () => {
  const {loadModel, PAD_ID} = await import('/web/index.js');
  const before = performance.getEntriesByType('resource').map((entry) => entry.name);
  const told = [];
  const model = await loadModel('plain/', {onProgress: (progress) => told.push(progress)});
  let turns = 0; // of the page while the network computes
  const channel = setInterval(() => turns++, 1), text = new Int32Array(40).fill(PAD_ID);
  for (let i = 0; i < 50; i++) await model.logits(text, 1);
  clearInterval(channel);
  const waiting = model.logits(text, 1).catch((error) => error.name);
  model.close();
  return {before, told, turns, closed: await waiting};
}"""


def test_a_page_loads_a_model_when_it_is_asked_to(browser, site, recorded):
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto(f"{site}/page.html")
        found = tab.evaluate(LOADING)
    assert found["before"] and all(name.startswith(f"{site}/web/") for name in found["before"])
    sizes = {
        "runtime": RUNTIME / "ort-wasm-simd-threaded.wasm",
        "network": recorded / "plain/model.onnx",
    }
    for what, path in sizes.items():
        loaded = [p["loaded"] for p in found["told"] if p["what"] == what]
        assert loaded[0] == 0 and sorted(loaded) == loaded and loaded[-1] == path.stat().st_size
        assert {p["total"] for p in found["told"] if p["what"] == what} == {loaded[-1]}
    assert found["turns"] > 0 and found["closed"] == "UserError"


@pytest.mark.slow
def test_the_types_of_the_library_fit(node):
    """`tsc` reads the types in the comments."""
    command = ["npm", "exec", "--yes", f"--package={TYPESCRIPT}", "--", "tsc", "-p", str(WEB)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
