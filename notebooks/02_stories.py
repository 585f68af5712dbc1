# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A world we know exactly
#
# *About 35 minutes. You need: [chapter 1](01_tokenizer.ipynb), and the rules of probability. You will have: two
# billion stories with the exact probability of each, and the best score that any model can reach.*
#
# **We have** a tokenizer that turns any text into ids and back.
# **We want** short stories of which we know everything: the probability of each one, how many there are, and
# how well the best possible model could predict them.
# **Why**: nobody can say how far a model of real text still has to go.
# [Shannon](https://doi.org/10.1002/j.1538-7305.1951.tb01366.x) could only bracket the entropy of English, between
# 0.6 and 1.3 bits per letter. In a world of our own, we see each mistake, and the distance to the best.

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
# ## By hand: a world of six stories
#
# Flip a coin. Heads: somebody lost something. Tails: somebody slept. It is Lily or Tom, a hat or a cup, and all
# choices are fair. That makes six stories:
#
# | story | probability |
# |---|---|
# | *Lily lost her hat.* | ½ · ½ · ½ = ⅛ |
# | *Lily lost her cup.* | ⅛ |
# | *Tom lost his hat.* | ⅛ |
# | *Tom lost his cup.* | ⅛ |
# | *Lily slept.* | ½ · ½ = ¼ |
# | *Tom slept.* | ¼ |
#
# How much does a story tell you? The measure is its *surprisal* $-\log p$, where $p$ is its probability; when
# $p$ comes from a model, it is called *negative log-likelihood*, NLL. What was certain ($p = 1$) has surprisal 0, and
# where probabilities multiply, surprisals add. With the natural logarithm, the unit is the *nat*; a nat is $1/\log 2
# = 1.4427$ bits.
#
# The *entropy* $H$ of the world is the average surprisal:
#
# $$ H = -\sum_x p(x) \log p(x) = 4\cdot\tfrac18\log 8 + 2\cdot\tfrac14\log 4 = 2.5 \log 2 = 1.7329. $$
#
# Because surprisals add, there is a second way to the same number: count the choices. The coin costs
# $\log 2$, the name costs $\log 2$, and half of the time the thing costs another $\log 2$.
#
# What costs *nothing* is the little word `her` or `his`, because the name has decided it. This *agreement* makes
# a world worth learning: in `Lily lost his hat.` every word is spelled correctly, and still the story has probability
# 0.
#
# ## The lower bound
#
# A language model gives each text $x$ a probability $q(x)$. Its *cross-entropy* is its average NLL on the stories
# that actually occur, $-\sum_x p(x) \log q(x)$. How low can that be? We need one inequality, $-\log u \ge 1 - u$ for
# every $u > 0$: the line $1 - u$ is the tangent of $-\log u$ at $u = 1$, and the curve bends upward, so it stays
# above. Use it with $u = q/p$, and let all sums run over the stories of the world:
#
# $$ \underbrace{-\sum_x p \log q}_{\text{cross-entropy}} - H = \underbrace{\sum_x p \log\frac{p}{q}}_{KL(p\,\|\,q)}
#    \;\ge\; \sum_x p\,\Big(1 - \frac{q}{p}\Big) = 1 - \sum_x q \;\ge\; 0. $$
#
# The last step holds because $q$ sums to at most 1 over the stories; it may waste some on other texts. This is
# *Gibbs' inequality*: no model gets below the entropy, and only $q = p$ reaches it, because $u$ must be 1 for
# each story. The difference is the *Kullback–Leibler divergence* $KL(p\,\|\,q)$, in nats per story: what the model
# still has to learn. (It is infinite if $q = 0$ for some story.)
#
# One warning: a diffusion model cannot give its cross-entropy exactly, only an upper bound
# ([chapter 5](05_loss.ipynb)). So it may look worse than it is, but on average never better.
#
# ## Writing a world down
#
# We need a *probabilistic grammar*: rules with probabilities that write texts. Ours starts a story from a
# *template* (in the code: `plot`), in a notation with two signs:
#
# * `[One day|Last week]` is an *alternation*: write one of the alternatives, each with the same probability.
#   An alternative may contain slots, but no further alternation.
# * `{hero}` is a *slot*: write the word that was drawn for the *variable* `hero`. The first mention draws it,
#   uniformly; each later one repeats it. `{hero.his}` writes another *form* of the same word: for Lily it is `her`.
#
# So agreement needs no rule of its own: a word brings its forms along, and a variable keeps its word. We write
# words as a table, one string per column; a single entry in a column is repeated for all words.

# %% tags=["export"]
from typing import NamedTuple

Word = dict[str, str]  # the forms of a word by name; the plain one has the name ""


def words(names: str, **forms: str) -> tuple[Word, ...]:
    """Words and their forms, column by column; ``_`` stands for a space inside of an entry.

    A column has one entry, or as many as there are names: else a ValueError.
    """
    columns = [text.split() for text in (names, *forms.values())]
    columns = [column * len(columns[0]) if len(column) == 1 else column for column in columns]
    rows = zip(*columns, strict=True)
    return tuple({f: t.replace("_", " ") for f, t in zip(["", *forms], row)} for row in rows)


class Grammar(NamedTuple):
    """A world: templates (plots) and the words for each variable, all equally likely."""

    plots: tuple[str, ...]
    variables: dict[str, tuple[Word, ...]]


# %% [markdown]
# The six stories from above, in this notation:

# %% tags=["test"]
TINY = Grammar(
    plots=("{hero} lost {hero.his} {thing}.", "{hero} slept."),
    variables={"hero": words("Lily Tom", his="her his"), "thing": words("hat cup")},
)

# %%
TINY.variables["hero"]

# %% [markdown]
# To read a template, cut it into parts: an alternation, or a slot, or everything up to the next of these.

# %% tags=["export"]
import re
from functools import cache


@cache
def parts_of(template: str) -> tuple[str, ...]:
    """Cut a template into plain texts, ``[alternations|…]`` and ``{slots}``, in order."""
    return tuple(re.findall(r"\[[^]]*\]|\{[^}]*\}|[^[{]+", template))


# %%
parts_of("[Once|Soon], {hero} lost {hero.his} {thing}.")

# %% [markdown]
# ## What can come next
#
# One function holds all that the notation means. It lists what a part can become, with all options equally likely,
# as triples: the parts that take its place, the text that is written, and the word that is drawn.
#
# * An alternation writes nothing yet. It is replaced by the parts of one of its alternatives.
# * A slot writes a word: the one in the dictionary `bound`, if it was drawn before, otherwise any word of the
#   variable.
# * Plain text writes itself.

# %% tags=["export"]
_Option = tuple[tuple[str, ...], str, dict[str, Word]]


def options(part: str, grammar: Grammar, bound: dict[str, Word]) -> list[_Option]:
    """What ``part`` can become, as triples: parts in its place, text written, words drawn.

    All are equally likely. ``bound`` holds the words drawn so far, by variable.
    """
    if part[0] == "[":
        return [(parts_of(choice), "", {}) for choice in part[1:-1].split("|")]
    if part[0] == "{":
        variable, _, form = part[1:-1].partition(".")
        known = [bound[variable]] if variable in bound else grammar.variables[variable]
        return [((), word[form], {variable: word}) for word in known]
    return [((), part, {})]


# %%
for new_parts, text, drawn in options("{hero}", TINY, {}):
    print(text, "→", options("{hero.his}", TINY, drawn)[0][1])

# %% [markdown]
# To tell a story, pick one option for each part. The list of all picks is called the *derivation* of the text.

# %% tags=["export"]
import random


def tell(plot: str, rng: random.Random, grammar: Grammar) -> str:
    """Write one story of a template: pick one option at each part."""
    parts, text = parts_of(plot), ""
    bound: dict[str, Word] = {}
    while parts:
        ways = options(parts[0], grammar, bound)
        new, written, drawn = rng.choice(ways) if len(ways) > 1 else ways[0]
        parts, text, bound = new + parts[1:], text + written, bound | drawn
    return text


# %%
rng = random.Random(0)
[tell(rng.choice(TINY.plots), rng, TINY) for _ in range(5)]

# %% [markdown]
# ## Our world
#
# First the heroes, 24 children. The name settles the forms of the pronouns.

# %% tags=["export"]
_SHE = {"he": "she", "He": "She", "his": "her"}
_HE = {"he": "he", "He": "He", "his": "his"}
HEROES = words("Lily Anna Rose Ella Nora Lucy Ruby Jane Emma Iris Cora Fern", **_SHE)
HEROES += words("Jack Finn Otto Hugo Paul Dave Rick Adam Toby Noah Luke Carl", **_HE)

# %% [markdown]
# Nine other variables and seven templates are in the collapsed cells below. A need calls for its gift (whoever is
# `tired` gets `a soft bed`), and the weather has three forms (*rainy*, *damp*, *rain*). The last template:
#
# ```
# {hero} planted a [seed|bean] {place}. [Each dawn|Every day], {hero.he} [sang to it|read to it]. It grew
# a {look} {thing}! "[How funny|What luck|How silly]!" said {pal}. {hero} gave {pal} the {thing}.
# ```
#
# All words of a variable have the same length, and so do the alternatives of an alternation; only `he` and
# `she` differ. Our noise replaces characters and never inserts one, so characters stay in their places. If words had
# different lengths, a model would first have to find out, under the noise, how long each word is, because a longer
# one shifts all characters after it. We spare our small model that; real text will not ([chapter
# 10](10_pipeline.ipynb)).

# %% tags=["export", "hide-input"]
VARIABLES: dict[str, tuple[Word, ...]] = {
    "hero": HEROES,
    "pal": words("Amy Bob Dan Eve Gus Ned Pip Tim"),
    "animal": words("bear frog duck goat pony lamb deer crow mole toad swan hare"),
    "coat": words("kind gray wise tiny calm cute tall glad"),
    "need": words(
        "tired upset dirty bored itchy dizzy",
        gift="a_soft_bed a_long_hug a_hot_bath a_new_game a_big_comb a_long_nap",
    ),
    "look": words("blue pink gold soft neat tiny dark pale fine wide"),
    "thing": words(
        "ball kite drum boat book bell doll lamp ring coin "
        "sock shoe rope vase harp flag horn mask sled fork"
    ),
    "place": words(
        "in_the_park by_the_lake on_the_hill at_the_farm in_the_barn by_the_pond "
        "at_the_fair in_the_cave by_the_gate in_the_yard on_the_road at_the_dock"
    ),
    "skill": words("swim sing jump draw read skip dive bake"),
    "weather": words(
        "rainy windy snowy misty", felt="damp worn cold lost", noun="rain wind snow mist"
    ),
}

# %% tags=["export", "hide-input"]
ENDING = (
    "[They are friends now.|So it was a good day.|{hero} was happy again.|{hero} sang a new song.]"
)

# %% tags=["export", "hide-input"]
PLOTS = (
    "[One day|At noon|At dawn], {hero} lost {hero.his} {look} {thing} {place}. "
    "{hero.He} [ran and ran|cried a bit|felt so sad]. "
    "A {coat} {animal} [found it|saved it|spied it]! "
    '"[Thank you|Well done|I love it]!" said {hero}. ' + ENDING,
    "{hero} met a {coat} {animal} {place}. It was {need}, so {hero.he} gave it {need.gift}. "
    "[Soon|Then] the {animal} was not {need} any more. " + ENDING,
    '{hero} [wanted to|longed to|could not] {skill}. "[Let me help|I can teach] you," said a '
    "{coat} {animal}. They tried {place} [all day|at dawn|at dusk]. [At last|In time], {hero} "
    "could {skill}! {hero.He} was so [proud|happy].",
    "{hero} and {pal} [both wanted|both needed|fought over] a {look} {thing}. "
    '"[It is mine|Give it up|I found it]!" said {pal}. "[Let us share|Let us trade]," said {hero}. '
    "So they did, {place}. " + ENDING,
    "[In the dark|One evening], {hero} heard a [sound|noise] {place}. "
    "[Was it a big wolf|Who could that be]? But it was a {coat} {animal} with a {look} {thing}. "
    '"[It is a gift|This is just] for you," said the {animal}.',
    "It was {weather}. {hero} [sat|hid|was] inside with {hero.his} {look} {thing}. "
    '[Knock, knock|Thump, thump]! A {weather.felt} {animal} stood outside. "Come in," said {hero}. '
    "They [sang songs|told jokes|drew boats] until the {weather.noun} was over.",
    "{hero} planted a [seed|bean] {place}. [Each dawn|Every day], {hero.he} "
    "[sang to it|read to it]. It grew a {look} {thing}! "
    '"[How funny|What luck|How silly]!" said {pal}. {hero} gave {pal} the {thing}.',
)

# %% [markdown]
# `sample` draws stories; the same seed gives the same ones, and another seed gives others to test on.
# `MAX_LENGTH` is the size of the *window* that a model reads (its *context length*).

# %% tags=["export"]
STORIES = Grammar(PLOTS, VARIABLES)
MAX_LENGTH = 160  # characters in a window; the longest story has 153, so <PAD> always follows


def sample(n: int, seed: int, grammar: Grammar = STORIES) -> list[str]:
    """Draw ``n`` (at least 0) stories; the same seed gives the same ones, whatever ``n`` is."""
    if n < 0:
        raise ValueError(f"the number of stories must be at least 0, got {n}")
    rng = random.Random(seed)
    return [tell(rng.choice(grammar.plots), rng, grammar) for _ in range(n)]


# %%
import textwrap

for story in sample(3, seed=5):
    print(textwrap.fill(story, 90), end="\n\n")

# %% [markdown]
# ## How probable is a text?
#
# Now backward: how likely is our world to tell exactly this text? Go through the parts in order, as `tell` does, but
# follow all options that agree with the text. Write $P(\text{parts}, x)$ for the probability that the parts write
# exactly the text $x$, given the words drawn so far:
#
# * if no parts are left, $P$ is 1 if no text is left either, else 0;
# * if the first part has $k$ options, $P$ is $\tfrac1k$ times a sum over those options whose text is
#   the beginning of $x$. Each adds the probability that the remaining parts write the rest of $x$.
#
# By hand, for `Tom lost his cup.`: the first template has probability $\tfrac12$, `Tom` is one option of two, `his`
# one of one, `cup` one of two. Together, $\tfrac12\cdot\tfrac12\cdot 1\cdot\tfrac12 = \tfrac18$. A text with two
# derivations would get the probabilities of both, because we *add*.


# %% tags=["export"]
def probability(
    parts: tuple[str, ...], text: str, grammar: Grammar, bound: dict[str, Word]
) -> float:
    """Probability that ``parts`` write exactly ``text``, given the words that are ``bound``."""
    if not parts:
        return float(not text)  # 1.0 if no text is left
    ways = options(parts[0], grammar, bound)
    return sum(
        probability(new + parts[1:], text[len(written) :], grammar, bound | drawn)
        for new, written, drawn in ways
        if text.startswith(written)
    ) / len(ways)


# %% tags=["export"]
import math


def log_prob(text: str, grammar: Grammar = STORIES) -> float:
    """Exact log-probability of a decoded text, in nats; ``-inf`` if it cannot be told."""
    p = sum(probability(parts_of(plot), text, grammar, {}) for plot in grammar.plots)
    return math.log(p / len(grammar.plots)) if p else -math.inf


# %%
for text in ("Tom slept.", "Tom lost his cup.", "Lily lost his hat."):
    print(f"{text:20} {math.exp(log_prob(text, TINY)):.3f}  {log_prob(text, TINY):.4f} nats")

# %% [markdown]
# As by hand. Now the same for whole worlds, small enough to list: the six stories, and our seven templates with a
# handful of words. The list, `every_story` in a collapsed cell, does not use our `options`, so an error in those
# would show: it fills the slots with Python's own `str.format`, which also understands fields like `{hero.his}`.

# %% tags=["test", "hide-input"]
import itertools
from collections import Counter


def every_story(grammar: Grammar) -> dict[str, float]:
    """Each story and its probability, by listing all derivations."""
    told = Counter()
    cast = [
        # for each word a subclass of str with its forms as attributes: `format` finds {hero.his}
        [type("Spoken", (str,), word)(word[""]) for word in known]
        for known in grammar.variables.values()
    ]
    for plot in grammar.plots:
        pieces = enumerate(re.split(r"\[(.*?)\]", plot))  # every second one is an alternation
        alternatives = [piece.split("|") if i % 2 else [piece] for i, piece in pieces]
        derivations = [
            "".join(outcome).format(**dict(zip(grammar.variables, drawn)))
            for outcome in itertools.product(*alternatives)
            for drawn in itertools.product(*cast)
        ]
        for text in derivations:
            told[text] += 1 / len(derivations) / len(grammar.plots)
    return told


# %% tags=["test"]
FEW = {"hero": HEROES[:1] + HEROES[-1:], "animal": VARIABLES["animal"][:2]}
SMALL = Grammar(PLOTS, {name: known[:1] for name, known in VARIABLES.items()} | FEW)


def test_log_prob_is_what_listing_all_stories_gives():
    for grammar in (TINY, SMALL):
        listed = every_story(grammar)
        for story, p in listed.items():
            assert abs(log_prob(story, grammar) - math.log(p)) < 1e-9
        assert abs(sum(listed.values()) - 1) < 1e-9


test_log_prob_is_what_listing_all_stories_gives()

# %% tags=["test", "hide-input"]
NESTED = Grammar(
    ("[{x}{y}|{y.long}-] and {x}", "{y.long}[!|?]"),
    {"x": words("a b c"), "y": words("d e", long="dd ee")},
)
AMBIGUOUS = Grammar(("{x}{y}", "abc"), {"x": words("a ab"), "y": words("bc c")})


def test_log_prob_where_slots_are_nested_or_a_text_has_many_derivations():
    for grammar in (NESTED, AMBIGUOUS):
        listed = every_story(grammar)
        for story, p in listed.items():
            assert abs(log_prob(story, grammar) - math.log(p)) < 1e-9
        assert abs(sum(math.exp(log_prob(story, grammar)) for story in listed) - 1) < 1e-9


test_log_prob_where_slots_are_nested_or_a_text_has_many_derivations()

# %% [markdown]
# ## The entropy
#
# There are too many stories to sum over all of them. So do the alternations first and leave the slots open. The
# result is a partly expanded template, or *skeleton*, such as
# `At noon, {hero} lost {hero.his} {look} {thing} {place}. …`. There are only 534. Let $p_s$ be the probability of
# skeleton $s$. Its variables can be filled in $n_s$ ways, all equally likely. So each of these stories has
# probability $p_s / n_s$, and there are $n_s$ of them:
#
# $$ H = \sum_s n_s \cdot \frac{p_s}{n_s}\,\log\frac{n_s}{p_s} = \sum_s p_s \log\frac{n_s}{p_s},
#    \qquad \text{number of stories} = \sum_s n_s. $$
#
# The six stories have two skeletons, their templates, with $p_s = \tfrac12$ each, $n_s = 2\cdot2$ for the first and 2
# for the second. That gives $\tfrac12\log 8 + \tfrac12\log 4 = 2.5\log 2$, as before.
#
# This counts derivations. It counts texts only if the grammar is *unambiguous*: no text has two derivations. The
# fixed lengths make ours so; [one text, one derivation](deeper/grammar.ipynb) has the proof.

# %% tags=["export"]
import itertools
from collections.abc import Iterator


def skeletons(grammar: Grammar = STORIES) -> Iterator[tuple[str, float, int]]:
    """Each template, all alternatives chosen: text, probability, number of ways to fill the slots."""
    for plot in grammar.plots:
        alternatives = [p[1:-1].split("|") if p[0] == "[" else [p] for p in parts_of(plot)]
        outcomes = list(itertools.product(*alternatives))
        p = 1 / len(outcomes) / len(grammar.plots)
        for skeleton in map("".join, outcomes):
            mentioned = set(re.findall(r"\{(\w+)", skeleton))
            n = math.prod(len(grammar.variables[variable]) for variable in mentioned)
            yield skeleton, p, n


def count(grammar: Grammar = STORIES) -> int:
    """Number of distinct stories, if no text has two derivations: else it is too large."""
    return sum(n for _, _, n in skeletons(grammar))


def entropy(grammar: Grammar = STORIES) -> float:
    """Exact entropy in nats per story, if no text has two derivations: else it is too large."""
    return sum(p * math.log(n / p) for _, p, n in skeletons(grammar))


# %%
print(f"{count():,} stories")
print(f"{entropy():.4f} nats, or {entropy() / math.log(2):.2f} bits per story")

# %% [markdown]
# On small worlds, count and entropy must agree with the lists. On ours, the average surprisal of samples must be
# within four standard errors of the entropy; chance alone breaks that once in 16,000 seeds.


# %% tags=["test"]
def test_count_and_entropy_are_what_listing_all_stories_gives():
    for grammar in (TINY, NESTED, SMALL):
        listed = every_story(grammar)
        assert count(grammar) == len(listed)
        assert abs(entropy(grammar) + sum(p * math.log(p) for p in listed.values())) < 1e-9
    assert abs(entropy(TINY) - 2.5 * math.log(2)) < 1e-12


def test_the_surprisal_of_samples_meets_the_entropy():
    surprisal = [-log_prob(story) for story in sample(1000, seed=7)]
    mean = sum(surprisal) / len(surprisal)
    variance = sum((s - mean) ** 2 for s in surprisal) / (len(surprisal) - 1)
    assert abs(mean - entropy()) < 4 * math.sqrt(variance / len(surprisal))


test_count_and_entropy_are_what_listing_all_stories_gives()
test_the_surprisal_of_samples_meets_the_entropy()

# %% tags=["test", "hide-input"]
import hashlib


def test_the_world_is_the_one_that_the_bundled_model_learned():
    assert count() == 1_945_700_352
    assert abs(entropy() - 18.954569152047) < 1e-9
    told = "\n".join(sample(1000, seed=0))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "cb8d57f574599bd4"


test_the_world_is_the_one_that_the_bundled_model_learned()

# %% [markdown]
# ## Between knowing nothing and knowing all
#
# The uniform baseline needs $160 \log 106 = 746$ nats per window; the best possible model needs 18.95. *N-gram
# models* lie in between: they predict a character from the $n-1$ characters before it, by counting what followed
# the same characters in 10,000 training stories. (*Additive smoothing*, in the collapsed cell, gives even what was
# never seen a small probability.) We measure on 1,000 other stories, in three units:
#
# | unit | from $N$ nats per story | meaning |
# |---|---|---|
# | nats per story | $N$ | NLL of a window of 160 tokens; padding adds nothing to $H$, since the story determines it |
# | bits per character | $N / (160 \log 2)$ | yes-or-no questions per token of the window |
# | perplexity per character | $e^{N/160}$ | as hard as a choice among that many equally likely tokens |

# %% tags=["hide-input"]
from collections import Counter


def n_gram_nats(n: int, train: list[str], test: list[str]) -> float:
    """Cross-entropy of an n-gram model, in nats per window: story and padding."""

    def n_grams(story: str) -> list[str]:
        padded = "\0" * (n - 1) + story + "\0" * (MAX_LENGTH - len(story))
        return [padded[i : i + n] for i in range(MAX_LENGTH)]

    seen = Counter(gram for story in train for gram in n_grams(story))
    contexts = Counter()
    for gram, times in seen.items():
        contexts[gram[:-1]] += times
    few = 0.1  # added to the counts of each context, spread evenly over the tokens
    grams = [gram for story in test for gram in n_grams(story)]
    p = [(seen[gram] + few / 106) / (contexts[gram[:-1]] + few) for gram in grams]
    return -sum(map(math.log, p)) / len(test)


train, test = sample(10_000, seed=1), sample(1000, seed=2)
levels = {"uniform": MAX_LENGTH * math.log(106)}
for n, name in ((1, "unigram"), (2, "bigram"), (3, "trigram"), (6, "6-gram")):
    levels[name] = n_gram_nats(n, train, test)
levels["entropy"] = entropy()
print(f"{'':8} nats per story   bits per character   perplexity per character")
for name, nats in levels.items():
    bits, perplexity = nats / MAX_LENGTH / math.log(2), math.exp(nats / MAX_LENGTH)
    print(f"{name:8}{nats:15.2f} {bits:20.4f} {perplexity:26.3f}")

# %% [markdown]
# Knowing how frequent the characters are is worth 258 nats of 746. A memory of five characters, enough for spelling and
# set phrases, leaves 53. The last 34 nats, from 53 to 19, need a longer one: which template this is, who the hero was,
# which gift belongs to which need.
#
# ## The picture: what a story costs
#
# Surprisals add, so a story is a bill. Below is one story of each template; under each box stands its cost in nats.
# A blue box with a solid line is the first mention of a variable, an orange one with a double line an alternation.
# A gray box with a dotted line mentions a variable again and costs nothing: this is where agreement shows. The sum
# has one more item, the template itself, $\log 7 = 1.95$. A lost thing costs most, 23.3 nats; a need with its gift
# costs least, 16.0. All stories of a template cost the same, so our two billion stories have only seven different
# probabilities, and the average of the seven sums is the entropy, 18.95.

# %% tags=["hide-input"]
from IPython.display import HTML

STYLE = """<style>
.bill {line-height: 2.9; max-width: 52em}
.bill p {margin: 0 0 .8em}
.bill span {display: inline-block; line-height: 1.15; padding: 1px 5px; margin: 0 1px; color: #111;
  text-align: center; vertical-align: middle}
.bill small {display: block; font-size: .68em; font-family: monospace}
.bill .drawn {background: #d3ebfa; border-bottom: 3px solid #0072b2}
.bill .choice {background: #fbdfae; border-bottom: 4px double #8a5a00}
.bill .again {background: #e6e6e6; border-bottom: 3px dotted #555}
</style>"""


def bill(plot: str, rng: random.Random) -> str:
    """One story of a template, as HTML, with the cost of every alternation and slot."""
    parts, html, bound, total = parts_of(plot), "", {}, math.log(len(PLOTS))
    while parts:
        part, parts = parts[0], parts[1:]
        ways = options(part, STORIES, bound)
        new, written, drawn = rng.choice(ways)
        cost = math.log(len(ways))
        if part[0] == "[":  # `options` copies the HTML of the box like plain text
            parts = ('<span class="choice">', *new, f"<small>{cost:.2f}</small></span>", *parts)
        elif part[0] == "{":
            label, kind = part[1:-1], "again" if part[1:-1].split(".")[0] in bound else "drawn"
            written = f'<span class="{kind}">{written}<small>{label} {cost:.2f}</small></span>'
        html, bound, total = html + written, bound | drawn, total + cost
    story = tell(plot, rng, STORIES)  # any one of the plot: all have the same surprisal
    assert abs(total + log_prob(story)) < 1e-9
    return f"<p>{html} = <b>{total:.2f}&nbsp;nats</b></p>"


rng = random.Random(9)
HTML(f'{STYLE}<div class="bill">{"".join(bill(plot, rng) for plot in PLOTS)}</div>')

# %% [markdown]
# ## Judging a model
#
# In later chapters a model fills windows of 160 tokens. The longest story has 153 characters, so at least seven
# `<PAD>` follow. We call a window *flawless* if its tokens are one story followed only by `<PAD>`; the fraction of
# flawless samples is a *validity rate*. Because `<PAD>` decodes to nothing, a story with a hole would look fine. So we
# pad the decoded text again and compare: a hole does not survive that.

# %% tags=["export"]
from collections.abc import Sequence

from ddlm_core.tokenizer import CharacterLevelTokenizer


def is_flawless(tokens: Sequence[int], tokenizer: CharacterLevelTokenizer) -> bool:
    """Whether ``tokens`` (L,) are one story of the grammar and then only ``<PAD>``."""
    story = tokenizer.decode(tokens)
    again = tokenizer.pad(story, len(tokens)).tolist()
    return again == [int(token) for token in tokens] and log_prob(story) > -math.inf


# %% [markdown]
# The KL divergence bounds the fraction of flawless samples. Let $q(x)$ be the model's probability of the window that
# holds story $x$ followed only by `<PAD>`. The fraction is $m = \sum_x q(x)$, where sums run over the stories of the
# world, as before. With the same inequality, $\log u \le u - 1$, with $u = q/(mp)$:
#
# $$ \begin{aligned} -\,KL(p\,\|\,q) = \sum_x p \log\frac{q}{p} &= \log m + \sum_x p \log\frac{q}{m p} \\
#    &\le \log m + \sum_x p\,\Big(\frac{q}{m p} - 1\Big) = \log m + 1 - 1. \end{aligned} $$
#
# So $m \ge e^{-KL}$: a divergence of 0.05 nats promises that at least 95 % of the samples are flawless, if they are
# drawn exactly from $q$. The converse is false: a model that always writes the same story is 100 % flawless, and its
# divergence is infinite. So [chapter 9](09_evaluation.ipynb) measures diversity, too.
#
# ## Change it safely
#
# Add a friend named `Kit` to the pals in `VARIABLES`. One test fails,
# `test_the_world_is_the_one_that_the_bundled_model_learned`: the trained model that comes with the book has never
# heard of Kit. Change the test's numbers if you mean to train your own model.
#
# Then a plausible mistake: to have more balls, write `ball` twice among the things. `log_prob` is still right,
# because it adds. But the grammar has become ambiguous, and `entropy` is too large, by 0.05 nats. Two more tests
# notice: `test_a_plot_has_one_surprise_and_entropy_is_their_average` and `test_one_text_has_one_way_to_be_told`. The
# command: `make export && pytest tests/test_stories.py tests/unit/test_stories.py`.
#
# **Exercise 1.** A model knows all about the six stories, but not agreement: it flips a coin for `her` and `his`.
# What are its cross-entropy and its KL divergence, which fraction of its samples is flawless, and what did the
# divergence promise? (Expected: 2.0794 nats, 0.3466 nats; 0.75, where at least 0.7071 was promised.)

# %% tags=["solution", "hide-input"]
listed = every_story(TINY)
model = {story: p / 2 if " lost " in story else p for story, p in listed.items()}
cross_entropy = -sum(p * math.log(model[story]) for story, p in listed.items())
kl, flawless = cross_entropy - entropy(TINY), sum(model.values())
assert abs(cross_entropy - 2.0794) < 1e-4 and abs(kl - 0.3466) < 1e-4
assert flawless == 0.75 and abs(math.exp(-kl) - 0.7071) < 1e-4
round(cross_entropy, 4), round(kl, 4), flawless, round(math.exp(-kl), 4)

# %% [markdown]
# **Exercise 2.** A model repeats a story from its training data. Is that memorization, or chance? With 100,000
# training stories, how probable is it that a *fresh* story of our world is among them? (Expected: 0.00242. Use
# that all stories of a template have the same probability.)

# %% tags=["solution", "hide-input"]
each = [math.exp(log_prob(tell(plot, random.Random(0), STORIES))) for plot in PLOTS]
chance = sum(1 - (1 - p) ** 100_000 for p in each) / len(each)
assert abs(chance - 0.00242) < 5e-6
round(chance, 5)

# %% [markdown]
# ## Summary
#
# We made a world of two billion stories in which names, pronouns, gifts and weather agree. Its entropy is
# 18.95 nats per story, and no model can do better.
#
# | name | meaning |
# |---|---|
# | `sample(n, seed)` | $n$ stories; the same seed, the same stories |
# | `log_prob(text)` | exact $\log p$ in nats, `-inf` for what is not a story |
# | `entropy()`, `count()` | exact entropy in nats per story; number of distinct stories |
# | `is_flawless(tokens, tokenizer)` | whether a window holds one story and then only `<PAD>` |
# | `MAX_LENGTH` | 160, the window; no story is longer |
# | `STORIES` | our world: `PLOTS` (the templates, with their `ENDING`) and `VARIABLES` (with their `HEROES`) |
# | `Grammar`, `Word`, `words` | a world of your own |
# | `parts_of`, `options` | the parts of a template, and what can become of each |
# | `tell`, `probability`, `skeletons` | pick a derivation, add up all, list all skeletons |
#
# Use them through the module: `from ddlm_core import stories`, then `stories.sample(3, seed=0)`.
#
# ## Where this stands in the field
#
# Languages with a known grammar are a standard tool:
# [Physics of Language Models, Part 1](https://arxiv.org/abs/2305.13673) trains transformers on context-free
# grammars and finds the grammar's structure in their hidden states. Our stories imitate
# [TinyStories](https://arxiv.org/abs/2305.07759), a synthetic corpus from which models below ten million parameters
# learn fluent English ([chapter 10](10_pipeline.ipynb)). Real text has no known entropy, so papers compare models with
# each other, in perplexity or bits per character. Entropy and n-gram models of English both go back to
# [Shannon 1948](https://doi.org/10.1002/j.1538-7305.1948.tb01338.x).
#
# Next: [geometric noise](03_noise.ipynb).
