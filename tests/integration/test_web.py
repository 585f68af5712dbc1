"""The JavaScript of web/ does what the chapters' Python does: same random numbers, same tokens."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import vendor
from pages import lacking
from web import record

pytest.importorskip("onnx", reason="an export needs it")
pytest.importorskip("onnxruntime", reason="an export needs it")

ROOT = Path(__file__).parents[2]
WEB, RUNTIME, HERE = ROOT / "web", ROOT / "_vendor/onnxruntime", ROOT / "tests/web"
JUDGED = [
    "Tom had a red ball.",
    "x" * 40,
    "The cat and the dog went to the big park to play with a kite.",
]
CHECKS = ["random", "seeds", "tokenizer", "noise", "corruption", "tables", "sampler"]
CHECKS += ["templates", "live", "bound"]


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
    from dataclasses import asdict

    folder = tmp_path_factory.mktemp("recorded")
    found = record.record(tiny_network) | {"live": []}
    for name, kind in (
        ("plain", {}),
        ("padded", {"padded": True}),
        ("masks", {"graph": "absorbing"}),
    ):
        network = tiny_network(n_layer=3, **kind)
        network.save_pretrained(folder / "source" / name, config=asdict(network.config))
        options = [o for o in record.LIVE if kind.get("graph") is None or not o.get("churn")]
        found["live"].append(record.live(folder / "source" / name, folder / name, JUDGED, options))
    (folder / "record.json").write_text(json.dumps(record.plain(found)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def said(node, recorded) -> dict[str, Any]:
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
