# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Opponents with the same budget
#
# *About 5 minutes. You need: [chapter 9](../09_evaluation.ipynb). You will have: our models beside counting, and beside the left-to-right model that had
# as much computing time.*
#
# **We have** bounds of diffusion models, in nats and in bits.
# **We want** to know what they are worth.
# **Why**: a number without an opponent says little, and an opponent with a smaller budget says nothing.

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
# Papers give what a text costs in different units. All say the same: how much probability the model gives to a text $x$ of $C$ characters and $W$ words.
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
# as in [chapter 10](../10_pipeline.ipynb) (Witten and Bell's weights), counted in the text that the networks had. All of these numbers are exact, except
# those of diffusion, which are bounds: the truth may be lower.

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


networks = {
    "pocket-stories": ("pocket-stories", "pocket-blocks", "pocket-autoregressive"),
    "TinyStories": ("tinystories-cpu", "tinystories-blocks"),
}
for data, names in networks.items():
    print(f"{data:24}{'nats':>8}{'bits':>7}{'perplexity: character':>24}{'word':>9}")
    unit = 1.0 if data == "pocket-stories" else counted[data]["characters_a_window"] * math.log(2)
    rows = {f"{row['order']}-gram": row["nats"][0] for row in counted[data]["rows"]}
    rows |= {name: figure_of(name) * unit for name in names}
    if data == "pocket-stories":
        rows["entropy"] = stories.entropy()
    for name, nats in rows.items():
        nats, bits, per_character, per_word = units(nats, data)
        print(f"{name:24}{nats:8.1f}{bits:7.2f}{per_character:24.2f}{per_word:9,.1f}")
    print()

# %% [markdown]
# On the stories, six letters are far from enough: a name comes back fifty letters later. The 6-gram
# pays 49 nats and writes no flawless story out of 200; the networks are far ahead. On real text it is the other way round: with 1.4 million characters
# to learn from, most of what can be known is in the last five, and counting them takes seconds. (A text in nats is here a window of 160 characters.)
# The blocks of chapter 11, which read those five characters clean, come close.
#
# ## The same budget
#
# Now the real opponent: the network of chapter 6 with all of its blocks reading from left to right, on the same stories, with the same optimizers,
# and as many seconds of one core (`benchmarks/autoregressive.py`). Each line is one run with its seed.
# %% tags=["hide-input"]
import matplotlib.pyplot as plt

runs = json.loads((results / "autoregressive.json").read_text(encoding="utf-8"))["runs"]
colors = {"left-to-right": "#009e73", "diffusion": "#0072b2"}
sources = [data for data in counted if any(run["data"] == data for run in runs)]
figure, axes = plt.subplots(1, len(sources), figsize=(4.5 * len(sources), 3), layout="constrained")
for axis, data in zip([axes] if len(sources) == 1 else axes, sources, strict=True):
    for run in runs:
        if run["data"] == data:
            seconds, _, values = zip(*run["curve"], strict=True)
            label = f"{run['kind']}, seed {run['seed']}"
            axis.plot(seconds, values, "o-", ms=3, lw=1, color=colors[run["kind"]], label=label)
    unit = "nats per story" if data == "pocket-stories" else "bits per character"
    axis.set(xscale="log", xlabel="seconds of one core", ylabel=unit, title=data)
    if data == "pocket-stories":
        axis.axhline(stories.entropy(), color="grey", ls="--", label="entropy")
        axis.set_ylim(17, 80)
    axis.legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
from ddlm_core.evaluation import Estimate, wilson

print(
    f"{'':32}{'nats, bits':>24}   flawless (95 %)          openings   seconds a text: alone  in 50s"
)
for run in sorted(runs, key=lambda run: (run["data"], run["kind"], run["seed"])):
    value = f"{Estimate(*(run.get('nats') or run['bits'])):.2f}"
    share, openings = "", ""
    if "flawless" in run:
        share, openings = f"{wilson(run['flawless'], run['samples']):.3f}", run["openings_distance"]
    times = f"{run['seconds_a_text']:22.2f}{run['seconds_a_text_in_batches']:8.3f}"
    name = f"{run['data']}, {run['kind']}, {run['seed']}"
    print(f"{name:32}{value:>24}   {share:24}{openings:>9}   {times}")
