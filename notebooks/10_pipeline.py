# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # TinyStories from end to end
#
# *About 40 minutes. You need: chapters [7](07_sampler.ipynb) to [9](09_evaluation.ipynb); a GPU is welcome, and not needed. You will
# have: a model trained on real stories, judged beside simple baselines, and one object that writes, fills in, judges and animates.*
#
# **We have** all parts, from tokenizer to measurements.
#
# **We want** to train on stories that our grammar did not write, and one object, the *pipeline*, that goes from the name of a model to a text.
#
# **Why**: a method that only works in a world of its own making has shown little.
#
# The cells are made for a GPU, on Colab or your own, and for a CPU. **Only the CPU has been tried: nothing here
# has run on a GPU yet.** The stored outputs come from the preset `cpu`, cut to 800 steps, on a local excerpt of TinyStories.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## One chapter, three machines
#
# A *preset* is a file of settings; `ddlm-train --config-name gpu` reads the same ones.
#
# | preset | network | for |
# |---|---|---|
# | `smoke` | 2 layers of width 32 | seconds: does everything run? |
# | `cpu` | 6 layers of width 128, windows of 160 characters | hours on a CPU |
# | `gpu` | 10 layers of width 640, windows of 256 characters | hours on a GPU, by estimate |
#
# The environment variable `DDLM_PRESET` picks one; without it, the hardware decides. What the `gpu` preset costs is computed, not measured, in
# [What a run costs](deeper/cost.ipynb).

# %% tags=["hide-input"]
import os
from typing import Any

import torch

from ddlm_core.settings import load_preset

preset = os.environ.get("DDLM_PRESET") or ("gpu" if torch.cuda.is_available() else "cpu")
smoke = preset == "smoke"  # only to see that the chapter runs
stored = "DDLM_STORED" in os.environ  # the outputs are for the book, where no kernel will answer
print(f"preset {preset}: {load_preset(preset).model}")

# %% [markdown]
# ## Real stories
#
# [TinyStories](https://arxiv.org/abs/2305.07759) (Eldan & Li 2023) holds some two million short stories in the words of a small
# child, written by large language models. Its authors wanted to find out how small a network can be and still tell a
# story. The license is CDLA-Sharing-1.0.
#
# The library `datasets` downloads them once, 1 GB. Two environment variables name local files in their place, as
# here: `DDLM_TINYSTORIES` for training, `DDLM_TINYSTORIES_VALID` for validation. With neither network nor files, the story world of
# [chapter 2](02_stories.ipynb) stands in.

# %% tags=["hide-input"]
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


# %% tags=["hide-input"]
from tempfile import TemporaryDirectory

shortened = {  # delete the line of your preset for a whole run
    "cpu": {
        "max_steps": 800,
        "num_epochs": 2,
        "eval_every_steps": 100,
        "eval_windows": 256,
        "train_samples": 20_000,
    },
    "gpu": {"max_steps": 6000, "eval_every_steps": 500},
}
scratch = TemporaryDirectory()  # for what this chapter writes
changes = {"val_samples": 200} | shortened.get(preset, {}) | {"progress": not stored}
changes["checkpoint_dir"] = "checkpoints/chapter-10" if preset == "gpu" else scratch.name
gpus = torch.cuda.device_count()
if preset == "gpu" and gpus and torch.cuda.get_device_properties(0).total_memory < 20e9:
    changes |= {"batch_size": 32, "gradient_accumulation_steps": 2}  # the same step in less memory
settings = load_preset(preset, **changes)

# %% tags=["hide-input"]
real, train, val = load_stories(
    preset,
    train_samples=settings.train_samples,
    val_samples=settings.val_samples,
    context_length=settings.context_length,
    batch_size=settings.batch_size,
    num_workers=settings.num_workers,
)
windows = torch.cat(list(val)).long()
size = train.batch_size * settings.context_length
print(
    f"an epoch: {len(train):,} batches of {train.batch_size} windows of {settings.context_length}"
)
print(f"to train on: {len(train) * size / 1e6:.1f} million characters")
print(f"held out: {len(windows):,} windows")

# %% [markdown]
# The windows are cut from running text, wherever that is in a story. The excerpt is less than a thousandth of TinyStories.
#
# ### What counting can do
#
# A number of bits per character means little alone. Chapter 9 set it beside the entropy of the grammar; that of
# real stories is unknown. So before we train a network, we count: the *n-gram models* of
# [chapter 2](02_stories.ipynb) predict a character from the $n-1$ characters before it. English has more contexts than we can count, so
# here a rare context leans on the shorter one: seen $m$ times, with $k$ different successors, it has the weight
# $m/(m+k)$, and the shorter context has the rest (*Witten–Bell smoothing*). The prediction runs from left to right in each window, so its
# bits are exact and not a bound.

# %% tags=["hide-input"]
import math
from collections import Counter, defaultdict
from itertools import islice

from ddlm_core.tokenizer import PAD_ID


def ngram_bits(texts: list[bytes], held_out: list[bytes], most: int = 6) -> list[float]:
    """Bits per character of n-grams of order 1, 2… ``most``, counted in texts, on others."""
    counts = [defaultdict(Counter) for _ in range(most)]
    for text in texts:
        for i, token in enumerate(text):
            for n in range(min(most, i + 1)):
                counts[n][text[i - n : i]][token] += 1
    bits, characters = [0.0] * most, 0
    for text in held_out:
        for i, token in enumerate(text):
            p = 1 / 106
            for n in range(most):
                if n <= i and (seen := counts[n].get(text[i - n : i])):
                    m, k = seen.total(), len(seen)
                    p = (seen[token] + k * p) / (m + k)
                bits[n] -= math.log2(p) * (token != PAD_ID)
            characters += token != PAD_ID
    return [b / characters for b in bits]


few = [bytes(row.tolist()) for batch in islice(train, 520) for row in batch]  # a GPU has far more
ngrams = ngram_bits(few, [bytes(row.tolist()) for row in windows])
print(f"uniform {math.log2(106):.2f} bits per character")
for n, bits in enumerate(ngrams, 1):
    print(f"{n}-gram  {bits:.2f}")

# %% [markdown]
# The *uniform baseline* takes all 106 tokens for equally likely. The 1-gram (*unigram*) only knows how frequent each character is. The
# 6-gram remembers five characters, often most of a word, and children's stories have few words: it needs 1.50 bits.
#
# ## Training
#
# The `Trainer` of [chapter 8](08_training.ipynb) takes *callbacks*, functions that it calls after each step. Ours adds a point to a
# figure whenever the validation bound was measured.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
from IPython.display import display

from ddlm_core.support.progress import StepResult

plt.style.use("ddlm_core.book")
curve, figure = [], plt.figure(figsize=(6, 3))


def draw_curve(result: StepResult) -> None:
    """Add a point to the figure, if the bound was measured after this step."""
    if result.bound is None:
        return
    curve.append((result.step, result.bound.bits_per_character))
    figure.clear()
    axes = figure.subplots()
    axes.plot(*zip(*curve), "o-")
    for n in (1, 3, 5):
        axes.axhline(ngrams[n - 1], color="gray", linestyle=":")
        axes.text(settings.max_steps or 0, ngrams[n - 1], f" {n}-gram", va="center")
    axes.set(xlabel="training steps", xlim=(0, settings.max_steps))
    axes.set(ylabel="bits per character", ylim=(0, None))
    shown.update(figure)


# %% [markdown]
# The figure shows bits per character on held-out windows against the training steps; the dotted lines are n-grams. The curve
# begins near the uniform baseline, 6.73. It falls below the unigram within a hundred steps and
# below the trigram within four hundred. Then a hundred steps gain less and less, and after 800 the 5-gram is still ahead.

# %%
from pathlib import Path

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.training import Trainer

torch.manual_seed(0)
network_config = DiscreteDiffusionConfig(
    block_size=settings.context_length, padded=not real, **settings.model
)
network = DiscreteDiffusionTransformer(network_config)
trainer = Trainer(network, train, val, settings, callbacks=[draw_curve])
if (latest := Path(settings.checkpoint_dir) / "checkpoint_latest.pth").exists():
    trainer.resume(latest)  # only a run on a GPU leaves one
shown = display(figure, display_id=True)
plt.close(figure)  # or it would be shown once more at the end of the cell
draw_curve(StepResult(trainer.step, loss=math.nan, characters=0, bound=trainer.evaluate()))
trainer.train()
print(f"{trainer.step:,} steps on {trainer.accelerator.device}")
print("bits per character:", *(f"{bits:.2f}" for _, bits in curve))

# %% [markdown]
# ## The pipeline
#
# Whoever only wants a story should not have to know what a noise schedule is. So we build one
# object that loads a model, writes, fills in and judges, and that guarantees three things:
#
# 1. Given characters stay as they are.
# 2. The same seed gives the same text, however many you ask for (on a CPU).
# 3. What cannot work is refused in one line, before any work is done.
#
# To try it we take `pocket-stories`, the model of chapter 2's world that ships with this book: there we can compute whether a text
# is right, that is, whether the grammar can write it. Here it is at work:

# %%
import textwrap

from ddlm_core.pipeline import DiffusionPipeline

num_steps = 16 if smoke else 128


def show(texts: list[str]) -> None:
    print("\n\n".join(textwrap.fill(text, 90) for text in texts))


pipeline = DiffusionPipeline.from_pretrained()
show(pipeline.generate(num_samples=2, num_steps=num_steps, seed=3))

# %% [markdown]
# `from_pretrained` takes a folder, the name of a model that ships with the package, an id on the
# [Hugging Face Hub](https://huggingface.co), or nothing. A model is a folder of two files: `config.json` says what the network is, with its vocabulary and
# its noise; `model.safetensors` holds the weights, as plain numbers. Why not PyTorch's own format?
# [Loading a stranger's model](deeper/loading_models.ipynb) shows what it could do to you. `load_model` (folded) checks both files.

# %% tags=["export", "hide-input"]
import json
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.support.errors import UserError, error_context


def _read_config(path: Path, kind: type[DiscreteDiffusionConfig]) -> DiscreteDiffusionConfig:
    """What a ``config.json`` says, if it has the fields of a configuration and no others."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"it must be a mapping, not a {type(found).__name__}")
    if unknown := sorted(found.keys() - {field.name for field in fields(kind)}):
        hint = ": BlockPipeline loads such a model" if "block_length" in unknown else ""
        raise UserError(f"there is no field {unknown[0]!r}{hint}")
    return kind(**found)


def load_model(
    folder: Path,
    network: type[DiscreteDiffusionTransformer] = DiscreteDiffusionTransformer,
    kind: type[DiscreteDiffusionConfig] = DiscreteDiffusionConfig,
) -> DiscreteDiffusionTransformer:
    """The network of a folder, in evaluation mode; it is read as data, and never unpickled.

    ``network`` and ``kind`` are classes. A ``UserError`` names a file that is missing or broken, and says why.
    """
    hint = "a model is a folder that ddlm-train or save_pretrained wrote"
    path = folder / "config.json"
    with error_context(f"cannot use {path}", hint, ValueError, TypeError, RecursionError):
        config = _read_config(path, kind)
    model, path = network(config), folder / "model.safetensors"
    with error_context(f"cannot use {path}", hint, SafetensorError, RuntimeError):
        weights = load_file(path)
        if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
            raise UserError(f"{bad[0]} holds NaN or infinity")
        model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


# %% [markdown]
# ## From a template to a condition mask
#
# A *template* is a text with blanks. `_` is one blank, `_{12}` is twelve, and `\_` is a real underscore. By hand:
#
# | template | characters | tokens | given |
# |---|---|---|---|
# | `a_!` | `a`, blank, `!` | 12, anything, 64 | yes, no, yes |
# | `a\_!` | `a`, `_`, `!` | 12, 90, 64 | yes, yes, yes |
#
# The sampler wants the last two columns. Mind the sign: our *condition mask* is **true where a character is given**. In papers on masked
# diffusion, and in most code for inpainting, true marks what is to be *filled in*.
#
# A folded function cuts the template into characters: `\_` is one, and so is `<|endoftext|>`, a `<PAD>`. A backslash right before a
# blank cannot be written. The rest holds three decisions.
#
# * **An unknown character is an error.** The tokenizer would silently turn it into `<UNK>`.
# * **Without `seq_len`, the template is the whole text.** With it, the template is how the text begins.
# * **Padded stories stay padded.** The bundled model has only seen windows of 160 tokens: a story, then `<PAD>`. So if the template is the
#   whole text, the rest of the window is given as `<PAD>`: here the story has ended. With `seq_len`, give such a model its full 160.

# %% tags=["export:sampling_options", "hide-input"]
"""How a text is written: templates, and the options of generation with their limits."""

import re

from ddlm_core.support.text import END, normalized


def template_characters(template: str) -> list[str | None]:
    """The characters of a template: None for a blank, the empty string for the end of a text."""
    counts = re.compile(r"(?<!\\)_\{(\d+)\}")
    long = counts.sub(lambda m: "_" * int(min(float(m[1]), 9999)), normalized(template))
    signs = re.findall(rf"{END.pattern}|\\_|.", long, re.DOTALL)
    return [None if c == "_" else "" if END.fullmatch(c) else c[-1] for c in signs]


# %% tags=["export:sampling_options"]
from torch import Tensor

from ddlm_core.tokenizer import PAD_ID


def encode_template(
    template: str, seq_len: int | None, config: DiscreteDiffusionConfig
) -> tuple[Tensor, Tensor]:
    r"""Tokens of a template, int64 (L,), and a mask, bool (L,), true where a token is given.

    A ``_`` is a blank, ``_{12}`` is twelve, ``\_`` an underscore, ``<|endoftext|>`` a ``<PAD>``. Without
    ``seq_len`` the template is the whole text, with it the beginning of one of L = ``seq_len`` tokens.

    Raises:
        UserError: the model of ``config`` cannot fill it in; one line says why.
    """
    characters = template_characters(template)
    room, count = config.block_size if seq_len is None else seq_len, len(characters)
    if not 1 <= count <= room:
        raise UserError(f"the template has {count} characters, there is room for 1 to {room}")
    text = "".join(filter(None, characters))
    if unknown := ", ".join(map(repr, config.tokenizer.unknown_characters(text))):
        hint = "leave them out, or train with vocabulary=auto"
        raise UserError(f"the model does not know {unknown:.200} of the template: {hint}")
    length = count if seq_len is None and not config.padded else room
    mask = torch.full((length,), seq_len is None)  # after the template: <PAD> is given, or all free
    mask[:count] = torch.tensor([character is not None for character in characters])
    if mask.all():
        raise UserError("the template has no blank: write _ for each character to fill in")
    tokens = torch.full((length,), PAD_ID)
    tokens[:count][[bool(character) for character in characters]] = config.tokenizer.encode(text)
    return tokens, mask


# %%
tokens, mask = encode_template("a_!", None, DiscreteDiffusionConfig(block_size=6, padded=True))
tokens.tolist(), mask.tolist()

# %% [markdown]
# Token 1 is `<PAD>`: a placeholder in the blank, and given in the last three places. The test shows a blank
# as `_` and a given `<PAD>` as `~`.


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
# order when the matrix has more rows. So a text that shares its batch with others gets slightly different
# probabilities than alone:

# %%
model, generator = pipeline.model, torch.Generator().manual_seed(0)
noisy = torch.randint(106, (8, 160), generator=generator).to(pipeline.device)
sigma_bar = torch.ones(8, device=pipeline.device)
with torch.inference_mode():
    together = model.denoise(noisy, sigma_bar)
    alone = torch.cat([model.denoise(noisy[i : i + 1], sigma_bar[:1]) for i in range(8)])
print(f"log-probabilities differ by up to {(together - alone).abs().max():.1e}")

# %% [markdown]
# Does it matter? Each character is drawn by inverse-CDF sampling: a random number falls into one of the stretches that the probabilities
# cut from 0 to 1 (chapter 7). If it falls into the tiny gap between where a boundary is and where it would be, another character is drawn,
# and from then on everything can go another way. That is rare: a difference that you meet once and cannot find again.
#
# On a CPU there is a plain cure: one text after the other goes through the network. On one core, 16 texts pass through
# the network in 0.25 seconds one by one, and in 0.20 as one batch. A GPU would idle. There texts go in batches, and the guarantee is weaker: a
# rare text comes out different when `batch_size` or the number of texts changes. Software without this fault is called *batch-invariant*.
#
# ## One loop behind everything
#
# One text, a hundred, or an animation: all come from the loop of chapter 7. What is left is to turn the question into its
# arguments. `SamplingOptions` (folded) holds the options of a text, with their defaults and limits, for all commands.
#
# | option | default | in chapter 7 |
# |---|---|---|
# | `num_steps` | 128 | 128 |
# | `schedule` (the time grid) | `cosine` | `linear` |
# | `temperature` | 1 | 1 |
# | `churn` | 1; 0 if the model cannot ([masks](A_absorbing.ipynb)) | 0 |
#
# With a churn of 1, each step draws fresh noise in place of the noise that is left. A share of 0.930 of the stories that the bundled model then writes in
# 64 steps is flawless, and 0.654 with a churn of 0 ([chapter 9](09_evaluation.ipynb)). Between 64 and 256 steps chapter 9
# finds no difference, so 128 is on the safe side.

# %% tags=["export:sampling_options", "hide-input"]
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ddlm_core.sampler import SCHEDULES
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.fields import Limits, check_fields
from ddlm_core.support.text import END_OF_TEXT, with_ends
from ddlm_core.tokenizer import CharacterLevelTokenizer


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
    stop_at_end: bool = False  # nothing after the first <PAD> that follows some text

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice(SCHEDULES, schedule=self.schedule)

    def arguments(self, config: DiscreteDiffusionConfig) -> dict[str, Any]:
        """Arguments of ``denoising_steps``; a ``UserError`` if the model of ``config`` cannot do that."""
        found = vars(self) | {
            "seq_len": config.block_size if self.seq_len is None else self.seq_len
        }
        found.pop("stop_at_end")  # the loop goes on to the end: it writes all at once
        check_range(1, config.block_size, seq_len=found["seq_len"])
        if self.churn is None:
            found["churn"] = default_churn(config)
        if self.template is not None:
            tokens, mask = encode_template(self.template, self.seq_len, config)
            found |= {"template": tokens, "condition_mask": mask, "seq_len": len(mask)}
        return found


def texts_of(
    rows: Iterable[Sequence[int]], tokenizer: CharacterLevelTokenizer, stopped: bool = False
) -> list[str]:
    """The texts of rows of tokens; a ``<PAD>`` before more text is ``<|endoftext|>`` on its own line.

    Of texts that were ``stopped`` at their end, a ``<PAD>`` in front says nothing.
    """
    texts = [with_ends(tokenizer.shown[token] for token in row) for row in rows]
    return [text.removeprefix(f"{END_OF_TEXT}\n") for text in texts] if stopped else texts


def cut_at_end(tokens: Tensor) -> Tensor:
    """Tokens (B, L), all of them ``<PAD>`` from the first ``<PAD>`` after some text on."""
    begun = (tokens != PAD_ID).cumsum(1) > 0
    ended = (begun & (tokens == PAD_ID)).cumsum(1) > 0
    return tokens.masked_fill(ended, PAD_ID)


# %% [markdown]
# `_write`, below, runs that loop for any number of texts: it checks everything at the call, then returns an iterator. Batches advance
# together: `join_steps` (folded) gathers the same step of all and decodes it. A `<PAD>` before more text
# shows as `<|endoftext|>`; with `stop_at_end`, texts end there.

# %% tags=["export", "hide-input"]
from collections.abc import Iterator
from dataclasses import replace

from ddlm_core.sampler import DenoisingStep
from ddlm_core.sampling_options import cut_at_end, texts_of
from ddlm_core.tokenizer import CharacterLevelTokenizer


@dataclass(frozen=True)
class TextStep(DenoisingStep):
    """A step of the sampler, and the texts that it leaves, one for each sample."""

    texts: list[str]


def join_steps(parts: tuple[DenoisingStep, ...], tokenizer: CharacterLevelTokenizer) -> TextStep:
    """The same step of several batches as one, on the CPU."""
    tokens = torch.cat([part.tokens for part in parts]).cpu()
    changed = torch.cat([part.changed for part in parts]).cpu()
    texts = texts_of(tokens.tolist(), tokenizer)
    index, num_steps, sigma_bar = parts[0].index, parts[0].num_steps, parts[0].sigma_bar
    return TextStep(index, num_steps, sigma_bar, tokens, changed, texts)


def ended_texts(
    steps: Iterator[TextStep], tokenizer: CharacterLevelTokenizer
) -> Iterator[TextStep]:
    """The same steps; the texts of the last one end where they first say so."""
    before = None
    for step in steps:
        if step.index == step.num_steps:
            cut = cut_at_end(step.tokens)
            changed = step.changed if before is None else cut != before
            texts = texts_of(cut.tolist(), tokenizer, stopped=True)
            step = replace(step, tokens=cut, changed=changed, texts=texts)
        before = step.tokens
        yield step


# %% tags=["export"]
import secrets

from ddlm_core.sampler import denoising_steps, sample_generators


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
    steps = (join_steps(parts, config.tokenizer) for parts in zip(*runs, strict=True))
    return ended_texts(steps, config.tokenizer) if options.stop_at_end else steps


# %% [markdown]
# ## How likely is a text?
#
# A model that writes can also judge. [Chapter 5](05_loss.ipynb) bounds the negative log-likelihood $-\log p(x_0)$ of a text from above: it
# puts noise on a window, at many levels, and asks the network about each. For a text of $N$ characters, cut into windows $w$, the *bits per character* are
# at most
#
# $$ b = \frac{1}{N \ln 2} \sum_w \mathcal L(w) $$
#
# with the bound $\mathcal L(w)$ in nats; $\ln 2$ turns nats into bits. A `sweep` of [chapter 9](09_evaluation.ipynb) measures
# windows of one length. The end of a text is shorter, so we measure the whole windows and the rest apart, and add. Eight such
# measurements of the text give the 95 % interval. It covers the noise alone: it is about *this* text. A short text is measured at about 256
# noise levels.

# %% tags=["export", "hide-input"]
import warnings
from textwrap import shorten


def _text_tokens(text: str, config: DiscreteDiffusionConfig) -> Tensor:
    """The tokens of a text, int64 (N,), in whole windows if the model knows padding."""
    stories = END.split(normalized(text)) if isinstance(text, str) else []
    if not any(stories):
        raise UserError(f"need a text of at least one character, got {text!r:.50}")
    if unknown := config.tokenizer.unknown_characters("".join(stories)):
        few = shorten(", ".join(map(repr, unknown)), 100)
        words = (
            "they count as <UNK>; to read them, train with vocabulary=auto on text that has them"
        )
        warnings.warn(f"the model does not know {few}: {words}", stacklevel=4)
    ended = [
        config.tokenizer.pad(story, len(story) + 1) for story in stories
    ]  # with one <PAD> each
    tokens = torch.cat(ended)[:-1]
    missing = -len(tokens) % config.block_size if config.padded else 0
    return torch.nn.functional.pad(tokens, (0, missing), value=PAD_ID)


# %% tags=["export"]
import math

from ddlm_core.evaluation import Estimate, mean_of, sweep


def _text_bound(model: DiscreteDiffusionTransformer, text: str, seed: int) -> Estimate:
    """The bound on a text, in bits per character."""
    tokens = _text_tokens(text, model.config).to(next(model.parameters()).device)
    cut = len(tokens) // (length := model.config.block_size) * length
    parts = [part for part in (tokens[:cut].view(-1, length), tokens[None, cut:]) if part.numel()]
    generator, nats = torch.Generator().manual_seed(seed), torch.zeros(8, dtype=torch.float64)
    for part in parts:  # eight independent measurements of each
        for k in range(8):
            nats[k] += len(part) * sweep(model, part, max(1, 32 // len(part)), generator)
    unit = int((tokens != PAD_ID).sum()) * math.log(2)
    return mean_of(nats).scaled(1 / unit)


# %% [markdown]
# The classes around these functions are thin, and folded. `PretrainedModel` loads, saves, shares and judges. `DiffusionPipeline` writes:
# `generate_streaming` is `_write`, `generate` waits for its last step, and `generate_with_visualization` shows each step of one text while it is
# written, and returns all of them as an `Animation` ([chapter 4](04_forward.ipynb)).

# %% tags=["export", "hide-input"]
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
        """The model of a folder, a bundled name (none: pocket-stories), or a Hub id; else a ``UserError``."""
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
        """A bound on -log p of a text, in bits per character, with its 95 % interval; UserError: no text.
        Unknown characters count as ``<UNK>``, with a warning; ``<|endoftext|>`` is the ``<PAD>`` it stands for.
        """
        check_range(0, 2**63, seed=seed)
        return _text_bound(self.model, text, seed)


# %% tags=["export", "hide-input"]
from ddlm_core.animation import Animation, Frame, draw, iter_frames
from ddlm_core.support.drawing import Picture
from ddlm_core.support.live import notebook_cell, show_in_other_cells, watch


@dataclass(frozen=True, repr=False)
class WatchedAnimation(Animation):
    """An animation that stands in the output of the cell that wrote it."""

    cell: int | None = None  # the number of that cell, in a notebook

    def _ipython_display_(self) -> None:
        show_in_other_cells(self, self.cell)


def watched(
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


# %% tags=["export", "hide-input"]
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
        stop_at_end: bool = False,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
    ) -> Iterator[TextStep]:
        """An iterator over the random start and each of ``num_steps`` steps; all else as :meth:`generate`."""
        options = SamplingOptions(
            seq_len, num_steps, schedule, temperature, churn, template, stop_at_end
        )
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
        stop_at_end: bool = False,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = 64,
        return_tokens: bool = False,
    ) -> list[str] | Tensor:
        """Finished texts, or their tokens, int64 (num_samples, L), on the CPU.

        The same ``seed`` gives the same texts (on a GPU, nearly always); None draws one. ``first`` numbers
        the first text, to go on where another call ended; ``batch_size`` is for a GPU, a CPU takes one
        text at a time. The other options are those of :class:`SamplingOptions`. What cannot work is a
        ``UserError``, one line, before any work is done.
        """
        options = SamplingOptions(
            seq_len, num_steps, schedule, temperature, churn, template, stop_at_end
        )
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
        stop_at_end: bool = False,
        seed: int | None = None,
    ) -> Animation:
        """Write one text, live; ``str()`` of the animation is the text. All else as :meth:`generate`."""
        options = SamplingOptions(
            seq_len, num_steps, schedule, temperature, churn, template, stop_at_end
        )
        return watched(_write(self.model, options, seed), num_steps, self.tokenizer)

    __call__ = generate


# %% [markdown]
# Now the guarantee about seeds. We test it on a network that is far worse than any
# rounding: its logits grow by a tenth with each text that it sees at once.


# %% tags=["test"]
def tiny_network(kind: type = DiscreteDiffusionTransformer) -> torch.nn.Module:
    """A network of random weights: it writes nonsense, but it writes it fast."""
    network = kind(DiscreteDiffusionConfig(block_size=24, n_layer=1, n_head=2, n_embd=16))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


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
# ## Watching
#
# Here is one story as it is written, in 64 steps from 160 random characters. What
# the last step changed is colored and underlined; a dot or `¶` is `<PAD>`.

# %%
animation = pipeline.generate_with_visualization(seed=4, num_steps=num_steps // 2)
animation

# %% [markdown]
# Nothing grows from left to right. Code that acts *while* the text is written takes the steps one by one. Here are some, with the noise that is left
# and the number of characters that the step changed:

# %%
for churn in (1.0, 0.0):
    print(f"churn {churn}")
    for step in pipeline.generate_streaming(seed=4, num_steps=num_steps // 2, churn=churn):
        if step.index % (num_steps // 16) == 0:
            changed = int(step.changed.sum())
            print(f"{step.index:3} {step.sigma_bar:7.3f} {changed:4}  {step.texts[0][:42]!r}")

# %% [markdown]
# With a churn of 1, each step draws a whole text from the denoising distribution and then puts fresh noise on it. Early on most of that is noise: 158 of
# 160 characters change, nothing settles, and a wrong character is not in the way for long. With a churn of 0 a step changes few characters, 16 and soon
# fewer: letters settle all over the place, and one that settles wrongly tends to stay. (`<|endoftext|>` is a `<PAD>` before more text.)
#
# ## Infilling
#
# Who lost a ball? The name is blank in two places, and between them two words tell a girl from a boy. So the model has to agree with itself
# and with what is given on both sides. Since we know the grammar, we can count what it could have written:

# %%
from ddlm_core import stories
from ddlm_core.evaluation import wilson

tale = (
    "One day, ____ lost {his} pink ball in the park. {He} felt so sad. "
    'A kind frog found it! "Thank you!" said ____. They are friends now.'
)
count, right = 2 if smoke else 20, 0
for his, He in (("her", "She"), ("his", "He")):
    template = tale.format(his=his, He=He)
    texts = pipeline.generate(count, template=template, num_steps=num_steps // 4, seed=0)
    for text in texts[:3]:
        print(text[:48], "…", text[-29:])
    right += sum(math.isfinite(stories.log_prob(text)) for text in texts)
print(f"{right} of {2 * count} are right: a share of {wilson(right, 2 * count):.2f}")

# %% [markdown]
# All but one of 40 are right. In that one, not shown, Cora lost the ball and Nora says thank you. An autoregressive model would have to
# choose the first name before it has read the pronoun. Ours sees both sides: it is told which characters are given, as in training, and takes them
# for clean at every noise level (chapter 7). That the template is kept is neither luck nor training: the loop puts the given characters back after every step.
#
# **The number of blanks is part of the question.** All heroes of these stories have names of four letters. Leave five blanks, and the model must write
# what it has never read. If the length does not matter, give the beginning and a `seq_len`: then
# the model decides where the story ends.

# %%
template = "It was snowy. "
show(pipeline.generate(2, template=template, seq_len=160, num_steps=num_steps // 2, seed=1))

# %% [markdown]
# In the rendered book, fill in a template of your own:

# %% tags=["hide-input"]
from ddlm_core import Live
from ddlm_core.animation import Animation, make_frames

blanks = "_{4} could not sing. _{130}"
steps = [*pipeline.generate_streaming(template=blanks, num_steps=num_steps // 2, seed=0)]
frames = make_frames([step.tokens[0] for step in steps], [step.sigma_bar for step in steps])
Live("sample", stored=Animation(frames, pipeline.tokenizer), template=blanks, steps=64)

# %% [markdown]
# ## Temperature
#
# The temperature $T$ sharpens or flattens the denoising distribution, to $q^{1/T}$ made to sum to 1. Below 1 mistakes get rarer, it
# seems: chapter 9 finds a share of 0.956 flawless at $T=0.8$ and 0.930 at 1, not yet a clear difference. Above 1 rare characters
# get a chance. The same seed, three temperatures:

# %%
for temperature in (0.5, 1.0, 1.5):
    print(f"T = {temperature}")
    show(pipeline.generate(1, temperature=temperature, num_steps=num_steps // 2, seed=2))

# %% [markdown]
# The same random numbers choose the same kind of story three times, and other words in it; all three are whole, even the one at 1.5. But $T=1$ is the only temperature at which the texts follow the distribution that the model has learned. So it is the one to
# judge a model by, and the default.
#
# ## What is a pronoun worth?
#
# Three texts: a story of the grammar, whose exact probability is known; the same with a wrong pronoun; and something else.

# %%
good = (
    "Nora met a calm frog by the pond. It was dirty, so she gave it a hot bath. "
    "Soon the frog was not dirty any more. Nora was happy again."
)
for text in (good, good.replace("she", "he"), "Stocks fell by three percent on Monday."):
    exact = -stories.log_prob(text) / math.log(2) / len(text)
    bound = pipeline.bits_per_character(text)
    print(f"at most {bound:.2f} bits per character, exactly {exact:.2f}: {text[:40]}")

# %% [markdown]
# The first story costs 0.17 bits per character; the model's bound is 0.26. The wrong pronoun raises the bound by 0.06 bits per character, some 8 bits in
# all. As each bound has an interval of ±0.03, that is a rough figure. To the grammar the second text is impossible, at infinitely many
# bits; to the model the mistake is unlikely, not impossible. The bound of the third text is 30 bits per character, against the uniform 6.7.
# The model has only ever read stories, and is sure that nothing else exists.
#
# ## Back to TinyStories
#
# The training has left a folder, `final_model_hf`, and the pipeline reads it like any other. A second model ships with the package: `tinystories-cpu`, the
# same network after an hour on one core; at that pace the 800 steps above take some seven minutes.
# Its 7,000 steps of 16 windows go through 1.3 million characters some 14 times, and still its bound
# on text that it has not seen, our held-out windows among it, fell up to the end (the log is in [appendix B](B_using.ipynb)): no sign of overfitting.

# %% tags=["hide-input"]
from ddlm_core.support.models import bundled_models

trained = writer = DiffusionPipeline.from_pretrained(trainer.files.folder / "final_model_hf")
name = "the model trained above"
if preset != "gpu" and "tinystories-cpu" in bundled_models():
    name, writer = "tinystories-cpu", DiffusionPipeline.from_pretrained("tinystories-cpu")
print(f"from here on, {name} writes, after {writer.config.step:,} training steps")

# %% [markdown]
# ### How good is it?
#
# We measure as in [chapter 9](09_evaluation.ipynb): all held-out windows, four noise levels each. The curve above had 256 windows and one level, and
# so differs a little.

# %%
from ddlm_core.evaluation import bits_per_character, estimate_bound

for n in (3, 4, 5):
    print(f"{ngrams[n - 1]:.2f} bits per character, {n}-gram")
judged = {"the model trained above": trained} | ({name: writer} if real else {})
for who, candidate in judged.items():
    nats = estimate_bound(candidate.model, windows.to(candidate.device), repeats=4, of="source")
    print(f"{bits_per_character(nats, windows):.2f} bits per character, {who}")

# %% [markdown]
# The n-grams' numbers are exact and the networks' are upper bounds, so the networks may be better than they look. The model trained above and
# the n-grams have read the same text. It lies between the trigram and the 4-gram; `tinystories-cpu`
# is just ahead of the 4-gram, and the 5-gram is clearly ahead. So an hour of training has not yet bought what counting gives in
# seconds. To predict any character from any subset of the others is a harder task than to predict the next one: on the story
# world, after as much training, the same network is at 19 nats per story from left to right, and at a bound of 25 by diffusion
# ([chapter 9](09_evaluation.ipynb)). The counts in turn cannot fill a blank from both sides.
#
# A number is not a story, so let it write. The windows were cut out of running text, so what the model writes begins and ends anywhere.

# %%
for temperature in (1.0, 0.5):
    print(f"T = {temperature}")
    show(writer.generate(2, temperature=temperature, num_steps=num_steps, seed=1))
    print()

# %% [markdown]
# After its hour `tinystories-cpu` has the letters, many words, and grammar for a few words at a time. It cannot tell a story yet.
# The authors of TinyStories report fluent stories from autoregressive networks below 10 million parameters, trained on the whole data set. Ours has 1.6 million
# parameters, and has read less than a thousandth of it.
#
# ### Filling in
#
# The model decides what Tom did and how he felt, in 44 and 8 characters. Its words have to meet ours on both sides.

# %%
template = "Tom could not find his red ball. He_{44}. The ball was there! Tom was very _{8}."
options = {"template": template, "temperature": 0.5, "num_steps": num_steps}
show(writer.generate(3, seed=0, **options))

# %% [markdown]
# Our own words stand. Between them are words and near-words; *scareful* begins like *scared* and ends like *careful*. No sense
# connects them yet.
#
# ### Watching, and the playground
#
# The player below shows the model at work, from nothing. The *playground* is live: a box for a template, sliders for
# steps, temperature and churn, and buttons to run, pause and step. It needs a running notebook: open the chapter in
# JupyterLab or on Colab to play.

# %%
writer.generate_with_visualization(temperature=0.5, seed=2, num_steps=16 if smoke else 64)

# %%
from ddlm_core import Playground

None if stored else Playground(writer, template=template, seed=0)

# %% [markdown]
# `trained.save_pretrained("folder")` keeps a model, `trained.push_to_hub("user/model")` shares it ([appendix B](B_using.ipynb)).
#
# ## Change it safely
#
# Let `?` be a blank, too: in `template_characters`, replace `None if c == "_"` by `None if c in "_?"`.
# `test_template_becomes_tokens_and_mask` fails: it holds a question mark that has to stay one, as stories do.
# The command: `make export && pytest tests/`.
#
# ## Exercises
#
# **1.** Write a template for a text of 40 characters that begins with `Max` and ends with `happy.`, and let
# `encode_template` check it. How many of the tokens are given, for a model whose texts are not
# padded? (Expected: 9.)

# %% tags=["solution", "hide-input"]
_, mask = encode_template("Max_{31}happy.", None, DiscreteDiffusionConfig(block_size=64))
assert len(mask) == 40 and mask.sum() == 9
int(mask.sum())

# %% [markdown]
# **2.** Could we stop early? With `generate_streaming`, stop as soon as three steps in a row have changed
# nothing. Try it on the tiny network of the tests with `schedule="linear"`, `churn=0.0`, 200 steps and seed 0. Is the
# text already that of the full run? (Expected: it stops before half of the steps are done, and no. A
# quiet step only says that little noise was taken away.)

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
# What was built on a world of our own trains on real stories without a change. After an hour on a CPU it has words, not stories.
#
# | exported name | meaning |
# |---|---|
# | `DiffusionPipeline.from_pretrained(source, *, …)` | from a folder, a bundled name or a Hub id |
# | `.generate(num_samples, …)` | texts (or tokens); also `pipeline(…)` |
# | `.generate_streaming(num_samples, …)` | an iterator over `TextStep` |
# | `TextStep` | `index`, `num_steps`, `sigma_bar`, `tokens`, `changed`, `texts` |
# | `.generate_with_visualization(…)` | one text, shown while it is written; an `Animation` |
# | `.save_pretrained(folder)`, `.push_to_hub(repo_id)` | the folder that `from_pretrained` reads, on disk or on the Hub |
# | `.bits_per_character(text)` | a bound, as an `Estimate(mean, low, high)` |
# | `encode_template(template, seq_len, config)` | tokens and condition mask of a text with blanks |
# | `load_model(folder)` | the network of a folder, or one line that says why not |
# | `SamplingOptions` | the options of a text, their limits and defaults |
# | `default_churn(config)` | 1, or 0 where the model cannot |
# | `PretrainedModel` | load, save, share, judge |
# | `WatchedAnimation` | an animation that its cell has shown already |
#
# ## Where this stands in the field
#
# Characters are a test bed. Diffusion models that compete with autoregressive ones read *subwords* (BPE) and are thousands of times larger:
# [LLaDA](https://arxiv.org/abs/2502.09992), with masks, has 8 billion parameters. An autoregressive model can learn to fill in if training texts are rearranged
# so that the middle comes last (*fill in the middle*, [Bavarian et al. 2022](https://arxiv.org/abs/2207.14255)); a diffusion model takes any pattern of blanks. Many epochs on
# little text favor diffusion: where data and not compute is short, it overtakes autoregressive models of the same size
# ([Ni et al. 2025](https://arxiv.org/abs/2511.03276)). Batch invariance is as rare in large language models: on GPUs it takes special kernels
# ([He 2025](https://thinkingmachines.ai/blog/defeating-nondeterminism-in-llm-inference/)).
#
# Next: [appendix A](A_absorbing.ipynb) changes the noise, [appendix B](B_using.ipynb) shows the commands.
