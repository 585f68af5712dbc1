# Generated from notebooks/02_stories.py by tools/export.py: edit that, then run `make export`.

import hashlib
import itertools
import math
import re
from collections import Counter

from ddlm_core.stories import (
    HEROES,
    PLOTS,
    VARIABLES,
    Grammar,
    count,
    entropy,
    log_prob,
    sample,
    words,
)

TINY = Grammar(
    plots=("{hero} lost {hero.his} {thing}.", "{hero} slept."),
    variables={"hero": words("Lily Tom", his="her his"), "thing": words("hat cup")},
)


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


FEW = {"hero": HEROES[:1] + HEROES[-1:], "animal": VARIABLES["animal"][:2]}
SMALL = Grammar(PLOTS, {name: known[:1] for name, known in VARIABLES.items()} | FEW)


def test_log_prob_is_what_listing_all_stories_gives():
    for grammar in (TINY, SMALL):
        listed = every_story(grammar)
        for story, p in listed.items():
            assert abs(log_prob(story, grammar) - math.log(p)) < 1e-9
        assert abs(sum(listed.values()) - 1) < 1e-9


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


def test_the_world_is_the_one_that_the_bundled_model_learned():
    assert count() == 1_945_700_352
    assert abs(entropy() - 18.954569152047) < 1e-9
    told = "\n".join(sample(1000, seed=0))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "cb8d57f574599bd4"
