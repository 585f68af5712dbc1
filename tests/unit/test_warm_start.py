"""Warm start: what is taken over, what starts fresh, and what is refused."""

import re

import pytest
import torch

from ddlm_core.apps.warm_start import warm_start
from ddlm_core.block_pipeline import load_network
from ddlm_core.blocks import make_config, make_network
from ddlm_core.config import DiscreteDiffusionConfig
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.support.errors import UserError

SIZES = {"block_size": 12, "n_layer": 3, "n_head": 2, "n_embd": 8, "cond_dim": 4}
OLD = ("<UNK>", "<PAD>", *"abcd")


@pytest.fixture
def source(tiny_network, tmp_path):
    """A function that saves a network of random weights; the folder."""

    def save(**changes):
        network = tiny_network(**SIZES | {"vocab": OLD, "step": 1234} | changes)
        DiffusionPipeline(network, "cpu").save_pretrained(tmp_path / "old")
        return tmp_path / "old"

    return save


def fresh(**changes) -> DiscreteDiffusionTransformer:
    torch.manual_seed(1)
    return DiscreteDiffusionTransformer(DiscreteDiffusionConfig(**SIZES | {"vocab": OLD} | changes))


def test_the_same_network_takes_over_everything(source):
    folder, network = source(), fresh(dropout=0.1, sigma_max=10.0, padded=True)
    said = warm_start(network, folder)
    tensors = len(network.state_dict())
    assert said == f"weights of {folder} (step 1,234): {tensors} tensors, " + (
        "rows of the 6 tokens that both vocabularies have"
    )
    old = DiffusionPipeline.from_pretrained(folder, device="cpu").model.state_dict()
    assert all(torch.equal(weight, old[name]) for name, weight in network.state_dict().items())
    assert network.config.step == 0 and network.config.dropout == 0.1
    assert network.training and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("old", [{}, {"block_length": 4}])
@pytest.mark.parametrize("new", [{}, {"block_length": 3}])
def test_from_windows_to_blocks_and_back(source, old, new):
    folder, network = source(**old), make_network(make_config(**SIZES | {"vocab": OLD} | new))
    assert "tensors" in warm_start(network, folder)
    weights = load_network(folder).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in network.state_dict().items())


def test_shared_characters_keep_their_rows_wherever_they_stand(source):
    vocab = ("<UNK>", "<PAD>", *"xdayb")
    folder, network, before = source(), fresh(vocab=vocab), fresh(vocab=vocab).state_dict()
    said = warm_start(network, str(folder))
    assert "rows of the 5 tokens that both" in said
    assert said.endswith("have, 2 tokens start fresh, 1 of the source are not used")
    old, new = DiffusionPipeline.from_pretrained(folder, device="cpu").model, network.state_dict()
    for name in ("embedding.weight", "head.weight", "head.bias"):
        for i, token in enumerate(vocab):
            taken = old.state_dict()[name][OLD.index(token)] if token in OLD else before[name][i]
            assert torch.equal(new[name][i], taken)
    assert torch.equal(
        new["blocks.0.modulation.linear.weight"], old.blocks[0].modulation.linear.weight
    )


@pytest.mark.parametrize(
    ("length", "words"),
    [(20, "positions 13 to 20 start fresh"), (7, "positions after 7 are not used")],
)
def test_windows_of_another_length(source, length, words):
    folder, network = source(), fresh(block_size=length)
    assert warm_start(network, folder).endswith(words)
    old = DiffusionPipeline.from_pretrained(folder, device="cpu").model.position_embedding
    both = min(length, 12)
    assert torch.equal(network.position_embedding[:both], old[:both])
    assert not network.position_embedding[both:].any()


def test_a_mask_is_a_token_like_the_others(source):
    folder, network = source(graph="absorbing"), fresh(graph="absorbing", vocab=OLD[:4])
    assert "rows of the 5 tokens" in warm_start(network, folder)
    old = DiffusionPipeline.from_pretrained(folder, device="cpu").model
    assert torch.equal(network.head.weight[-1], old.head.weight[-1])


def test_a_network_of_another_shape_is_refused_as_it_was(source):
    folder = source(bias=True)
    for changes, words in (
        ({}, "this network has bias=false; ask for model.bias=true"),
        (
            {"bias": True, "n_embd": 16, "n_head": 4},
            "has n_head=4, n_embd=16; ask for model.n_head=2 model.n_embd=8",
        ),
        (
            {"bias": True, "graph": "absorbing"},
            "has graph=absorbing; ask for +model.graph=uniform",
        ),
    ):
        network, before = fresh(**changes), fresh(**changes).state_dict()
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            warm_start(network, folder)
        assert str(caught.value).startswith(f"cannot start from {folder}: ")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(w, before[name]) for name, w in network.state_dict().items())
    with pytest.raises(UserError, match="no model 'nothing'"):
        warm_start(fresh(), "nothing")
