# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The birth of a flaw
#
# *About 15 minutes. You need: [chapter 7](../07_sampler.ipynb). You will have: a look into a run, step by step, up to the moment at which it goes wrong.*
#
# The network that comes with the package writes a story in 64 plain steps of `cosine`, without churn. It reads well, but it
# is broken. Where does the flaw come from?

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
import re
import textwrap
from contextlib import redirect_stdout
from io import StringIO

import torch
from torch import Tensor

from ddlm_core import stories
from ddlm_core.loss import log_posterior
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.sampler import DenoisingStep, denoising_steps, sample_generators
from ddlm_core.support.models import bundled_models

with redirect_stdout(StringIO()):  # it says that the weights come from a folder
    model = DiscreteDiffusionTransformer.from_pretrained(str(bundled_models()["pocket-stories"]))
model.requires_grad_(False)
tokenizer, length = model.config.tokenizer, model.config.block_size


def write(num_steps: int, seed: int = 58) -> list[DenoisingStep]:
    options = {"schedule": "cosine", "generator": sample_generators(seed, 1)}
    noise = model.config.noise
    return list(denoising_steps(model, noise, 1, length, num_steps=num_steps, **options))


run = write(64)
story = tokenizer.decode(run[-1].tokens[0])
print(textwrap.fill(story, 90))
assert not stories.is_flawless(run[-1].tokens[0].tolist(), tokenizer)

# %% [markdown]
# By the grammar of [chapter 2](../02_stories.ipynb), three places hold one and the same name, that of the hero: the first word, the
# one who wants to trade, and the one who is happy at the end. The hero is Lucy, but it is Luke who is happy.
#
# ## How sure is the network?
#
# The network's belief about the clean character at place $i$, with its own $x_t$ counted, is the `log_posterior` of
# [chapter 5](../05_loss.ipynb). The entropy of that belief, in nats,
#
# $$ H_i(x_t) = -\sum_y p(x_0^i=y\mid x_t)\,\log p(x_0^i=y\mid x_t), $$
#
# is 0 where the model is certain, and $\log106=4.66$ for the uniform distribution. The sum over all places counts a choice once for each letter that
# depends on it: the four letters of *kite* are one choice. So the sum is an upper bound on what the model has left to
# decide, and seldom equal to it.


# %%
def belief(step: DenoisingStep) -> Tensor:
    """What the model believes of each clean character: log-probabilities (L, V)."""
    sigma_bar = torch.tensor([step.sigma_bar])
    return log_posterior(model.denoise(step.tokens, sigma_bar), sigma_bar, step.tokens)[0]


def uncertainty(step: DenoisingStep) -> Tensor:
    """Entropy of the belief at each position, in nats: (L,)."""
    log_p = belief(step)
    return -(log_p.exp() * log_p).sum(-1)


unsure = torch.stack([uncertainty(step) for step in run[:-1]])  # (N, L), before each step
for k in (0, 8, 16, 24, 32, 48):
    noise_left, total = run[k].sigma_bar, unsure[k].sum()
    print(f"after {k:2} steps, noise {noise_left:7.4f}: {total:5.1f} nats in all places together")
print(f"entropy of the stories:         {stories.entropy():5.1f} nats")

# %% [markdown]
# Letters at their true frequencies add up to 319 nats, as chapter 7 computes, and a Bayes-optimal denoiser would begin
# there, because pure noise tells nothing. Ours begins at 297: there it is a little too sure of itself. Then the sum falls
# fast. After 16 of 64 steps it has fallen below the 19 nats that a whole story has.
#
# Which words does the model decide last? Add up the uncertainty in each word of the finished text, and look for the last
# step before which it was above half a nat.

# %%
settled = []
for word in re.finditer(r"\w+", story):
    in_word = unsure[:, word.start() : word.end()].sum(1)  # (N,)
    settled.append((int((in_word > 0.5).nonzero().max()), word, in_word))
steps = (0, 8, 16, 24, 32)
print("                   open until  nats before step" + "".join(f"{k + 1:6}" for k in steps))
for last, word, in_word in sorted(settled, key=lambda entry: -entry[0])[:8]:
    place = f"{word.group():10} at {word.start() + 1:3}   step {last + 1:2}"
    print(f"{place:47}" + "".join(f"{in_word[k]:6.1f}" for k in steps))

# %% [markdown]
# The name stays open longest in the sentence about the trade, and the first word of the story is not settled before step
# 28, long after most of the words that follow it. Ask for the most probable letters at the three places of the hero:

# %%
places = [(0, 4), (83, 87), (115, 119)]
for k in (4, 8, 16, 20, 24, 28, 44):
    likely = tokenizer.decode(belief(run[k]).argmax(-1))
    print(f"after {k:2} steps:  " + "  ".join(likely[first:last] for first, last in places))

# %% [markdown]
# After 16 steps all three places lean toward *Luke*. But the second is still half noise, and while that is being redrawn it
# reads as *Lace*, as *Luck*, as *Lack*, which are not names. *Luke* and *Lucy* are both close. In the end the first place
# turns to *Lucy*, and the second follows. The third should follow and does not: the network has been sure of it since step
# 17, and plain steps keep what the network is sure of. That is how the flaw was born. A churned step would draw the third
# place again.
#
# ## The picture
#
# Above is the whole text, one row for each of the first 48 steps; bright means unsure. Below is the beginning of the text,
# with the characters that the sampler holds at that step.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
rows, columns = (0, 4, 8, 16, 24, 32, 48, 63), 46
figure, (top, bottom) = plt.subplots(2, figsize=(8, 5.8), gridspec_kw={"hspace": 0.12})
look = {"cmap": "cividis", "vmin": 0, "vmax": 2.5, "aspect": "auto"}
image = top.imshow(unsure[:48], extent=(0.5, 160.5, 47.5, -0.5), **look)
top.set(xlabel="position in the text", ylabel="steps taken")
bottom.imshow(unsure[list(rows), :columns], extent=(0.5, columns + 0.5, 7.5, -0.5), **look)
bottom.set(xlabel=f"position in the text (the first {columns})", ylabel="steps taken")
bottom.set_yticks(range(len(rows)), rows)
for i, row in enumerate(rows):
    for j, letter in enumerate(map(tokenizer.decode, run[row].tokens[0, :columns, None])):
        color = "black" if unsure[row, j] > 1.3 else "white"
        place = {"ha": "center", "va": "center", "fontsize": 8.5, "parse_math": False}
        bottom.text(j + 1, i, letter if letter.isprintable() else " ", color=color, **place)
for axes in (top, bottom):
    axes.grid(False)
bar = figure.colorbar(image, ax=(top, bottom), label="uncertainty in nats", extend="max")
bar.outline.set_visible(False)
plt.show()

# %% [markdown]
# * **Fixed phrases settle first**, and the padding after the story.
# * **Color and characters tell different things.** After 32 steps nearly every third letter is still noise, and the model
#   is sure of most of the text. It sees through the noise that is left.
#
# ## Errors that are born where all seems settled
#
# A run of four steps from the same noise writes a word that does not exist:

# %%
short = write(4)
text = tokenizer.decode(short[-1].tokens[0])
print(textwrap.fill(text, 90))
first = text.index("gatl")
for k in (1, 2, 3):
    log_p = belief(short[k])[first : first + 4]
    best = log_p.topk(3)
    print(
        f"\nbefore step {k + 1}, the text there is {tokenizer.decode(short[k].tokens[0, first : first + 4])!r}"
    )
    for place in range(4):
        letters = [tokenizer.decode(token[None]) for token in best.indices[place]]
        chances = [f"{p:.2f}" for p in best.values[place].exp().tolist()]
        print("  " + "   ".join(f"{a} {b}" for a, b in zip(letters, chances, strict=True)))

# %% [markdown]
# Before step 3 the network wavers: the third letter is most likely *k* and the fourth *l*, with *t* and *e* close behind.
# No word of the grammar has both *t* and *l* there. But the two are drawn independently, and out come *t* and *l*, from
# different words. That is the factorization error. In the last step the network asks for *gate*, but with a probability of
# 19 % it keeps the *l* that is there, which is an error of its own: a Bayes-optimal denoiser that is 99 % sure of the *t*
# could not give more than 1 % to the *l*. The draw takes the *l*, and no step is left to correct it.
#
# [Chapter 9](../09_evaluation.ipynb) counts such flaws. Back to [chapter 7](../07_sampler.ipynb).
