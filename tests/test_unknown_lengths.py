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
    choice = choose_length(world, GeometricNoise(), templates, levels=4000)
    torch.testing.assert_close(choice.probabilities, exact / exact.sum(), atol=0.03, rtol=0)
    texts = (fits * world.probs**2).sum(1) / exact  # how probable a text is, if a length is filled
    assert (texts / texts.sum() - exact / exact.sum()).abs().max() > 0.1  # not the same
