# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two billion stories in one sum
#
# *About 10 minutes. You need: [chapter 9](../09_evaluation.ipynb). You will have: Bayes' rule over all stories in milliseconds, and a check that lists
# the stories one by one.*
#
# **We have** Bayes' rule for the story behind a noisy text, $p(x_0\mid x_t)\propto p(x_0)\,(1+\kappa)^{m(x_0,\,x_t)}$, where $m$ counts the places at which
# the two agree. **We want** the distribution of the letter at each place, summed over all 1,945,700,352 stories.
# **Why**: this is the Bayes-optimal denoiser, which shows what a trained network could still learn.

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
# ## By hand: two slots
#
# Let all stories be `X met Y.`, with one of three names in each slot, independently. That makes nine stories, but no sum of nine terms is
# needed. The agreements of a story are those in the fixed letters ` met `, plus those in the first name, plus those in the second. So
# $(1+\kappa)^m$ is a product of three factors, and the sum over all pairs of names is a product of sums:
#
# $$ \sum_{X,\,Y} (1+\kappa)^{m_\text{fixed}+m_X+m_Y}
#    = (1+\kappa)^{m_\text{fixed}}\;\sum_X (1+\kappa)^{m_X}\;\sum_Y (1+\kappa)^{m_Y}. $$
#
# Three and three terms instead of nine. With four slots of twenty words each it is 80 instead of 160,000.
#
# ## Layouts
#
# Real stories have templates, alternations, and words that appear twice. Choose the template and each of its alternatives:
# that is a *skeleton* of [chapter 2](../02_stories.ipynb), with probability $p_s$. Choose also, for each variable, how long
# its word is in all its forms. In our grammar this matters for *he* and *she* and little else. Now every place in the
# window belongs either to a fixed letter or to exactly one variable. We call this a *layout*. Our grammar has 1,068. Within
# a layout the words of the variables are independent and equally likely, so
#
# $$ p(\text{layout}\mid x_t)\;\propto\;p(\text{layout})\,(1+\kappa)^{m_\text{fixed}}
#    \prod_{\text{variables }v}\ \frac1{n_v}\sum_{\text{words}}(1+\kappa)^{m_\text{word}}, $$
#
# with $n_v$ the number of words of variable $v$ that have this length. A word that a story names twice is compared at *both* places, and so are its
# pronouns. That is all there is to agreement: the evidence from all places of a variable is counted together.
#
# From the probabilities of the layouts, and of the words within each, those of the letters at each place follow by adding
# up. Finally, our denoising distribution must not have seen the letter at its own place: divide its factor $1+\kappa$ out
# again where it agreed, and normalize.
#
# In the code of chapter 9, `_templates` lists the layouts, and a *slot* is a set of places with the words that may fill them. Layouts share
# most of their slots, so each slot is compared with the noisy text only once.

# %%
import itertools
import time

import torch

from ddlm_core import stories
from ddlm_core.forward import perturb_batch
from ddlm_core.loss import kappa
from ddlm_core.reference import BayesDenoiser
from ddlm_core.tokenizer import CharacterLevelTokenizer

tokenizer = CharacterLevelTokenizer()
denoiser = BayesDenoiser(stories.STORIES, tokenizer, stories.MAX_LENGTH)
print(f"{len(denoiser.log_p):,} layouts, {len(denoiser.slots)} slots, {stories.count():,} stories")

# %% [markdown]
# ## The check: list them all
#
# On a grammar that is small enough, write all stories down, and add them up as Bayes' rule says. A name comes twice here, and *he* and *she* differ in length.

# %%
names = ({"": "Al", "he": "he"}, {"": "Bo", "he": "he"}, {"": "Cy", "he": "she"})
small = stories.Grammar(
    ("{who} [ran|sat]. {who.he} saw {x}.", "{x} and {who}."), {"who": names, "x": names}
)
all_told = {}
for who, x in itertools.product(names, repeat=2):
    for did in ("ran", "sat"):
        all_told[f"{who['']} {did}. {who['he']} saw {x['']}."] = 1 / 2 / 2 / 9
    all_told[f"{x['']} and {who['']}."] = 1 / 2 / 9
assert len(all_told) == 27 and abs(sum(all_told.values()) - 1) < 1e-12

length = 24
texts = torch.stack([tokenizer.pad(text, length) for text in all_told])  # (27, L)
p = torch.tensor([*all_told.values()], dtype=torch.float64)
sigma_bar = torch.tensor([0.1, 0.7, 2.0, 4.0])
g = torch.Generator().manual_seed(0)
x_t = perturb_batch(texts[[3, 11, 20, 25]], sigma_bar, tokenizer.vocab_size, generator=g)
found = BayesDenoiser(small, tokenizer, length).denoise(x_t, sigma_bar).exp().double()


def listed(noisy: torch.Tensor, factor: torch.Tensor, place: int) -> torch.Tensor:
    """The letter at a place by Bayes' rule over all stories, without its own evidence: (V,)."""
    seen = torch.where(noisy == texts, factor, 1.0)  # (27, L)
    weight = p * seen.prod(1) / seen[:, place]
    q = torch.zeros(tokenizer.vocab_size, dtype=torch.float64).index_add(0, texts[:, place], weight)
    return q / q.sum()


worst = 0.0
for row, place in itertools.product(range(4), range(length)):
    factor = 1 + kappa(sigma_bar[row].double(), tokenizer.vocab_size)
    worst = max(worst, (found[row, place] - listed(x_t[row], factor, place)).abs().max().item())
assert worst < 1e-5
print(f"largest difference of a probability: {worst:.1e}")

# %% [markdown]
# ## What it says
#
# Corrupt a story until a third of its letters are resampled, and ask for the most probable letter at each place:

# %%
story = stories.sample(1, seed=6)[0]
x_0 = tokenizer.pad(story, stories.MAX_LENGTH)[None]
sigma_bar = -torch.log1p(-torch.tensor([0.33]))
x_t = perturb_batch(x_0, sigma_bar, tokenizer.vocab_size, generator=g)
start = time.perf_counter()
best = denoiser.denoise(x_t, sigma_bar)[0].argmax(-1)
seconds = time.perf_counter() - start
places = len(story)  # the padding is not printed
for tokens in (x_t[0], best):
    print("".join(c if c.isprintable() else "·" for c in tokenizer.decode(tokens[:places])))
print(f"{(best == x_0[0]).sum()} of {len(best)} letters right, in {1000 * seconds:.0f} ms")
assert (best == x_0[0]).float().mean() > 0.9

# %% [markdown]
# All 160 letters are right. Agreement needs no learning here: the name *Rick* is read from two damaged mentions together. With more noise
# the choices that are written only once are lost, and then even this denoiser has to guess. That is the part of the entropy
# that is not decided yet.
#
# Back to [chapter 9](../09_evaluation.ipynb).
