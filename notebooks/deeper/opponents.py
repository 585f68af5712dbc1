# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Opponents: what counting can do
#
# *About 5 minutes. You need: [chapter 9](../09_evaluation.ipynb). You will have: the four units of likelihood, and all our models beside n-grams.*
#
# **We have** bounds of diffusion models, in nats and in bits.
# **We want** to know what they are worth.
# **Why**: a number without an opponent says little.

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
# ## One number, four units
#
# Papers give what a text costs in different units. All say the same: how much probability the model gives to a text $x$ of $C$ characters and $W$ words. Padding is not counted here
# ([chapter 2](../02_stories.ipynb) divides by the 160 places of a window).
#
# | unit | formula |
# |---|---|
# | nats per story | $-\log p(x)$ |
# | bits per character | $-\log_2 p(x) / C$ |
# | perplexity per character | $\exp(-\log p(x) / C)$ |
# | perplexity per word | $\exp(-\log p(x) / W)$ |
#
# A *perplexity* is the number of equally likely choices that would be as hard. Per word it is a much larger number than per character,
# and a small gain in bits looks like a big one. Compare only what has the same unit and the same text.

# %%
import json
import math
from importlib.resources import files

results = files("ddlm_core") / "results"
counted = json.loads((results / "ngrams.json").read_text(encoding="utf-8"))


def units(nats, data):
    """What a mean text of ``data`` costs in all four units."""
    characters, words = (counted[data][f"{unit}_a_window"] for unit in ("characters", "words"))
    bits = nats / characters / math.log(2)
    return nats, bits, 2**bits, math.exp(nats / words)


# %% [markdown]
# ## What counting can do
#
# An [n-gram](https://en.wikipedia.org/wiki/Word_n-gram_language_model) model knows how often each character followed the $n-1$ before it. Ours are mixed with the shorter ones
# as in [chapter 10](../10_pipeline.ipynb), counted in the text that the networks had (`benchmarks/ngrams.py`). Their numbers are exact, and so are those of `pocket-autoregressive`, chapter 11's network with blocks of one letter, and of the last row. Those of diffusion
# are bounds: the truth may be lower. They differ a little from chapter 9's, which are of fewer stories.

# %% tags=["hide-input"]
import re

from ddlm_core import stories

FIGURE = re.compile(
    r"\| (?:bound|cross-entropy, nats|bits per character)[^|]*\| (?:at most )?([0-9.]+)"
)


def figure_of(name):
    """What the card of a bundled model says: nats per story, or bits per character."""
    card = (files("ddlm_core") / "pretrained" / name / "README.md").read_text(encoding="utf-8")
    return float(FIGURE.search(card)[1])


runs = json.loads((results / "autoregressive.json").read_text(encoding="utf-8"))["runs"]
networks = {
    "pocket-stories": ("pocket-stories", "pocket-blocks", "pocket-autoregressive"),
    "TinyStories": ("tinystories-cpu", "tinystories-blocks"),
}
for data, names in networks.items():
    print(f"{data:27}{'nats':>8}{'bits':>7}{'perplexity: character':>24}{'word':>14}")
    unit = 1.0 if data == "pocket-stories" else counted[data]["characters_a_window"] * math.log(2)
    rows = {f"{row['order']}-gram": row["nats"][0] for row in counted[data]["rows"]}
    rows |= {name: figure_of(name) * unit for name in names}
    equal = [run for run in runs if (run["data"], run["kind"]) == (data, "left-to-right")]
    longest = max(equal, key=lambda run: run["seconds"])
    rows["left to right (chapter 9)"] = longest.get("nats", longest.get("bits"))[0] * unit
    if data == "pocket-stories":
        rows["entropy"] = stories.entropy()
    for name, nats in rows.items():
        nats, bits, per_character, per_word = units(nats, data)
        print(f"{name:27}{nats:8.1f}{bits:7.2f}{per_character:24.2f}{per_word:14,.1f}")
    print()

# %% [markdown]
# On the stories, six letters are far from enough: a name comes back fifty letters later. The 6-gram
# pays 49 nats and writes no flawless story out of 200; the networks are far ahead. On real text the 6-gram beats our diffusion models: with 1.3 million characters
# to learn from, most of what can be known is in the last five, and counting them takes seconds. (A text in nats is here a window of 160 characters.)
# Of these only blocks of 4 (not in the table), which read what stands before them clean, come below the 6-gram: 1.41 bits ([chapter 11](../11_blocks.ipynb)).
#
# The same network, trained to read from left to right for as long as the bundled diffusion models, is ahead of all: 19.0 nats, and 1.29 bits after its last step. At its best, before it overfits, it is
# at 1.15 ([chapter 9](../09_evaluation.ipynb)).
