# Generated from notebooks/08_training.py by tools/export.py: edit that, then run `make export`.
"""Training: objective."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddlm_core.forward import perturb_batch
from ddlm_core.graph import ScoreModel, graph_of
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.noise import NoiseSchedule, resample_probability
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.seeds import derive_seed

__all__ = [
    "masked_mean",
    "in_context",
    "training_loss",
    "TrainingLoss",
    "low_discrepancy_times",
    "proposal_times",
    "compute_loss",
    "draw_condition",
    "NoisyBatch",
    "draw_noise",
    "draw_step",
]


def masked_mean(values: Tensor, condition_mask: Tensor | None = None) -> Tensor:
    """Mean of each row of ``values``, (B, L), where ``condition_mask``, bool (B, L), is false: (B,).

    A row that is given as a whole has the mean 0.
    """
    if condition_mask is None:
        return values.mean(-1)
    free = ~condition_mask
    return values.masked_fill(condition_mask, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


def in_context(model: ScoreModel, x_0: Tensor) -> ScoreModel:
    """The network on windows whose clean text is x_0, (B, L), if it reads that (chapter 11's does)."""
    return model.given(x_0) if hasattr(model, "given") else model


def training_loss(
    model: DiscreteDiffusionTransformer,
    drawn: Sequence[Tensor],
    objective: str = "cross_entropy",
    auxiliary_loss_weight: float = 0.0,
) -> Tensor:
    """The mean loss on a :class:`NoisyBatch`, in nats per token: a scalar.

    With an auxiliary weight w, the cross-entropy of each stack alone is added w times (deep
    supervision, Lee et al. 2015, arXiv:1409.5185).
    """
    x_0, x_t, mask, sigma_bar, weight = drawn
    model = in_context(model, x_0)
    if objective == "score_entropy":
        log_score = model(x_t, sigma_bar, mask)
        losses = weight[:, None] * graph_of(model).loss(log_score, sigma_bar, x_t, x_0)
    elif auxiliary_loss_weight == 0:
        losses = _surprise(model.denoise(x_t, sigma_bar, mask), x_0)
    else:
        merged, left, right = _surprise(model.denoise_stacks(x_t, sigma_bar, mask), x_0)
        losses = merged + auxiliary_loss_weight * (left + right)
    return masked_mean(losses, mask).mean()


def _surprise(log_q: Tensor, x_0: Tensor) -> Tensor:
    """Negative log-likelihood of the clean tokens (B, L) under log q (…, B, L, V): (…, B, L)."""
    return -log_q.gather(-1, x_0.expand(log_q.shape[:-1])[..., None])[..., 0]


class TrainingLoss(nn.Module):
    """:func:`training_loss` of a network as a module: what processes that share the work call."""

    def __init__(
        self,
        model: DiscreteDiffusionTransformer,
        objective: str = "cross_entropy",
        auxiliary_loss_weight: float = 0.0,
    ) -> None:
        super().__init__()
        has_denoiser = model.config.parametrization == "denoiser"
        self.model, self.auxiliary_loss_weight = model, auxiliary_loss_weight
        self.objective = objective if has_denoiser else "score_entropy"

    def forward(self, *drawn: Tensor) -> Tensor:
        """The loss of the tensors of a :class:`NoisyBatch`: a scalar."""
        return training_loss(self.model, drawn, self.objective, self.auxiliary_loss_weight)


def low_discrepancy_times(
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Times, float32 (B,): each uniform in [0, 1), together evenly spread (VDM, Kingma et al. 2021)."""
    where = device if generator is None else generator.device
    offset = torch.rand(1, generator=generator, device=where)
    times = (offset + torch.arange(batch_size, device=where) / batch_size) % 1
    return times if device is None else times.to(device)


def proposal_times(
    batch_size: int,
    noise: NoiseSchedule,
    power: float | None = 1.0,
    sampling_eps: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Times in [sampling_eps, 1] and their importance weights $dt/du$, both float32 (B,).

    The corruption probability is $u^{power}$ in the range of the noise, u low-discrepancy; without
    a power, the times are uniform.
    """
    u = low_discrepancy_times(batch_size, generator).double()
    if power is None:
        width = 1 - sampling_eps
        return (sampling_eps + width * u).float(), torch.full_like(u, width).float()
    u = u.clamp(min=1e-9)
    low, high = resample_probability(noise.sigma_bar(torch.tensor([sampling_eps, 1.0]).double()))
    fraction = low + (high - low) * u**power
    sigma_bar = -torch.log1p(-fraction)
    slope = (high - low) * power * u ** (power - 1) / (1 - fraction)  # dσ/du
    t = noise.time(sigma_bar)
    return t.float(), (slope / noise.sigma(t)).float()


def compute_loss(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    t: Tensor | None = None,
    condition_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
) -> Tensor:
    r"""One-sample estimate of the diffusion part of the bound, in nats per character: (B,).

    $\sigma(t)\,\ell$ at one time and one corruption, averaged over positions (SEDD sums over them);
    unbiased for $\tfrac1L\int_0^1\sigma(t)\,\mathbb E \sum_i \ell_i\,dt$ if t, (B,), is uniform.
    ``condition_mask``, bool (B, L), is true where a token of ``x_0``, int64 (B, L), is given: neither
    corrupted nor counted. The model is handed it only if there is one. Other shapes raise a ValueError.
    """
    vocab_size = vocab_size or model.config.vocab_size
    if t is None:
        t = low_discrepancy_times(len(x_0), generator, x_0.device)
    (sigma_bar, sigma), graph = noise(t), graph_of(model)
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, condition_mask, generator, graph.sample_prior)
    given = () if condition_mask is None else (condition_mask,)
    losses = graph.loss(model(x_t, sigma_bar, *given), sigma_bar, x_t, x_0)  # (B, L)
    return sigma * masked_mean(losses, condition_mask)


def draw_condition(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """The condition mask, bool (B, L), true = given: spans between four cuts, in a ``share`` of the rows."""
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


class NoisyBatch(NamedTuple):
    """Windows with all that is random in a step on them."""

    x_0: Tensor  # int64 (B, L)
    x_t: Tensor  # int64 (B, L)
    condition_mask: Tensor  # bool (B, L), true = given
    sigma_bar: Tensor  # float32 (B,)
    weight: Tensor  # float32 (B,), σ(t) dt/du


def draw_noise(
    x_0: Tensor,
    config: TrainingConfig,
    model: DiscreteDiffusionTransformer,
    generator: torch.Generator,
) -> NoisyBatch:
    """Draw all that is random in a step on windows x_0, int64 (B, L), by the noise of the network."""
    noise, graph = model.config.noise, graph_of(model)
    t, weight = proposal_times(len(x_0), noise, config.noise_power, config.sampling_eps, generator)
    sigma_bar, sigma = noise(t)
    mask = draw_condition(tuple(x_0.shape), config.condition_share, generator)
    vocab_size = model.config.vocab_size
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, mask, generator, graph.sample_prior)
    return NoisyBatch(x_0, x_t, mask, sigma_bar, weight * sigma)


def draw_step(
    x_0: Tensor,
    config: TrainingConfig,
    model: DiscreteDiffusionTransformer,
    step: int,
    process: int = 0,
) -> NoisyBatch:
    """The noise of a step on windows x_0, the same in every process; it also seeds the dropout."""
    torch.manual_seed(derive_seed(config.seed, "dropout", step, process))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "noise", step))
    return draw_noise(x_0.long(), config, model, generator)
