# Generated from notebooks/A_absorbing.py by tools/export.py: edit that, then run `make export`.

import torch

from ddlm_core.graph import UNIFORM
from ddlm_core.noise import transition_matrix


def test_two_factors_of_the_uniform_step_are_the_kernel():
    q, x_t = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64), torch.tensor([[1]])
    earlier, later, step = (transition_matrix(noise, 3) for noise in (0.7, 1.2, 0.5))
    was, became = UNIFORM.marginal(q.log(), x_t, 0.7), UNIFORM.likelihood(x_t, 0.5, 3)
    torch.testing.assert_close(was, q @ earlier)
    torch.testing.assert_close(became[0, 0].double(), step[:, 1], rtol=1e-6, atol=0)
    torch.testing.assert_close((was * became).sum(-1)[0], (q @ later)[0, :, 1], rtol=1e-6, atol=0)
