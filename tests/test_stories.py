# Generated from notebooks/02_stories.py by tools/export.py: edit that, then run `make export`.

import hashlib
import itertools
import math
import random
import re
from collections import Counter

import pytest

from ddlm_core.stories import (
    MAX_LENGTH,
    PLOTS,
    STORIES,
    VARIABLES,
    Grammar,
    Word,
    alternatives,
    count,
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
    variables={
        "hero": words("Lily Tom", his="her his"),
        "thing": words("hat cup"),
    },
)


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
    assert len(set(sample(2000, seed=11))) == 2000


def every_story(grammar: Grammar) -> dict[str, float]:
    """Each story and its probability, by listing all tellings."""
    told = Counter()
    cast = [
        [type("Spoken", (str,), word)(word[""]) for word in known]  # a text with attributes
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
SMALL = Grammar(
    PLOTS,
    {
        name: known[:1] + known[-1:] * (name in ("hero", "look"))
        for name, known in STORIES.variables.items()
    },
)


def test_log_prob_is_what_listing_all_stories_gives():
    for grammar in (TINY, NESTED, AMBIGUOUS, SMALL):
        listed = every_story(grammar)
        for story, p in listed.items():
            assert abs(log_prob(story, grammar) - math.log(p)) < 1e-9
        assert abs(sum(math.exp(log_prob(story, grammar)) for story in listed) - 1) < 1e-9


def test_two_ways_to_one_text_are_added():
    ways = 1 / 8 + 1 / 8 + 1 / 2
    assert abs(log_prob("abc", AMBIGUOUS) - math.log(ways)) < 1e-12
    texts = ["".join(t) for n in range(6) for t in itertools.product("abc", repeat=n)]
    assert abs(sum(math.exp(log_prob(text, AMBIGUOUS)) for text in texts) - 1) < 1e-12


def test_log_prob_is_minus_infinity_for_what_is_no_story():
    for text in ("", "Tom", "Tom slept", "Tom slept. ", " Tom slept.", "Tom slept.Tom slept."):
        assert log_prob(text, TINY) == -math.inf
    for text in ("{hero} slept.", "Lily lost his hat.", "Tom lost his sock.", "Tom slept\ufffd"):
        assert log_prob(text, TINY) == -math.inf


def test_samples_come_as_often_as_log_prob_says():
    n = 8000
    for grammar in (TINY, NESTED, AMBIGUOUS):
        seen = Counter(sample(n, 1, grammar))
        assert seen.keys() == every_story(grammar).keys()
        for story, times in seen.items():
            p = math.exp(log_prob(story, grammar))
            assert abs(times - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_agreement_spans_the_story():
    frog = "Lily met a kind frog in the park. It was tired, so she gave it a soft bed. "
    frog += "Then the frog was not tired any more. Lily sang a new song."
    rain = "It was rainy. Otto sat inside with his gold drum. Thump, thump! A damp hare stood outside. "
    rain += '"Come in," said Otto. They drew boats until the rain was over.'
    bean = "Iris planted a bean by the gate. Each dawn, she sang to it. It grew a soft drum! "
    bean += '"What luck!" said Gus. Iris gave Gus the drum.'
    wrong = {
        frog: [("so she", "so he"), ("Lily met", "Jack met"), ("Lily sang", "Rose sang")]
        + [("the frog", "the toad"), ("a soft bed", "a hot bath"), ("not tired", "not bored")],
        rain: [
            ("his", "her"),
            ("said Otto", "said Finn"),
            ("damp", "cold"),
            ("the rain", "the mist"),
        ],
        bean: [(", she", ", he"), ("Iris gave", "Nora gave"), ("gave Gus", "gave Dan")]
        + [("the drum", "the bell")],
    }
    for story, changes in wrong.items():
        assert log_prob(story) > -math.inf
        for old, new in changes:
            assert old in story and log_prob(story.replace(old, new)) == -math.inf


def families(known: tuple[Word, ...]) -> list[list[Word]]:
    """Words that share all their forms but the plain one."""
    found = {}
    for word in known:
        others = tuple(sorted((form, text) for form, text in word.items() if form))
        found.setdefault(others, []).append(word)
    return list(found.values())


def expression(plot: str, family: dict[str, list[Word]]) -> re.Pattern:
    """Matches every story of the plot whose words are of these families."""
    seen = set()

    def translate(match: re.Match) -> str:
        variable, form = match["variable"], match["form"]
        if variable is None:
            return {"[": "(?:", "]": ")"}.get(match[0]) or re.escape(match[0])
        if form:
            return re.escape(family[variable][0][form])
        if variable in seen:
            return f"(?P={variable})"
        seen.add(variable)
        return f"(?P<{variable}>{'|'.join(re.escape(word['']) for word in family[variable])})"

    pieces = r"\{(?P<variable>\w+)\.?(?P<form>\w*)\}|[\[\]]|[^\[\]{|}]+"  # `|` is left as it is
    return re.compile(re.sub(pieces, translate, plot))


def expressions(grammar: Grammar) -> list[re.Pattern]:
    found = []
    for plot in grammar.plots:
        names = sorted(set(re.findall(r"\{(\w+)", plot)))
        for chosen in itertools.product(*(families(grammar.variables[name]) for name in names)):
            found.append(expression(plot, dict(zip(names, chosen))))
    return found


def spoiled(story: str, rng: random.Random) -> list[str]:
    """Three texts for every place: one character is replaced, removed, inserted."""
    texts = []
    for i in range(len(story) + 1):
        head, tail, new = story[:i], story[i:], rng.choice(VOCAB[2:])
        texts += [head + new + tail[1:], head + tail[1:], head + new + tail]
    return texts


def near_misses(story: str) -> list[str]:
    swaps = [("ball", "bell"), ("Nora", "Cora"), ("He ", "She "), (" he ", " she ")]
    swaps += [(" her ", " his "), ("?", "!")]
    swaps += [(new, old) for old, new in swaps]
    return [story.replace(old, new, 1) for old, new in swaps if old in story]


def test_two_judges_agree():
    judges = expressions(STORIES)
    assert len(judges) == 30
    rng = random.Random(0)
    stories = sample(300, seed=2)
    texts = [text for story in stories for text in near_misses(story)]
    for plot in PLOTS:
        texts += spoiled(tell(plot, rng, STORIES), rng)
    verdicts = Counter()
    for text in stories + texts:
        accepted = log_prob(text) > -math.inf
        assert accepted == any(judge.fullmatch(text) for judge in judges), text
        verdicts[accepted] += 1
    assert all(log_prob(story) > -math.inf for story in stories)
    assert verdicts[True] > len(stories) + 5 and verdicts[False] > 2000


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
    assert variance > 1
    assert abs(mean - entropy()) < 4 * math.sqrt(variance / len(surprise))


def test_a_plot_has_one_surprise_and_entropy_is_their_average():
    rng = random.Random(5)
    surprises = [
        {round(-log_prob(tell(plot, rng, STORIES)), 9) for _ in range(20)} for plot in PLOTS
    ]
    assert [len(found) for found in surprises] == [1] * 7
    assert abs(sum(found.pop() for found in surprises) / 7 - entropy()) < 1e-8


def test_the_world_is_the_one_that_the_bundled_model_learned():
    assert count() == 1_945_700_352
    assert abs(entropy() - 18.954569152047) < 1e-9
    told = "\n".join(sample(1000, seed=0))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "cb8d57f574599bd4"


def beginnings(parts: tuple, bound: dict, grammar: Grammar, length: int) -> set[str]:
    """All that ``parts`` can write in the next ``length`` characters."""
    if not parts or length <= 0:
        return {""}
    return {
        text[:length] + tail
        for new, text, drawn in options(parts[0], grammar, bound)
        for tail in beginnings(new + parts[1:], bound | drawn, grammar, length - len(text))
    }


def partings(grammar: Grammar) -> list[list[set[str]]]:
    """For each choice that a story makes: the beginnings that follow each of its options."""
    found = [[(parts_of(plot), {}) for plot in grammar.plots]]
    for parts in map(parts_of, grammar.plots):
        seen = set()
        for i, part in enumerate(parts):
            mentions = set(re.findall(r"\{(\w+)", part))
            assert part[0] != "[" or mentions <= seen, f"a first mention in the choice {part}"
            if part[0] == "[":
                found.append([(parts_of(c) + parts[i + 1 :], {}) for c in alternatives(part)])
            for variable in mentions - seen:
                found.append([(parts[i:], {variable: w}) for w in grammar.variables[variable]])
            seen |= mentions
    return [[beginnings(*start, grammar, 16) for start in starts] for starts in found]


def unclear_beginnings(grammar: Grammar) -> set[str]:
    """Beginnings that do not tell which option was taken."""
    unclear = set()
    for followers in partings(grammar):
        for one, other in itertools.permutations(followers, 2):
            starts = {text[:n] for text in other for n in range(len(text) + 1)}
            unclear |= one & starts
    return unclear


def test_one_text_has_one_way_to_be_told():
    mentions = [set(re.findall(r"\{(\w+)", plot)) for plot in PLOTS]
    choices = sum(plot.count("[") for plot in PLOTS)
    assert len(partings(STORIES)) == 1 + choices + sum(map(len, mentions))
    assert unclear_beginnings(STORIES) == unclear_beginnings(TINY) == set()
    assert unclear_beginnings(AMBIGUOUS) == {"abc"}
    # This one has one way for each text, but `a` ends before it differs, so we cannot prove it.
    assert unclear_beginnings(Grammar(("[a|ab]",), {})) == {"a"}


def longest_filling(skeleton: str, grammar: Grammar) -> str:
    mentions = re.findall(r"\{(\w+)\.?(\w*)\}", skeleton)
    for variable in {variable for variable, _ in mentions}:
        forms = [form for v, form in mentions if v == variable]
        known = grammar.variables[variable]
        longest = max(known, key=lambda word: sum(len(word[form]) for form in forms))
        for form in forms:
            field = f"{{{variable}.{form}}}" if form else f"{{{variable}}}"
            skeleton = skeleton.replace(field, longest[form])
    return skeleton


def test_every_story_fits_into_a_window():
    longest = [longest_filling(skeleton, STORIES) for skeleton, _, _ in skeletons()]
    assert max(map(len, longest)) == 153 < MAX_LENGTH
    assert all(log_prob(story) > -math.inf for story in longest[::7])
    for grammar in (TINY, SMALL):  # where we can look at every story
        filled = [longest_filling(skeleton, grammar) for skeleton, _, _ in skeletons(grammar)]
        assert max(map(len, filled)) == max(map(len, every_story(grammar)))


def test_only_he_and_she_move_what_follows():
    for variable, known in VARIABLES.items():
        for form in known[0]:
            lengths = {len(word[form]) for word in known}
            assert lengths == ({2, 3} if form in ("he", "He") else {len(known[0][form])}), variable
    for choice in re.findall(r"\[(.*?)\]", "".join(PLOTS)):
        assert len({len(text.replace("{hero}", "Lily")) for text in choice.split("|")}) == 1, choice
    assert len({len(story) for story in sample(500, seed=6)}) == 10


def test_every_character_of_the_world_has_a_token():
    texts = [
        *PLOTS,
        *(t for known in STORIES.variables.values() for w in known for t in w.values()),
    ]
    assert not set("".join(texts)) - set(VOCAB)


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
