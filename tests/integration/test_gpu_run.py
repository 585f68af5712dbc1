"""`benchmarks/gpu.py --quick`: every part of the run on a GPU, on a CPU; and what survives a kill."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddlm_core import DiffusionPipeline
from ddlm_core.support.checkpoints import LATEST
from ddlm_core.support.progress import read_log

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, str(Path(__file__).parents[2] / "benchmarks/gpu.py"), "--quick"]
DONE = {"environment", "agreement", "speed", "tests"}
RECIPES = ("pocket-gpu", "pocket-small", "pocket-small-blocks")
PRESETS = ("pocket", "pocket-blocks", "cpu", "cpu-blocks", "default", "gpu", "gpu-large")
DONE |= {f"{kind} {name}" for kind in ("train", "judge") for name in RECIPES}
DONE |= {f"step {preset}" for preset in PRESETS}


def gpu(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--output", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True)


def found(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "gpu.json").read_text(encoding="utf-8"))["parts"]


def test_every_part_is_measured_once(tmp_path):
    first = gpu(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    parts = found(tmp_path)
    assert {name for name, part in parts.items() if part["status"] == "done"} == DONE
    assert {name for name in parts if name not in DONE} == {"train text-gpu", "judge text-gpu"}
    assert all(part["rows"] and not part.get("problems") for part in map(parts.get, DONE))
    steps = [row for name in DONE if name.startswith("step") for row in parts[name]["rows"]]
    measured = [row for row in steps if "note" not in row]
    assert len(measured) >= 6 and all(row["tokens a second"] > 0 for row in measured)
    assert {"yes", "no"} == {row["compiled"] for row in measured}
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    for words in (
        "| torch |",
        "log q | 0 |",
        "| pocket-small | flawless in 4 steps",
        "| pocket-small-blocks | flawless in 4 steps a block",
        "| gpu-large |",
    ):
        assert words in table
    config = DiffusionPipeline.from_pretrained(
        tmp_path / "models/pocket-small", device="cpu"
    ).config
    assert config.step == parts["train pocket-small"]["rows"][0]["steps"]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    second = gpu(tmp_path)
    assert second.returncode == 0 and second.stdout.count("measured before") == len(DONE)
    assert len(before) == len(DONE) + 1  # and what kind of run it is
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert found(tmp_path).keys() == parts.keys()
    other = gpu(tmp_path, "--minutes", "3")
    assert other.returncode == 1 and "name another --output" in other.stderr


def test_a_training_goes_on_after_a_kill_and_a_failure_does_not_end_the_run(tmp_path):
    options = ("--recipes", "pocket-gpu", "--only", "train", "judge", "environment")
    run = tmp_path / "work/pocket-gpu"
    driver = subprocess.Popen([*COMMAND, "--output", str(tmp_path), *options])
    end = time.monotonic() + 300
    while not (run / LATEST).exists():
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    assert found(tmp_path).keys() == {"environment"}

    judged = gpu(tmp_path, "--recipes", "pocket-gpu", "--only", "judge", "speed")
    assert judged.returncode == 1 and "failed: judge pocket-gpu" in judged.stdout
    parts = found(tmp_path)
    assert "final_model_hf" in parts["judge pocket-gpu"]["error"]
    assert parts["speed"]["status"] == "done"

    again = gpu(tmp_path, *options)
    assert again.returncode == 0, again.stdout
    trained = found(tmp_path)["train pocket-gpu"]
    assert 0 < trained["resumed_from"] < trained["plan"]["max_steps"] == trained["rows"][0]["steps"]
    steps = [line["step"] for line in read_log(run / "train_log.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == trained["plan"]["max_steps"]
