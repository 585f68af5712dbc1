"""The story world: seeds, what no story is, the lengths and texts that the proofs use."""

import itertools
import math
import random
import re
from collections import Counter

import pytest

from ddlm_core.stories import (
    HEROES,
    MAX_LENGTH,
    PLOTS,
    STORIES,
    VARIABLES,
    Grammar,
    entropy,
    is_flawless,
    log_prob,
    options,
    parts_of,
    sample,
    skeletons,
    tell,
    words,
)
from ddlm_core.tokenizer import PAD_ID, UNK_ID, VOCAB, CharacterLevelTokenizer

TINY = Grammar(
    plots=("{hero} lost {hero.his} {thing}.", "{hero} slept."),
    variables={"hero": words("Lily Tom", his="her his"), "thing": words("hat cup")},
)
NESTED = Grammar(
    ("[{x}{y}|{y.long}-] and {x}", "{y.long}[!|?]"),
    {"x": words("a b c"), "y": words("d e", long="dd ee")},
)
AMBIGUOUS = Grammar(("{x}{y}", "abc"), {"x": words("a ab"), "y": words("bc c")})
FEW = {"hero": HEROES[:1] + HEROES[-1:], "animal": VARIABLES["animal"][:2]}
SMALL = Grammar(PLOTS, {name: known[:1] for name, known in VARIABLES.items()} | FEW)


def patterns(grammar: Grammar) -> list[re.Pattern]:
    """A regular expression for each plot and cast: another reading of the notation."""
    found = []
    for plot in grammar.plots:
        for cast in itertools.product(*grammar.variables.values()):
            pattern = (
                plot.replace("?", "\\?").replace(".", "\\.").replace("[", "(").replace("]", ")")
            )
            for variable, word in zip(grammar.variables, cast):
                for form, text in word.items():
                    field = f"{{{variable}\\.{form}}}" if form else f"{{{variable}}}"
                    pattern = pattern.replace(field, text)
            found.append(re.compile(pattern))
    return found


def spoiled(story: str, rng: random.Random) -> list[str]:
    """For every place: one character replaced, removed, inserted. Then words that do not fit."""
    texts = []
    for i in range(len(story) + 1):
        head, tail, new = story[:i], story[i:], rng.choice(VOCAB[2:])  # no <UNK>, no <PAD>
        texts += [head + new + tail[1:], head + tail[1:], head + new + tail]
    for pair in (
        ("Lily", "Carl"),
        ("bear", "frog"),
        ("her", "his"),
        ("he ", "she "),
        ("He ", "She "),
    ):
        for old, new in (pair, pair[::-1]):
            texts += [story[: m.start()] + new + story[m.end() :] for m in re.finditer(old, story)]
    return texts


def are_distinct_and_of_one_length(texts: list[str]) -> bool:
    return len(set(texts)) == len(texts) and len(set(map(len, texts))) == 1


def test_the_same_seed_gives_the_same_stories():
    state = random.getstate()
    stories = sample(50, seed=3)
    assert stories == sample(50, seed=3) == sample(60, seed=3)[:50]
    assert stories != sample(50, seed=4)
    assert random.getstate() == state
    assert sample(0, seed=3) == []
    with pytest.raises(ValueError, match="at least 0, got -1"):
        sample(-1, seed=3)


def test_stories_differ():
    assert len(set(sample(2000, seed=11))) == 2000  # one seed in twenty repeats a story


def test_a_word_without_its_form_is_noticed():
    with pytest.raises(ValueError):
        words("Lily Anna Jack", his="her his")


def test_log_prob_is_minus_infinity_for_what_is_on_no_list():
    told, rng = patterns(SMALL), random.Random(0)
    for plot in PLOTS:
        texts = spoiled(tell(plot, rng, SMALL), rng)
        known = [any(pattern.fullmatch(text) for pattern in told) for text in texts]
        assert [log_prob(text, SMALL) > -math.inf for text in texts] == known
        assert known.count(False) > 350  # of 3 at each of 120 places or more
    for text in ("", "Tom", "Tom slept. ", "Tom slept.Tom slept.", "{hero} slept."):
        assert log_prob(text, TINY) == -math.inf


def test_two_ways_to_one_text_are_added():
    ways = 1 / 8 + 1 / 8 + 1 / 2
    assert abs(log_prob("abc", AMBIGUOUS) - math.log(ways)) < 1e-12
    texts = ["".join(t) for n in range(6) for t in itertools.product("abc", repeat=n)]
    assert abs(sum(math.exp(log_prob(text, AMBIGUOUS)) for text in texts) - 1) < 1e-12


def test_samples_come_as_often_as_log_prob_says():
    n = 8000
    for grammar in (TINY, NESTED, AMBIGUOUS):
        seen = Counter(sample(n, 1, grammar))
        assert abs(sum(math.exp(log_prob(story, grammar)) for story in seen) - 1) < 1e-9  # all
        for story, times in seen.items():
            p = math.exp(log_prob(story, grammar))
            assert abs(times - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_agreement_spans_the_story():
    frog = "Lily met a kind frog in the park. It was tired, so she gave it a soft bed. "
    frog += "Then the frog was not tired any more. Lily sang a new song."
    rain = "It was rainy. Otto sat inside with his gold drum. Thump, thump! "
    rain += "A damp hare stood outside. "
    rain += '"Come in," said Otto. They drew boats until the rain was over.'
    for story, changes in {
        frog: "so she>so he, Lily met>Jack met, Lily sang>Rose sang, a kind frog>a kind toad, "
        "the frog>the toad, a soft bed>a hot bath, not tired>not bored",
        rain: "his gold>her gold, said Otto>said Finn, damp>cold, the rain>the mist, rainy>misty",
    }.items():
        assert log_prob(story) > -math.inf
        for old, new in (change.split(">") for change in changes.split(", ")):
            assert old in story and log_prob(story.replace(old, new)) == -math.inf, new


def test_a_plot_has_one_surprise_and_entropy_is_their_average():
    rng = random.Random(5)
    surprises = [
        {round(-log_prob(tell(plot, rng, STORIES)), 9) for _ in range(20)} for plot in PLOTS
    ]
    assert [len(found) for found in surprises] == [1] * 7
    assert abs(sum(found.pop() for found in surprises) / 7 - entropy()) < 1e-8


def test_one_text_has_one_way_to_be_told():
    for variable, known in VARIABLES.items():
        assert are_distinct_and_of_one_length([word[""] for word in known]), variable
    for hero in HEROES:
        for choice in re.findall(r"\[(.*?)\]", "".join(PLOTS)):
            outcomes = choice.replace("{hero}", hero[""]).split("|")
            assert are_distinct_and_of_one_length(outcomes), choice
    for plot in PLOTS:
        seen = set()
        for part in parts_of(plot):
            for variable, form in re.findall(r"\{(\w+)\.?(\w*)\}", part):
                assert variable in seen or part == f"{{{variable}}}", f"first mention in {part}"
                seen.add(variable)
    openings = []  # first seven characters: of one plot only, and in no field but the hero
    for plot in PLOTS:
        begun = [skeleton for skeleton, _, _ in skeletons(Grammar((plot,), VARIABLES))]
        openings.append({s.replace("{hero}", hero[""])[:7] for s in begun for hero in HEROES})
    together = set().union(*openings)
    assert len(together) == sum(map(len, openings)) and "{" not in "".join(together)


def test_every_story_fits_into_a_window():
    for variable, known in VARIABLES.items():
        for form in known[0]:
            lengths = {len(word[form]) for word in known}
            assert lengths == ({2, 3} if form in ("he", "He") else {len(known[0][form])}), variable
    worlds = [Grammar(PLOTS, VARIABLES | {"hero": (hero,)}) for hero in HEROES]
    rng = random.Random(0)
    lengths = {len(tell(plot, rng, world)) for world in worlds for plot in PLOTS}
    assert len(lengths) == 10 and max(lengths) == 153 < MAX_LENGTH


def test_every_character_of_the_world_has_a_token():
    texts = [text for known in VARIABLES.values() for word in known for text in word.values()]
    assert set("".join([*PLOTS, *texts])) <= set(VOCAB)


def test_a_flawless_window_is_a_story_and_then_padding():
    tokenizer = CharacterLevelTokenizer()
    (story,) = sample(1, seed=4)
    ids = tokenizer.encode(story).tolist()
    padding = [PAD_ID] * (MAX_LENGTH - len(ids))
    assert is_flawless(tokenizer.pad(story, MAX_LENGTH), tokenizer)
    assert is_flawless(ids + padding, tokenizer) and is_flawless(ids, tokenizer)
    letter = tokenizer.encode("a").tolist()
    for flawed in (
        [*ids[:30], PAD_ID, *ids[30:], *padding],  # a hole
        [*ids[:30], UNK_ID, *ids[31:], *padding],
        [PAD_ID, *ids, *padding],
        [*ids, *padding, *letter],
        [*ids, *letter, *padding],
        [*ids[:-1], *padding],
        [*ids, PAD_ID, *ids],
        padding,
        [],
    ):
        assert not is_flawless(flawed, tokenizer)


def test_words_bring_their_forms():
    assert words("in_the_park x", one="a_b c") == (
        {"": "in the park", "one": "a b"},
        {"": "x", "one": "c"},
    )
    assert words("a b", same="z") == ({"": "a", "same": "z"}, {"": "b", "same": "z"})
    assert words("a") == ({"": "a"},)


def test_what_can_come_next():
    lily, tom = TINY.variables["hero"]
    assert options("[a b|{hero}c]", TINY, {}) == [(("a b",), "", {}), (("{hero}", "c"), "", {})]
    drawn = [((), "Lily", {"hero": lily}), ((), "Tom", {"hero": tom})]
    assert options("{hero}", TINY, {}) == drawn
    assert options("{hero.his}", TINY, {"hero": tom}) == [((), "his", {"hero": tom})]
    assert options(" lost ", TINY, {}) == [((), " lost ", {})]


def test_skeletons_have_probabilities_that_sum_to_one():
    found = list(skeletons())
    assert len(found) == len({text for text, _, _ in found}) == 534
    assert abs(sum(p for _, p, _ in found) - 1) < 1e-12
    assert list(skeletons(TINY)) == [(TINY.plots[0], 0.5, 4), (TINY.plots[1], 0.5, 2)]
