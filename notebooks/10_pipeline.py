# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # TinyStories on a GPU
#
# **We have** all the parts: text becomes tokens, noise destroys them, a network learns to undo it, a
# sampler walks back. All of it we tried on a world that a grammar writes. **We want** to put the parts to
# work on real text: on stories that nobody here has written, with a GPU if there is one. And we want one
# object that goes from a name to a story: load, write, fill in blanks, watch. **Why**: that is what all
# of it was for.
#
# The chapter has three parts. First we train on
# [TinyStories](https://huggingface.co/datasets/roneneldan/TinyStories). Then we build the *pipeline*, the
# object that makes a storyteller of a file of weights. At the end the two meet: we judge the trained model,
# let it write and fill in, watch it, and share it.
#
# The same cells are meant for Colab with a GPU, for a GPU of your own, and for a CPU. **Only the CPU has been
# tried: nothing in this book has been run on a GPU yet.** The stored outputs were made with the preset `cpu`,
# shortened to 800 steps, and on an excerpt of the real TinyStories that lay in local files.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio pytest"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## One chapter, three machines
#
# A *preset* is a file of settings. `ddlm-train --config-name gpu` reads the same files:
#
# | preset | network | for |
# |---|---|---|
# | `smoke` | 2 layers of width 32 | seconds: does everything run? |
# | `cpu` | 6 layers of width 128, windows of 160 characters | hours on a CPU |
# | `gpu` | 10 layers of width 640, windows of 256 characters | hours on a GPU |
#
# The environment variable `DDLM_PRESET` names the one to take. If it is not set, the hardware decides: `gpu` where
# PyTorch finds a CUDA device, else `cpu`. The settings lie in two files of `ddlm_core/configs`: one about the
# training, such as [`gpu.yaml`](../ddlm_core/configs/training/gpu.yaml), which names the other, about the network.

# %%
import os
from typing import Any

import torch

from ddlm_core.settings import load_preset

preset = os.environ.get("DDLM_PRESET") or ("gpu" if torch.cuda.is_available() else "cpu")
smoke = preset == "smoke"  # only to see that the chapter runs
stored = "DDLM_STORED" in os.environ  # the outputs are for the book, where no kernel will answer
print(f"preset {preset}: {load_preset(preset).model}")

# %% [markdown]
# ## What the GPU preset costs
#
# Before you rent a machine, compute. **By hand:** in the forward pass each weight takes part in one multiplication and
# one addition for each token. That makes 2 floating-point operations (FLOPs). The backward pass does it twice, for the
# gradients of the weights and for those of the activations. So a step costs about $6 P N$ FLOPs for $P$ weights
# and $N$ tokens. Guess $P = 50$ million; a step of the preset has $N = 64 \cdot 256 = 16384$ tokens:
# $6 \cdot 5\cdot 10^7 \cdot 16384 \approx 4.9\cdot 10^{12}$.
#
# Now count. PyTorch has a device, `meta`, on which tensors have a shape and no numbers. There a whole step of the
# large network takes a moment and no memory. `FlopCounterMode` counts the operations of its matrix products;
# a hook counts the bytes that the forward pass keeps for the backward pass.

# %%
from torch.utils.flop_counter import FlopCounterMode

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.objective import training_loss
from ddlm_core.optimizers import build_optimizers

large = load_preset("gpu")
batch, length = large.batch_size, large.context_length
with torch.device("meta"):
    network = DiscreteDiffusionTransformer(
        DiscreteDiffusionConfig(block_size=length, **large.model)
    )
    x, level = torch.zeros(batch, length, dtype=torch.long), torch.zeros(batch)
kept = {}  # what is kept for the backward pass, each piece of memory once


def keep(tensor):
    memory = tensor.untyped_storage()
    kept[id(memory)] = memory
    return tensor


counter = FlopCounterMode(display=False)
hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
with counter, hooks, torch.autocast("cpu", torch.bfloat16):  # 16 bit, as on a GPU
    drawn = (x, x, x.bool(), level, level)  # x_0, x_t, what is given, noise level, weight
    training_loss(network, drawn, large.objective).backward()

flops, parameters = counter.get_total_flops(), sum(p.numel() for p in network.parameters())
for parameter in network.parameters():
    kept.pop(id(parameter.untyped_storage()), None)
activations = sum(memory.nbytes() for memory in kept.values())
muon = build_optimizers(network, large)["muon"].param_groups[0]["params"]
matrices = sum(p.numel() for p in muon)
# weights, gradients, average, and what the optimizers remember: one number (Muon) or two (AdamW)
state = 4 * (3 * parameters + matrices + 2 * (parameters - matrices))
print(f"parameters:        {parameters / 1e6:.1f} million")
print(f"FLOPs in a step:   {flops / 1e12:.1f} · 10¹² (6PN: {6e-12 * parameters * x.numel():.1f})")
print(f"memory, all steps: {state / 1e9:.1f} GB (weights, gradients, average, optimizers)")
print(f"memory, a batch:   {activations / 1e9:.1f} GB at most")
assert abs(flops / (6 * parameters * x.numel()) - 1) < 0.1

# %% [markdown]
# "At most", since attention here keeps its whole table of 256 × 256 for each head. The fused attention of a GPU does
# not. (Chapter 8 counts on a CPU, where attention is one fused operation that the counter does not see, and that keeps
# no table. So its numbers are lower.)
#
# From FLOPs to hours takes a guess: which share of the speed on its data sheet a card reaches. We take
# 30 %. One epoch is about 1.9 billion characters, some 116,000 steps. This chapter stops after 6,000, so
# that you reach its end. **All times are estimates; none was measured.**

# %%
short_run = 6000
print("estimated, not measured        one epoch   this chapter")
for card, peak in (("T4", 65e12), ("RTX 4090", 165e12), ("H100", 989e12)):  # dense, 16 bit
    seconds = flops / (0.3 * peak)  # a step
    epoch = 1.9e9 / (batch * length) * seconds / 3600
    print(f"{card:28} {epoch:5.1f} hours {short_run * seconds / 60:6.0f} minutes")

# %% [markdown]
# ## Real stories
#
# [TinyStories](https://arxiv.org/abs/2305.07759) (Eldan and Li 2023) are some two million short stories in the words of a small
# child. A large language model wrote them, to find out how small a network can be that still tells a
# story. They may be used under the license CDLA-Sharing-1.0.
#
# They come through the library `datasets`, which downloads them once, about 1 GB, and keeps them. Where
# that is not possible, the environment variable `DDLM_TINYSTORIES` names local files (a path or a pattern, `.txt`,
# `.jsonl` or `.parquet`), and `DDLM_TINYSTORIES_VALID` others to validate on. (Without the second, some stories of
# the first are held out.) With neither network nor files, the story world of
# [chapter 2](02_stories.ipynb) stands in. It can take half a minute until `datasets` gives up; with
# `HF_HUB_OFFLINE=1` in the environment it does not try. The preset `smoke` asks no network at all.

# %%
from torch.utils.data import DataLoader

from ddlm_core.data import setup_dataloaders


def load_stories(preset: str, **sizes: Any) -> tuple[bool, DataLoader, DataLoader]:
    """Whether the stories are TinyStories, and batches to train and to validate on."""
    hub, files = "roneneldan/TinyStories", os.environ.get("DDLM_TINYSTORIES")
    held_out = os.environ.get("DDLM_TINYSTORIES_VALID") if files else hub
    if files or preset != "smoke":
        try:
            train, val, _, _ = setup_dataloaders(files or hub, val_dataset_name=held_out, **sizes)
            print("TinyStories, from", "local files" if files else "the Hugging Face Hub")
            return True, train, val
        except ConnectionError:
            print("TinyStories cannot be loaded: no network, and DDLM_TINYSTORIES names no files.")
    print("We go on with pocket-stories, the story world of chapter 2.")
    train, val, _, _ = setup_dataloaders("pocket-stories", **sizes)
    return False, train, val


# %% [markdown]
# In this chapter `cpu` and `gpu` are cut short. For a whole run, delete the line of your preset in `shortened`,
# or open a terminal and type `ddlm-train --config-name gpu`.
#
# A T4, the GPU that Colab gives away, has 16 GB, and the batch above would hardly fit. So on a card with less than
# 20 GB a step takes two batches of 32. It is the same step ([chapter 8](08_training.ipynb)), in half of the memory.

# %%
from tempfile import TemporaryDirectory

shortened = {
    "cpu": {
        "max_steps": 800,
        "num_epochs": 2,
        "eval_every_steps": 100,
        "eval_windows": 64,
        "train_samples": 20_000,
    },
    "gpu": {"max_steps": short_run, "eval_every_steps": 500},
}
workshop = TemporaryDirectory()  # for what this chapter writes
changes = {"val_samples": 200} | shortened.get(preset, {}) | {"progress": not stored}
changes["checkpoint_dir"] = "checkpoints/chapter-10" if preset == "gpu" else workshop.name
gpus = torch.cuda.device_count()
if preset == "gpu" and gpus and torch.cuda.get_device_properties(0).total_memory < 20e9:
    changes |= {"batch_size": 32, "gradient_accumulation_steps": 2}
config = load_preset(preset, **changes)

real, train, val = load_stories(
    preset,
    train_samples=config.train_samples,
    val_samples=config.val_samples,
    context_length=config.context_length,
    batch_size=config.batch_size,
    num_workers=config.num_workers,
)
windows = torch.cat(list(val)).long()
size = train.batch_size * config.context_length
print(f"an epoch: {len(train):,} batches of {train.batch_size} windows of {config.context_length}")
print(f"to train on: {len(train) * size / 1e6:.1f} million characters")
print(f"held out: {len(windows):,} windows")

# %% [markdown]
# ## Training
#
# We want to see the curve while it falls. The `Trainer` of chapter 8 measures the bound every so often, with its
# method `evaluate`. So we make a trainer that draws each time it measures. (`display` shows a figure,
# and `update` replaces it where it stands.)

# %%
import matplotlib.pyplot as plt
from IPython.display import display

from ddlm_core.training import Bound, Trainer

plt.style.use("ddlm_core.book")


class WatchedTrainer(Trainer):
    """A trainer that draws its validation bound as it goes."""

    def watch(self) -> None:
        """Show the figure, and measure for the first time."""
        self.curve, self.figure = [], plt.figure(figsize=(6, 3))
        plt.close(self.figure)  # the notebook would show it once more at the end of the cell
        self.shown = display(self.figure, display_id=True)
        self.evaluate()

    def evaluate(self) -> Bound:
        bound = super().evaluate()
        self.curve.append((self.step, bound.bits_per_character))
        self.figure.clear()
        axes = self.figure.subplots()
        axes.plot(*zip(*self.curve), "o-")
        axes.set(xlabel="training steps", ylabel="bits per character", ylim=(0, None))
        self.shown.update(self.figure)
        return bound


# %% [markdown]
# The figure shows bits per character on the held-out stories, against the training steps. A network that knows nothing
# takes all 106 tokens for equally likely, so it should start near $\log_2 106=6.7$. (Where the first point lies off
# that, the noise of a few windows is to blame.)
#
# On a GPU the run leaves a checkpoint every 1,000 steps in `checkpoints/chapter-10`. If it was stopped, run the chapter again, and
# it goes on from there. (The disk of a Colab machine goes with the machine. For a long run, let
# `checkpoint_dir` be a folder on your Google Drive.)

# %%
# alt: Bits per character against training steps: a fast fall from about 6.7, then a slower and slower one.
from pathlib import Path

torch.manual_seed(0)
network = DiscreteDiffusionConfig(block_size=config.context_length, padded=not real, **config.model)
trainer = WatchedTrainer(DiscreteDiffusionTransformer(network), train, val, config)
if (latest := Path(config.checkpoint_dir) / "checkpoint_latest.pth").exists():
    trainer.resume(latest)
trainer.watch()
trainer.train()
print(f"{trainer.step:,} steps on {trainer.accelerator.device}")
print("bits per character:", *(f"{bits:.2f}" for _, bits in trainer.curve))

# %% [markdown]
# The curve falls fast while the network finds out which characters are frequent and which stand side by side, and
# then slowly. What it has learned we will see in the last part. For that we need something that writes.
#
# ## From weights to stories
#
# Whoever only wants stories should not have to know what a noise schedule is. So we build one object that
# loads, writes, fills in and judges. And such an object can keep four promises that a loop in a notebook
# does not keep:
#
# 1. A file from a stranger cannot harm you.
# 2. Given characters stay as they are.
# 3. The same seed gives the same text, however many you ask for (on a CPU; on a GPU, nearly always).
# 4. What cannot work is refused in one line, before any work is done.
#
# To build it we take a model that ships with this book, `pocket-stories`. It has read the stories of
# [chapter 2](02_stories.ipynb) and nothing else. We know their grammar, so we see at a glance what is right and
# what is a slip. Here is what we are about to build, at work:

# %%
import textwrap

from ddlm_core.pipeline import DiffusionPipeline

num_steps = 16 if smoke else 128


def show(texts: list[str]) -> None:
    print("\n\n".join(textwrap.fill(text, 90) for text in texts))


pipeline = DiffusionPipeline.from_pretrained()
show(pipeline.generate(num_samples=2, num_steps=num_steps, seed=3))

# %% [markdown]
# ## A model is a folder
#
# Two files make a model. `config.json` says what the network is: its sizes, its vocabulary, the noise it
# was trained with, for how many steps. `model.safetensors` holds the weights. (No program reads the
# `README.md` beside them. It is the *model card*, and tells people how good the model is: here, how many of its
# stories are flawless.)

# %%
import json

from ddlm_core.support.models import bundled_models

folder = bundled_models()["pocket-stories"]
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
{name: value for name, value in config.items() if name != "vocab"}

# %% [markdown]
# Everything that sampling depends on is in there. If the noise limits, say, were left to the program that
# loads the weights, another program would use its own, and write worse text without any error.
#
# ### By hand
#
# The format of the second file, [safetensors](https://github.com/huggingface/safetensors), is so simple
# that we can read it without a library. The first 8 bytes are a number $n$, lowest byte first. The next
# $n$ bytes are JSON: for each weight its type, its shape, and where it starts and ends. The rest is the
# numbers, one after another. Let us look up one weight, the vector that the network adds wherever a
# character is given:

# %%
import numpy as np

raw = (folder / "model.safetensors").read_bytes()
n = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8 : 8 + n])
header["condition_embedding"]

# %%
start, end = header["condition_embedding"]["data_offsets"]
by_hand = np.frombuffer(raw[8 + n :][start:end], dtype="<f4")  # F32: four bytes a number
assert (by_hand == pipeline.model.condition_embedding.numpy(force=True)).all()
by_hand[:4]

# %% [markdown]
# ### Why never a pickle
#
# PyTorch's own format is a zip file around a *pickle*, and a pickle is not data. It is a little program
# that Python runs to build an object again, and this program may call any function. Ours calls `print`.
# It could as well call `os.system`:

# %%
import pickle


class Letter:
    def __reduce__(self):  # pickle asks: which function, called with what, builds you again?
        return print, ("This line was printed by a file, because somebody opened it.",)


pickle.loads(pickle.dumps(Letter()))

# %% [markdown]
# A file of numbers cannot do that. So no file that you name is ever unpickled here. (To resume a training
# run takes more than weights; there `torch.load(…, weights_only=True)` takes tensors and plain values
# and refuses the rest.)

# %% [markdown]
# ## Loading
#
# A file can be broken in many ways: cut off by a full disk, mixed up with another, full of NaN because a
# training run went astray. We want to know *now*, in one line, and not from garbled text later.
#
# The libraries below us (JSON, safetensors, PyTorch, the Hub) each have their own kinds of errors, some
# of them many lines long. One helper, `error_context`, turns those that a broken file can cause into a `UserError`, a
# line with three parts: what cannot be done, why, and what to do about it. All other errors are bugs of ours, and
# crash with their traceback.
#
# Names and shapes PyTorch compares when it loads weights. NaN it loads without a word, so we look for it
# ourselves.

# %% tags=["export"]
import json
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.support.errors import UserError, error_context


def _read_config(path: Path) -> DiscreteDiffusionConfig:
    """What a ``config.json`` says, if it has the fields of a configuration and no others."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"it must be a mapping, not a {type(found).__name__}")
    if unknown := sorted(found.keys() - {field.name for field in fields(DiscreteDiffusionConfig)}):
        raise UserError(f"there is no field {unknown[0]!r}")
    return DiscreteDiffusionConfig(**found)


def load_model(folder: Path) -> DiscreteDiffusionTransformer:
    """The network of a folder, in evaluation mode; it is read as data, and never unpickled.

    Raises:
        UserError: one line that names the file that is missing or broken, and says why.
    """
    hint = "a model is a folder that ddlm-train or save_pretrained wrote"
    path = folder / "config.json"
    with error_context(f"cannot use {path}", hint, ValueError, TypeError, RecursionError):
        config = _read_config(path)
    model, path = DiscreteDiffusionTransformer(config), folder / "model.safetensors"
    with error_context(f"cannot use {path}", hint, SafetensorError, RuntimeError):
        weights = load_file(path)
        if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise UserError(f"{bad[0]} holds NaN or infinity")
        model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


# %% [markdown]
# A pickle in disguise must not run. This one would make a folder, which must not appear. (The other ways in which a
# folder can be broken are in `tests/unit/test_pipeline.py`.)

# %% tags=["test"]
import pickle
from dataclasses import asdict

import pytest
import torch


def tiny_network(kind: type = DiscreteDiffusionTransformer) -> torch.nn.Module:
    """A network of random weights: it writes nonsense, but it writes it fast."""
    network = kind(DiscreteDiffusionConfig(block_size=24, n_layer=1, n_head=2, n_embd=16))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


def test_a_pickle_is_refused_and_does_not_run(tmp_path):
    network = tiny_network()
    network.save_pretrained(tmp_path / "model", config=asdict(network.config))
    weights, victim = tmp_path / "model/model.safetensors", tmp_path / "victim"
    trap = f"cos\nmkdir\n(S'{victim.as_posix()}'\ntR.".encode()  # a pickle: call os.mkdir(victim)
    weights.write_bytes(trap)
    with pytest.raises(ValueError, match="^cannot use .*model.safetensors .*header"):
        load_model(tmp_path / "model")
    assert not victim.exists()
    pickle.loads(trap)
    assert victim.exists()  # it was armed


test_a_pickle_is_refused_and_does_not_run(Path(workshop.name))

# %% [markdown]
# ## From a name to a folder
#
# A model can be named in four ways: by its folder, by the name of one that ships with the package, by an id
# on the [Hugging Face Hub](https://huggingface.co) such as `user/model`, or not at all. Folders come
# first, so a download can never stand in for what lies on your disk. From the Hub we fetch the two files
# and nothing else.
#
# A mistyped path can look like an id: `checkpoints/best_modle`. If there is a folder `checkpoints`, we
# take it for the path that it is, and ask nobody.
#
# The device is tried out as well, before the weights go there. PyTorch knows devices that this machine
# lacks, and one, `meta`, that holds no numbers at all.
#
# Neither is part of the method, so no chapter exports them. They are plain files,
# [`ddlm_core/support/models.py`](../ddlm_core/support/models.py) and
# [`hardware.py`](../ddlm_core/support/hardware.py).

# %%
from ddlm_core.support.models import model_folder

model_folder(None).name

# %% [markdown]
# ## From a template to a mask
#
# A template is a text with blanks. `_` is one blank, `_{12}` is twelve, and `\_` is a real underscore.
# Everything else stands for itself, line breaks too. By hand, on a template for three characters:
#
# | template | characters | tokens | given |
# |---|---|---|---|
# | `a_!` | `a`, blank, `!` | 12, anything, 64 | yes, no, yes |
# | `a\_!` | `a`, `_`, `!` | 12, 90, 64 | yes, yes, yes |
#
# The sampler wants the last two columns: `template` and `mask`. Two lines of the function below read the
# template. The first writes each count out, `_{3}` as `___`; a `\_` before a brace is left alone. The
# second cuts the text into characters, where `\_` counts as one.
#
# Three decisions hide in the rest.
#
# * **An unknown character is an error.** The tokenizer would turn it into `<UNK>`, silently. But you asked
#   for it to stand in the text.
# * **Without `seq_len`, the template is the whole text.** With it, the template is how the text begins,
#   and the model goes on to that length.
# * **Stories that were padded stay padded.** Our model has only ever seen full windows of 160 tokens: a
#   story, then `<PAD>`. So if the template is the whole text, the rest of the window is *given* to it as
#   `<PAD>`, which says: here the story has ended. (With `seq_len` the window is as long as you say. Give
#   such a model its full 160.) A model that has learned from running text gets no `<PAD>`: to it a
#   shorter window is a piece of those that it knows. (What the missing rest costs, we have not measured.)

# %% tags=["export"]
import re

from torch import Tensor

from ddlm_core.tokenizer import PAD_ID


def encode_template(
    template: str, seq_len: int | None, config: DiscreteDiffusionConfig
) -> tuple[Tensor, Tensor]:
    r"""Tokens of a template, int64 (L,), and a mask, bool (L,), true where a token is given.

    A ``_`` is a blank, ``_{12}`` is twelve, ``\_`` is an underscore. Without ``seq_len`` the template
    is the whole text, with it the beginning of one of L = ``seq_len`` characters.

    Raises:
        UserError: the model of ``config`` cannot fill it in; one line says why.
    """
    long = re.sub(r"(?<!\\)_\{(\d+)\}", lambda m: "_" * int(min(float(m[1]), 9999)), template)
    characters = [None if c == "_" else c[-1] for c in re.findall(r"\\_|.", long, re.DOTALL)]
    room, count = config.block_size if seq_len is None else seq_len, len(characters)
    if not 1 <= count <= room:
        raise UserError(f"the template has {count} characters, there is room for 1 to {room}")
    text = "".join(filter(None, characters))
    if unknown := config.tokenizer.unknown_characters(text):
        raise UserError(f"the model does not know {', '.join(map(repr, unknown))} of the template")
    length = count if seq_len is None and not config.padded else room
    mask = torch.full((length,), seq_len is None)  # after the template: <PAD> is given, or all free
    mask[:count] = torch.tensor([character is not None for character in characters])
    if mask.all():
        raise UserError("the template has no blank: write _ for each character to fill in")
    tokens = torch.full((length,), PAD_ID)
    tokens[:count][mask[:count]] = config.tokenizer.encode(text)
    return tokens, mask


# %%
tokens, mask = encode_template("a_!", None, DiscreteDiffusionConfig(block_size=6, padded=True))
tokens.tolist(), mask.tolist()


# %% tags=["test"]
def read_back(template: str, seq_len: int | None = None, **changes) -> str:
    """Given characters as they are, ``_`` for a blank, ``~`` for a given <PAD>."""
    config = DiscreteDiffusionConfig(**{"block_size": 24} | changes)
    tokens, mask = encode_template(template, seq_len, config)
    shown = ["", "~", *config.vocab[2:]]
    return "".join(shown[token] if given else "_" for token, given in zip(tokens, mask))


def test_template_becomes_tokens_and_mask():
    for template, text in (
        ("_{3}.__", "___.__"),
        (r"a\_\{3}__\n", r"a_\{3}__\n"),
        ("{3}\n_{}?_{x}_{0}", "{3}\n_{}?_{x}"),
    ):
        assert read_back(template) == text
    assert read_back("a_!", padded=True, block_size=9) == "a_!~~~~~~"
    assert read_back("a_!", 5) == read_back("a_!", 5, padded=True) == "a_!__"


test_template_becomes_tokens_and_mask()

# %% [markdown]
# ## The same seed, the same text
#
# [Chapter 7](07_sampler.ipynb) gives each text its own random numbers, so that story 3 of seed 1 is the
# same whether you ask for four stories or for four hundred. On paper. In floating point, sums depend on
# their order: `(0.1 + 0.2) + 0.3` is not `0.1 + (0.2 + 0.3)`. And a matrix product adds up in another
# order when the matrix has more rows. So a text that shares its batch with others gets slightly other
# probabilities than alone:

# %%
import torch

model, generator = pipeline.model, torch.Generator().manual_seed(0)
noisy = torch.randint(106, (8, 160), generator=generator).to(pipeline.device)
sigma_bar = torch.ones(8, device=pipeline.device)
with torch.inference_mode():
    together = model.denoise(noisy, sigma_bar)
    alone = torch.cat([model.denoise(noisy[i : i + 1], sigma_bar[:1]) for i in range(8)])
print(f"log-probabilities differ by up to {(together - alone).abs().max():.1e}")

# %% [markdown]
# Does it matter? Each character is drawn by a dart on a ruler (chapter 7). If the dart falls into the
# tiny gap between where a boundary is and where it would be, another character is drawn, and from then on
# everything can go another way. Once, outside this notebook, we added up the gaps along runs of a half-trained
# model: about one story in 150 would have come out different. That is rare, and so it is the worst kind of
# difference: the kind you meet once, and cannot find again.
#
# On a CPU there is a plain cure: one text after the other goes through the network. It costs some time: on one
# busy core, 16 texts passed through the network in 0.25 seconds one by one, and in 0.20 as one batch (medians
# of five, measured outside this notebook). A GPU would be left idle. There texts go in batches, and the
# promise is weaker: a rare text comes out different when `batch_size` or the number of texts changes.

# %% [markdown]
# ## One loop behind everything
#
# Whatever you ask for, one text, a hundred, or an animation, comes from the loop of chapter 7. What is
# left is to turn the question into its arguments, and to refuse what cannot work. All numbers have limits,
# upwards too: a slip of the finger should not fill the memory. The limits of the temperature we learned
# the hard way. At $T=10^{-40}$ the division overflows, all probabilities are NaN, and the loop writes
# `�����` without complaint.
#
# So the options of a text are one frozen object, with the limit of each beside it. The command, the web page and the
# playground take their defaults from here, too. Two of them are not those of chapter 7: the grid is `cosine`, and the
# `churn` is 1. So each step draws the noise that
# is left afresh, which does best among those that [chapter 9](09_evaluation.ipynb) tries on a trained network. (Models with masks, and those that
# output scores, run without it.)

# %% tags=["export"]
from dataclasses import dataclass
from typing import Annotated, Any

from ddlm_core.sampler import SCHEDULES
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.fields import Limits, check_fields


def default_churn(config: DiscreteDiffusionConfig) -> float:
    """1, or 0 for a model whose sampler can draw no fresh noise."""
    return float(config.process.supports_churn and config.parametrization == "denoiser")


@dataclass(frozen=True)
class SamplingOptions:
    """How a text is written, and the defaults of everything that writes: command, web page, playground.

    Raises:
        UserError: one line, if a value makes no sense for any model.
    """

    seq_len: int | None = None  # characters; None: as many as the model takes
    num_steps: Annotated[int, Limits(1, 100_000)] = 128
    schedule: str = "cosine"  # one of SCHEDULES: where the steps lie
    temperature: Annotated[float, Limits(0.001, 1000)] = 1.0  # below 1 is surer
    churn: Annotated[float | None, Limits(0, 1)] = None  # share of fresh noise; see default_churn
    template: str | None = None  # see encode_template

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice(SCHEDULES, schedule=self.schedule)

    def arguments(self, config: DiscreteDiffusionConfig) -> dict[str, Any]:
        """Arguments of ``denoising_steps``; a ``UserError`` if the model of ``config`` cannot do that."""
        found = vars(self) | {
            "seq_len": config.block_size if self.seq_len is None else self.seq_len
        }
        check_range(1, config.block_size, seq_len=found["seq_len"])
        if self.churn is None:
            found["churn"] = default_churn(config)
        if self.template is not None:
            tokens, mask = encode_template(self.template, self.seq_len, config)
            found |= {"template": tokens, "condition_mask": mask, "seq_len": len(mask)}
        return found


# %% [markdown]
# Texts that go through the network apart, one by one or in batches, still keep step with each other: after
# each step they are joined, and read. What cannot work is refused at the call. That is why `_write` is not itself a
# generator: a function with `yield` does nothing, not even check, until the first step is asked for.

# %% tags=["export"]
import secrets
from collections.abc import Iterator

from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.tokenizer import CharacterLevelTokenizer


@dataclass(frozen=True)
class TextStep(DenoisingStep):
    """A step of the sampler, and the texts that it leaves, one for each sample."""

    texts: list[str]


def _join(parts: tuple[DenoisingStep, ...], tokenizer: CharacterLevelTokenizer) -> TextStep:
    """The same step of several batches as one, on the CPU."""
    tokens = torch.cat([part.tokens for part in parts]).cpu()
    changed = torch.cat([part.changed for part in parts]).cpu()
    joined = {"tokens": tokens, "changed": changed, "texts": tokenizer.decode_batch(tokens)}
    return TextStep(**vars(parts[0]) | joined)


def _write(
    model: DiscreteDiffusionTransformer,
    options: SamplingOptions,
    seed: int | None,
    num_samples: int = 1,
    first: int = 0,
    batch_size: int = 1,
) -> Iterator[TextStep]:
    """The random start and each step of ``num_samples`` texts; checks at the call."""
    seed = secrets.randbits(32) if seed is None else seed
    check_range(1, 100_000, num_samples=num_samples, batch_size=batch_size)
    check_range(0, 2**63, seed=seed, first=first)
    config, how = model.config, options.arguments(model.config)
    rows = 1 if next(model.parameters()).device.type == "cpu" else batch_size
    generators = sample_generators(seed, num_samples, first)
    batches = [generators[i : i + rows] for i in range(0, num_samples, rows)]
    runs = [denoising_steps(model, config.noise, len(b), generator=b, **how) for b in batches]
    return (_join(parts, config.tokenizer) for parts in zip(*runs, strict=True))


# %% [markdown]
# ## How surprising is a text?
#
# A model that writes can also judge. [Chapter 5](05_loss.ipynb) bounds $-\log p(x_0)$, the surprise of a
# text, from above: it puts noise on a window, at many levels, and asks the network about each. For a text of $N$
# characters, cut into windows $w$, we want
#
# $$ b = \frac{1}{N \ln 2} \sum_w \mathcal L(w) $$
#
# with the bound $\mathcal L(w)$ in nats; $\ln 2$ turns nats into bits. Every character counts once: the
# windows lie side by side, and the last one is shorter, or filled up with `<PAD>` if the model has
# learned its stories that way.

# %% tags=["export"]
import warnings
from textwrap import shorten


def _text_tokens(text: str, config: DiscreteDiffusionConfig) -> Tensor:
    """The tokens of a text, int64 (N,), in whole windows if the model knows padding."""
    if not isinstance(text, str) or not text:
        raise UserError(f"need a text of at least one character, got {text!r:.50}")
    if unknown := config.tokenizer.unknown_characters(text):
        few = shorten(", ".join(map(repr, unknown)), 100)
        warnings.warn(f"the model does not know {few}: they count as <UNK>", stacklevel=4)
    missing = -len(text) % config.block_size if config.padded else 0
    return config.tokenizer.pad(text, len(text) + missing)


# %% [markdown]
# `estimate_bound` of [chapter 9](09_evaluation.ipynb) does the rest, with its 95 % interval. It wants
# windows of one length, and the end of a text is shorter. So we measure the whole windows and the rest,
# and add: of two independent measurements the sums add, and so do the squares of the errors. A short text
# is measured at about 256 noise levels.

# %% tags=["export"]
import math

from ddlm_core.evaluation import Estimate, estimate_bound


def _text_bound(model: DiscreteDiffusionTransformer, text: str, seed: int) -> Estimate:
    """The bound on a text, in bits per character."""
    tokens = _text_tokens(text, model.config).to(next(model.parameters()).device)
    cut = len(tokens) // (length := model.config.block_size) * length
    parts = [part for part in (tokens[:cut].view(-1, length), tokens[None, cut:]) if part.numel()]
    found = [estimate_bound(model, part, max(2, 256 // len(part)), seed) for part in parts]
    total = sum(e.mean * len(part) for e, part in zip(found, parts))
    reach = math.hypot(*((e.high - e.mean) * len(part) for e, part in zip(found, parts)))
    unit = len(text) * math.log(2)
    return Estimate(total / unit, (total - reach) / unit, (total + reach) / unit)


# %% [markdown]
# ## The pipeline
#
# The classes themselves are thin. The first is a model that has been trained, on a device, with what does not write:
# loading, saving, sharing, judging.

# %% tags=["export"]
from dataclasses import asdict
from typing import Self

from huggingface_hub.errors import HFValidationError, HTTPError

from ddlm_core.support.hardware import pick_device
from ddlm_core.support.models import model_folder


class PretrainedModel:
    """A trained network on ``device``, by default a GPU if there is one: what loads, saves and judges."""

    def __init__(self, model: DiscreteDiffusionTransformer, device: str | None = None) -> None:
        self.device = pick_device(device)
        self.model, self.config = model.to(self.device).eval(), model.config
        self.tokenizer = model.config.tokenizer

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        revision: str | None = None,
    ) -> Self:
        """The model of a folder, a bundled name (none: pocket-stories), or a Hub id, at a ``revision`` there.

        Raises:
            UserError: no such model or device, or a file that cannot be used; one line says why.
        """
        return cls(load_model(model_folder(source, revision)), device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that :meth:`from_pretrained` reads."""
        self.model.save_pretrained(folder, config=asdict(self.config))

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload that folder as ``user/model``; options (``private``…) are those of the mixin."""
        hint = "log in with `hf auth login`"
        with error_context(f"cannot push {repo_id!r}", hint, HTTPError, HFValidationError):
            return self.model.push_to_hub(repo_id, config=asdict(self.config), **options)

    def bits_per_character(self, text: str, seed: int = 0) -> Estimate:
        """A bound on the negative log-likelihood of a text, in bits per character, with its 95 % interval.

        Unknown characters count as ``<UNK>``, with a warning. An empty text raises a ``UserError``.
        """
        check_range(0, 2**63, seed=seed)
        return _text_bound(self.model, text, seed)


# %% [markdown]
# The second writes. `generate_streaming` hands out the steps, `generate` waits for the last one, and
# `generate_with_visualization` shows each step of one text while it is written, and gives all of them to the animation
# of [chapter 4](04_forward.ipynb). In a notebook the cell shows the text as it changes, and then the player in
# its place. If the animation is also the value of the cell, the notebook would show the player again; the small
# class keeps it from that.

# %% tags=["export"]
from ddlm_core.animation import Animation, Frame, draw, iter_frames
from ddlm_core.support.drawing import Picture
from ddlm_core.support.live import notebook_cell, show_in_other_cells, watch


@dataclass(frozen=True, repr=False)
class WatchedAnimation(Animation):
    """An animation that stands in the output of the cell that wrote it."""

    cell: int | None = None  # the number of that cell, in a notebook

    def _ipython_display_(self) -> None:
        show_in_other_cells(self, self.cell)


def _watched(
    steps: Iterator[TextStep], num_steps: int, tokenizer: CharacterLevelTokenizer
) -> Animation:
    """Show the first text of a run while it is written, then keep it."""
    frames: list[Frame] = []

    def pictures() -> Iterator[Picture]:
        for frame in iter_frames((step.tokens[0], step.sigma_bar) for step in steps):
            frames.append(frame)
            yield draw(frame, tokenizer)

    def finished() -> Animation:
        return WatchedAnimation(frames, tokenizer, cell=notebook_cell())

    return watch(pictures(), num_steps, finished)


# %% tags=["export"]
class DiffusionPipeline(PretrainedModel):
    """From a model to stories."""

    def generate_streaming(
        self,
        num_samples: int = 1,
        *,
        seq_len: int | None = None,
        num_steps: int = 128,
        schedule: str = "cosine",
        temperature: float = 1.0,
        churn: float | None = None,
        template: str | None = None,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each of ``num_steps`` steps; all else as :meth:`generate`."""
        options = SamplingOptions(seq_len, num_steps, schedule, temperature, churn, template)
        return _write(self.model, options, seed, num_samples, first, batch_size)

    def generate(
        self,
        num_samples: int = 1,
        *,
        seq_len: int | None = None,
        num_steps: int = 128,
        schedule: str = "cosine",
        temperature: float = 1.0,
        churn: float | None = None,
        template: str | None = None,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        return_tokens: bool = False,
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The same ``seed`` gives the same texts (on a GPU, nearly always); None draws one. ``first`` numbers
        the first text, to go on where another call ended; ``batch_size`` is for a GPU, a CPU takes one
        text at a time. The other options are those of :class:`SamplingOptions`.

        Raises:
            UserError: what was asked for cannot work; one line says why, before any work is done.
        """
        options = SamplingOptions(seq_len, num_steps, schedule, temperature, churn, template)
        for step in _write(self.model, options, seed, num_samples, first, batch_size):
            pass
        return step.tokens if return_tokens else step.texts

    def generate_with_visualization(
        self,
        *,
        seq_len: int | None = None,
        num_steps: int = 128,
        schedule: str = "cosine",
        temperature: float = 1.0,
        churn: float | None = None,
        template: str | None = None,
        seed: int | None = None,
    ) -> Animation:
        """Write one text, live in a terminal or a notebook; options and errors as :meth:`generate`.

        ``str()`` of the animation is the text, and it has ``save`` (.html or .gif).
        """
        options = SamplingOptions(seq_len, num_steps, schedule, temperature, churn, template)
        return _watched(_write(self.model, options, seed), num_steps, self.tokenizer)

    __call__ = generate


# %% [markdown]
# Now the promises. To see whether texts depend on their batch, we use a network that is worse than any
# rounding: its answers change by tenths with the number of texts that it sees at once.


# %% tags=["test"]
class Jittery(DiscreteDiffusionTransformer):
    """A network whose answer depends on the size of the batch."""

    def logits(self, input_ids, *given):
        return super().logits(input_ids, *given) * (1 + len(input_ids) / 10)


def test_texts_do_not_depend_on_their_batch():
    pipeline = DiffusionPipeline(tiny_network(Jittery), "cpu")
    options = {"num_steps": 4, "seed": 7, "template": "a_{9}"}
    texts = pipeline.generate(5, **options)
    assert len(set(texts)) == 5 and all(text.startswith("a") for text in texts)
    assert pipeline.generate(5, batch_size=2, **options) == texts
    assert pipeline.generate(2, first=3, **options) == texts[3:]


test_texts_do_not_depend_on_their_batch()

# %% [markdown]
# And the judge? A network that believes in all characters alike needs $\log_2 V$ bits for each of
# them, whatever they are and wherever the windows end. (With weights of 0 ours believes just that.)


# %% tags=["test"]
def test_a_network_that_knows_nothing_needs_all_bits():
    pipeline = DiffusionPipeline(tiny_network(), "cpu")
    for parameter in pipeline.model.parameters():
        parameter.data.zero_()
    for text in ("x" * 20, "Once upon a time. " * 8):
        estimate = pipeline.bits_per_character(text)
        assert estimate.low < estimate.mean < estimate.high < estimate.low + 1.5
        assert abs(estimate.mean - math.log2(106)) < 0.4


test_a_network_that_knows_nothing_needs_all_bits()

# %% [markdown]
# ## Watching
#
# Here is one story as it is written, in 64 steps: first 160 random characters, at the end a story. What
# the last step changed is colored and underlined; a dot is `<PAD>`, where the story has ended. Drag the
# slider to go back and forth.

# %%
animation = pipeline.generate_with_visualization(seed=4, num_steps=num_steps // 2)
animation

# %% [markdown]
# Nothing grows from left to right. Letters settle all over the place, and words close around them.
# `animation.save("story.gif")` writes a picture for a slide, `animation.save("story.html")` a page of its
# own. On a terminal, `ddlm-generate --visualize` shows the same.
#
# The player has all steps at once. Code that wants to act *while* the text is written, such as a web page
# or a progress bar, takes them one by one. Here are some steps of the same run, with the noise that
# is left and the number of characters that the step changed. (`!r` shows a line break as `\n`.) Our
# schedule is the `cosine` of [chapter 7](07_sampler.ipynb): the steps get shorter towards the end. Another,
# `fraction`, takes steps that are equal in the fraction of redrawn characters. [Chapter 9](09_evaluation.ipynb)
# counts how many stories of each are flawless.

# %%
for step in pipeline.generate_streaming(seed=4, num_steps=num_steps // 2):
    if step.index % (num_steps // 16) == 0:
        changed = int(step.changed.sum())
        print(f"{step.index:3}  {step.sigma_bar:8.4f}  {changed:4}  {step.texts[0][:48]!r}")

# %% [markdown]
# ## Filling in blanks
#
# Who lost a ball? The name is blank in two places, and between them stand two words that tell a girl from
# a boy. So the model has to agree with itself and with what is given, to the left and to the right.

# %%
tale = (
    "One day, ____ lost {his} pink ball in the park. {He} felt so sad. "
    'A kind frog found it! "Thank you!" said ____. They are friends now.'
)
for his, He in (("her", "She"), ("his", "He")):
    template = tale.format(his=his, He=He)
    for text in pipeline.generate(3, template=template, num_steps=num_steps // 2, seed=0):
        print(text[:48], "…", text[-29:])

# %% [markdown]
# A model that writes from left to right would have to choose the first name before it has seen the
# pronoun. Ours sees both sides. (It can still err, and put a boy's name beside a girl's pronoun. Do all six names
# fit?) That the template is kept is neither luck nor training: the loop puts the given characters back after
# every step.


# %% [markdown]
# One thing to know about blanks: **their number is part of the question.** All heroes of these stories
# have names of four letters (only their friends have three). Leave five blanks, and the model must write
# what it has never read. When you do not care how a text goes on, give its beginning and a `seq_len`: then
# the model decides where the story ends, and fills the rest with `<PAD>`.

# %%
texts = pipeline.generate(
    3, template="It was snowy. ", seq_len=160, num_steps=num_steps // 2, seed=1
)
show(texts)

# %% [markdown]
# Read the names and pronouns again. Where two of them should agree and do not, `seq_len` has broken nothing: that is
# the usual slip of this model. Chapter 9 takes its broken stories apart.
#
# ## Temperature
#
# The temperature $T$ sharpens or flattens what the network believes of each clean character, to $q^{1/T}$
# made to sum to 1. With $T<1$ it is surer of itself than it was trained to be, and makes fewer slips.
# With $T>1$ rare characters get a chance, and words would come apart if later steps did not mend them. The same seed, three
# temperatures:

# %%
for temperature in (0.5, 1.0, 1.5):
    print(f"T = {temperature}")
    show(pipeline.generate(2, temperature=temperature, num_steps=num_steps // 2, seed=2))
    print()

# %% [markdown]
# Is the lowest the best, then? For a single story perhaps. But $T=1$ is the only temperature at which the
# texts follow the distribution that the model has learned, so it is the one to judge a model by. In
# chapter 7 we saw what a low one does to a small world: it takes away what fits badly and hardly touches
# the choice among what fits.

# %% [markdown]
# ## How surprising is that?
#
# The judge at work. A story of the grammar costs a fraction of a bit for each character, and one wrong pronoun in it
# should make the story more surprising. (Does it, here? Mind the intervals: if they overlap, more noise levels would
# have to tell.) Pure noise, drawn from all 106 tokens alike, costs 6.7 bits to somebody who knows that it is noise. A
# text about something else costs *our* model far more: it has only ever read stories, and holds everything else to be
# all but impossible.

# %%
good = (
    "Nora met a calm frog by the pond. It was dirty, so she gave it a hot bath. "
    "Soon the frog was not dirty any more. Nora was happy again."
)
for text in (good, good.replace("she", "he"), "Stocks fell by three percent on Monday."):
    print(f"{pipeline.bits_per_character(text):.2f} bits a character: {text[:70]}")

# %% [markdown]
# ## In a script of your own
#
# This is all that a program needs. It writes a story for each name on a list, and says in one line what
# is wrong if a name cannot be used:

# %%
from ddlm_core import DiffusionPipeline

storyteller = DiffusionPipeline.from_pretrained("pocket-stories", device="cpu")
for name in ("Lily", "Otto", "Zoë"):
    try:
        (story,) = storyteller.generate(
            template=f"{name} wanted to ", seq_len=160, num_steps=64, seed=5
        )
        print(story)
    except ValueError as error:
        print(f"no story about {name}: {error}")

# %% [markdown]
# (If a heroine becomes a *he* on the way, that is a slip of the model and not of the script.)
#
# ## Back to TinyStories
#
# The training has left a folder, `final_model_hf`, and the pipeline reads it like any other.
#
# After a few minutes on a CPU, that model has not learned much. Another one ships with the package, `tinystories-cpu`: the
# same network, trained for an hour on 1.3 million characters of TinyStories. None of the windows held
# out in the stored run is among them. (Your held-out stories are others. That it has not seen those we cannot
# promise.) Its folder has a model card, and `ddlm-generate --model tinystories-cpu` finds it by its name. On a
# CPU it is the storyteller from here on. On a GPU, the storyteller is the model that you trained.

# %%
trained = storyteller = DiffusionPipeline.from_pretrained(trainer.files.folder / "final_model_hf")
name = "the model trained above"
if preset != "gpu" and "tinystories-cpu" in bundled_models():
    name, storyteller = "tinystories-cpu", DiffusionPipeline.from_pretrained("tinystories-cpu")
print(f"the storyteller: {name}, after {storyteller.config.step:,} training steps")

# %% [markdown]
# ### How good is it?
#
# We measure as in [chapter 9](09_evaluation.ipynb), on the held-out windows, in bits per character, with the 95 %
# interval. To have something to compare with: somebody who only knows how frequent each character is needs
# the entropy of these frequencies. That takes no network at all.
#
# Two things to keep in mind. The numbers are upper bounds. And each window stands alone: the model has not seen what
# comes before it, so its first words come as a surprise.

# %%
from ddlm_core.evaluation import bits_per_character
from ddlm_core.tokenizer import PAD_ID

frequencies = windows[windows != PAD_ID].bincount().double()
entropy = torch.distributions.Categorical(frequencies).entropy().item() / math.log(2)
print(f"{entropy:.2f} bits a character, from frequencies alone")
judged = {"the model trained above": trained} | ({name: storyteller} if real else {})
for who, candidate in judged.items():
    nats = estimate_bound(candidate.model, windows.to(candidate.device), repeats=4)
    print(f"{bits_per_character(nats, windows):.2f} bits a character, {who}")

# %% [markdown]
# A number is not a story, so let it write. With training, first the letters become those of English, then the words,
# then the grammar; the sense of a story comes last. See how far this one has come. At a low temperature it
# keeps to what it is surest of. (The windows of TinyStories were cut out of running text, and not padded. So
# what it writes begins and ends in the middle of a story, even of a word.)

# %%
for temperature in (1.0, 0.5):
    print(f"T = {temperature}")
    show(storyteller.generate(2, temperature=temperature, num_steps=num_steps, seed=1))
    print()

# %% [markdown]
# After its hour on a CPU, `tinystories-cpu` has the letters, many words, and grammar for a few words at a time. A
# story it does not have yet.
#
# ### Filling in
#
# Here is a template of our own. The model decides what Tom did and how he felt, within the 44 and the 8 characters
# that we leave. Its words have to meet ours on both sides.

# %%
template = "Tom could not find his red ball. He_{44}. The ball was there! Tom was very _{8}."
how = {"template": template, "temperature": 0.5, "num_steps": num_steps}
show(storyteller.generate(3, seed=0, **how))

# %% [markdown]
# Our own words stand, character for character. Between them `tinystories-cpu` does what it did above: words and
# near-words, some of which fit their neighbors, and no sense yet.
#
# ### Watching, and the playground
#
# The player below shows the storyteller at work, from nothing. Its steps are over: they are stored in the
# page. The *playground* is live. It has a control for everything that this chapter was about, and runs,
# pauses, steps on and goes back. It needs a running notebook, so in the book you see the player alone. Open the
# chapter in JupyterLab or on Colab to play. `Playground(pipeline)` plays in the story world.

# %%
storyteller.generate_with_visualization(temperature=0.5, seed=2, num_steps=16 if smoke else 64)

# %%
from ddlm_core import Playground

None if stored else Playground(storyteller, template=template, seed=0)

# %% [markdown]
# ## Share it
#
# A folder of two files is easily shared. With an account on the Hugging Face Hub and a token that may
# write (`hf auth login`, or on Colab a secret named `HF_TOKEN`), name a repository below. The cell pushes the model that
# you trained, private at first, and loads it back. The same seed has to give the same text. Without a name
# or a token it does nothing. (`test_a_pushed_pipeline_comes_back`, in `tests/unit/test_pipeline.py`, goes
# the same way, with a folder for a Hub.)

# %%
from huggingface_hub import get_token

repo_id = ""  # "your-name/my-tinystories"

if repo_id and get_token():
    trained.push_to_hub(repo_id, private=True)
    again = DiffusionPipeline.from_pretrained(repo_id)
    assert again.generate(seed=0, num_steps=16) == trained.generate(seed=0, num_steps=16)
    print(f"{repo_id} came back whole")
else:
    print("nothing was pushed")

# %% [markdown]
# ## Change it safely
#
# Give templates a second kind of blank: let `?` stand for one character, too. In `encode_template`,
# replace `None if c == "_"` by `None if c in "_?"`. `test_template_becomes_tokens_and_mask` fails: it
# holds a question mark that wants to stay one. And so do stories: *Was it a big wolf?* would lose its end.
# So the sign has to be one that no story needs, and has to have a way to be written as itself, as `\_`
# is. The command: `make export && pytest tests/`.
#
# Then try this: in `_write`, leave out the line that makes `rows` 1 on a CPU. Only
# `test_texts_do_not_depend_on_their_batch` fails. All stories look as good as before, which is why
# there has to be a test.
#
# ## Exercises
#
# **1.** Write a template for a text of 40 characters that begins with `Max` and ends with `happy.`, with
# `encode_template` as the judge. How many of the tokens are given, for a model whose texts are not
# padded? (Expected: 9.)

# %% tags=["solution", "hide-input"]
_, mask = encode_template("Max_{31}happy.", None, DiscreteDiffusionConfig(block_size=64))
assert len(mask) == 40 and mask.sum() == 9
int(mask.sum())

# %% [markdown]
# **2.** You liked the fourth of the stories that `generate(200, seed=9, num_steps=16)` wrote, and lost it. Write it
# again without the other 199. (Expected: the same text as the last of four. It takes one run and not two
# hundred.)

# %% tags=["solution", "hide-input"]
(again,) = pipeline.generate(first=3, seed=9, num_steps=16)
assert again == pipeline.generate(4, seed=9, num_steps=16)[-1]
show([again])

# %% [markdown]
# **3.** How many numbers does the bundled model hold? Find out from the header alone, without loading a
# weight. (Expected: what `pipeline.model` says.)

# %% tags=["solution", "hide-input"]
shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
count = sum(int(np.prod(shape)) for shape in shapes)
assert count == sum(weight.numel() for weight in pipeline.model.parameters())
count

# %% [markdown]
# **4.** Could we stop early? With `generate_streaming`, stop as soon as three steps in a row have changed
# nothing. Try it on the tiny network of the tests with `schedule="linear"`, `churn=0.0`, 200 steps and seed 0. Is the
# text already that of the full run? (Expected: it stops before half of the steps are done, and no. A
# quiet step only says that little noise was taken away. Any character that still has noise on it can
# change.)

# %% tags=["solution", "hide-input"]
run, quiet = {"seed": 0, "num_steps": 200, "schedule": "linear", "churn": 0.0}, 0
for step in DiffusionPipeline(tiny_network(), "cpu").generate_streaming(**run):
    quiet = 0 if step.changed.any() else quiet + 1
    if step.index >= 3 and quiet >= 3:
        break
assert step.index < 100 and step.texts != DiffusionPipeline(tiny_network(), "cpu").generate(**run)
step.index

# %% [markdown]
# ## Summary
#
# A preset says what a run asks of a machine; what that costs can be computed before you rent one. A model is a
# folder of JSON and numbers. A template becomes tokens and a mask. Everything else is one loop, asked
# politely. And what was built on a world of our own runs on real stories without a change. How good they get
# is then a matter of training.
#
# | exported name | meaning |
# |---|---|
# | `DiffusionPipeline.from_pretrained(source, *, device, revision)` | a folder, a bundled name, a Hub id or nothing, to a pipeline |
# | `.generate(num_samples, …)` | texts (or tokens); also `pipeline(…)` |
# | `.generate_streaming(num_samples, …)` | an iterator over `TextStep` |
# | `TextStep` | `index`, `num_steps`, `sigma_bar`, `tokens`, `changed`, `texts` |
# | `.generate_with_visualization(…)` | one text, shown while it is written; its `Animation`, whose `str()` is the text |
# | `.save_pretrained(folder)` | the folder that `from_pretrained` reads |
# | `.push_to_hub(repo_id)` | the same folder, on the Hugging Face Hub |
# | `.bits_per_character(text)` | how surprising a text is: an `Estimate(mean, low, high)` |
# | `encode_template(template, seq_len, config)` | tokens and mask of a text with blanks |
# | `load_model(folder)` | the network of a folder, or one line that says why not |
# | `SamplingOptions` | the options of a text, their limits and defaults |
# | `default_churn(config)` | the churn that a model gets if nobody says: 1, or 0 where it cannot |
# | `PretrainedModel` | what of the pipeline does not write: load, save, share, judge |
# | `WatchedAnimation` | the animation of a text that its cell has shown already |
