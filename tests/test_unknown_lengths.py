# Generated from notebooks/11_blocks.py by tools/export.py: edit that, then run `make export`.

import torch

from ddlm_core.noise import GeometricNoise
from ddlm_core.tiny_world import TinyWorld
from ddlm_core.unknown_lengths import choose_length


def test_lengths_come_as_often_as_the_language_has_them():
    probs = torch.rand(3, 3, 3, 3, generator=torch.Generator().manual_seed(4)).double() ** 2
    world = TinyWorld(probs / probs.sum())  # letters 0 and 2, 1 is <PAD>
    templates = [  # 0, a blank of one or two letters, 2, and the end
        (torch.tensor([0, 1, 2, 1]), torch.tensor([True, False, True, True])),
        (torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, False, True])),
    ]
    fits = torch.stack([(world.words == t)[:, m].all(1) for t, m in templates])  # (2, W)
    exact = (fits * world.probs).sum(1)  # of what is given, whatever fills the blank
    choices = [
        choose_length(world, GeometricNoise(), templates, seed=s, levels=0) for s in range(300)
    ]
    torch.testing.assert_close(choices[0].probabilities, exact / exact.sum(), rtol=1e-5, atol=0)
    often = sum(choice.chosen for choice in choices) / len(choices)
    assert abs(often - exact[1] / exact.sum()) < 0.1  # 3.5 standard deviations
    texts = (fits * world.probs**2).sum(1) / exact  # how probable a text is, if a length is filled
    assert (texts / texts.sum() - exact / exact.sum()).abs().max() > 0.1  # not the same
