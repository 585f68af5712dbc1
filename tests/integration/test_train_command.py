"""`ddlm-train` as a user calls it: what it writes, how it resumes, how it refuses bad input."""

import os
import subprocess
import sys

import pytest

SMALL = [
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.cond_dim=8"),
    *("context_length=32", "batch_size=4", "val_samples=4", "eval_windows=8"),
    *("num_epochs=50", "max_steps=3", "progress=false"),
]


def ddlm_train(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "ddlm_core.apps.train", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_train_then_resume(tmp_path):
    (tmp_path / "text.txt").write_text("A tall toad sat by the pond. It was glad.\n" * 100)
    done = ddlm_train(tmp_path, "dataset_name=text.txt", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "before: " in done.stdout and "bits per character" in done.stdout
    names = {"best_model_hf", "checkpoint_latest.pth", "final_model_hf", "train_log.jsonl"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "checkpoints"}  # no outputs/
    weights = (tmp_path / "checkpoints/final_model_hf/model.safetensors").read_bytes()

    resume = "+resume_from=checkpoints/checkpoint_latest.pth"
    again = ddlm_train(tmp_path, "dataset_name=text.txt", *SMALL, resume)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "checkpoints/final_model_hf/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dataset_name=no/such/file.txt"], "no file matches no/such/file.txt"),
        (["batch_size=0"], "batch_size must be a whole number from 1, got 0"),
        (["batch_sise=4"], "batch_sise"),
        (["--config-name", "nonsense"], "nonsense"),
        (["+resume_from=missing.pth", "dataset_name=text.txt", *SMALL], "missing.pth"),
        (["dataset_name=someone/some-data"], "without a network, 'pocket-stories'"),
    ],
)
def test_bad_input_ends_in_exit_code_2(tmp_path, arguments, reason):
    (tmp_path / "text.txt").write_text("A tall toad sat by the pond. It was glad.\n" * 100)
    done = ddlm_train(tmp_path, *arguments)
    assert done.returncode == 2
    assert reason in done.stderr and "Traceback" not in done.stderr


def test_show_the_configuration(tmp_path):
    done = ddlm_train(tmp_path, "--config-name", "pocket", "--cfg", "job", "seed=7")
    assert done.returncode == 0 and "seed: 7" in done.stdout
    assert "dataset_name: pocket-stories" in done.stdout
