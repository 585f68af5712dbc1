"""Blanks of unknown length: which templates they stand for, what is told when, and the choice."""

import math
from types import SimpleNamespace

import pytest
import torch

from ddlm_core.absorbing import ABSORBING, LogLinearNoise
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.graph import UNIFORM
from ddlm_core.noise import GeometricNoise
from ddlm_core.sampling_options import encode_template, template_characters
from ddlm_core.support.errors import UserError
from ddlm_core.testing import randomize, small_config, small_network
from ddlm_core.tiny_world import TinyWorld, three_letter_world
from ddlm_core.tokenizer import PAD_ID
from ddlm_core.unknown_lengths import (
    LengthChoice,
    aligned_columns,
    choose_length,
    common_start,
    expand_lengths,
    filled,
    free_nats,
    race,
    told_at,
    told_letters,
)

NOISE = GeometricNoise()


def mask(signs: str) -> torch.Tensor:
    return torch.tensor([sign != "_" for sign in signs])


def blocks_of(length: int, **changes) -> BlockDiffusionTransformer:
    fields = {"vocab": ("<UNK>", "<PAD>", *"abcdef"), "block_size": 12, "n_layer": 4}
    fields |= {"n_head": 2, "n_embd": 16, "cond_dim": 8, "block_length": length} | changes
    network = BlockDiffusionTransformer(BlockDiffusionConfig(**fields)).double().eval()
    return randomize(network).requires_grad_(False)


def test_ranges_stand_for_templates_in_order():
    assert expand_lengths("a _{2-3} b") == ["a _{2} b", "a _{3} b"]
    assert expand_lengths("_{1-2}_{4-5}.") == [f"_{{{a}}}_{{{b}}}." for a in (1, 2) for b in (4, 5)]
    assert expand_lengths("_{7-7}") == ["_{7}"]
    assert expand_lengths("_{ 2 - 3 }") == ["_{2}", "_{3}"]
    assert len(template_characters(expand_lengths("x_{3-9}_{2}")[-1])) == 12
    assert len(expand_lengths("_{1-64}")) == len(expand_lengths("_{1-8}_{2-9}")) == 64


@pytest.mark.parametrize(
    "plain", ["", "a__b", "_{12}", r"\_{2-3}", "{2-3}", "_{a-b}", "_ {2-3}", "_{0}"]
)
def test_a_template_without_ranges_is_itself(plain):
    assert expand_lengths(plain) == [plain]


def test_escaped_underscore_before_a_range():
    assert expand_lengths(r"\__{2-3}") == [r"\__{2}", r"\__{3}"]
    assert template_characters(r"\__{2}") == ["_", None, None]


@pytest.mark.parametrize("inside", ["", "-", "2-", "-3", "0-3", "0-0", "3-2", "1-2-3", " "])
def test_bad_ranges_say_what_to_write(inside):
    if inside == " ":  # no dash: as chapter 10 reads it
        assert expand_lengths("_{ }") == ["_{ }"]
        return
    with pytest.raises(UserError, match=r"is no range of lengths: write _\{2-9\}") as error:
        expand_lengths(f"so {{}} _{{{inside}}}.")
    assert f"_{{{inside}}} is" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("many", ["_{1-65}", "_{1-8}_{1-9}", "_{1-" + "9" * 5000 + "}"])
def test_too_many_lengths_are_refused_at_once(many):
    with pytest.raises(UserError, match="at most 64 can be compared: narrow a range") as error:
        expand_lengths(many)
    assert len(str(error.value)) < 200


def test_same_letters_share_columns():
    one, two = aligned_columns([mask("ab_c_d"), mask("ab___c_d")])
    assert one.tolist() == [0, 1, 2, 5, 6, 7]
    assert two.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    first, second = aligned_columns([mask("_a"), mask("__a")])
    assert first.tolist() == [0, 2] and second.tolist() == [0, 1, 2]


def test_common_start_is_where_masks_differ_or_end():
    assert common_start([mask("ab_c"), mask("ab__")]) == 3
    assert common_start([mask("a_b_cd"), mask("a_b___cd")]) == 4
    assert common_start([mask("ab_"), mask("ab___")]) == 3
    assert common_start([mask("ab_")]) == 3


def test_letters_are_told_in_order_and_the_end_at_once():
    tokens = torch.tensor([2, 3, 4, *[PAD_ID] * 5])
    given = torch.tensor([True, False, *[True] * 6])
    assert told_at(tokens, given, 8).tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert told_at(tokens, given, 3).tolist() == [0, 1, 2, 0, 1, 1, 0, 0]
    assert told_at(tokens, given, 1).tolist() == [0] * 8
    free = torch.tensor([True] * 7 + [False])  # no end of the text is given
    assert told_at(tokens, free, 8).tolist() == list(range(8))


def test_race_gives_up_what_has_fallen_behind():
    parts = {"best": [-1.0, -1.0, -1.0], "close": [-2.0, -2.0, -2.5], "far": [-20.0, -1.0]}
    left = {name: iter([(p, 2) for p in some]) for name, some in parts.items()}
    sums, taken = race(list(left.values()), behind=5.0)
    assert sums == [-3.0, -6.5, -20.0]
    assert taken == 2 * 7 and next(left["far"]) == (-1.0, 2)  # was not asked again
    assert race([iter([(-math.inf, 1)]), iter([(-math.inf, 1)])], 5.0) == ([-math.inf] * 2, 2)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_letters_told_one_by_one_are_the_chain_rule(rows, monkeypatch):
    monkeypatch.setattr("ddlm_core.unknown_lengths.ROWS", rows)
    world = three_letter_world()
    tokens, pure = torch.tensor([0, 2]), torch.zeros(2, 2, dtype=torch.int64)
    for signs, start, fits in (("ab", 0, [0, 2]), ("a_", 0, [0]), ("_b", 0, [2]), ("ab", 2, [])):
        parts = list(told_letters(world, NOISE, tokens, mask(signs), start, pure))
        where = [i for i, sign in enumerate(signs) if sign != "_" and start == 0]
        p = world.probs[(world.words[:, where] == torch.tensor(fits)).all(1)].sum()
        assert sum(part for part, _ in parts) == pytest.approx(p.log().item(), abs=1e-6)
        assert sum(n for _, n in parts) == len(where)


def test_what_is_not_told_is_pure_noise_and_masked():
    calls = []

    class Spy:
        config = SimpleNamespace(vocab_size=8)

        def denoise(self, x_t, sigma_bar, condition_mask=None):
            calls.append((x_t, sigma_bar, condition_mask))
            return torch.zeros(*x_t.shape, 8).log_softmax(-1)

    pure = torch.arange(16).view(4, 4) % 8
    tokens = torch.tensor([7, 6, 5, 4])
    [(nats, count)] = told_letters(Spy(), NOISE, tokens, mask("ab_d"), 1, pure)
    assert nats == pytest.approx(-2 * math.log(8)) and count == 2
    [(x_t, sigma_bar, told)] = calls
    assert told.tolist() == [[True, False, False, False], [True, True, False, False]]
    assert x_t.tolist() == [[7, 5, 6, 7], [7, 6, 6, 7]]  # rows 1 and 3 of the noise
    assert sigma_bar.tolist() == pytest.approx([NOISE.sigma_max] * 2)


def network_templates(config, *texts):
    return [encode_template(text, None, config) for text in texts]


@pytest.mark.parametrize("padded", [True, False])
def test_choice_is_repeatable_and_well_formed(padded):
    network = small_network(padded=padded).requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd", "ab____cd")
    assert len({len(tokens) for tokens, _ in templates}) == (1 if padded else 3)
    choices = [choose_length(network, NOISE, templates, seed=s, levels=0) for s in range(30)]
    again = choose_length(network, NOISE, templates, seed=3, levels=0)
    assert torch.equal(again.log_weights, choices[3].log_weights)
    assert (again.chosen, again.evaluations) == (choices[3].chosen, choices[3].evaluations)
    assert len({choice.chosen for choice in choices}) > (1 if padded else 0)
    assert len({choice.log_weights[0].item() for choice in choices}) == 30  # fresh noise
    for choice in choices:
        assert isinstance(choice, LengthChoice) and choice.log_weights.dtype == torch.float64
        assert choice.probabilities.sum().item() == pytest.approx(1)
        torch.testing.assert_close(choice.log_weights.softmax(0), choice.probabilities)


def test_order_of_the_templates_changes_nothing():
    network = small_network().requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd", "ab____cd")
    one = choose_length(network, NOISE, templates, seed=1, levels=4)
    two = choose_length(network, NOISE, templates[::-1], seed=1, levels=4)
    torch.testing.assert_close(one.log_weights, two.log_weights.flip(0))


def test_temperature_sharpens_and_zero_takes_the_best():
    network = small_network().requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd", "ab____cd")
    plain = choose_length(network, NOISE, templates, levels=0)
    for temperature in (0.5, 2.0):
        sharp = choose_length(network, NOISE, templates, temperature=temperature, levels=0)
        wanted = plain.probabilities ** (1 / temperature)
        torch.testing.assert_close(sharp.probabilities, wanted / wanted.sum())
    for seed in range(5):
        best = choose_length(network, NOISE, templates, temperature=0.0, seed=seed, levels=0)
        assert best.chosen == best.log_weights.argmax() and best.probabilities.max() == 1


def test_blank_at_the_end_of_unpadded_text_says_nothing():
    network = small_network().requires_grad_(False)
    choice = choose_length(
        network, NOISE, network_templates(network.config, "ab_", "ab__", "ab___")
    )
    torch.testing.assert_close(choice.probabilities, torch.full((3,), 1 / 3).double())
    assert choice.evaluations == 0


def test_one_template_costs_nothing():
    network = small_network().requires_grad_(False)
    choice = choose_length(network, NOISE, network_templates(network.config, "ab_c"))
    assert choice.chosen == 0 and choice.evaluations == 0


def test_impossible_lengths_are_as_good_as_each_other():
    class Denies:
        config = SimpleNamespace(vocab_size=3)

        def denoise(self, x_t, sigma_bar, condition_mask=None):
            return torch.tensor([0.0, -torch.inf, -torch.inf]).expand(*x_t.shape, 3)

    templates = [(torch.tensor([2, 1, 2]), mask("a_b")), (torch.tensor([2, 2, 1]), mask("ab_"))]
    choice = choose_length(Denies(), NOISE, templates)
    assert choice.probabilities.tolist() == [0.5, 0.5]


def test_masks_are_noise_too():
    network = small_network(graph="absorbing").requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd")
    choices = [
        choose_length(network, LogLinearNoise(), templates, seed=s, levels=0) for s in (0, 1)
    ]
    assert network.graph is ABSORBING and choices[0].log_weights.isfinite().all()
    assert torch.equal(*(choice.log_weights for choice in choices))  # there is nothing to draw


def test_what_cannot_work_is_said_in_a_line():
    network = small_network().requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd")
    scores = small_network(parametrization="score").requires_grad_(False)
    for model, given, options, words in (
        (scores, templates, {}, "this model has scores alone"),
        (network, [], {}, "templates must be"),
        (network, templates, {"temperature": -1.0}, "temperature must be"),
        (network, templates, {"levels": -1}, "levels must be"),
    ):
        with pytest.raises(UserError, match=words):
            choose_length(model, NOISE, given, **options)


def test_one_block_is_the_network_of_chapter_6():
    blocks, plain = blocks_of(12), small_network().requires_grad_(False)
    plain.load_state_dict(blocks.state_dict())
    tokens, given = encode_template("ab__cd_e", None, plain.config)
    pure = UNIFORM.sample_prior(8, 8, 8, torch.Generator().manual_seed(0))
    one, two = (
        sum(p for p, _ in told_letters(m, NOISE, tokens, given, 0, pure)) for m in (blocks, plain)
    )
    assert one == pytest.approx(two, rel=1e-9)


def test_blocks_of_one_token_give_the_chain_rule_of_the_whole_text():
    network = blocks_of(1)
    tokens = torch.tensor([2, 5, 3, 3, 7])
    pure = torch.zeros(5, 5, dtype=torch.int64)
    [(nats, count)] = told_letters(network, NOISE, tokens, mask("abcde"), 0, pure)
    log_q = network.given(tokens[None]).denoise(tokens[None], torch.ones(1).double())
    assert nats == pytest.approx(log_q[0, range(5), tokens].sum().item(), rel=1e-6)
    assert count == 1  # of all blocks at once


def test_blanks_are_filled_and_what_is_given_stays():
    for network in (blocks_of(4, padded=True), small_network(padded=True).requires_grad_(False)):
        tokens, given = encode_template("ab_cd__e", None, network.config)
        draws = [filled(network, NOISE, tokens, given, s, num_steps=2) for s in range(5)]
        assert all(torch.equal(text[given], tokens[given]) for text in draws)
        assert len({tuple(text.tolist()) for text in draws}) > 1
        assert torch.equal(filled(network, NOISE, tokens, torch.ones_like(given), 0), tokens)


def test_bounds_of_an_exact_denoiser_are_its_log_probabilities():
    world, column = three_letter_world(), torch.tensor([0, 3])
    for word, signs in (([0, 1], "__"), ([0, 1], "a_"), ([1, 0], "_b")):
        x_0, given = torch.tensor(word), mask(signs)
        same = (world.words == x_0)[:, given].all(1)
        p = world.probs[(world.words == x_0).all(1)].sum() / world.probs[same].sum()
        nats = free_nats(world, NOISE, x_0, given, column, 4000, 0)
        assert nats == pytest.approx(-p.log().item(), abs=0.03)


def test_bounds_choose_as_the_language_does():
    probs = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(4)).double() ** 2
    world = TinyWorld(probs / probs.sum())
    templates = [
        (torch.tensor([0, 1, 2, 1]), mask("a_bc")),
        (torch.tensor([0, 1, 1, 2]), mask("a__b")),
    ]
    told = choose_length(world, NOISE, templates, levels=0)
    bound = choose_length(world, NOISE, templates, levels=4000)
    assert bound.evaluations > told.evaluations
    torch.testing.assert_close(bound.probabilities, told.probabilities, atol=0.03, rtol=0)
    assert not torch.equal(bound.probabilities, told.probabilities)


@pytest.mark.parametrize("length", [1, 4])
def test_block_networks_choose(length):
    network = blocks_of(length, padded=True)
    templates = network_templates(network.config, "a_cdb", "a__cdb")
    one, two = (
        choose_length(network, NOISE, templates, seed=2, levels=4, num_steps=2) for _ in range(2)
    )
    assert torch.equal(one.log_weights, two.log_weights) and one.log_weights.isfinite().all()


def test_small_configuration_is_what_these_tests_think():
    assert small_config().vocab_size == 8 and small_config().block_size == 12
