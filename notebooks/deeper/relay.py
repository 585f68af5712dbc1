# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A relay, and its control
#
# *About 10 minutes. You need: [chapter 9](../09_evaluation.ipynb). You will have: a tempting experiment, the control that takes its conclusion away, and two
# measures that can fail.*
#
# **We have** a trained network that writes broken stories, and a Bayes-optimal denoiser that writes none.
# **We want** to know at which noise the trained one makes its flaws.
# **Why**: then we would know what to train more.

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

# %%
import json
import os
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddlm_core import stories
from ddlm_core.evaluation import wilson
from ddlm_core.forward import perturb_batch
from ddlm_core.graph import Denoiser
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.noise import resample_probability
from ddlm_core.reference import BayesDenoiser
from ddlm_core.reverse import reverse_probs
from ddlm_core.sampler import denoising_steps, noise_levels, sample_generators

smoke = os.environ.get("DDLM_PRESET") == "smoke"  # only to see that the page runs
folder = Path(str(files("ddlm_core"))) / "pretrained/pocket-stories"
config = DiscreteDiffusionConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
network = DiscreteDiffusionTransformer(config).eval().requires_grad_(False)
network.load_state_dict(load_file(folder / "model.safetensors"))
tokenizer, noise, length = config.tokenizer, config.noise, config.block_size
ideal = BayesDenoiser(stories.STORIES, tokenizer, length)

count, num_steps = (2, 8) if smoke else (64, 24)
levels = noise_levels(noise, num_steps, "cosine")
fractions = resample_probability(levels)
run = list(
    denoising_steps(
        *(network, noise, count, length),
        num_steps=num_steps,
        schedule="cosine",
        generator=sample_generators(0, count),
    )
)


def finish(model: Denoiser, tokens: Tensor, start: int, seed: int = 1) -> Tensor:
    """The rest of a run without churn, from the level with index ``start``: windows (B, L)."""
    g = torch.Generator().manual_seed(seed)
    for now, after in zip(levels[start:-1], levels[start + 1 :], strict=True):
        ends = (level.repeat(len(tokens)) for level in (now, after))
        probs = reverse_probs(model, tokens, *ends)
        tokens = torch.multinomial(probs.float().flatten(0, 1), 1, generator=g).view_as(tokens)
    return tokens


def flawless(tokens: Tensor) -> str:
    hits = sum(stories.is_flawless(row, tokenizer) for row in tokens.tolist())
    return f"{wilson(hits, len(tokens)):.2f}"


print(
    f"trained network alone, {num_steps} steps without churn: flawless {flawless(run[-1].tokens)}"
)

# %% [markdown]
# ## The tempting half
#
# Let the trained network write down to the corruption probability $f$, and the ideal one finish. As a control, let it also finish *random letters*,
# labeled as if they were text with that $f$, and *fresh stories*, corrupted to that $f$.

# %%
g = torch.Generator().manual_seed(2)
fresh = torch.stack([tokenizer.pad(s, length) for s in stories.sample(count, seed=77)])
for wanted in (0.3, 0.5, 0.7):
    start = int((fractions <= wanted).nonzero()[0])
    f = fractions[start].item()
    sigma_bar = levels[start].float().repeat(count)
    handed = {
        "trained network": run[start].tokens,
        "random letters": torch.randint(config.vocab_size, (count, length), generator=g),
        "corrupted stories": perturb_batch(fresh, sigma_bar, config.vocab_size, generator=g),
    }
    print(
        f"f = {f:.3f}; a corrupted story keeps {1 - f * (1 - 1 / config.vocab_size):.3f} of its letters"
    )
    for name, tokens in handed.items():
        text = finish(ideal, tokens, start)
        kept = (text == tokens).float().mean().item()
        print(f"  {name:18} flawless {flawless(text)}, letters kept {kept:.3f}")

# %% [markdown]
# Look at the flawless shares first: 1.00 in every row. Let the trained network write down to $f = 0.3$, and everything it did can be repaired,
# so one might conclude. But the random letters are "repaired" just as well. The ideal denoiser gives
# probability 0 to every text that is not a story, and under uniform noise every text is a possible corruption of every
# story. So it walks to *some* story from wherever it starts, provided a few steps are left. Its share says nothing about
# what it was given.
#
# The letters kept can tell more, because this measure can fail. At $f = 0.293$ a corrupted story keeps 0.710 of its letters in theory and 0.720 in this sample;
# random letters keep 0.036. The trained network's text keeps 0.649. That is 0.06 of 160, or ten letters, short of a corrupted story, and far
# from random. So in most of its letters the story that comes out was there before; at some ten places it is replaced. At the two higher levels the shortfall is 0.08, or
# thirteen letters: it is there early, and does not grow.

# %% [markdown]
# ## The half that can fail
#
# Now the other way around: corrupt fresh stories to $f$, which is exactly what an ideal run would hold there, and let the
# *trained* network finish. What it breaks now, it breaks below $f$, on its own.

# %%
for wanted in (0.3, 0.5, 0.7, 0.9):
    start = int((fractions <= wanted).nonzero()[0])
    x_t = perturb_batch(fresh, levels[start].float().repeat(count), config.vocab_size, generator=g)
    found, ideally = finish(network, x_t, start), finish(ideal, x_t, start)
    print(f"from f = {fractions[start]:.3f}: trained {flawless(found)}, ideal {flawless(ideally)}")

# %% [markdown]
# The ideal denoiser loses one story of 64 at one level, the price of drawing letters at once in a few steps. The trained network loses none from
# $f = 0.29$, four from 0.44, thirteen from 0.68, eighteen from 0.87; alone it loses 27. Between 1.00 and 0.80 lie four
# standard errors of their difference, so this much is clear: about half of its flaws arise between $f = 0.3$ and 0.7, and
# next to none below. For the rest, 64 samples are too few. Presumably the middle is where a name that appears twice has to
# become *one* name.
#
# One more thing can be read off. The gap in nats is largest above $f = 0.75$ ([chapter 9](../09_evaluation.ipynb)), and half of the flaws arise below 0.7. So
# fewer nats, if they are saved in the noise, need not mean better stories.
#
# Back to [chapter 9](../09_evaluation.ipynb).
