# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.

import pytest
import torch

from ddlm_core.blocks import make_config, make_network
from ddlm_core.bound import window_nats

SMALL = {"block_size": 6, "n_layer": 6, "n_head": 2, "n_embd": 16, "cond_dim": 8}


def random_network(**fields):
    """A network for windows of six letters (``block_size``)."""
    torch.manual_seed(0)
    network = make_network(make_config(**SMALL, **fields)).double().eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network


def test_one_block_is_the_network_of_chapter_6():
    sedd, blocks = random_network(), random_network(block_length=6)
    x_t, sigma_bar = torch.randint(106, (3, 6)), torch.tensor([0.01, 0.5, 3.0]).double()
    difference = sedd.denoise(x_t, sigma_bar) - blocks.given(x_t).denoise(x_t, sigma_bar)
    assert difference.abs().max() < 1e-12


def test_blocks_of_one_are_an_autoregressive_model():
    network = random_network(block_length=1)
    x_0 = torch.randint(106, (1, 6))
    log_q = network.given(x_0).denoise(x_0, torch.ones(1).double())
    exact = -log_q.gather(-1, x_0[..., None]).sum()
    t = torch.linspace(0, 1, 400)  # in place of random noise levels: the trapezoidal rule

    def times(count, noise, generator):
        weight = torch.ones(count)
        weight[[0, -1]] = 0.5
        return t[:count], weight * count / (count - 1)

    nats = window_nats(network, x_0.expand(400, -1), network.config.noise, torch.Generator(), times)
    assert abs(nats.mean() - exact) < 0.005 * exact


@pytest.mark.parametrize("block_length", [1, 2, 4, 6])
def test_each_place_sees_its_block_and_the_past(block_length):
    network = random_network(block_length=block_length)
    x_0, x_t = torch.randint(106, (2, 1, 6))
    clean = network.embedding(x_0).detach().requires_grad_()
    noisy = network.embedding(x_t).detach().requires_grad_()
    # the network embeds the clean row, then the noisy one: it gets our tensors, to differentiate by
    rows = iter([clean[:, : (5 // block_length) * block_length], noisy])
    network.embedding.forward = lambda _: next(rows)
    log_q = network.given(x_0).denoise(x_t, torch.tensor([0.5]).double())
    for i in range(6):
        grads = torch.autograd.grad(
            log_q[0, i, 7], [clean, noisy], retain_graph=True, allow_unused=True
        )
        past, block = [g[0].any(-1).tolist() if g is not None else [False] * 6 for g in grads]
        assert past == [j // block_length < i // block_length for j in range(6)]
        assert block == [j // block_length == i // block_length and j != i for j in range(6)]
