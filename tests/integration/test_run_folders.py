"""Runs of `ddlm-train`, one after the other: their folders, their first lines and their last ones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch

from ddlm_core.apps import overrides, run_report, train
from ddlm_core.bound import Bound
from ddlm_core.settings import TrainingConfig
from ddlm_core.support import hardware, progress
from ddlm_core.support.checkpoints import differences
from ddlm_core.support.errors import UserError
from ddlm_core.training import Trainer

SMALL = [
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.cond_dim=8"),
    *("context_length=32", "batch_size=4", "val_samples=4", "eval_windows=8"),
    *("num_epochs=50", "max_steps=4", "dataset_name=text.txt"),
]
LATEST = "checkpoints/checkpoint_latest.pth"
LEFT = {"best_model_hf", "final_model_hf", "checkpoint_latest.pth", "train_log.jsonl", "curve.png"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    text = "".join(f"A tall toad sat by pond {i}. It was glad.\n" for i in range(100))
    (tmp_path / "text.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ran(folder, train_command) -> Callable[..., str]:
    """A run that must succeed: what it wrote to stdout."""

    def run(*arguments: str) -> str:
        code, out, errors = train_command(*SMALL, *arguments)
        assert code == 0, errors
        return out

    return run


def names(path: str) -> set[str]:
    return {found.name for found in Path(path).iterdir()}


@pytest.mark.parametrize("name", ["7", "2026_01_05", "1e3", "true", "a, b", "x=[v2]"])
def test_any_name_is_a_folder(name, ran):
    ran(f"checkpoint_dir={name}")
    assert names(name) == LEFT


def test_no_text_is_forgotten():
    """A new setting that is a text must be taken letter by letter, too."""
    hints = get_type_hints(TrainingConfig)
    texts = {name for name, hint in hints.items() if hint is str or str in get_args(hint)} - {
        "model"
    }
    assert texts | {"resume_from"} == overrides.TEXTS


def test_a_second_run_takes_the_folder_and_loses_nothing(ran, train_command, monkeypatch):
    """Killed before its first save, it cannot be resumed with what the first one left."""
    ran()
    before = {path: path.read_bytes() for path in Path().glob("checkpoints/*/model.safetensors")}

    def killed(self: Trainer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", killed)
        code, out, _ = train_command(*SMALL, "learning_rate=1e-4")
    assert code == 130
    told = "checkpoints had the files of a run of 4 steps on text.txt: they are in checkpoints/earlier-1"
    assert told in out
    assert names("checkpoints") == {"earlier-1"} and names("checkpoints/earlier-1") == LEFT
    for path, content in before.items():
        assert Path("checkpoints/earlier-1", *path.parts[1:]).read_bytes() == content
    code, _, errors = train_command(*SMALL, "learning_rate=1e-4", f"resume_from={LATEST}")
    assert code == 2 and f"there is no checkpoint {LATEST}" in errors
    ran()
    assert "a run of 4 steps on text.txt: they are in checkpoints/earlier-2" in ran()


def test_what_is_no_run_is_left_where_it_is(ran):
    Path("checkpoints").mkdir()
    Path("checkpoints/notes.txt").write_text("mine")
    Path("checkpoints/train_log.jsonl").touch()
    assert "earlier" not in ran() and names("checkpoints") == LEFT | {"notes.txt"}


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_resume_with_or_without_a_plus(plus, ran):
    ran()
    out = ran("max_steps=6", "learning_rate=1e-4", f"{plus}resume_from={LATEST}")
    assert "other than in the checkpoint: max_steps: 4 → 6; learning_rate: 0.003 → 0.0001" in out
    assert "at step 4: " in out and "earlier" not in out
    assert [line["step"] for line in progress.read_log(Path("checkpoints/train_log.jsonl"))] == [
        4,
        6,
    ]


def test_another_run_is_told_apart(ran, train_command):
    ran()
    code, _, errors = train_command(*SMALL, "max_steps=6", "seed=3", f"resume_from={LATEST}")
    assert code == 2 and "is of another run (seed: 0 → 3): go on with its settings" in errors
    Path("text.txt").write_text("Another text, about other toads. " * 200)
    code, _, errors = train_command(*SMALL, "max_steps=6", f"resume_from={LATEST}")
    assert code == 2 and "training_text: '3,681 tokens" in errors


def test_a_finished_run_says_so(ran, train_command):
    """With its models nothing is left to do; without them there would never be any."""
    ran()
    before = Path("checkpoints/final_model_hf/model.safetensors").read_bytes()
    out = ran(f"resume_from={LATEST}")
    assert "this run is finished" in out and "final_model_hf: step 4, " in out
    assert Path("checkpoints/final_model_hf/model.safetensors").read_bytes() == before
    for other in ("checkpoint_dir=other", "max_steps=3"):
        code, _, errors = train_command(*SMALL, other, f"resume_from={LATEST}")
        end = 4 if other == "checkpoint_dir=other" else 3
        told = f"the checkpoint is at step 4, this run would end at step {end}: raise max_steps"
        assert code == 2 and told in errors and not Path("other").exists()


def test_models_of_another_run_do_not_finish_this_one(ran, train_command):
    ran("checkpoint_dir=one")
    ran("checkpoint_dir=two", "seed=1")
    arguments = [*SMALL, "checkpoint_dir=two", "resume_from=one"]
    code, _, errors = train_command(*arguments)
    assert code == 2 and "this run would end at step 4" in errors and names("two") == LEFT


def test_a_run_goes_on_in_another_folder(ran):
    ran("log_every_steps=1")
    out = ran("max_steps=6", "checkpoint_dir=other", f"resume_from={LATEST}", "eval_every_steps=5")
    assert "checkpoint_dir: 'checkpoints' → 'other'" in out
    assert names("other") == LEFT and names("checkpoints") == LEFT
    steps = [line["step"] for line in progress.read_log(Path("other/train_log.jsonl"))]
    assert steps == [1, 2, 3, 4, 5, 6]
    Path("lone").mkdir()
    Path(LATEST).rename("lone/checkpoint_latest.pth")  # without its best model, the next one counts
    out = ran("max_steps=6", "checkpoint_dir=third", "resume_from=lone/checkpoint_latest.pth")
    assert names("third") == LEFT and "third/best_model_hf: step 6" in out


def test_first_lines(folder, train_command):
    """What is read, what of it cannot be read, and how long the run is."""
    Path("stories").mkdir()
    text = "Жила-была коза, и было у неё семеро козлят.\n"
    for number in range(3):
        both = text * (20 + number) + "<|endoftext|>" + text.replace("коза", "Lily") * 20
        Path(f"stories/{number} [v2].txt").write_text(both, "utf-8")
    code, out, errors = train_command(*SMALL, "dataset_name=stories")
    assert code == 0, errors
    assert "text: 3 files, 6 documents, 5," in out
    assert "% of it, 3," in out and "'о' " in out and "to read them, vocabulary=auto" in out
    assert "ends of stories found inside of texts: 3\n" in out
    assert "windows: " in out and "; held out: 10.0%\n" in out
    assert "4 steps: 0.1 epochs of " in out
    code, out, errors = train_command(*SMALL, "dataset_name=stories", "vocabulary=auto")
    assert code == 0 and "<UNK>" not in out, errors
    vocab = json.loads(Path("checkpoints/final_model_hf/config.json").read_text("utf-8"))["vocab"]
    assert {*vocab[2:]} == {*text, *"Lily"}


def test_more_characters_than_fit(ran):
    """What vocabulary=auto leaves out is told, and not answered with vocabulary=auto."""
    Path("many.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 8, "utf-8")
    out = ran("dataset_name=many.txt", "vocabulary=auto")
    assert "15.33% of it, 368 characters, cannot be read" in out
    assert "and no more fit\n" in out and "to read them" not in out


def test_the_characters_of_our_own_stories(folder, train_command):
    arguments = ["--config-name", "smoke", "max_steps=1", "vocabulary=auto", "checkpoint_dir=x"]
    code, out, errors = train_command(*SMALL[:4], *arguments)
    assert code == 0 and "<UNK>" not in out, errors
    vocab = json.loads(Path("x/final_model_hf/config.json").read_text("utf-8"))["vocab"]
    assert "e" in vocab and "Z" not in vocab


def test_begin_with_given_weights(ran):
    ran("checkpoint_dir=first", "max_steps=200")
    out = ran("checkpoint_dir=second", "init_from=first/final_model_hf", "max_steps=1")
    before, _, bits = out.partition("before: ")
    assert "first/final_model_hf" in before and float(bits.partition(" bits")[0]) < 5


def test_last_lines_say_which_model_to_take(tmp_path, capsys):
    def compare(best: float) -> str:
        files = SimpleNamespace(folder=tmp_path, step_of={"best_model_hf": 20}.get)
        trainer = SimpleNamespace(files=files, state=SimpleNamespace(best=best))
        run_report.compare_models(trainer, Bound(60.0, 3.0))
        files.step_of = {"best_model_hf": 20, "final_model_hf": 40}.get
        run_report.compare_models(trainer, Bound(60.0, 3.0))
        return capsys.readouterr().out

    told = compare(40.0)
    assert told.count("best_model_hf: step 20, 2.000 bits per character") == 2
    assert "held out: take this one" in told and "by heart" in told
    assert told.count("final_model_hf: step 40, 3.000 bits per character, the last") == 1
    told = compare(59.9)
    assert "take this one" not in told and "by heart" not in told


def test_divergence_names_both_rates_and_a_checkpoint_that_exists(folder, train_command):
    wild = ["learning_rate=1e6", "warmup_steps=0", "matrix_learning_rate=0.05", "max_steps=30"]
    code, _, errors = train_command(*SMALL, *wild)
    assert code == 2 and "lower learning_rate (1e+06) or matrix_learning_rate (0.05)" in errors
    assert errors.endswith(", and start anew: nothing is saved yet\n")
    code, _, errors = train_command(*SMALL, *wild, "save_every_steps=1", "optimizer=adamw")
    saved = Path(LATEST)
    assert code == 2 and "lower learning_rate (1e+06), and " in errors and saved.exists()
    assert errors.endswith(f"go on with resume_from={saved}\n")


def test_a_log_file_gets_lines_and_no_bars(folder, train_command):
    code, _, errors = train_command(*SMALL, "eval_every_steps=2")
    lines = errors.splitlines()
    assert code == 0 and "\r" not in errors and len(lines) == 2, errors
    assert lines[0].startswith("step 2 of 4: loss ") and " bits/char, " in lines[1]
    code, _, errors = train_command(*SMALL, "progress=false")
    assert (code, errors) == (0, "")


def test_how_long_it_takes(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    tell = progress.ExpectedTime(first=10, total=1010, every=100, measuring=30.0)
    for step in range(11, 40):
        now[0] += 100 if step == 11 else 1  # the first step prepares much, and does not count
        tell(progress.StepResult(step, 1.0, 100))
    # 996 steps of a second each, and ten measurements
    assert capsys.readouterr().out == "expected: about 22 minutes to step 1,010\n"
    words = {59.0: "less than a minute", 61.0: "about 2 minutes", 9000.0: "about 2.5 hours"}
    assert {seconds: progress.minutes(seconds) for seconds in words} == words


def test_several_runs_have_a_folder_each(folder, train_command):
    sweep = ["-m", "learning_rate=1e-3,1e6", "warmup_steps=0", "max_steps=6"]
    code, out, errors = train_command(*SMALL, *sweep)
    assert code == 2 and errors.endswith(
        "ddlm-train: 1 of 2 runs failed: their lines above say why\n"
    )
    assert "run 1 of 2, learning_rate=0.001, in checkpoints/0: " in out
    assert "run 2 of 2, learning_rate=1000000.0, in checkpoints/1: at step 1 the loss is" in out
    assert names("checkpoints/0") == LEFT and names(".") == {"text.txt", "checkpoints"}
    code, out, errors = train_command(*SMALL, "-m", "seed=1,2", "checkpoint_dir='s/${seed}'")
    assert code == 0 and names("s") == {"1", "2"} and names("s/2") == LEFT, errors
    code, out, errors = train_command(*SMALL, "-m", "dataset_name=text.txt,no.txt")
    assert code == 2 and "in checkpoints/1: no file matches no.txt" in out


def test_help_shows_every_key():
    command = [sys.executable, "-m", "ddlm_core.apps.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    keys = train.HELP and ["resume_from: null", "vocabulary: ascii106", "init_from: null"]
    assert all(f"\n{key}\n" in done.stdout for key in keys)
    assert max(map(len, done.stdout.splitlines())) <= 100  # characters of a terminal


def test_no_compiler_is_no_obstacle(ran, monkeypatch):
    def broken(model: object) -> object:
        raise RuntimeError("no compiler\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace")

    module, device = torch.nn.Linear(1, 1), torch.device("cpu")
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"^torch_compile is off \(no compiler\): install a C\+\+"):
        assert hardware.compiled(module, device) is module
    tried = []
    monkeypatch.setattr(torch, "compile", lambda what: tried.append(what) or what)
    assert hardware.compiled(module, device) is module and tried[1] is module and tried[0] != module


def test_a_compiler_that_is_not_there(folder):
    """The real thing, in a process of its own: it runs, uncompiled, and says so in one line."""
    command = [sys.executable, "-m", "ddlm_core.apps.train", *SMALL, "torch_compile=true"]
    environment = os.environ | {"CXX": "/nonexistent", "ACCELERATE_USE_CPU": "true"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("ddlm-train: torch_compile is off (InvalidCxxCompiler: ")
    assert done.stderr.count("\n") == 2  # and the last step


def test_long_lists_are_compared_by_what_differs():
    before = {"vocab": ("<UNK>", "<PAD>", *"abcdefghij"), "seed": 1, "name": "x" * 999}
    now = {"vocab": ("<UNK>", "<PAD>", *"abcdefghiä"), "seed": 1, "name": "y" * 999}
    first, second = differences(before, now)
    assert first == "vocab: without 'j', with 'ä'"
    assert len(second) < 200


def test_a_folder_that_cannot_be_used(folder, ran, monkeypatch):
    ran()
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(UserError, match="cannot use the folder checkpoints"):
        train.train({"dataset_name": "text.txt", "context_length": 32, "val_samples": 4})
