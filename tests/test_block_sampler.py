# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.

import torch

from ddlm_core.block_sampler import denoising_blocks
from ddlm_core.blocks import BlockView, make_config, make_network
from ddlm_core.sampler import denoising_steps, sample_generators


def test_with_and_without_the_kept_past_the_same_text():
    torch.manual_seed(0)
    sizes = {"block_size": 12, "n_layer": 6, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    network = make_network(make_config(**sizes, block_length=4)).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    how = {"num_steps": 6, "schedule": "cosine", "churn": 1.0}
    *_, last = denoising_blocks(network, 2, 12, generator=sample_generators(0, 2), **how)

    class Forgetful(BlockView):
        def denoise(self, x_t, sigma_bar, condition_mask=None):
            start = int(self.places[0])
            window = torch.zeros(2, 12, dtype=torch.int64)
            window[:, :start], window[:, start : start + 4] = text[:, :start], x_t
            return network.given(window).denoise(window, sigma_bar)[:, start : start + 4]

    text = torch.zeros(2, 0, dtype=torch.int64)
    generators = sample_generators(0, 2)
    for _ in range(3):
        view = network.after(text)
        view = Forgetful(network, view.past, view.places)
        *_, step = denoising_steps(view, network.config.noise, 2, 4, generator=generators, **how)
        text = torch.cat([text, step.tokens], 1)
    assert torch.equal(last.tokens, text)
