"""`ddlm-train` as a user calls it: what it writes, how it resumes, how it refuses bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ddlm_core.apps.train import network_settings
from ddlm_core.blocks import make_config, make_network
from ddlm_core.optimizers import build_optimizers
from ddlm_core.settings import TrainingConfig, every_key, load_preset
from ddlm_core.support.presets import CONFIGS, preset_names

SMALL = [
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.cond_dim=8"),
    *("context_length=32", "batch_size=4", "val_samples=4", "eval_windows=8"),
    *("num_epochs=50", "max_steps=3", "progress=false", "dataset_name=text.txt"),
]
ENVIRONMENT = os.environ | {
    **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
}
COMMAND = [sys.executable, "-m", "ddlm_core.apps.train"]
WEIGHTS = "final_model_hf/model.safetensors"
RESUME = "+resume_from=checkpoints/checkpoint_latest.pth"
# the command, killed with SIGKILL when it has written half of the file that it saves at step 160
KILLED = """
import os, runpy, signal, torch

def save(content, path, save=torch.save):
    save(content, path)
    if content["step"] == 160:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
runpy.run_module("ddlm_core.apps.train", run_name="__main__")
"""


def ddlm_train(folder, *arguments, command=COMMAND, environment=ENVIRONMENT):
    call = [*command, *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture
def folder(tmp_path):
    text = "".join(f"A tall toad sat by pond {i}. It was glad.\n" for i in range(100))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path


def log(folder, run="checkpoints"):
    lines = (folder / run / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_train_then_resume(folder):
    done = ddlm_train(folder, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "max_steps: 3" in done.stdout and " parameters, 3 steps" in done.stdout
    assert "before: " in done.stdout and "bits per character" in done.stdout
    names = {"best_model_hf", "checkpoint_latest.pth", "final_model_hf", "train_log.jsonl"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == names | {"curve.png"}
    assert {path.name for path in folder.iterdir()} == {"text.txt", "checkpoints"}  # no outputs/
    assert log(folder)[-1]["step"] == 3 and "bits_per_character" in log(folder)[-1]
    weights = (folder / "checkpoints" / WEIGHTS).read_bytes()

    again = ddlm_train(folder, *SMALL, RESUME)
    assert again.returncode == 0, again.stderr
    assert (folder / "checkpoints" / WEIGHTS).read_bytes() == weights


def interrupt(folder, number, step, *arguments):
    """Start the command, and send a signal once its log has come to a step."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    path = folder / "checkpoints/train_log.jsonl"
    while process.poll() is None and f'{{"step": {step},' not in path.read_text("utf-8"):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130 and "go on with resume_from=checkpoints" in errors, errors


@pytest.mark.slow
def test_stopped_three_times_and_still_the_same_bits(folder):
    """SIGTERM, SIGINT, and SIGKILL in the middle of a save, against a run that was left alone."""
    settings = [*SMALL, "max_steps=200", "save_every_steps=20", "log_every_steps=1", "seed=3"]
    settings += ["model.dropout=0.1"]
    whole = ddlm_train(folder, *settings, "checkpoint_dir=whole")
    assert whole.returncode == 0, whole.stderr
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/train_log.jsonl").touch()
    interrupt(folder, signal.SIGTERM, 5, *settings)
    interrupt(folder, signal.SIGINT, 25, *settings, RESUME)
    killed = ddlm_train(folder, *settings, RESUME, command=[sys.executable, "-c", KILLED])
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "checkpoints/checkpoint_latest.pth.part").exists()
    done = ddlm_train(folder, *settings, RESUME)
    assert done.returncode == 0, done.stderr
    for name in ("final_model_hf", "best_model_hf"):
        ours, theirs = (
            (folder / run / name / "model.safetensors").read_bytes()
            for run in ("checkpoints", "whole")
        )
        assert ours == theirs
    runs = (
        torch.load(folder / run / "checkpoint_latest.pth", weights_only=True)
        for run in ("checkpoints", "whole")
    )
    ours, theirs = ({k: v for k, v in run.items() if k != "run"} for run in runs)
    assert ours["step"] == 200 and str(ours.keys()) == str(theirs.keys())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_are_as_one(folder):
    """The same global batch of 8: the same losses, and one of the two writes and speaks."""
    settings = [*SMALL, "max_steps=6", "log_every_steps=1", "warmup_steps=0", "mixed_precision=no"]
    one = ddlm_train(folder, *settings, "batch_size=8", "checkpoint_dir=one")
    assert one.returncode == 0, one.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += ["--standalone", "-m", "ddlm_core.apps.train"]
    bare = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}  # as a user has it who has no GPU
    del bare["ACCELERATE_USE_CPU"]
    settings += ["checkpoint_dir=two"]
    two = ddlm_train(folder, *settings, command=torchrun, environment=bare)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("before: ") == 1 and "processes 2" in two.stdout
    losses = [[line["loss"] for line in log(folder, run)] for run in ("one", "two")]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    ours, theirs = (load_file(folder / run / WEIGHTS) for run in ("one", "two"))
    # steps move weights by some 0.05, and Muon makes much of directions that are hardly there
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dataset_name=no/such/file.txt"], "no file matches no/such/file.txt"),
        (["batch_size=0"], "batch_size must be a whole number, at least 1, got 0"),
        (["batch_sise=4"], "batch_sise"),
        (["--config-name", "nonsense"], "nonsense"),
        ([*SMALL, "+resume_from=missing.pth"], "there is no checkpoint missing.pth"),
        (["mixed_precision=bf17"], "mixed_precision must be auto or no or bf16 or fp16"),
        ([*SMALL, "sigma_max=5", "+model.sigma_max=2"], "sigma_max is 5 in the settings, 2 in"),
        (["dataset_name=someone/some-data"], "without a network, 'pocket-stories'"),
        ([*SMALL, "learning_rate=1e6", "max_steps=30", "warmup_steps=0"], "lower learning_rate"),
    ],
)
def test_bad_input_ends_in_exit_code_2(folder, arguments, reason):
    done = ddlm_train(folder, *arguments)
    assert done.returncode == 2
    assert reason in done.stderr and "Traceback" not in done.stderr


def test_show_the_configuration(tmp_path):
    done = ddlm_train(tmp_path, "--config-name", "pocket", "--cfg", "job", "seed=7")
    assert done.returncode == 0 and "seed: 7" in done.stdout
    assert "dataset_name: pocket-stories" in done.stdout


def test_every_preset_can_be_built():
    assert {*preset_names()} >= {
        "default",
        "pocket",
        "smoke",
        "cpu",
        "gpu",
        "gpu-large",
        "cpu-blocks",
    }
    for name in preset_names():
        config = load_preset(name)
        network = make_config(**network_settings(config))
        assert network.block_size == config.context_length
        assert network.padded == (config.dataset_name == "pocket-stories")
        if name == "gpu":
            assert (network.n_layer, network.n_embd, network.block_size) == (10, 640, 256)
        with torch.device("meta"):
            build_optimizers(make_network(network), config)


def test_no_preset_restates_a_default():
    defaults = every_key()
    for path in CONFIGS.glob("*/*.yaml"):
        known = defaults["model"] if path.parent.name == "model" else defaults
        for key, value in (OmegaConf.load(path) or {}).items():
            assert key == "defaults" or value != known[key], f"{path.name}: {key}"


def test_what_the_model_says_goes_first():
    config = TrainingConfig(
        sigma_max=5.0, context_length=32, model={"block_size": 64, "n_layer": 1}
    )
    found = network_settings(config)
    assert found == {"block_size": 64, "padded": False, "sigma_max": 5.0, "n_layer": 1}


def test_another_noise_and_vocabulary_reach_the_data_and_the_model(folder):
    """One owner: what was trained with is what is sampled with, and what the text was read with."""
    vocab = ["<UNK>", "<PAD>", *"AItalodsbypnw. "]
    settings = ["sigma_max=5", f"+model.vocab={json.dumps(vocab)}"]
    done = ddlm_train(folder, *SMALL, *settings)
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "checkpoints/final_model_hf/config.json").read_text())
    assert config["sigma_max"] == 5.0 and config["vocab"] == vocab


def test_another_run_is_refused(folder):
    assert ddlm_train(folder, *SMALL).returncode == 0
    before = {path: path.read_bytes() for path in (folder / "checkpoints").glob("*.pth")}
    done = ddlm_train(folder, *SMALL, RESUME, "seed=1", "batch_size=2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "seed: 0 → 1" in done.stderr and "windows_per_step: 4 → 2" in done.stderr
    assert {path: path.read_bytes() for path in (folder / "checkpoints").glob("*.pth")} == before
