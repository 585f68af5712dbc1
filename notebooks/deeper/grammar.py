# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One text, one derivation
#
# *About 15 minutes. You need: [chapter 2](../02_stories.ipynb). You will have: a proof that the story grammar is
# unambiguous, and an idea of what goes wrong where one is not.*
#
# **We have** `entropy` and `count` of chapter 2, which count *derivations*: lists of picks.
# **We want** to be sure that they count *texts*, and that every text fits into a window.
# **Why**: if some text had two derivations, `entropy` would be too large, and every distance to the best possible model
# in this book would be wrong.

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
import math
import random
import re
from collections import Counter

from ddlm_core.stories import (
    HEROES,
    MAX_LENGTH,
    PLOTS,
    VARIABLES,
    Grammar,
    entropy,
    log_prob,
    parts_of,
    sample,
    skeletons,
    tell,
    words,
)
from ddlm_core.tokenizer import VOCAB

# %% [markdown]
# ## By hand: an ambiguous grammar
#
# In this world the text `abc` has three derivations: `a` and `bc`, `ab` and `c`, or the second template.

# %%
AMBIGUOUS = Grammar(("{x}{y}", "abc"), {"x": words("a ab"), "y": words("bc c")})
for text in ("abc", "ac", "abbc"):
    print(text, math.exp(log_prob(text, AMBIGUOUS)))

# %% [markdown]
# `log_prob` is right, because it adds: $\tfrac18 + \tfrac18 + \tfrac12 = \tfrac34$. But `entropy` sees five derivations, four of
# probability $\tfrac18$ and one of $\tfrac12$:

# %%
truth = -sum(p * math.log(p) for p in (3 / 4, 1 / 8, 1 / 8))
print(f"entropy() says {entropy(AMBIGUOUS):.4f} nats; the truth is {truth:.4f}")
assert entropy(AMBIGUOUS) > truth + 0.4

# %% [markdown]
# It can only err in this direction. A derivation decides its text, so the derivations have at least the entropy of the
# texts; the difference is what a text leaves open about its derivation.
#
# **Exercise.** You write the first template of chapter 2's six stories twice, to make it twice as likely. What does `entropy`
# say, and what is the truth? (Expected: 2.2539, and $\log 6 = 1.7918$, because all six are then equally likely. Two times
# in three, `entropy` counts a choice between twins, $\log 2$, which no text shows.)

# %% tags=["solution", "hide-input"]
lost, slept = "{hero} lost {hero.his} {thing}.", "{hero} slept."
variables = {"hero": words("Lily Tom", his="her his"), "thing": words("hat cup")}
twins = Grammar((lost, lost, slept), variables)
stories = [f"Lily lost her {t}." for t in ("hat", "cup")]
stories += [f"Tom lost his {t}." for t in ("hat", "cup")] + ["Lily slept.", "Tom slept."]
truth = -sum(math.exp(log_prob(s, twins)) * log_prob(s, twins) for s in stories)
assert abs(entropy(twins) - 2.2539) < 1e-4 and abs(truth - math.log(6)) < 1e-12
round(entropy(twins), 4), round(truth, 4)

# %% [markdown]
# ## The proof
#
# Our grammar obeys four rules:
#
# 1. The words of a variable are distinct and of one length, in the plain form that the first mention writes.
# 2. The alternatives of an alternation are distinct and of one length, for every hero.
# 3. The first mention of a variable is its plain form, and is in no alternation.
# 4. The first seven characters of a story belong to one template only.
#
# **Claim.** Two different derivations write two different texts.
#
# *Proof.* If their templates differ, the texts differ in the first seven characters (rule 4). If not, go through the parts
# to the first pick that differs. Up to there, both have written the same text. If it is a pick of an alternative, the two
# write something different of the same length (rule 2; both know the same hero by then). If it is a pick of a word, this is
# the first mention of its variable, so the two write its plain form (rule 3): something different of the same length (rule 1).
# Either way the texts differ at these characters, whatever follows. ∎
#
# Where does rule 3 matter? If a variable were first mentioned as `{hero.his}`, twelve heroes would write the same `her`, and
# if no other mention followed, the text would not tell them apart. And a first mention inside an alternative would make
# its length depend on the word.
#
# The test reads the rules off the grammar. (It is also in `tests/unit/test_stories.py`.)


# %%
def are_distinct_and_of_one_length(texts: list[str]) -> bool:
    return len(set(texts)) == len(texts) and len(set(map(len, texts))) == 1


def test_the_rules_of_the_proof():
    for known in VARIABLES.values():  # rule 1
        assert are_distinct_and_of_one_length([word[""] for word in known])
    for hero in HEROES:  # rule 2
        for choice in re.findall(r"\[(.*?)\]", "".join(PLOTS)):
            assert are_distinct_and_of_one_length(choice.replace("{hero}", hero[""]).split("|"))
    for plot in PLOTS:  # rule 3
        seen = set()
        for part in parts_of(plot):
            for variable in re.findall(r"\{(\w+)", part):
                assert variable in seen or part == f"{{{variable}}}"
                seen.add(variable)
    openings = []  # rule 4
    for plot in PLOTS:
        begun = [skeleton for skeleton, _, _ in skeletons(Grammar((plot,), VARIABLES))]
        openings.append({s.replace("{hero}", hero[""])[:7] for s in begun for hero in HEROES})
    together = set().union(*openings)
    assert len(together) == sum(map(len, openings)) and "{" not in "".join(together)


test_the_rules_of_the_proof()

# %% [markdown]
# ## Every story fits into a window
#
# The lengths give us one thing more. Only `he` and `she` can make two stories of a template differ in length, so one story
# per template and hero shows every length that there is. The longest has 153 characters, so every window of 160 ends with at
# least seven `<PAD>`, even for the one story in two billion that you never sample.

# %%
rng = random.Random(0)
worlds = [Grammar(PLOTS, VARIABLES | {"hero": (hero,)}) for hero in HEROES]
lengths = sorted({len(tell(plot, rng, world)) for world in worlds for plot in PLOTS})
print(lengths)
assert lengths[-1] == 153 < MAX_LENGTH
drawn = [len(story) for story in sample(5000, seed=1)]
print(f"{sum(drawn) / len(drawn):.1f} characters on average")

# %% [markdown]
# ## What is not a story gets probability 0
#
# The other half of `log_prob` is to say no. We spoil one story of each template: at every place, one character replaced,
# removed, or inserted. A spoiled text may be a story by luck, so an independent judge decides: a regular expression for
# each template and cast.

# %%
FEW = {"hero": HEROES[:1] + HEROES[-1:], "animal": VARIABLES["animal"][:2]}
SMALL = Grammar(PLOTS, {name: known[:1] for name, known in VARIABLES.items()} | FEW)


def patterns(grammar: Grammar) -> list[re.Pattern]:
    """A regular expression for each template, hero and animal: another reading of the notation."""
    found = []
    for plot in grammar.plots:
        for hero in grammar.variables["hero"]:
            for animal in grammar.variables["animal"]:
                cast = {name: known[0] for name, known in grammar.variables.items()}
                cast |= {"hero": hero, "animal": animal}
                pattern = plot.translate(
                    str.maketrans({"?": r"\?", ".": r"\.", "[": "(", "]": ")"})
                )
                for variable, word in cast.items():
                    for form, text in word.items():
                        slot = f"{{{variable}\\.{form}}}" if form else f"{{{variable}}}"
                        pattern = pattern.replace(slot, text)
                found.append(re.compile(pattern))
    return found


def spoiled(story: str, rng: random.Random) -> list[str]:
    """For every place: one character replaced, removed, inserted."""
    texts = []
    for i in range(len(story) + 1):
        head, tail, new = story[:i], story[i:], rng.choice(VOCAB[2:])
        texts += [head + new + tail[1:], head + tail[1:], head + new + tail]
    return texts


judges, verdicts = patterns(SMALL), Counter()
for plot in PLOTS:
    story = tell(plot, rng, SMALL)
    for text in spoiled(story, rng):
        is_story = any(judge.fullmatch(text) for judge in judges)
        assert (log_prob(text, SMALL) > -math.inf) == is_story
        assert is_story == (text == story)
        verdicts[is_story] += 1
print(f"{verdicts[False]} spoiled texts rejected, {verdicts[True]} accepted")

# %% [markdown]
# The accepted ones are the story itself: a draw gave the old character back, or there was nothing to remove after the last
# character.
#
# Back to [chapter 2](../02_stories.ipynb).
