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
# **We have** a tokenizer that turns any text into ids and back ([chapter 1](01_tokenizer.ipynb)).
# **We want** an endless supply of short stories of which we know everything: the probability of each
# one, how many there are, and how well the best possible model could predict them.
# **Why**: a model of real text may improve for weeks, and nobody can say how far it still has to go. The
# best score that is possible for English is not known.
# [Shannon](https://doi.org/10.1002/j.1538-7305.1951.tb01366.x) could only fence it in, between 0.6 and
# 1.3 bits a letter, by letting people guess the next one. Here we make the world ourselves, so we do
# know. When our model makes a mistake, we shall see it, and when it is as good as can be, we shall know
# that we are done.

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
# Flip a coin. Heads: somebody lost something. Tails: somebody slept. The somebody is Lily or Tom, the
# something is a hat or a cup, and all choices are fair. That makes six stories:
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
# How much does a story tell you that you did not know? The measure is its **surprise**, $-\log p$, where
# $p$ is its probability. What was sure ($p = 1$) has surprise 0. And where probabilities multiply,
# surprises add. We use the natural logarithm, and the unit is then called a *nat*; a nat is
# $1/\log 2 = 1.4427$ bits. `Tom slept.` has a surprise of $\log 4$, `Tom lost his cup.` of $\log 8$.
#
# The **entropy** $H$ of the world is the surprise that a story has on average:
#
# $$ H = -\sum_x p(x) \log p(x) = 4\cdot\tfrac18\log 8 + 2\cdot\tfrac14\log 4 = 2.5 \log 2. $$

# %%
import math

4 * 1 / 8 * math.log(8) + 2 * 1 / 4 * math.log(4)

# %% [markdown]
# Because surprises add, there is a second way to the same number: count the choices. The coin costs
# $\log 2$, the name costs $\log 2$, and in half of the stories the thing costs another $\log 2$. Together,
# $2.5 \log 2$.
#
# What costs *nothing* is the little word `her` or `his`. The name has decided it. A reader who has
# understood this is never surprised by it, and one who has not is surprised again and again. This is
# called *agreement*, and it is what makes a world worth learning: `Lily lost his hat.` is spelled well,
# each word of it occurs, and still its probability is 0.

# %% [markdown]
# ## The floor
#
# A language model gives each text $x$ a probability $q(x)$. Its score is its surprise at the stories that
# really come, on average: $-\sum_x p(x) \log q(x)$. How low can that be? We need one inequality,
# $-\log u \ge 1 - u$ for every $u > 0$: the line $1 - u$ is the tangent of $-\log u$ at $u = 1$, and the curve bends
# upward, so it touches its tangent there and is above it everywhere else. Use it with $u = q/p$. (If $q = 0$ for
# some story, the score is infinite, and there is nothing to show.)
#
# $$ \underbrace{-\sum_x p \log q}_{\text{score of the model}} - H = -\sum_x p \log\frac{q}{p}
#    \;\ge\; \sum_x p\,\Big(1 - \frac{q}{p}\Big) = 1 - \sum_x q \;\ge\; 0, $$
#
# with all sums over the stories of the world. (The last step: $q$ sums to at most 1 over them, for it may
# waste some on other texts.) So nothing scores below $H$, ever. And only $q = p$ reaches it, because $u$ must be
# 1 for each story. The entropy is the floor. The gap above it is what the model has still to learn, in nats a story.
#
# | symbol | name in code | meaning |
# |---|---|---|
# | $p(x)$ | `exp(log_prob(x))` | probability of the text $x$ in our world |
# | $-\log p(x)$ | `-log_prob(x)` | its surprise, in nats |
# | $H$ | `entropy()` | average surprise, in nats a story |
# | $q(x)$ | – | probability of the text $x$ according to a model |

# %% [markdown]
# ## Writing a world down
#
# A story starts as a **plot**, a template in a notation with two signs:
#
# * `[One day|Last week]` is a *choice*: write one of the alternatives, each with the same chance. (An alternative may hold
#   fields, but no further choice.)
# * `{hero}` is a *field*: write the word that was drawn for the **variable** `hero`. The first mention
#   draws it, evenly; each later one repeats it. `{hero.his}` writes another *form* of the same word: for
#   Lily it is `her`.
#
# So agreement takes no rule of its own. A word brings its forms along, and a variable keeps its word.
#
# We write words as a small table, with a text for each column: `words("raining snowing", noun="rain snow")`
# are two words, each with a form `noun`. A column with one entry holds for all.


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
    """A world: the plots that can be told and the words for each variable, all equally likely."""

    plots: tuple[str, ...]
    variables: dict[str, tuple[Word, ...]]


# %% [markdown]
# The six stories from above, in this notation. We shall need them to check everything that follows. Their
# heroes are two words, and each brings its form `his` along:

# %% tags=["test"]
TINY = Grammar(
    plots=("{hero} lost {hero.his} {thing}.", "{hero} slept."),
    variables={"hero": words("Lily Tom", his="her his"), "thing": words("hat cup")},
)

# %%
TINY.variables["hero"]

# %% [markdown]
# To read a template we cut it into parts. A regular expression does it: a choice, or a field, or
# everything up to the next of these. (`cache`, because we shall read the same few templates again and again.)

# %% tags=["export"]
import re
from functools import cache


@cache
def parts_of(template: str) -> tuple[str, ...]:
    """Cut a template into plain texts, ``[choices|…]`` and ``{fields}``, in order."""
    return tuple(re.findall(r"\[[^]]*\]|\{[^}]*\}|[^[{]+", template))


# %%
parts_of("[Once|Soon], {hero} lost {hero.his} {thing}.")

# %% [markdown]
# ## What can come next
#
# One function holds all that the notation means. It takes a part and lists what can become of it, all equally
# likely. Each option is a triple: the parts that take its place, the text that is written, and the word that
# is drawn.
#
# * A choice writes nothing yet. It is replaced by the parts of one of its alternatives.
# * A field writes a word. A dictionary, `bound`, remembers the words that were drawn so far. If the field's
#   variable is in it, there is one option; if not, there are as many as the variable has words.
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
# To tell a story, go through the parts and pick one option at each. (Where there is only one, `tell`
# asks for no random number: random numbers are slow.)

# %% tags=["export"]
import random


def tell(plot: str, rng: random.Random, grammar: Grammar) -> str:
    """Write one story of a plot."""
    parts, text, bound = parts_of(plot), "", {}
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
# Six stories are soon learned. This is the world that the model of this book lives in. First its heroes, 24
# children. The name settles three forms of its pronouns.

# %% tags=["export"]
_SHE = {"he": "she", "He": "She", "his": "her"}
_HE = {"he": "he", "He": "He", "his": "his"}
HEROES = words("Lily Anna Rose Ella Nora Lucy Ruby Jane Emma Iris Cora Fern", **_SHE)
HEROES += words("Jack Finn Otto Hugo Paul Dave Rick Adam Toby Noah Luke Carl", **_HE)

# %% [markdown]
# Then all the rest. A need asks for its gift: whoever is `tired` gets `a soft bed`, and nothing else. The
# weather has three forms, for *It was rainy*, *a damp frog*, and *until the rain was over*.

# %% tags=["export"]
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

# %% [markdown]
# Look closely at these lists: all heroes have four letters, all pals three, all places eleven characters.
# The noise of this book replaces characters, it never inserts one. So a word that is one letter longer
# moves everything behind it by one place, and a model that repairs a text has to find out about the move
# before it can get anything right. We spare our small model most of this: words of a variable have the
# same length, and so have the alternatives of a choice. Only `he` and `she` differ. (Real text is not so
# kind, [chapter 10](10_pipeline.ipynb).)
#
# And seven plots. They differ in structure and not only in words, so one sentence with blanks does not
# describe this world. Three of them end in the same choice:

# %% tags=["export"]
ENDING = (
    "[They are friends now.|So it was a good day.|{hero} was happy again.|{hero} sang a new song.]"
)

# %% tags=["export"]
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
# `sample` draws stories from it. It takes a seed, so the same call gives the same stories on every
# machine with the same version of Python (a test further down compares a thousand with a fingerprint, so a change would show), and it never touches the global random state. `MAX_LENGTH` is the size of the window that a model reads.

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
# Now backwards. Somebody hands us a text: how likely would our world tell exactly this? Go through the parts
# as `tell` does, but instead of picking one option, follow all that agree with the text. Write
# $P(\text{parts}, x)$ for the probability that the parts write exactly the text $x$, given the words drawn so far (`bound` in the code):
#
# * if no parts are left, $P$ is 1 if no text is left either, else 0;
# * if the first part has $k$ options, $P$ is $\tfrac1k$ times a sum over those whose text $x$ begins with (a
#   choice writes none, so all of its alternatives count).
#   Each adds the probability that the parts which are then left write the text which is then left.
#
# Because we *add*, a text that can be told in two ways gets the probability of both. By hand, for
# `Tom lost his cup.`: the first plot has probability $\tfrac12$. Of its first field only one option of two
# agrees with `Tom`, so $\tfrac12$; `his` is the one option of one, so 1; `cup` is one of two. Together,
# $\tfrac12\cdot\tfrac12\cdot 1\cdot\tfrac12 = \tfrac18$.


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


# %% [markdown]
# The plot is one more fair choice, on top. A probability of 0 has the logarithm $-\infty$.

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
# As by hand. Now the same for whole worlds, small enough to list. The list comes from another source than
# our code: Python's own `str.format` also knows fields like `{hero.his}`, for the attribute `his` of its
# argument `hero`. So we make each word a text with attributes, take all words and all outcomes of the choices in all
# combinations, and let it fill them in. Each telling of a plot is equally
# likely.
#
# Four worlds: the six stories; one with a field inside a choice; one that is ambiguous on purpose (`abc` is
# `a` and `bc`, or `ab` and `c`, or the second plot); and our seven plots with a handful of words. (What
# is on no list must get $-\infty$: `tests/unit/test_stories.py` spoils a story of each plot at every place and in
# every agreement.)


# %% tags=["test"]
import itertools
from collections import Counter


def every_story(grammar: Grammar) -> dict[str, float]:
    """Each story and its probability, by listing all tellings."""
    told = Counter()
    cast = [
        # for each word a subclass of str with its forms as attributes: `format` finds {hero.his}
        [type("Spoken", (str,), word)(word[""]) for word in known]
        for known in grammar.variables.values()
    ]
    for plot in grammar.plots:
        pieces = enumerate(re.split(r"\[(.*?)\]", plot))  # every second one is a choice
        slots = [piece.split("|") if i % 2 else [piece] for i, piece in pieces]
        tellings = [
            "".join(outcome).format(**dict(zip(grammar.variables, drawn)))
            for outcome in itertools.product(*slots)
            for drawn in itertools.product(*cast)
        ]
        for text in tellings:
            told[text] += 1 / len(tellings) / len(grammar.plots)
    return told


NESTED = Grammar(
    ("[{x}{y}|{y.long}-] and {x}", "{y.long}[!|?]"),
    {"x": words("a b c"), "y": words("d e", long="dd ee")},
)
AMBIGUOUS = Grammar(("{x}{y}", "abc"), {"x": words("a ab"), "y": words("bc c")})
FEW = {"hero": HEROES[:1] + HEROES[-1:], "animal": VARIABLES["animal"][:2]}
SMALL = Grammar(PLOTS, {name: known[:1] for name, known in VARIABLES.items()} | FEW)


def test_log_prob_is_what_listing_all_stories_gives():
    for grammar in (TINY, NESTED, AMBIGUOUS, SMALL):
        listed = every_story(grammar)
        for story, p in listed.items():
            assert abs(log_prob(story, grammar) - math.log(p)) < 1e-9
        assert abs(sum(math.exp(log_prob(story, grammar)) for story in listed) - 1) < 1e-9


test_log_prob_is_what_listing_all_stories_gives()

# %% [markdown]
# ## The entropy
#
# We found the entropy of six stories by a sum over all of them. Ours are two billion, and we still want
# the exact number. Do the choices first and leave the fields open. What comes out is a **skeleton**, such
# as `One day, {hero} lost {hero.his} {look} {thing} {place}. …`. There are only 534. Let $p_s$ be the
# probability of skeleton $s$. The variables that it mentions can be filled in $n_s$ ways, the product of
# the numbers of their words, and all are equally likely. So each of these stories has the probability (if no
# text can be told in two ways, which we prove below)
# $p_s / n_s$ and the surprise $\log(n_s/p_s)$, and there are $n_s$ of them:
#
# $$ H = \sum_s n_s \cdot \frac{p_s}{n_s}\,\log\frac{n_s}{p_s} = \sum_s p_s \log\frac{n_s}{p_s},
#    \qquad \text{number of stories} = \sum_s n_s. $$
#
# The six stories, by hand: no choices, so a skeleton is a plot, with $p_s = \tfrac12$ each. The first has
# $n_s = 2\cdot2$, the second $n_s = 2$. That gives $\tfrac12\log 8 + \tfrac12\log 4 = 2.5\log 2$, as before.

# %% tags=["export"]
import itertools
from collections.abc import Iterator


def skeletons(grammar: Grammar = STORIES) -> Iterator[tuple[str, float, int]]:
    """Every outcome of plot and choices, its probability, and in how many ways it can be filled."""
    for plot in grammar.plots:
        slots = [p[1:-1].split("|") if p[0] == "[" else [p] for p in parts_of(plot)]
        outcomes = list(itertools.product(*slots))
        p = 1 / len(outcomes) / len(grammar.plots)
        for skeleton in map("".join, outcomes):
            mentioned = set(re.findall(r"\{(\w+)", skeleton))
            n = math.prod(len(grammar.variables[variable]) for variable in mentioned)
            yield skeleton, p, n


def count(grammar: Grammar = STORIES) -> int:
    """Number of distinct stories, if no text can be told in two ways: else it is too large."""
    return sum(n for _, _, n in skeletons(grammar))


def entropy(grammar: Grammar = STORIES) -> float:
    """Exact entropy in nats per story, if no text can be told in two ways: else it is too large."""
    return sum(p * math.log(n / p) for _, p, n in skeletons(grammar))


# %%
print(f"{count():,} stories")
print(f"{entropy():.4f} nats, or {entropy() / math.log(2):.2f} bits a story")

# %% [markdown]
# Fewer than 19 nats. An answer of yes or no tells at most one bit, so 27.35 bits take about 28 well chosen questions.
# Guessing all 160 characters of a window evenly among the 106 tokens would cost $160 \log 106 = 746$ nats.
# The rest, 727 nats, is spelling, phrases, agreement and padding: that is what a model can learn.
#
# The checks: on the small worlds, count and entropy must be what the lists say. On the full one, the
# surprise of samples must meet the entropy, on average, within four standard errors (a mean of many draws is
# nearly normal, so a right program would miss that once in 16,000 seeds, and our seed is fixed). A test in
# `tests/unit/test_stories.py` is sharper, and uses something that we saw in the numbers only later: each plot mentions a fixed set of
# variables, whatever its choices, so all of its stories have the *same* probability. Two billion stories,
# and only seven surprises! The plots are equally likely, so the entropy is the average of the seven. And
# a last test holds the world still: the bundled model (a trained model that comes with the package,
# [chapter 10](10_pipeline.ipynb)) was trained on these stories, and with one word
# more, it would be a model of another world.


# %% tags=["test"]
import hashlib


def test_count_and_entropy_are_what_listing_all_stories_gives():
    for grammar in (TINY, NESTED, SMALL):
        listed = every_story(grammar)
        assert count(grammar) == len(listed)
        assert abs(entropy(grammar) + sum(p * math.log(p) for p in listed.values())) < 1e-9
    assert abs(entropy(TINY) - 2.5 * math.log(2)) < 1e-12


def test_the_surprise_of_samples_meets_the_entropy():
    surprise = [-log_prob(story) for story in sample(1000, seed=7)]
    mean = sum(surprise) / len(surprise)
    variance = sum((s - mean) ** 2 for s in surprise) / (len(surprise) - 1)
    assert variance > 1  # the plots differ by nats; else the next line would be too strict
    assert abs(mean - entropy()) < 4 * math.sqrt(variance / len(surprise))


def test_the_world_is_the_one_that_the_bundled_model_learned():
    assert count() == 1_945_700_352
    assert abs(entropy() - 18.954569152047) < 1e-9
    told = "\n".join(sample(1000, seed=0))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "cb8d57f574599bd4"


test_count_and_entropy_are_what_listing_all_stories_gives()
test_the_surprise_of_samples_meets_the_entropy()
test_the_world_is_the_one_that_the_bundled_model_learned()

# %% [markdown]
# ## The picture: what a story costs
#
# Surprises add, so a story is a bill. Below is one story of each plot. A box is a choice or a
# field; under it stands what it costs, in nats. A blue box with a solid line is the first
# mention of a variable: a word is drawn, at the logarithm of the number of words. An orange box with a double
# line is a choice, at the logarithm of the number of alternatives. A gray box with a dotted line mentions
# a variable again. It costs nothing, and it is where agreement shows: follow the hero through each story,
# the need to its gift in the second, the weather through the sixth. The sum at the end has one item more, the
# plot itself, $\log 7 = 1.95$. A lost thing costs most, 23.3 nats; a need with its gift costs least, 16.0.
# The average of the seven sums is the entropy, 18.95.

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
    """One story of a plot, as HTML, with the cost of every choice and field."""
    parts, html, bound, total = parts_of(plot), "", {}, math.log(len(PLOTS))
    while parts:
        part, parts = parts[0], parts[1:]
        ways = options(part, STORIES, bound)
        new, written, drawn = rng.choice(ways)
        cost = math.log(len(ways))
        if part[0] == "[":  # the box closes where the alternative ends: HTML is plain text, too
            parts = ('<span class="choice">', *new, f"<small>{cost:.2f}</small></span>", *parts)
        elif part[0] == "{":
            label, kind = part[1:-1], "again" if part[1:-1].split(".")[0] in bound else "drawn"
            written = f'<span class="{kind}">{written}<small>{label} {cost:.2f}</small></span>'
        html, bound, total = html + written, bound | drawn, total + cost
    story = tell(plot, rng, STORIES)  # any one of the plot: all have the same surprise
    assert abs(total + log_prob(story)) < 1e-9
    return f"<p>{html} = <b>{total:.2f}&nbsp;nats</b></p>"


rng = random.Random(9)
HTML(f'{STYLE}<div class="bill">{"".join(bill(plot, rng) for plot in PLOTS)}</div>')

# %% [markdown]
# ## One text, one way
#
# `count` and `entropy` have an assumption, and it is time to prove it. They count *ways to tell*. If some
# text could be told in two ways, as `abc` can in the ambiguous world, it would be counted twice.
#
# The fixed lengths help us here. Take two different ways to tell. If the plots differ, the texts differ in their
# first seven characters. If not, go to the first place where a word is drawn, or an alternative chosen, that
# differs. Up to there, both have written the same text. There, one writes something else than the other, *of
# the same length*. So the texts differ in these characters, whatever follows.
#
# `tests/unit/test_stories.py` checks what the proof uses: words and alternatives are distinct and of one length, the
# first mention of a variable is its plain form and stands in no choice, and the first seven characters
# belong to one plot only.
#
# The lengths give us one thing more. Only `he` and `she` can make two stories of a plot differ in length,
# so one story per plot and hero shows every length there is: ten of them, 153 characters the longest. So no
# story is too long for a window of 160, not even the one in two billion that you never sample, and
# every window ends with at least seven `<PAD>`, the sign that the story is over.

# %%
lengths = [len(story) for story in sample(5000, seed=1)]
mean = sum(lengths) / len(lengths)
print(f"{mean:.1f} characters on average, from {min(lengths)} to {max(lengths)}")
print(f"{entropy() / math.log(2) / MAX_LENGTH:.4f} bits per token of the window")

# %% [markdown]
# The last number is the floor for a model of windows. The `<PAD>` tokens add nothing to the entropy,
# because the story decides how many there are.

# %% [markdown]
# ## Judging a model
#
# In later chapters a model fills windows of 160 tokens, and we ask: which fraction of them is *flawless*? A
# window is flawless if its tokens are one story and then only `<PAD>`. Looking at the decoded text is
# not enough: `<PAD>` decodes to nothing, so a window with a hole in the middle of a story would look fine.
# So we pad the decoded text again and compare: a hole does not come back.


# %% tags=["export"]
from collections.abc import Sequence

from ddlm_core.tokenizer import CharacterLevelTokenizer


def is_flawless(tokens: Sequence[int], tokenizer: CharacterLevelTokenizer) -> bool:
    """Whether ``tokens`` (L,) are one story of the grammar and then only ``<PAD>``."""
    story = tokenizer.decode(tokens)
    again = tokenizer.pad(story, len(tokens)).tolist()
    return again == [int(token) for token in tokens] and log_prob(story) > -math.inf


# %% [markdown]
# Two numbers, then: the gap to the entropy, and the fraction of flawless samples. They are related. Let
# $m = \sum_x q(x)$ be the probability that the model gives to all true stories together, so the fraction of
# its samples that are flawless. With all sums over the true stories, and the inequality from above once more,
# $\log u \le u - 1$, now with $u = q/(mp)$:
#
# $$ \begin{aligned} -\,\text{gap} = \sum_x p \log\frac{q}{p} &= \log m + \sum_x p \log\frac{q}{m p} \\
#    &\le \log m + \sum_x p\,\Big(\frac{q}{m p} - 1\Big) = \log m + 1 - 1. \end{aligned} $$
#
# So $m \ge e^{-\text{gap}}$.
# A gap of 0.05 nats promises that at least 95 % of the samples are flawless, if they are drawn exactly from $q$. (A sampler
# that takes few steps may do worse: [chapter 7](07_sampler.ipynb).) Without an exact entropy there
# is no gap to speak of, and no such promise.

# %% [markdown]
# ## Change it safely
#
# Give the world a friend named Kit: add `Kit` to the pals in `VARIABLES`. One test fails,
# `test_the_world_is_the_one_that_the_bundled_model_learned`: there are more stories now, and the bundled model
# has never heard of Kit. (On the page, exercise 3 fails, too: a repetition is rarer. So it does after the
# next two changes.) Teach it the new numbers if you mean to train your own model.
#
# Then a plausible mistake. You want more balls, so you write `ball` twice among the things. Stories are still
# told, and `log_prob` is still right, because it adds. But the entropy is now too large, by 0.05 nats, and a
# thousand samples are too few to show it. The two sharper tests fail:
# `test_a_plot_has_one_surprise_and_entropy_is_their_average` and `test_one_text_has_one_way_to_be_told`. (On the
# page, the bill of a story with a ball does not add up.)
#
# And a `trampoline` among the things makes `test_every_story_fits_into_a_window` fail, because words of a
# variable have one length, and `test_one_text_has_one_way_to_be_told`, because the proof is gone with it. (The
# test of the world that the bundled model learned fails each time, of course.) The command:
# `make export && pytest tests/test_stories.py tests/unit/test_stories.py`.
#
# **Exercise 1.** A model knows all about the six stories, but not agreement: it flips a coin for `her` and
# `his`. What is its score, how far is it from the floor, which fraction of its samples is flawless, and
# what did the gap promise? (Expected: 2.0794 nats, a gap of 0.3466; 0.75, where at least 0.7071 was promised.)

# %% tags=["solution", "hide-input"]
listed = every_story(TINY)
model = {story: p / 2 if " lost " in story else p for story, p in listed.items()}
score = -sum(p * math.log(model[story]) for story, p in listed.items())
gap, flawless = score - entropy(TINY), sum(model.values())
assert abs(score - 2.0794) < 1e-4 and abs(gap - 0.3466) < 1e-4
assert flawless == 0.75 and abs(math.exp(-gap) - 0.7071) < 1e-4
round(score, 4), round(gap, 4), flawless, round(math.exp(-gap), 4)

# %% [markdown]
# **Exercise 2.** You want somebody to lose something twice as often as somebody sleeps, and write the first
# plot of the six stories twice. What does `entropy` say, and what is the truth? (Expected: 2.2539 and 1.7918,
# which is $\log 6$: all six are equally likely then. `entropy` is too large by $\tfrac23 \log 2$: two times in
# three it counts a choice between twins, which no text shows.)

# %% tags=["solution", "hide-input"]
twins = Grammar((TINY.plots[0], *TINY.plots), TINY.variables)
truth = -sum(p * math.log(p) for p in every_story(twins).values())
assert abs(entropy(twins) - 2.2539) < 1e-4 and abs(truth - math.log(6)) < 1e-12
assert abs(entropy(twins) - truth - 2 / 3 * math.log(2)) < 1e-12
round(entropy(twins), 4), round(truth, 4)

# %% [markdown]
# **Exercise 3.** A model repeats a story from its training data. Did it learn by heart, or was it chance? With
# 100,000 training stories, how probable is it that a *fresh* story of our world is among them? (Expected:
# 0.00242. Use that there are only seven surprises.)

# %% tags=["solution", "hide-input"]
each = [math.exp(log_prob(tell(plot, random.Random(0), STORIES))) for plot in PLOTS]
chance = sum(1 - (1 - p) ** 100_000 for p in each) / len(each)
assert abs(chance - 0.00242) < 5e-6
round(chance, 5)

# %% [markdown]
# ## Summary
#
# We made a world of two billion stories in which names, pronouns, gifts and weather agree. Its entropy is
# 18.95 nats a story, and no model can do better.
#
# | name | meaning |
# |---|---|
# | `sample(n, seed)` | $n$ stories; the same seed, the same stories |
# | `log_prob(text)` | exact $\log p$ in nats, `-inf` for what is no story |
# | `entropy()`, `count()` | exact entropy in nats a story; number of distinct stories |
# | `is_flawless(tokens, tokenizer)` | whether a window holds one story and then only `<PAD>` |
# | `MAX_LENGTH` | 160, the window; no story is longer |
# | `STORIES` | our world: `PLOTS` (with their `ENDING`) and `VARIABLES` (with their `HEROES`) |
# | `Grammar`, `Word`, `words` | a world of your own: give it to `sample`, `log_prob`, `entropy` or `count` |
# | `parts_of`, `options` | what a template means: its parts, and what can become of each |
# | `tell`, `probability` | pick one option at each part, or add up all |
# | `skeletons` | all outcomes of plot and choices, with $p_s$ and $n_s$ |
#
# They are functions of a module: `from ddlm_core import stories`, then `stories.sample(3, seed=0)`.
#
# Next: [geometric noise](03_noise.ipynb).
