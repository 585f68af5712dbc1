"""Blanks of unknown length: which templates they stand for, what is told when, and the choice."""

import pytest
import torch

from ddlm_core.absorbing import ABSORBING, LogLinearNoise
from ddlm_core.blocks import BlockDiffusionConfig, BlockDiffusionTransformer
from ddlm_core.noise import GeometricNoise
from ddlm_core.sampling_options import encode_template, template_characters
from ddlm_core.support.errors import UserError
from ddlm_core.testing import randomize, small_config, small_network
from ddlm_core.tiny_world import three_letter_world
from ddlm_core.unknown_lengths import (
    LengthChoice,
    aligned_columns,
    choose_length,
    expand_lengths,
    filled,
    free_nats,
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


def network_templates(config, *texts):
    return [encode_template(text, None, config) for text in texts]


@pytest.mark.parametrize("padded", [True, False])
def test_choice_is_repeatable_and_well_formed(padded):
    network = small_network(padded=padded).requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd", "ab____cd")
    assert len({len(tokens) for tokens, _ in templates}) == (1 if padded else 3)
    choices = [
        choose_length(network, NOISE, templates, seed=s, levels=2, num_steps=2) for s in range(30)
    ]
    again = choose_length(network, NOISE, templates, seed=3, levels=2, num_steps=2)
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
    one = choose_length(network, NOISE, templates, seed=1, levels=4, num_steps=2)
    two = choose_length(network, NOISE, templates[::-1], seed=1, levels=4, num_steps=2)
    torch.testing.assert_close(one.log_weights, two.log_weights.flip(0))


def test_temperature_sharpens_and_zero_takes_the_best():
    network = small_network().requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd", "ab____cd")
    plain = choose_length(network, NOISE, templates, levels=2, num_steps=2)
    for temperature in (0.5, 2.0):
        sharp = choose_length(
            network, NOISE, templates, temperature=temperature, levels=2, num_steps=2
        )
        wanted = plain.probabilities ** (1 / temperature)
        torch.testing.assert_close(sharp.probabilities, wanted / wanted.sum())
    for seed in range(5):
        best = choose_length(
            network, NOISE, templates, temperature=0.0, seed=seed, levels=2, num_steps=2
        )
        assert best.chosen == best.log_weights.argmax() and best.probabilities.max() == 1


def test_one_template_costs_nothing():
    network = small_network().requires_grad_(False)
    choice = choose_length(network, NOISE, network_templates(network.config, "ab_c"))
    assert choice.chosen == 0 and choice.evaluations == 0


def test_masks_are_noise_too():
    network = small_network(graph="absorbing").requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd")
    choices = [
        choose_length(network, LogLinearNoise(), templates, seed=s, levels=2, num_steps=2)
        for s in (0, 1)
    ]
    assert network.graph is ABSORBING and choices[0].log_weights.isfinite().all()


def test_what_cannot_work_is_said_in_a_line():
    network = small_network().requires_grad_(False)
    templates = network_templates(network.config, "ab_cd", "ab__cd")
    scores = small_network(parametrization="score").requires_grad_(False)
    for model, given, options, words in (
        (scores, templates, {}, "this model has scores alone"),
        (network, [], {}, "templates must be"),
        (network, templates, {"temperature": -1.0}, "temperature must be"),
        (network, templates, {"levels": 0}, "levels must be"),
    ):
        with pytest.raises(UserError, match=words):
            choose_length(model, NOISE, given, **options)


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
