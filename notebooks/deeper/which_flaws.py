# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which flaws?
#
# *About 5 minutes. You need: [chapter 9](../09_evaluation.ipynb). You will have: a look at seventy broken samples, and the blind spots of the
# bundled network.*
#
# **We have** samples of the bundled network, and the share of them that is flawless.
# **We want** to know what is wrong with the others.
# **Why**: a share tells how much there is to do, but not where.

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
# ## Where a text can no longer be continued
#
# Read a broken text with the grammar in hand. Follow every template, every alternative, every word, as long as the text
# agrees. Each such reading stops somewhere. Take the one that explains most of the text; where it stops is the *first
# flaw*. Its kind depends on what the grammar wanted there:
#
# * a word that was fixed earlier, such as a name or a pronoun, where the text has *another* word that could be here in
#   another story: an *agreement* is broken. The flaw is named after the slot of the grammar that wanted it, `hero`, or
#   `hero.he` for the hero's "he" or "she";
# * the text stops, or goes on after the ending: `end`;
# * anything else, a misspelled word or one that the grammar never has here: `spelling`.
#
# A reading may also take in one wrong word of the right kind, and then the flaw lies before that word. By hand: in *Lily sat
# inside with his blue bell*, the slot `{hero.his}` wants `her`, and `his` could be there in a story about Tom. So the flaw
# is of the kind `hero.his`, and it begins at the first letter that does not fit, the `i` of `his`.

# %%
import json
import re
import textwrap
from collections import Counter
from importlib.resources import files

from ddlm_core import stories
from ddlm_core.evaluation import first_flaw

stored = json.loads((files("ddlm_core") / "results/sampling.json").read_text(encoding="utf-8"))
broken = stored["broken"]
for text in broken[:4]:
    place, kind = first_flaw(text) or (len(text), "padding")
    print(textwrap.fill(f"[{kind}] {text[:place]}▶{text[place:]}", 100))

# %% [markdown]
# The mark stands before the first character that does not fit. These are the broken ones among 1000 samples of 64 steps of `cosine`, with
# a churn of 1. Sort them by kind, with the forms of a pronoun together:

# %% tags=["hide-input"]
# alt: Bars, one for each kind of first flaw. Wrong names and wrong things are most, then pronouns; spelling is rare.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
PRONOUNS = {"hero.he", "hero.He", "hero.his"}
NAMES = {"hero": "name", "pal": "name"}


def group(text: str) -> str:
    _, kind = first_flaw(text) or (0, "padding")
    return "pronoun" if kind in PRONOUNS else NAMES.get(kind, kind.partition(".")[0])


kinds = Counter(map(group, broken))
names, heights = zip(*kinds.most_common()[::-1], strict=True)
plt.barh(names, heights)
plt.xlabel(f"of {len(broken)} broken samples")
plt.gca().xaxis.get_major_locator().set_params(integer=True)
plt.show()
print(dict(kinds.most_common()))

# %% [markdown]
# Mind what this counts: the *first* flaw. A wrong letter in the third word hides a wrong name in the twentieth. Still, it
# tells us what to work on. Nearly nine in ten are agreements: a word has to fit another one, sometimes close by, often half
# a story away.
#
# ## Blind spots
#
# *Which* names, which things, which pronouns?

# %%
heroes, where = {word[""] for word in stories.HEROES}, {}
for text in broken:
    who = " and ".join(sorted(heroes & {*re.findall(r"\w+", text)}))
    kind = group(text)
    where.setdefault(kind, []).append("a plant" if kind == "thing" and " planted " in text else who)
for kind in ("name", "thing", "pronoun"):
    found = Counter(where.get(kind, []))
    print(f"{kind:8}", ", ".join(f"{who}: {n}" for who, n in found.most_common(4)))

# %% [markdown]
# Of 27 wrong names, 26 are *Cora* for *Nora* or the other way around. The two differ in one letter, and as long as that
# letter is noise, nothing else tells them apart. All 24 wrong things are in one of the seven templates, the one in which
# what grows is given away at the end. And eight of ten wrong pronouns belong to *Ruby* or *Toby*, a girl and a boy whose
# names are half alike. So it is not that this network knows little about agreement. It has a few blind spots.
#
# Why only the plant? In four other templates a thing is named once, so nothing can disagree with it. Only the plant's is named twice.
#
# ## Change it
#
# Give `first_flaw` a story of your own with one wrong word, and predict the kind before you look. A wrong letter is easy:

# %%
story = stories.sample(1, seed=3)[0]
assert first_flaw(story) is None
place, kind = first_flaw(story[:20] + "#" + story[21:])
assert (place, kind) == (20, "spelling")
print(textwrap.fill(story, 100))

# %% [markdown]
# Back to [chapter 9](../09_evaluation.ipynb); [the birth of a flaw](birth_of_a_flaw.ipynb) watches one from the inside.
