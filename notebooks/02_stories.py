# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A world we know exactly

# %% tags=["export"]
import re
from dataclasses import dataclass
from functools import cache

MAX_LENGTH = 160  # characters; the longest story fits exactly into one training window

Word = dict[str, str]  # its forms by name; "word" is the plain one


def words(names: str, **forms: str) -> tuple[Word, ...]:
    """Words with the same extra forms: ``words("Tom Ben", he="he")``; ``_`` stands for a space."""
    return tuple({"word": name.replace("_", " "), **forms} for name in names.split())


# %% tags=["export"]
@dataclass(frozen=True)
class Grammar:
    """Everything that can be told: ``plots`` are templates, ``variables`` the words for them."""

    plots: tuple[str, ...]
    variables: dict[str, tuple[Word, ...]]


_SHE = {"he": "she", "He": "She", "his": "her"}
_HE = {"he": "he", "He": "He", "his": "his"}

PEOPLE: dict[str, tuple[Word, ...]] = {
    "hero": words("Lily Anna Rose Ella Nora Lucy Ruby Jane Emma Iris Cora Fern", **_SHE)
    + words("Jack Finn Otto Hugo Paul Dave Rick Adam Toby Noah Luke Carl", **_HE),
    "pal": words("Amy Bob Dan Eve Gus Ned Pip Tim"),
    "animal": words("bear frog duck goat pony lamb deer crow mole toad swan hare"),
    "coat": words("kind gray wise tiny calm cute tall glad"),
    "need": words("tired", gift="a soft bed")
    + words("upset", gift="a long hug")
    + words("dirty", gift="a hot bath")
    + words("bored", gift="a new game")
    + words("itchy", gift="a big comb")
    + words("dizzy", gift="a long nap"),
}

# %% tags=["export"]
VARIABLES: dict[str, tuple[Word, ...]] = PEOPLE | {
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
    "weather": words("rainy", felt="damp", noun="rain")
    + words("windy", felt="worn", noun="wind")
    + words("snowy", felt="cold", noun="snow")
    + words("misty", felt="lost", noun="mist"),
}

# %% tags=["export"]
ENDING = (
    "[They are friends now.|So it was a good day.|{hero} was happy again.|{hero} sang a new song.]"
)

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
    "[Knock, knock|Thump, thump]! A {weather.felt} {animal} stood outside. "
    '"Come in," said {hero}. They [sang songs|told jokes|drew boats] '
    "until the {weather.noun} was over.",
    "{hero} planted a [seed|bean] {place}. [Each dawn|Every day], {hero.he} "
    "[sang to it|read to it]. It grew a {look} {thing}! "
    '"[How funny|What luck|How silly]!" said {pal}. {hero} gave {pal} the {thing}.',
)

STORIES = Grammar(PLOTS, VARIABLES)


# %% tags=["export"]
@cache
def parts_of(template: str) -> tuple[str, ...]:
    """Cut a template into literals, ``[choices|…]`` and ``{fields}``, in order."""
    return tuple(re.findall(r"\[[^]]*\]|\{[^}]*\}|[^[{]+", template))


def alternatives(part: str) -> list[str]:
    """``"[a|b]"`` → ``["a", "b"]``."""
    return part[1:-1].split("|")


def variable_and_form(part: str) -> tuple[str, str]:
    """``"{hero.his}"`` → ``("hero", "his")``; ``"{hero}"`` → ``("hero", "word")``."""
    variable, _, form = part[1:-1].partition(".")
    return variable, form or "word"


# %% tags=["export"]
import random


def tell(template: str, rng: random.Random, grammar: Grammar, bound: dict[str, Word]) -> str:
    """Write one story; ``bound`` remembers the word drawn for each variable and is filled here."""
    text = []
    for part in parts_of(template):
        if part[0] == "[":
            text.append(tell(rng.choice(alternatives(part)), rng, grammar, bound))
        elif part[0] == "{":
            variable, form = variable_and_form(part)
            if variable not in bound:
                bound[variable] = rng.choice(grammar.variables[variable])
            text.append(bound[variable][form])
        else:
            text.append(part)
    return "".join(text)


def sample(n: int, seed: int, grammar: Grammar = STORIES) -> list[str]:
    """Draw ``n`` independent stories; the same seed gives the same stories.

    Raises:
        ValueError: if ``n`` is negative.
    """
    if n < 0:
        raise ValueError(f"the number of stories must be at least 0, got {n}")
    rng = random.Random(seed)
    return [tell(rng.choice(grammar.plots), rng, grammar, {}) for _ in range(n)]


# %% tags=["export"]
Way = tuple[tuple[str, ...], str, dict[str, Word], float]


def ways(part: str, text: str, grammar: Grammar, bound: dict[str, Word]) -> list[Way]:
    """Every way in which ``part`` can begin ``text``.

    Returns:
        For each: the parts that take its place, the text still to be written, the words drawn so
        far, and the probability of this choice.
    """
    if part[0] == "[":
        choices = alternatives(part)
        return [(parts_of(choice), text, bound, 1 / len(choices)) for choice in choices]
    written = [(part, bound, 1.0)]
    if part[0] == "{":
        variable, form = variable_and_form(part)
        known = (bound[variable],) if variable in bound else grammar.variables[variable]
        written = [(word[form], {**bound, variable: word}, 1 / len(known)) for word in known]
    return [((), text[len(w) :], b, p) for w, b, p in written if text.startswith(w)]


# %% tags=["export"]
import math


def probability(
    parts: tuple[str, ...], text: str, grammar: Grammar, bound: dict[str, Word]
) -> float:
    """Probability that ``parts`` write exactly ``text``: the sum over all their ways."""
    if not parts:
        return float(not text)
    return sum(
        p * probability(new + parts[1:], rest, grammar, now_bound)
        for new, rest, now_bound, p in ways(parts[0], text, grammar, bound)
    )


def log_prob(text: str, grammar: Grammar = STORIES) -> float:
    """Exact log-probability of ``text`` in nats; ``-inf`` for text that the grammar cannot write."""
    p = sum(probability(parts_of(plot), text, grammar, {}) for plot in grammar.plots)
    return math.log(p / len(grammar.plots)) if p else -math.inf


# %% tags=["export"]
def skeletons(template: str) -> list[tuple[str, float]]:
    """Every outcome of the choices of ``template``, with its probability; fields stay unfilled."""
    written = [("", 1.0)]
    for part in parts_of(template):
        choices = alternatives(part) if part[0] == "[" else [part]
        written = [(text + choice, p / len(choices)) for text, p in written for choice in choices]
    return written


def fillings(skeleton: str, grammar: Grammar = STORIES) -> int:
    """In how many ways the variables that ``skeleton`` mentions can be filled."""
    fields = {variable_and_form(part)[0] for part in parts_of(skeleton) if part[0] == "{"}
    return math.prod(len(grammar.variables[variable]) for variable in fields)


def count(grammar: Grammar = STORIES) -> int:
    """Number of distinct stories."""
    return sum(
        fillings(skeleton, grammar) for plot in grammar.plots for skeleton, _ in skeletons(plot)
    )


def entropy(grammar: Grammar = STORIES) -> float:
    r"""Exact entropy in nats per story: $\log(\text{plots}) + \mathbb E[\log(\text{fillings}/p)]$."""
    surprise = [
        p * math.log(fillings(skeleton, grammar) / p)
        for plot in grammar.plots
        for skeleton, p in skeletons(plot)
    ]
    return math.log(len(grammar.plots)) + sum(surprise) / len(grammar.plots)


# %% tags=["export"]
from collections.abc import Sequence

from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer


def is_flawless(tokens: Sequence[int], tokenizer: CharacterLevelTokenizer) -> bool:
    """Whether ``tokens`` (L,) are one story of the grammar and then only ``<PAD>``."""
    ids = [int(token) for token in tokens]
    while ids and ids[-1] == PAD_ID:
        ids.pop()
    return PAD_ID not in ids and log_prob(tokenizer.decode(ids)) > -math.inf


# %%
for story in sample(7, seed=1):
    print(story)
