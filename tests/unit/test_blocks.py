"""The block network, as engineering: limits, the ends of a window, precision, saving."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from ddlm_core.block_pipeline import load_network
from ddlm_core.blocks import (
    BlockDiffusionConfig,
    BlockDiffusionTransformer,
    block_masks,
    make_config,
    make_network,
)
from ddlm_core.bound import _reconstruction
from ddlm_core.evaluation import estimate_bound
from ddlm_core.graph import UNIFORM
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.objective import TrainingLoss, in_context
from ddlm_core.pipeline import DiffusionPipeline, load_model
from ddlm_core.support.errors import UserError
from ddlm_core.testing import randomize

SIZES = {"block_size": 12, "n_layer": 5, "n_head": 2, "n_embd": 16, "cond_dim": 8}


def network(block_length: int = 4, **changes) -> BlockDiffusionTransformer:
    made = make_network(make_config(**SIZES | {"block_length": block_length} | changes))
    return randomize(made).double().eval()


def tokens(rows: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(106, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_length": 0}, "block_length must be a whole number, at least 1"),
        ({"block_length": 13}, "block_length must be at most block_size = 12, got 13"),
        ({"block_length": 4, "parametrization": "score"}, "parametrization denoiser"),
    ],
)
def test_what_no_block_network_can_be(changes, reason):
    with pytest.raises(UserError, match=reason):
        make_config(**SIZES | changes)


def test_the_configuration_says_which_network():
    plain, blocks = make_config(**SIZES), make_config(**SIZES, block_length=4)
    assert type(make_network(plain)) is DiscreteDiffusionTransformer
    assert type(make_network(blocks)) is BlockDiffusionTransformer
    assert make_network(plain).state_dict().keys() == make_network(blocks).state_dict().keys()


def test_masks_by_hand():
    clean, before, behind = block_masks(torch.arange(3, 6), 4, 3)  # the second block of three
    assert clean.tolist() == [[True] * 4] * 3  # 4 states: three read letters and the place itself
    assert before.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert behind.tolist() == [[True, True, True], [False, True, True], [False, False, True]]
    clean, before, _ = block_masks(torch.arange(6), 4, 3)
    assert not clean[:3].any() and clean[3:].all()  # the first block has no past
    assert not before[3:, :3].any()


@pytest.mark.parametrize("block_length", [1, 3, 4, 5, 12])  # 5: the last block is shorter
def test_block_by_block_or_all_at_once(block_length):
    model, x_0, x_t, noise = network(block_length), tokens(), tokens(seed=1), torch.ones(2).double()
    whole = model.given(x_0).denoise(x_t, noise)
    for start in range(0, 12, block_length):
        end = min(start + block_length, 12)
        part = model.after(x_0[:, :start]).denoise(x_t[:, start:end], noise)
        assert (part - whole[:, start:end]).abs().max() < 1e-6  # angles are in float32


def test_stacks_share_the_merge_stack_with_denoise():
    model, x_0 = network(), tokens()
    view, noise = model.given(x_0), torch.ones(2).double()
    stacks = view.denoise_stacks(x_0, noise)
    assert stacks.shape == (3, 2, 12, 106)
    assert torch.equal(stacks[0], view.denoise(x_0, noise))
    assert not torch.allclose(stacks[1], stacks[2])


def test_scores_follow_from_the_denoiser():
    view, x_t, noise = network().given(tokens()), tokens(seed=1), torch.tensor([0.3, 2.0]).double()
    log_score = view(x_t, noise)
    assert torch.equal(log_score.gather(-1, x_t[..., None]), torch.zeros(2, 12, 1).double())
    expected = view.graph.log_score(view.denoise(x_t, noise), noise, x_t)
    assert torch.equal(log_score, expected)


def test_a_given_token_is_marked_in_its_block_alone():
    model, x_0, noise = network(), tokens(), torch.ones(2).double()
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 5] = True
    plain, marked = (model.given(x_0).denoise(x_0, noise, m) for m in (None, mask))
    changed = (plain != marked).any(-1).any(0)
    assert changed.tolist() == [4 <= i < 8 and i != 5 for i in range(12)]


def test_a_single_letter_block_does_not_hear_the_noise():
    view, x = network(1).given(tokens()), tokens()
    a, b = (view.denoise(x, torch.full((2,), level).double()) for level in (0.01, 5.0))
    assert torch.equal(a, b)
    assert not torch.equal(
        *(network(4).given(x).denoise(x, torch.full((2,), n).double()) for n in (0.01, 5.0))
    )


def test_without_a_past_it_takes_one_block():
    model, noise = network(), torch.ones(2).double()
    first = model.denoise(tokens(length=4), noise)
    assert torch.equal(first, model.after(tokens()[:, :0]).denoise(tokens(length=4), noise))
    with pytest.raises(UserError, match="given"):
        model.denoise(tokens(), noise)


def test_bad_tokens_are_told():
    view = network().given(tokens())
    with pytest.raises(UserError, match="int64"):
        view.denoise(tokens().float(), torch.ones(2))
    with pytest.raises(UserError, match="sigma_bar"):
        view.denoise(tokens(), torch.ones(3))


def test_training_and_bound_hand_over_the_clean_text():
    model, x_0 = network().float(), tokens(8)
    assert in_context(model, x_0).network is model
    drawn = (
        x_0,
        tokens(8, seed=1),
        torch.zeros(8, 12, dtype=torch.bool),
        torch.ones(8),
        torch.ones(8),
    )
    loss = TrainingLoss(model, "cross_entropy", 0.3)(*drawn)
    log_q = model.given(x_0).denoise_stacks(drawn[1], drawn[3])
    nats = -log_q.gather(-1, x_0.expand(3, 8, 12)[..., None]).mean((1, 2, 3))
    assert torch.isclose(loss, nats[0] + 0.3 * (nats[1] + nats[2]))
    assert torch.isfinite(estimate_bound(model, x_0, 2).mean * torch.ones(()))


def test_the_bound_pairs_each_noisy_window_with_its_clean_one():
    """Windows that noise has made one must be judged each after its own clean text."""

    class Reader:  # says, with 0.9, what the clean text that it was given says
        config = SimpleNamespace(vocab_size=2)

        def given(self, x_0):
            log_q = torch.where(torch.nn.functional.one_hot(x_0, 2) > 0, 0.9, 0.1).log()
            return SimpleNamespace(denoise=lambda x_t, sigma_bar: log_q, config=self.config)

        denoise = None  # it has one, after reading

    x_0, noise = torch.tensor([[0], [1]] * 200), torch.tensor([5.0])
    found = _reconstruction(Reader(), x_0, noise, torch.Generator().manual_seed(0))
    log_q = torch.tensor([[[0.9, 0.1]]]).log()
    alone = UNIFORM.expected_reconstruction(log_q, noise[0], torch.tensor([[0]])).mean()
    assert torch.isclose(found, alone, atol=1e-6)


@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_few_layers(n_layer):
    model, x_0 = network(n_layer=n_layer), tokens()
    assert model.given(x_0).denoise(x_0, torch.ones(2).double()).shape == (2, 12, 106)


def test_a_folder_says_which_network_it_holds(tmp_path):
    model = network().float()
    model.save_pretrained(tmp_path, config=asdict(model.config))
    found = load_network(tmp_path)
    assert isinstance(found.config, BlockDiffusionConfig) and found.config.block_length == 4
    x_0, noise = tokens(), torch.ones(2)
    a, b = (m.given(x_0).denoise(x_0, noise) for m in (model, found))
    assert torch.equal(a, b)
    with pytest.raises(UserError, match="block_length.*BlockPipeline"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="BlockPipeline"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_gradients_reach_every_weight():
    model, x_0 = network().train(), tokens()
    model.given(x_0).denoise(x_0, torch.ones(2).double()).square().sum().backward()
    still = [
        name
        for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    assert still == ["condition_embedding"]  # no token is given


def test_checkpointing_saves_memory_and_changes_nothing():
    model, x_0, grads = network().train(), tokens(), []
    for value in (False, True):
        model.gradient_checkpointing = value
        model.zero_grad()
        model.given(x_0).denoise(x_0, torch.ones(2).double()).square().sum().backward()
        grads.append(model.embedding.weight.grad.clone())
    torch.testing.assert_close(*grads)
