# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.

import math
import signal

import pytest
import torch

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score, score_entropy_loss
from ddlm_core.noise import GeometricNoise
from ddlm_core.objective import proposal_times
from ddlm_core.support.checkpoints import LATEST
from ddlm_core.testing import same_bits, tiny_trainer


def test_surprise_is_score_entropy_integrated_over_the_own_noise():
    tau = torch.logspace(-7, 1.6, 2001, dtype=torch.float64)
    log_q = torch.tensor([0.05, 0.3, 0.1, 0.2, 0.34, 0.01], dtype=torch.float64).log()
    for clean in range(6):
        x_0, area = torch.full((2001, 1), clean), 0.0
        weights = transition(x_0, tau, 6)[:, 0]  # (2001, 6): chances of the noisy letter
        for seen in range(6):
            x_t = torch.full_like(x_0, seen)
            log_score = denoiser_log_score(log_q.expand(2001, 1, 6), tau, x_t)
            area = area + weights[:, seen] * score_entropy_loss(log_score, tau, x_t, x_0)[:, 0]
        area = torch.trapezoid(area, tau).item()
        assert area == pytest.approx(-log_q[clean].item(), rel=1e-4)


@pytest.mark.parametrize("power", [None, 0.7, 1.0, 2.0])
def test_every_proposal_has_the_same_integral(power):
    noise, generator = GeometricNoise(), torch.Generator().manual_seed(0)
    t, weight = proposal_times(200_000, noise, power, generator=generator)
    assert t.min() >= -1e-6 and t.max() <= 1 + 1e-6
    for g, truth in (
        (lambda t: noise.sigma(t) * torch.exp(-noise.sigma_bar(t)), math.exp(-1e-4)),
        (lambda t: noise.sigma(t) * torch.exp(-3 * noise.sigma_bar(t)), math.exp(-3e-4) / 3),
    ):
        assert abs((weight * g(t)).double().mean().item() - truth) < 2e-3


def test_resume_is_exact(tmp_path):
    """State and losses: the same bits as without the stop, dropout included."""
    whole, second = tiny_trainer(tmp_path / "whole"), tiny_trainer(tmp_path / "halves")
    whole.train()

    def interrupt(result):
        if result.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 6"):
        tiny_trainer(tmp_path / "halves", callbacks=[interrupt]).train()
    second.resume(tmp_path / "halves" / LATEST)
    assert second.step == 6
    second.train()
    assert same_bits(whole.state.state_dict(), second.state.state_dict())
