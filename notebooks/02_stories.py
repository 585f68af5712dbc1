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

VARIABLES: dict[str, tuple[Word, ...]] = {
    "hero": words("Lily Mia Anna Sue Rose Zoe Ella Kim Ivy Nora Lucy Fern", **_SHE)
    + words("Tom Ben Max Sam Jack Leo Finn Otto Hugo Paul Dave Rick", **_HE),
    "pal": words("Amy Bob Dan Eve Gus Ned Pip Vera"),
    "animal": words("dog cat fox bear frog duck mouse pony goat bunny owl pig"),
    "coat": words("little kind brown gray funny shy fat wise"),
    "look": words("red blue green big tiny shiny pink soft", a="a") + words("old orange", a="an"),
    "thing": words(
        "ball kite hat drum boat book bell doll cup key "
        "spoon shell lamp flute sock wagon top ring fan coin"
    ),
    "place": words(
        "in_the_park by_the_lake at_the_farm under_a_tree in_the_garden on_the_hill "
        "near_the_barn at_the_beach behind_the_house in_the_woods by_the_road at_the_zoo"
    ),
    "skill": words("swim sing dance jump draw whistle skate climb"),
    "need": words("sad", gift="a big hug")
    + words("cold", gift="a warm coat")
    + words("hungry", gift="some soup")
    + words("tired", gift="a soft bed")
    + words("thirsty", gift="some milk")
    + words("bored", gift="a new game"),
    "weather": words("raining", felt="wet", noun="rain")
    + words("snowing", felt="cold", noun="snow")
    + words("windy", felt="dusty", noun="wind")
    + words("foggy", felt="lost", noun="fog"),
}

# %% tags=["export"]
ENDING = "[They are friends now.|What a good day!|{hero} smiled all day.|{hero.He} was so happy.]"

PLOTS = (
    "[One day|Last week|Once], {hero} lost {hero.his} {look} {thing} {place}. "
    "{hero.He} [looked and looked|cried a little|asked for help]. "
    "A {coat} {animal} [found it|had it|sat on it]! "
    '["Thank you!" said {hero}.|{hero} hugged the {animal}.|They both laughed.] ' + ENDING,
    "{hero} met a {coat} {animal} {place}. It was {need}, "
    "so {hero.he} gave it {need.gift}. [Soon|Then] the {animal} was not {need} [any more|at all]. "
    + ENDING,
    '{hero} [wanted to|could not] {skill}. "I can [help|show you]," said a {coat} {animal}. '
    "They tried {place} [all day|for a week]. [At last|In the end], {hero} could {skill}! "
    "{hero.He} was so [proud|happy].",
    "{hero} and {pal} [both wanted|found] {look.a} {look} {thing}. "
    '"[It is mine|Give it to me]!" said {pal}. "We can [share|take turns]," said {hero}. '
    "[So they did|And they played] {place}. " + ENDING,
    "[At night|In the dark], {hero} heard a [sound|noise] {place}. "
    "[{hero.He} was afraid.|{hero.He} hid.|Was it a monster?] But it was a {coat} {animal} "
    'with {look.a} {look} {thing}. "[A gift|This is] for you," said the {animal}.',
    "It was {weather}. {hero} [sat|was] inside with {hero.his} {look} {thing}. "
    "[Knock, knock!|Tap, tap!] A {weather.felt} {animal} stood outside. "
    '"Come in," said {hero}. They [drank tea|sang songs|told jokes] '
    "until the {weather.noun} was over.",
    "{hero} planted a [seed|bean] {place}. [Every day|Each morning], {hero.he} "
    "[sang to it|gave it water]. It grew {look.a} {look} {thing}! "
    '"[How funny|What luck]!" said {pal}. {hero} gave {pal} the {thing}.',
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
