# Generated from notebooks/02_stories.py by tools/export.py: edit that, then run `make export`.
"""A world we know exactly."""

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from ddlm_core.tokenizer import CharacterLevelTokenizer

__all__ = [
    "Word",
    "words",
    "Grammar",
    "parts_of",
    "options",
    "tell",
    "HEROES",
    "VARIABLES",
    "ENDING",
    "PLOTS",
    "STORIES",
    "MAX_LENGTH",
    "sample",
    "probability",
    "log_prob",
    "skeletons",
    "count",
    "entropy",
    "is_flawless",
]

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


@cache
def parts_of(template: str) -> tuple[str, ...]:
    """Cut a template into plain texts, ``[alternations|…]`` and ``{slots}``, in order."""
    return tuple(re.findall(r"\[[^]]*\]|\{[^}]*\}|[^[{]+", template))


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


def tell(plot: str, rng: random.Random, grammar: Grammar) -> str:
    """Write one story of a template: pick one option at each part."""
    parts, text = parts_of(plot), ""
    bound: dict[str, Word] = {}
    while parts:
        ways = options(parts[0], grammar, bound)
        new, written, drawn = rng.choice(ways) if len(ways) > 1 else ways[0]
        parts, text, bound = new + parts[1:], text + written, bound | drawn
    return text


_SHE = {"he": "she", "He": "She", "his": "her"}
_HE = {"he": "he", "He": "He", "his": "his"}
HEROES = words("Lily Anna Rose Ella Nora Lucy Ruby Jane Emma Iris Cora Fern", **_SHE)
HEROES += words("Jack Finn Otto Hugo Paul Dave Rick Adam Toby Noah Luke Carl", **_HE)

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
    '[Knock, knock|Thump, thump]! A {weather.felt} {animal} stood outside. "Come in," said {hero}. '
    "They [sang songs|told jokes|drew boats] until the {weather.noun} was over.",
    "{hero} planted a [seed|bean] {place}. [Each dawn|Every day], {hero.he} "
    "[sang to it|read to it]. It grew a {look} {thing}! "
    '"[How funny|What luck|How silly]!" said {pal}. {hero} gave {pal} the {thing}.',
)

STORIES = Grammar(PLOTS, VARIABLES)
MAX_LENGTH = 160  # characters in a window; the longest story has 153, so <PAD> always follows


def sample(n: int, seed: int, grammar: Grammar = STORIES) -> list[str]:
    """Draw ``n`` (at least 0) stories; the same seed gives the same ones, whatever ``n`` is."""
    if n < 0:
        raise ValueError(f"the number of stories must be at least 0, got {n}")
    rng = random.Random(seed)
    return [tell(rng.choice(grammar.plots), rng, grammar) for _ in range(n)]


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


def log_prob(text: str, grammar: Grammar = STORIES) -> float:
    """Exact log-probability of a decoded text, in nats; ``-inf`` if it cannot be told."""
    p = sum(probability(parts_of(plot), text, grammar, {}) for plot in grammar.plots)
    return math.log(p / len(grammar.plots)) if p else -math.inf


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


def is_flawless(tokens: Sequence[int], tokenizer: CharacterLevelTokenizer) -> bool:
    """Whether ``tokens`` (L,) are one story of the grammar and then only ``<PAD>``."""
    story = tokenizer.decode(tokens)
    again = tokenizer.pad(story, len(tokens)).tolist()
    return again == [int(token) for token in tokens] and log_prob(story) > -math.inf
