"""Bad input of every kind, everywhere: one line that says what is wrong, and nothing is touched."""

import json
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from ddlm_core.apps import generate, ui
from ddlm_core.data import setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import GeometricNoise
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.settings import TrainingConfig
from ddlm_core.tokenizer import CharacterLevelTokenizer

SIZES = {"block_size": 24, "n_layer": 1, "n_head": 1, "n_embd": 8, "cond_dim": 4}
WHOLE = "must be a whole number"

# what is wrong, the arguments of `pipeline.generate`, and what the error must say
ASKED = {
    "no texts": ({"num_samples": 0}, f"num_samples {WHOLE} from 1"),
    "less than no texts": ({"num_samples": -1}, f"num_samples {WHOLE} from 1"),
    "too many texts": ({"num_samples": 10**9}, f"num_samples {WHOLE} from 1 to 100000"),
    "half a text": ({"num_samples": 0.5}, f"num_samples {WHOLE}"),
    "no steps": ({"num_steps": 0}, f"num_steps {WHOLE} from 1"),
    "steps in words": ({"num_steps": "many"}, f"num_steps {WHOLE}"),
    "no length": ({"seq_len": 0}, f"seq_len {WHOLE} from 1 to 24"),
    "a length over the block": ({"seq_len": 25}, f"seq_len {WHOLE} from 1 to 24, got 25"),
    "a negative seed": ({"seed": -1}, f"seed {WHOLE} from 0"),
    "a seed of 30 digits": ({"seed": 10**30}, f"seed {WHOLE}"),
    "temperature 0": ({"temperature": 0}, "temperature must be a number from 0.001 to 1000"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature must be a number"),
    "temperature without end": ({"temperature": float("inf")}, "temperature must be a number"),
    "no such schedule": ({"schedule": "slow"}, "schedule must be one of linear, cosine, fraction"),
    "an empty template": ({"template": ""}, "the template has 0 characters"),
    "a template over the block": ({"template": "_{25}"}, "there is room for 1 to 24"),
    "blanks without end": ({"template": "_{%s}" % ("9" * 9999)}, "there is room for 1 to 24"),
    "a template over its length": ({"template": "abc_", "seq_len": 3}, "room for 1 to 3"),
    "no blanks": ({"template": "done"}, "no blank: write _ for each character"),
    "an emoji": ({"template": "_ 😀"}, "does not know '😀'"),
    "half of a character": ({"template": "_ \ud83d"}, r"does not know '\ud83d'"),
    "a control character": ({"template": "_ \x00"}, r"does not know '\x00'"),
}
# a folder that is almost a model: the file, what it holds (None: it is gone), and the reason
FOLDERS = {
    "no config": ("config.json", None, "No such file"),
    "an empty config": ("config.json", b"", "Expecting value"),
    "a config cut short": ("config.json", b'{"n_layer": 1,', "Expecting property name"),
    "a config that is no text": ("config.json", b"\xff\xfe\x00", "can't decode"),
    "a config that is a list": ("config.json", b"[1]", "must be a mapping"),
    "a config with another key": ("config.json", {"layers": 2}, "'layers'"),
    "another vocabulary": ("config.json", {"vocab": ["<UNK>", "<PAD>", "a"]}, "size mismatch"),
    "a vocabulary of words": ("config.json", {"vocab": ["the", "a"]}, "a vocabulary starts with"),
    "other sizes": ("config.json", {"n_layer": 2}, "Missing key"),
    "endless noise": ("config.json", {"sigma_max": float("inf")}, "sigma_max"),
    "an unknown graph": ("config.json", {"graph": "ring"}, "graph must be"),
    "no weights": ("model.safetensors", None, "No such file"),
    "empty weights": ("model.safetensors", b"", "header too small"),
    "weights cut short": ("model.safetensors", "cut", "incomplete"),
    "weights of zeros": ("model.safetensors", bytes(999), "header"),
    "a pickle in disguise": ("model.safetensors", pickle.dumps(print), "header too large"),
    "weights with NaN": ("model.safetensors", "nan", "holds NaN or infinity"),
    "weights of another model": ("model.safetensors", save({"a": torch.ones(1)}), "Missing key"),
}
# the command lines of ddlm-generate, ddlm-ui, ddlm-train
GENERATE = {
    "--model nothing": "no model 'nothing' (no such folder): name a folder",
    "--model {here}/empty": "config.json",
    "--model {here}/old.txt": "no such folder",
    "--device gpu": "device 'gpu' cannot be used here",
    "--device cuda:99": "device 'cuda:99' cannot be used here",
    "--num-samples zero": "invalid int value: 'zero'",
    "--num-stepz 3": "unrecognized arguments: --num-stepz",
    "--seq-len": "expected one argument",
    "--output old.pdf": "--output must end in one of",
    "--output nowhere/x.txt": "make its folder first",
    "--output /proc/x.txt": "cannot write /proc/x.txt",
    "--output empty": "--output must end in one of",
    "--output old.txt --num-steps 0": f"num_steps {WHOLE}",
    "--output old.gif --num-samples 2": "shows one text",
    "--revision v2": "only models of the Hub have a revision",
    "--template done": "no blank: write _ for each character",
    "--seed -1": f"seed {WHOLE} from 0",
    "--temperature 0": "temperature must be a number from 0.001",
    "--schedule slow": "schedule must be one of linear, cosine, fraction",
    "--churn 2": "churn must be a number from 0 to 1, got 2.0",
    "--seq-len 999": f"seq_len {WHOLE} from 1 to 24",
}
SERVE = {
    "--port 0": "--port must be a whole number from 1 to 65535, got 0",
    "--port 99999": "--port must be a whole number from 1 to 65535, got 99999",
    "--port http": "invalid int value: 'http'",
    "--port {used}": "cannot listen on port {used} of 127.0.0.1 (Address already in use",
    "--server-name 203.0.113.7": "choose another --port, or leave out --server-name",
    "--model nothing": "no model 'nothing'",
    "--device gpu": "device 'gpu' cannot be used here",
    "--prot 8080": "unrecognized arguments: --prot",
    "--server-name no.such.host.invalid": "cannot listen on any port from 7860 to 7959 of no.such",
    "--model old.txt": "no model 'old.txt' (no such folder)",
}
TRAIN = {
    "batch_sise=4": "(there is no key batch_sise): did you mean batch_size?",
    "model.n_layr=4": "(there is no key model.n_layr): did you mean model.n_layer?",
    "+foo.bar=4": "cannot read +foo.bar=4 (there is no key foo.bar): all keys: ddlm-train --help",
    "--foo": "there is no option --foo: see ddlm-train --help",
    "batch_size=0": f"batch_size {WHOLE}, at least 1",
    "batch_size=four": f"batch_size {WHOLE}, at least 1, got 'four'",
    "batch_size=[": "no viable alternative at input '['",
    "batch_size=1,2": "batch_size=1,2 means several runs: start them with ddlm-train -m",
    "learning_rate=0": "learning_rate must be a number, above 0",
    "learning_rate=nan": "learning_rate must be a number, above 0",
    "betas=[0.9]": "need two betas",
    "max_steps=0": f"max_steps {WHOLE}, at least 1",
    "save_every_steps=0": f"save_every_steps {WHOLE}, at least 1",
    "num_workers=-1": f"num_workers {WHOLE}, at least 0",
    "dataset_name=null": "dataset_name must be a text, got None",
    "--config-name nonsense": "no preset 'nonsense': there are cpu, cpu-blocks, default",
    "--config-name=nonsense": "no preset 'nonsense': there are cpu, cpu-blocks, default",
    "model=enormous": "Could not find 'model/enormous'",
    "checkpoint_dir=${{nothing}}": "Interpolation key 'nothing' not found",
    "dataset_name=no/such.txt": "no file matches no/such.txt",
    "dataset_name=": "dataset_name= names nothing: name one, or leave out dataset_name=",
    "dataset_name=old.gif": "old.gif",
    "dataset_name=latin.txt": "latin.txt is not utf-8 (line 1, byte 0xe9): name what it is, encoding=",
    "dataset_name=empty": "empty: there are no files in this folder",
    "dataset_name=bad.jsonl": "bad.jsonl, row 2",
    "dataset_name=two.jsonl": "two.jsonl: no column 'text', but text in a, b: text_column=a",
    "dataset_name=two.jsonl text_column=c": "two.jsonl: no column 'c', but text in a, b",
    "dataset_name={long} encoding=klingon": "there is no encoding 'klingon' of text",
    "dataset_name=old.txt": "shorter than one window of 32: take more text, or a smaller context",
    "val_dataset_name=no.txt dataset_name={long}": "no file matches no.txt",
    "model.n_embd=7": "n_embd must be a multiple of",
    "model.n_layer=two": f"n_layer {WHOLE}",
    "model.graph=ring": "graph must be",
    "optimizer=sgd": "optimizer must be muon or adamw",
    "mixed_precision=fp16 dataset_name={long}": "mixed_precision=fp16 needs a GPU",
    "vocabulary=no.txt": "cannot use vocabulary='no.txt' ([Errno 2] No such file",
    "vocabulary=[a,bc]": "cannot use vocabulary=['a', 'bc']",
    "vocabulary=auto model.vocab=[a] dataset_name={long}": "vocabulary and model.vocab both say",
    "init_from=nothing dataset_name={long}": "no model 'nothing' (no such folder)",
    "init_from=old.txt dataset_name={long}": "no model 'old.txt' (no such folder)",
    "checkpoint_dir=old.txt dataset_name={long}": "cannot use the folder old.txt",
    "gradient_accumulation_steps=9999 dataset_name={long}": "an epoch is shorter than a step",
    "resume_from=old.gif dataset_name={long}": "old.gif is damaged",
    "resume_from=empty dataset_name={long}": "there is no checkpoint empty/checkpoint_latest.pth",
    "resume_from= dataset_name={long}": "resume_from= names nothing",
    "resume_from=missing.pth dataset_name={long}": "there is no checkpoint missing.pth",
    "+resume_from=missing.pth dataset_name={long}": "there is no checkpoint missing.pth",
}
# objects made in Python
MADE = {
    "no layers": (lambda: DiscreteDiffusionConfig(n_layer=0), f"n_layer {WHOLE}"),
    "odd sizes": (
        lambda: DiscreteDiffusionConfig(n_embd=10, n_head=4),
        "n_embd must be a multiple",
    ),
    "dropout of all": (
        lambda: DiscreteDiffusionConfig(dropout=1),
        "dropout must be a number, at least 0 and below 1",
    ),
    "noise that falls": (lambda: GeometricNoise(2.0, 1.0), "sigma_m"),
    "no noise": (lambda: GeometricNoise(0.0, 20.0), "sigma_min"),
    "a negative rate": (
        lambda: TrainingConfig(learning_rate=-1.0),
        "learning_rate must be a number, above 0",
    ),
    "a share of 2": (
        lambda: TrainingConfig(ema_decay=2.0),
        "ema_decay must be a number from 0 to 1",
    ),
    "no such optimizer": (
        lambda: TrainingConfig(optimizer="sgd"),
        "optimizer must be muon or adamw",
    ),
    "half a step": (lambda: TrainingConfig(max_steps=0.5), f"max_steps {WHOLE}"),
    "one token twice": (lambda: CharacterLevelTokenizer(["<UNK>", "<PAD>", "a", "a"]), "once"),
    "an id too large": (lambda: CharacterLevelTokenizer().decode([106]), "token ids lie in 0..105"),
    "a file of another kind": (lambda: setup_dataloaders("old.gif"), "old.gif"),
    "a line that is no JSON": (
        lambda: setup_dataloaders("bad.jsonl"),
        "row 2: need an object",
    ),
}


@pytest.fixture(scope="module")
def network() -> DiscreteDiffusionTransformer:
    return DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**SIZES))


@pytest.fixture(scope="module")
def good(network, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    network.save_pretrained(folder, config=asdict(network.config))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with files that must stay as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("old.txt", "old.gif"):
        (tmp_path / name).write_text("a story")
    (tmp_path / "long.txt").write_text("a story " * 999)
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 99)
    (tmp_path / "two.jsonl").write_text('{"a": "a story", "b": "its name"}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "a story"}\n{"text": \n')
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    yield tmp_path
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def refused(call: Callable, reason: str) -> None:
    """The call raises a ``ValueError`` or ``OSError`` of one line, with the reason in it."""
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    message = str(caught.value)
    assert reason in message and "\n" not in message and len(message) < 500


def one_line(main: Callable, arguments: list[str], reason: str, capfd) -> None:
    """The command ends with exit code 2 and says why on stderr, in one line."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    _, errors = capfd.readouterr()
    assert end.value.code == 2 and reason in errors and "Traceback" not in errors, errors
    assert errors.count("\n") == 1, errors


@pytest.mark.parametrize("what", ASKED)
def test_asking_for_what_cannot_be(what, network, here):
    options, reason = ASKED[what]
    refused(lambda: DiffusionPipeline(network, "cpu").generate(**options), reason)


@pytest.mark.parametrize("what", FOLDERS)
def test_folders_that_are_almost_models(what, good, here):
    name, content, reason = FOLDERS[what]
    folder = here / "empty"
    for path in good.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if isinstance(content, dict):
        content = json.dumps(json.loads((good / name).read_text()) | content).encode()
    elif content == "cut":
        content = (good / name).read_bytes()[:-1]
    elif content == "nan":
        weights = load_file(good / name)
        content = save(
            weights
            | {"condition_embedding": torch.full_like(weights["condition_embedding"], torch.nan)}
        )
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    refused(lambda: DiffusionPipeline.from_pretrained(folder, device="cpu"), reason)
    refused(
        lambda: DiffusionPipeline.from_pretrained(folder, device="cpu"), f"cannot use {folder}/"
    )
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("line", GENERATE)
def test_generate_command(line, good, here, capfd):
    model = [] if "--model" in line else ["--model", str(good)]
    arguments = [*model, *line.format(here=here).split()]
    one_line(generate.main, arguments, GENERATE[line], capfd)


@pytest.mark.parametrize("line", SERVE)
def test_ui_command(line, here, capfd):
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = other.getsockname()[1]
        one_line(ui.main, line.format(used=used).split(), SERVE[line].format(used=used), capfd)


NAMES = ["part_[tm]*.txt", "a,b.txt", "café.txt", "Lily's.txt", "b$a.txt", "x [v2].txt", "7", "a=b"]


@pytest.mark.parametrize("line", TRAIN)
def test_train_command(line, here, train_command):
    small = ["model.n_layer=1", "model.n_head=1", "model.n_embd=8", "model.cond_dim=4"]
    small = [setting for setting in small if setting.split("=")[0] not in line]
    arguments = [*small, "context_length=32", *line.format(long="long.txt").split()]
    code, _, errors = train_command(*arguments)
    assert code == 2 and errors.startswith("ddlm-train: ") and errors.count("\n") == 1, errors
    assert TRAIN[line] in errors


@pytest.mark.parametrize("name", [*NAMES, *(f"'{name}'" for name in NAMES if "'" not in name)])
def test_a_name_is_taken_letter_by_letter(name, here, capfd, train_command):
    """Also what has a meaning in the grammar of Hydra; quotes of that grammar may stand around it."""
    name = f"./{name}" if name[0] != "'" else f"'./{name[1:]}"
    code, _, errors = train_command(f"dataset_name={name}")
    plain = name.strip("'")
    assert (code, errors) == (2, f"ddlm-train: no file matches {plain}\n")


@pytest.mark.parametrize("what", MADE)
def test_objects_that_make_no_sense(what, here):
    call, reason = MADE[what]
    refused(call, reason)


def test_a_model_is_not_saved_over_a_file(network, here):
    refused(lambda: DiffusionPipeline(network, "cpu").save_pretrained("old.txt"), "old.txt")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder(good, here, capfd):
    (here / "empty").chmod(0o500)
    arguments = ["--model", str(good), "--output", "empty/x.txt"]
    one_line(generate.main, arguments, "cannot write empty/x.txt (permission denied)", capfd)
    (here / "empty").chmod(0o700)
