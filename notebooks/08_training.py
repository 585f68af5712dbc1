# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training
#
# *About 55 minutes. You need: chapters [5](05_loss.ipynb), [6](06_model.ipynb) and [7](07_sampler.ipynb), and gradient
# descent by name. You will have: a network that you trained on a CPU in minutes, every choice in its recipe explained,
# and a run that can be stopped and resumed without changing a bit.*
#
# **We have** a loss that means something, a network, and a sampler.
#
# **We want** weights: text goes in, a model comes out.
#
# **Why**: everything so far was exact for any network. Only now does the network learn what a story is.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio pytest"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## Cross-entropy, and what it has to do with score entropy
#
# [SEDD](https://arxiv.org/abs/2310.16834) trains on the integrand of the bound of [chapter 5](05_loss.ipynb): score
# entropy, times $\sigma(t)$. We can do that too (`objective="score_entropy"`), but it learns slowly. At low noise almost
# every letter is unchanged and costs almost nothing, while a few carry a very large loss: the gradient of a batch is mostly
# luck.
#
# Our network allows something else. It is *hollow*: its denoising distribution $q$ does not depend on a position's own noisy
# letter ([chapter 6](06_model.ipynb)). So we can ask it for the clean letter at *every* position, and nothing can be copied.
# The loss is the *cross-entropy* $-\log q_{x_0}$, the negative log-likelihood (or surprisal) of the clean letter, the loss
# of every language model. After a minute on TinyStories it is ahead by 0.4 bits per character (see "Which choices pay?").
#
# Have we given up score entropy? No: cross-entropy *is* score entropy, added up over noise that nobody has to draw.
#
# **By hand.** The alphabet is `a b`, the clean letter is `a`, and from the other letters the network concludes $q =
# (\tfrac34, \tfrac14)$. Add noise to *this letter alone*, by an amount $\tau$ of its own. The other letters stay as they are, so
# $q$ stays, too. The noisy letter has the distribution $p_\tau$, which starts at $(1, 0)$. Had the clean letter been drawn from $q$, the
# noisy one would have the distribution $r_\tau$, which starts at $q$. Both end at $(\tfrac12, \tfrac12)$. How far apart are
# they on the way?

# %%
import torch

from ddlm_core.noise import transition_matrix

q = torch.tensor([0.75, 0.25], dtype=torch.float64)
for tau in (0.0, 0.1, 0.5, 1.0, 5.0):
    p_tau, r_tau = transition_matrix(tau, 2)[0], q @ transition_matrix(tau, 2)
    print(f"own noise {tau}:  KL = {torch.xlogy(p_tau, p_tau / r_tau).sum():.4f}")

# %% [markdown]
# The divergence starts at $-\log\tfrac34 = 0.2877$, the cross-entropy, and falls to 0. We now show that it falls at the speed
# of the score entropy.
#
# **In general.** At noise $\tau$ write $a = p(y)/p(x)$ and $s = r(y)/r(x)$ for two letters $x$ and $y$, leaving out the index $\tau$. The
# first is the true ratio of chapter 5, given $x_0$; the second is our score, because $r(x) \propto 1+\kappa q_x$ with the
# $\kappa = V/(e^\tau-1)$ of chapter 5.
# With the rates $1/V$ of [chapter 3](03_noise.ipynb), $\dot p(x) = \tfrac1V\sum_y\big(p(y) - p(x)\big)$, and the same
# for $r$. Since $\sum_x\dot p(x) = 0$,
#
# $$ \begin{aligned} \frac{d}{d\tau}\sum_x p(x)\log\frac{p(x)}{r(x)}
#  &= \sum_x \Big[\dot p(x)\log\frac{p(x)}{r(x)} - \frac{p(x)}{r(x)}\,\dot r(x)\Big] \\
#  &= \frac1V\sum_{x,y} \Big[\big(p(y)-p(x)\big)\log\frac{p(x)}{r(x)} - \frac{p(x)}{r(x)}\,\big(r(y)-r(x)\big)\Big] \\
#  &= \frac1V\sum_{x,y} p(x)\,\big[\log a - \log s - s + 1\big]. \end{aligned} $$
#
# The last line swaps the names $x$ and $y$ in the term with $p(y)$, which does not change the sum. So every term has a
# factor $p(x)$.
#
# Swap names once more, where it helps. The swap turns $a$ and $s$ into $1/a$ and $1/s$, and $p(y) = p(x)\,a$. So
# $\sum p(x)\,(\log a - \log s) = -\sum p(x)\,a\,(\log a - \log s)$, and $\sum p(x) = \sum p(x)\,a$. Substitute both, and
# the bracket becomes minus the score entropy:
#
# $$ -\frac{d}{d\tau}\,KL(p_\tau\,\|\,r_\tau) = \mathbb E_{x\sim p_\tau}\,\frac1V\sum_y \big[s - a\log s + a(\log a - 1)\big]
#  = \mathbb E\,\ell_\tau. $$
#
# Add up over all $\tau$: the divergence falls from $-\log q_{x_0}$ to 0, so $\int_0^\infty \mathbb E\,\ell_\tau\,d\tau = -\log q_{x_0}$.
#
# **The cross-entropy at the clean letter is score entropy, integrated over the noise of that letter.** A check: some $q$ over
# six letters, and the area under the score entropy on a fine grid of noise.

# %% tags=["test"]
import pytest

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score, score_entropy_loss


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


test_surprise_is_score_entropy_integrated_over_the_own_noise()

# %% [markdown]
# **What is the same, and what is not?** In the bound, all letters share one noise level. Here the letter in question runs
# through every level, while the others keep theirs. The optimum is the same: $q$ is the probability of the clean letter given
# the *other* noisy letters, at every noise level. But two imperfect networks may be ranked differently. So we **train on the
# cross-entropy and report the bound**. A second difference: the bound gives each noise level a weight. The cross-entropy has
# none, so a level counts in proportion to how often it is drawn.
#
# **An auxiliary loss.** The left-to-right stack and the right-to-left stack can each be asked alone, through the same head.
# `auxiliary_loss_weight` adds their cross-entropies with that weight, which is called *deep supervision*
# ([Lee et al. 2015](https://arxiv.org/abs/1409.5185)). This chapter uses 0; the preset `pocket`, of the bundled model, uses
# 0.3, untuned. On the stories of chapter 2, 1,000 steps ended at 39.3 nats per story with it,
# and at 42.8 without (one run each). With it the logged loss starts at $1.6\cdot4.66 = 7.46$.
#
# In the code, `drawn` holds the clean windows, the noisy ones, the positions that are given (below), the noise level, and
# the weight for score entropy.

# %% tags=["export:objective", "hide-input"]
from typing import Any

import torch
from torch import Tensor

from ddlm_core.graph import ScoreModel, graph_of
from ddlm_core.model import DiscreteDiffusionTransformer


def masked_mean(values: Tensor, condition_mask: Tensor | None = None) -> Tensor:
    """Mean of each row of ``values``, (B, L), where ``condition_mask``, bool (B, L), is false: (B,).

    A row that is given as a whole has the mean 0.
    """
    if condition_mask is None:
        return values.mean(-1)
    free = ~condition_mask
    return values.masked_fill(condition_mask, 0.0).sum(-1) / free.sum(-1).clamp(min=1)


def in_context(model: Any, x_0: Tensor) -> Any:
    """The network on windows whose clean text is x_0, (B, L), if it reads that (chapter 11's does)."""
    return model.given(x_0) if hasattr(model, "given") else model


# %% tags=["export:objective"]
from collections.abc import Sequence

from torch import nn

from ddlm_core.model import DiscreteDiffusionTransformer


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


# %% tags=["export:objective", "hide-input"]
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


# %% [markdown]
# `TrainingLoss`, folded, is the same as a module. For a network without $q$, which outputs scores, it takes score entropy.
#
# ## Which noise levels
#
# The bound is an integral over $t$. We estimate it from one time and one noisy text for each text: an unbiased one-sample
# *Monte Carlo estimate*. Two tools make it less noisy.
#
# **Stratified samples.** Independent times cluster by chance. *Low-discrepancy* times share one random offset $v$ in a
# batch of $B$: $t_b = (v + b/B) \bmod 1$. Each is uniform, and together they cover $[0, 1)$ evenly ([Variational
# Diffusion Models](https://arxiv.org/abs/2107.00630)). With $B = 4$ and $v = 0.3$ they are 0.3, 0.55, 0.8 and 0.05.
#
# **Importance sampling.** With uniform times more than a third of the samples land on text that is almost clean, where there is
# almost nothing to learn. By hand: a function $g(t)$ is 0 in the first half of $[0, 1]$ and 2 in the second.
# Its integral is 1. A uniform $t$ shows us 0 or 2: right on average, and always wrong by 1. Look only at the second
# half, and count each sample with the *importance weight* $\tfrac12$, the length that it stands for: we see
# $\tfrac12 \cdot 2 = 1$ every time.
#
# In general, draw $u$ uniformly and let a rising function $t(u)$ say where to look, the *proposal*. By substitution
#
# $$ \int_0^1 g(t)\,dt = \int_0^1 g(t(u))\,\frac{dt}{du}\,du = \mathbb E_u\Big[g(t(u))\,\frac{dt}{du}\Big]. $$
#
# With the weight $dt/du$ the mean is the same for every proposal. Only the standard deviation changes.
# We choose the corruption probability $f = 1 - e^{-\bar\sigma}$ as a power of $u$, in the range that the noise reaches:
# $f = f_0 + (f_1 - f_0)\,u^{\rho}$, with $\rho$ = `noise_power`. For $\rho = 1$ it is uniform. The chain rule gives the
# weight:
#
# $$ \frac{dt}{du} = \frac{dt}{d\bar\sigma}\cdot\frac{d\bar\sigma}{df}\cdot\frac{df}{du}
# = \frac{1}{\sigma(t)} \cdot \frac{1}{1-f} \cdot (f_1 - f_0)\,\rho\,u^{\rho-1}. $$
#
# The bound and score entropy carry this weight. The cross-entropy takes the times and drops the weight.


# %% tags=["export:objective", "hide-input"]
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


# %% tags=["export:objective"]
from ddlm_core.noise import NoiseSchedule, resample_probability


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


# %% tags=["test"]
import math

from ddlm_core.noise import GeometricNoise


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


for power in (None, 0.7, 1.0, 2.0):
    test_every_proposal_has_the_same_integral(power)

# %% [markdown]
# The test integrates two functions with known integrals under four proposals. The figure shows 64 samples of three of them.
# Uniform times crowd at both ends: on the left hardly a character is corrupted (38 % of them lie below 1 %, see exercise
# 1), on the right hardly one is intact. Power 1 spreads them evenly.

# %% tags=["hide-input"]
# alt: Three rows of 64 ticks over the corruption probability. Uniform times crowd at 0 and 1, power 2 leans
#  toward 0, power 1 is even.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
noise = GeometricNoise()
for row, power in enumerate((None, 2.0, 1.0)):
    t, _ = proposal_times(64, noise, power, generator=torch.Generator().manual_seed(0))
    plt.plot(resample_probability(noise.sigma_bar(t)), [row] * 64, "|", markersize=18)
plt.yticks(range(3), ["uniform in t", "power 2", "power 1"])
plt.ylim(-0.7, 2.7)
plt.xlabel("corruption probability")
plt.show()

# %% [markdown]
# `compute_loss` is the estimate of the bound's integral at such a time. It corrupts the text once, and returns
# $\sigma(t)$ times the score entropy, as a mean over the positions that are not given.

# %% tags=["export:objective"]
from ddlm_core.forward import perturb_batch


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


# %% [markdown]
# ## Training to fill in blanks
#
# The sampler can keep given characters and write the rest, *infilling*. There the network sees letters that it can trust
# whatever the noise. So in a share of the windows (`condition_share`, a tenth) random spans stay clean. The network is
# told so by the `condition_mask` of chapters 4 to 6, and they are not counted in the loss. Four random cuts divide the
# window; its spans are given and hidden in turn.
#
# By hand: a window of 10 with cuts at 2, 5, 7 and 7, which begins with a given span: `GG···GGGGG`. Between 7 and 7 there is
# nothing.


# %% tags=["export:objective"]
def draw_condition(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """The condition mask, bool (B, L), true = given: spans between four cuts, in a ``share`` of the rows."""
    batch, length = shape
    cuts = torch.randint(length + 1, (batch, 1, 4), generator=generator)
    first = torch.randint(2, (batch, 1), generator=generator)
    passed = (torch.arange(length)[:, None] >= cuts).sum(-1)  # (B, L): cuts to the left
    chosen = torch.rand(batch, 1, generator=generator) < share
    return chosen & ((passed + first) % 2 == 0)


# %% [markdown]
# Autoregressive models learn the same from *fill-in-the-middle* data
# ([Bavarian et al. 2022](https://arxiv.org/abs/2207.14255)). Four cuts and a tenth are our choice, and not tuned.
#
# Now everything random in a step can be drawn. `draw_noise` does it for the whole step at once, on the CPU, so that a seed
# means the same noise on every machine. Its last value is the weight of score entropy, $\sigma(t)$ of the bound times
# $dt/du$. The settings of a run, `TrainingConfig`, are folded: some forty fields, each of which is also a key of the YAML
# presets and of the command (`ddlm-train batch_size=32`).

# %% tags=["export:settings", "hide-input"]
import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from ddlm_core.model import DiscreteDiffusionConfig
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields, checked
from ddlm_core.support.presets import compose_preset

Count = Annotated[int, Limits(1)]
CountOrNone = Annotated[int | None, Limits(1)]
Natural = Annotated[int, Limits(0)]
Positive = Annotated[float, Limits(above=0)]
PositiveOrNone = Annotated[float | None, Limits(above=0)]
Share = Annotated[float, Limits(0, 1)]
Beta = Annotated[float, Limits(0, below=1)]


@dataclass(frozen=True)
class TrainingConfig:
    """What a run needs to know.

    Raises:
        UserError: one line, if a value makes no sense.
    """

    dataset_name: str = "roneneldan/TinyStories"
    val_dataset_name: str | None = None
    text_column: str | None = None  # None: "text", or the only one that holds text
    dataset_config: str | None = None  # of a data set with several configurations
    encoding: str = "utf-8"  # of files without a byte order mark
    separator: str = "<|endoftext|>"  # ends a story inside running text; empty: nothing does
    vocabulary: str | list[str] = "ascii106"  # auto: the characters of the text
    init_from: str | None = None  # a model whose weights it begins with
    train_samples: CountOrNone = None
    val_samples: Count = 1000
    context_length: Count = 256
    num_workers: Natural = 0
    batch_size: Count = 64  # windows that a process takes at once
    gradient_accumulation_steps: Count = 1  # batches of each process in a step
    num_epochs: Count = 1
    max_steps: CountOrNone = None  # ends before num_epochs if smaller
    optimizer: Literal["muon", "adamw"] = "muon"  # for the matrices of the blocks
    learning_rate: Positive = 3e-3  # of AdamW
    matrix_learning_rate: Positive = 0.03  # of Muon
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    weight_decay: Share = 0.0
    gradient_clip: Positive = 1.0
    warmup_steps: Natural = 50
    decay_fraction: Share = 0.5  # share of the run in which the learning rate falls to 0
    ema_decay: Share = 0.995
    noise_power: PositiveOrNone = 1.0  # proposal of noise levels; None: uniform in t
    sampling_eps: Share = 0.0  # training times lie in [sampling_eps, 1]
    condition_share: Share = 0.1  # share of windows in which parts are given, for infilling
    objective: Literal["cross_entropy", "score_entropy"] = "cross_entropy"
    auxiliary_loss_weight: Share = 0.0  # of each stack alone, beside the cross-entropy
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # auto: what is fast here
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    use_8bit_optimizer: bool = False
    sigma_min: PositiveOrNone = None  # of the network that ddlm-train makes
    sigma_max: PositiveOrNone = None
    checkpoint_dir: str = "checkpoints"
    save_every: Count = 1  # epochs
    save_every_steps: Count = 500
    eval_every_steps: Count = 500
    eval_windows: Count = 256
    log_every_steps: Count = 10
    progress: bool = True
    seed: Natural = 0
    model: dict[str, Any] = field(default_factory=dict)  # fields of DiscreteDiffusionConfig

    def __post_init__(self) -> None:
        check_fields(self)
        betas = tuple(checked("betas", beta, Beta) for beta in self.betas)
        if len(betas) != 2 or not isinstance(self.model, dict):
            raise UserError(f"need two betas and a mapping model: {self.betas}, {self.model!r}")
        object.__setattr__(self, "betas", betas)  # a list, if it comes from a file


def every_key() -> dict[str, Any]:
    """Every key of a configuration with its default; no block_size is the context_length, no block_length one block."""
    network = asdict(DiscreteDiffusionConfig())
    sizes = ("n_layer", "n_head", "n_embd", "cond_dim", "dropout", "bias", "conv_size")
    model = {"block_size": None, "block_length": None} | {name: network[name] for name in sizes}
    return asdict(TrainingConfig()) | {"model": model}


def load_preset(name: str, **changes: Any) -> TrainingConfig:
    """The settings of ``ddlm-train --config-name NAME``, with changes; UserError: no such preset."""
    settings = compose_preset(name, every_key()) | changes
    settings["model"] = {k: v for k, v in settings["model"].items() if v is not None}
    return TrainingConfig(**settings)


# %% tags=["export:objective", "hide-input"]
from typing import NamedTuple


class NoisyBatch(NamedTuple):
    """Windows with all that is random in a step on them."""

    x_0: Tensor  # int64 (B, L)
    x_t: Tensor  # int64 (B, L)
    condition_mask: Tensor  # bool (B, L), true = given
    sigma_bar: Tensor  # float32 (B,)
    weight: Tensor  # float32 (B,), σ(t) dt/du


# %% tags=["export:objective"]
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


# %% tags=["export:objective", "hide-input"]
from ddlm_core.support.seeds import derive_seed


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


# %% [markdown]
# `draw_step`, folded, calls it with a generator made from the seed and the number of the step. So a step's noise does not
# depend on what happened before, which will make resuming easy.
#
# ## How the weights move
#
# * **[AdamW](https://arxiv.org/abs/1711.05101)** keeps two running averages for every weight, of its gradient and of the
#   gradient's square. It moves by the first, divided by the root of the second, so each weight moves by about the learning
#   rate, however large its gradients are. Weight decay, its W, stays at 0.
# * **[Muon](https://kellerjordan.github.io/posts/muon/)** looks at a matrix as a whole. Its gradient is usually large in a few
#   directions and tiny in the rest. Muon replaces the update, a running average of gradients, by approximately the nearest
#   orthogonal matrix, with a few matrix products (*Newton–Schulz orthogonalization*). Then all directions move by about as
#   much, and rare ones get their share.
#
# Muon takes every weight with two dimensions in the blocks, except `modulation`: the matrices of attention and MLP, and the
# weights of the short convolution. AdamW moves everything else: embeddings, norms, the head, and the `modulation` layers,
# by which the noise level steers. The two learning rates measure different things and cannot be compared.

# %% tags=["export:optimizers"]
from ddlm_core.support.hardware import adamw


def build_optimizers(model: nn.Module, config: TrainingConfig) -> dict[str, torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        inside = p.ndim == 2 and name.startswith("blocks.") and "modulation" not in name
        (matrices if inside and config.optimizer == "muon" else rest).append(p)
    kind, decay = adamw(config.use_8bit_optimizer), config.weight_decay
    found: dict[str, torch.optim.Optimizer] = {}
    found["adamw"] = kind(rest, config.learning_rate, config.betas, weight_decay=decay)
    if matrices:
        found["muon"] = torch.optim.Muon(matrices, config.matrix_learning_rate, decay)
    return found


# %% [markdown]
# **Learning rate.** It rises for some steps, because the first averages of the optimizers rest on a few gradients. It stays
# there. Then it falls linearly to 0, because small steps average out the luck of single batches. This shape is called
# *warmup–stable–decay*, WSD ([MiniCPM](https://arxiv.org/abs/2404.06395)), or trapezoidal.
#
# **Average.** We keep an *exponential moving average* (EMA) of the weights, $\bar w \leftarrow d\,\bar w + (1-d)\,w$. It has
# less noise than the weights $w$, and is what we measure and publish. With $d = 0.995$ it looks back over some 200 steps.
# Early in a run that would still include the random start. So step $k$ uses $(1+k)/(10+k)$ as long as that is smaller, up
# to step 1,789. Until then the average looks back over about a tenth of the run so far.

# %% tags=["export:optimizers", "hide-input"]
from collections.abc import Callable
from functools import partial


def learning_rate_factor(
    step: int, total_steps: int, *, warmup_steps: int, decay_fraction: float
) -> float:
    """Share of the peak learning rate in a step: a linear rise, a plateau, a linear fall to 0."""
    fall = min(1.0, (total_steps - step) / max(1.0, decay_fraction * total_steps))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * max(0.0, fall)


def default_lr_schedule(config: TrainingConfig) -> Callable[[int, int], float]:
    """:func:`learning_rate_factor` as a function of the step and the number of steps."""
    warmup, decay = config.warmup_steps, config.decay_fraction
    return partial(learning_rate_factor, warmup_steps=warmup, decay_fraction=decay)


# %% tags=["export:optimizers"]
@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights a little towards the weights; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), model.parameters()):
        old.lerp_(new, 1 - decay)


# %% [markdown]
# ## One step, and a run of them
#
# That is everything a run does. In one function: draw the noise, take the gradient of the loss, shorten it if it is longer
# than `gradient_clip` (so that one strange batch cannot throw the run off), move the weights, and then the average.


# %%
import copy


def plain_training(model, config, batches, total_steps):
    """A training run without all that makes it fast and safe; the averaged network."""
    average, optimizers = copy.deepcopy(model), build_optimizers(model, config)
    rate = default_lr_schedule(config)
    peaks = {"adamw": config.learning_rate, "muon": config.matrix_learning_rate}
    for step in range(total_steps):
        drawn = draw_step(next(batches), config, model, step)
        training_loss(model, drawn).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = peaks[name] * rate(step, total_steps)
            optimizer.step()
            optimizer.zero_grad()
        update_average(average, model, config.ema_decay, step)
    return average


# %% [markdown]
# Two things are missing: batches and a measure of progress.
#
# **Batches.** Every story of chapter 2 is a *window*, filled up with `<PAD>`, which the network has to predict like any other
# character. Any other text is one long row of tokens, cut into windows, with a `<PAD>` after each story: *Hi.* and *Go!*
# become `H i . <PAD> G o ! <PAD>`. The last stories are held out, for validation and for testing, except those that also
# occur earlier. The shuffled order depends on the seed and the epoch alone. `setup_dataloaders`, folded, does all this for
# files, data sets of the Hugging Face Hub, and our grammar ([deeper page](deeper/data_storage.ipynb)).

# %% tags=["export:data", "hide-input"]
from collections.abc import Iterable, Iterator

import numpy as np

from ddlm_core.support.errors import UserError
from ddlm_core.support.sources import Piece, TextCounts, in_blocks
from ddlm_core.tokenizer import PAD_ID, UNK_ID, CharacterLevelTokenizer


def encode_stories(
    pieces: Iterable[Piece],
    tokenizer: CharacterLevelTokenizer,
    pad_to: int | None = None,
    found: TextCounts | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of some 10^6 tokens (uint8), with ends (int64) and hashes (uint64) of the stories.

    A ``<PAD>`` follows each story, or so many that it has ``pad_to`` tokens. ``found`` counts.

    Raises:
        UserError: if a story has more than ``pad_to`` characters.
    """
    end = 0
    for texts, is_end, hashes in in_blocks(pieces):
        lengths = np.array([len(text) for text in texts])
        fill = is_end * (1 if pad_to is None else pad_to - lengths)
        if (fill < 0).any():
            raise UserError(f"a story of {lengths.max()} characters does not fit in {pad_to}")
        behind = np.repeat(np.cumsum(lengths), fill)  # where every <PAD> goes
        tokens = tokenizer.encode_numpy(text := "".join(texts))
        if found is not None:
            found.count(text, int(is_end.sum()), tokens == UNK_ID)
        tokens = np.insert(tokens, behind, PAD_ID)
        ends = end + np.cumsum(lengths + fill)
        end = ends[-1]
        yield tokens, ends[is_end], hashes


# %% tags=["export:data", "hide-input"]
import warnings


def split_stories(
    tokens: np.ndarray,
    ends: np.ndarray,
    hashes: np.ndarray,
    held_out: int,
    parts: int = 2,
    whole: bool = False,
) -> list[np.ndarray]:
    """Training tokens, and ``parts`` that are held out (validation, test); they share no story.

    A part gets at most ``held_out`` stories and a tenth of all; fewer, if these make up more than a
    sixth of the text. If a single one does, unless stories must stay ``whole``, the text is cut as
    one running text, and a part gets a twentieth.
    """
    count = min(held_out, max(1, len(ends) // 10)) if len(ends) > 2 else 0
    while count and not whole and len(tokens) - ends[-parts * count - 1] > len(tokens) * parts / 6:
        count //= 2
    if count == 0:
        twentieths = np.arange(20 - parts, 20)
        return np.split(tokens, len(tokens) * twentieths // 20)
    held: list[np.ndarray] = []
    for _ in range(parts):
        border, ends, last = ends[-count - 1], ends[:-count], ends[-count:]
        early, late = hashes[:-count], hashes[-count:]
        blocks = (early[i : i + (1 << 20)] for i in range(0, len(early), 1 << 20))
        seen = np.any([np.isin(late, block) for block in blocks], axis=0)
        rows = np.split(tokens[border:], last[:-1] - border)
        fresh = [row for row, repeats in zip(rows, seen) if not repeats]
        if not fresh:
            warnings.warn("stories repeat: those held out also occur in training", stacklevel=2)
        held.insert(0, np.concatenate(fresh or rows))
        tokens, hashes = tokens[:border], early
    return [tokens, *held]


# %% tags=["test:data", "hide-input"]
def test_nothing_is_dropped_and_stories_stay_whole():
    told, tokenizer = [f"Story number {i}." for i in range(30)], CharacterLevelTokenizer()
    tokens, ends, hashes = next(encode_stories([(story, True) for story in told], tokenizer))
    parts = split_stories(tokens, ends, hashes, held_out=2)
    assert [np.count_nonzero(part == PAD_ID) for part in parts] == [26, 2, 2]
    assert "".join(tokenizer.decode(part) for part in parts) == "".join(told)


test_nothing_is_dropped_and_stories_stay_whole()

# %% tags=["export:data", "hide-input"]
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddlm_core.support.seeds import derive_seed
from ddlm_core.support.sources import TextSummary
from ddlm_core.support.store import MappedArray


class TokenWindows(Dataset):
    """Windows of ``length`` tokens, uint8, asked for by where they start; ``<PAD>`` beyond the end.

    ``vocab`` is what the tokens mean, if that is known: a trainer compares it with its network's.
    """

    summary: TextSummary  # of the text to train on, from :func:`setup_dataloaders`

    def __init__(
        self, tokens: np.ndarray | MappedArray, length: int, vocab: tuple[str, ...] | None = None
    ) -> None:
        self.tokens, self.length, self.vocab = tokens, length, vocab

    def __getitem__(self, start: int) -> Tensor:
        window = self.tokens[start : start + self.length]
        fill = (0, self.length - len(window))  # before and behind
        return torch.from_numpy(np.pad(window, fill, constant_values=PAD_ID))


class WindowSampler(Sampler[int]):
    """Starts of the windows of ``epoch``, shuffled, without ``skip``; cut anew unless ``aligned``.

    Raises:
        UserError: if the text is shorter than a window.
    """

    def __init__(self, tokens: int, length: int, seed: int = 0, aligned: bool = False) -> None:
        if tokens < length:
            found = f"{tokens} tokens are shorter than one window of {length}"
            raise UserError(f"{found}: take more text, or a smaller context_length")
        self.tokens, self.length, self.seed, self.aligned = tokens, length, seed, aligned
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return max(1, self.tokens // self.length - (not self.aligned))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "windows", self.epoch))
        slack = 0 if self.aligned else min(self.length, self.tokens - self.length)
        shift = int(torch.randint(slack + 1, (), generator=generator))
        order = torch.randperm(len(self), generator=generator)
        order, self.skip = order[self.skip :], 0
        for part in order.split(1 << 16):  # as Python numbers, millions of starts take much memory
            yield from (shift + part * self.length).tolist()


# %% tags=["export:data", "hide-input"]
def evaluation_loader(
    tokens: np.ndarray, length: int, batch_size: int, vocab: tuple[str, ...] | None = None
) -> DataLoader:
    """Batches of all windows side by side, in order, uint8 (B, L)."""
    windows, starts = TokenWindows(tokens, length, vocab), range(0, len(tokens), length)
    return DataLoader(windows, batch_size, sampler=starts)


# %% tags=["export:data", "hide-input"]
import random
from functools import partial
from hashlib import sha256
from pathlib import Path

from ddlm_core import stories
from ddlm_core.support.sources import AS_IT_IS, Reading, read_stories, source_key
from ddlm_core.support.store import StoredText, stored

POCKET = "pocket-stories"  # the name of the grammar of chapter 2 as a source


def pocket_stories(n: int, seed: int) -> Iterator[Piece]:
    """The stories of ``stories.sample(n, seed)``, without a list of all of them."""
    grammar, rng = stories.STORIES, random.Random(seed)
    for _ in range(n):
        yield stories.tell(rng.choice(grammar.plots), rng, grammar), True


def stored_tokens(
    source: str,
    tokenizer: CharacterLevelTokenizer,
    how: Reading = AS_IT_IS,
    *,
    seed: int = 0,
    pad_to: int | None = None,
) -> StoredText:
    """Tokens, ends and hashes of a source's stories, memory-mapped; a second call reads no text."""
    found = TextCounts()
    if source == POCKET:
        grammar = sha256(Path(stories.__file__).read_bytes()).hexdigest()
        key = (source, how.limit, seed, grammar)
        read = partial(pocket_stories, how.limit or 100_000, seed)
    else:
        key = source_key(source, how)
        read = partial(read_stories, source, how, found)
    key = (key, tokenizer.vocab, pad_to)
    return stored(key, lambda: encode_stories(read(), tokenizer, pad_to, found), found.plain)


# %% tags=["export:data", "hide-input"]
from typing import NamedTuple


class Loaders(NamedTuple):
    """Batches to train on, to validate with and to test with, uint8 (B, L); and the tokenizer."""

    train: DataLoader
    val: DataLoader
    test: DataLoader
    tokenizer: CharacterLevelTokenizer

    @property
    def summary(self) -> TextSummary:
        """What the text to train on is, and what of it the vocabulary does not have."""
        assert isinstance(self.train.dataset, TokenWindows)
        return self.train.dataset.summary


# %% tags=["export:data", "hide-input"]
def setup_dataloaders(
    dataset_name: str = "roneneldan/TinyStories",
    *,
    train_samples: int | None = None,
    val_samples: int = 1000,
    context_length: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    val_dataset_name: str | None = None,
    text_column: str | None = None,
    dataset_config: str | None = None,
    encoding: str = "utf-8",
    separator: str = AS_IT_IS.separator,
    seed: int = 0,
    tokenizer: CharacterLevelTokenizer | None = None,
) -> Loaders:
    """Batches of windows of ``context_length`` tokens, from any text.

    Args:
        dataset_name: pocket-stories, a file, folder or pattern, or a name on the Hub. A file of text
            is a story, as is a row of a .csv, .json, .jsonl or .parquet; .gz, .bz2, .xz: as they are.
        train_samples: stories to read (of a longer one, megabytes); else all, or 100,000 of ours.
        val_samples: stories held out for validation, and again for testing.
        val_dataset_name: validate on ``val_samples`` of this source instead; testing stays as it is.
        text_column: of a table; by default ``text``, or the only one that holds text.
        dataset_config: which configuration of a data set on the Hub.
        encoding: of files without a byte order mark.
        separator: ends a story inside a text; nothing does if it is empty.
        tokenizer: that of the network, ``model.config.tokenizer``; by default that of chapter 1.

    Raises:
        UserError: if a file cannot be read as text, or if all of it is shorter than a window.
        OSError: if there is no such file, or if the Hub cannot be reached.
    """
    tokenizer, aligned = tokenizer or CharacterLevelTokenizer(), dataset_name == POCKET
    read = partial(stored_tokens, tokenizer=tokenizer, pad_to=context_length if aligned else None)
    limit = (train_samples or 100_000) + 2 * val_samples if aligned else train_samples
    how = Reading("train", limit, text_column, dataset_config, encoding, separator)
    text = read(dataset_name, how=how, seed=seed)
    parts, row = (
        2 if val_dataset_name is None else 1,
        (text.tokens[:], text.ends[:], text.hashes[:]),
    )
    first, *held = split_stories(*row, val_samples, parts, aligned)
    windows = TokenWindows(text.tokens.first(len(first)), context_length, tokenizer.vocab)
    sampler = WindowSampler(len(first), context_length, seed, aligned)
    share = sum(map(len, held)) / len(text.tokens)
    windows.summary = TextSummary.of(text.about, len(sampler), share)
    if val_dataset_name is not None:
        how = how._replace(split="validation", limit=val_samples)
        held.insert(0, read(val_dataset_name, how=how, seed=seed + 1).tokens[:])
    full = min(batch_size, len(sampler))
    train = DataLoader(windows, full, sampler=sampler, num_workers=num_workers, drop_last=True)
    val, test = (
        evaluation_loader(part, context_length, batch_size, tokenizer.vocab) for part in held
    )
    return Loaders(train, val, test, tokenizer)


# %% tags=["export:data", "hide-input"]
from itertools import islice


def batches_from(loader: DataLoader, micro_batches: int, step: int) -> Iterator[Tensor]:
    """The windows of each step from ``step`` on, uint8 (B, L): ``micro_batches`` batches, joined.

    A step never joins batches of two epochs; those that are left over at the end of one are dropped.
    """
    assert loader.batch_size  # None would mean windows, not batches
    steps = len(loader) // micro_batches  # in an epoch
    epoch, done = divmod(step, steps)
    while True:
        if ours := isinstance(loader.sampler, WindowSampler):  # it skips without reading
            loader.sampler.epoch = epoch
            loader.sampler.skip = done * micro_batches * loader.batch_size
        batches = islice(loader, 0 if ours else done * micro_batches, None)
        for _ in range(done, steps):
            yield torch.cat(list(islice(batches, micro_batches)))
        epoch, done = epoch + 1, 0


# %% [markdown]
# **A measure: the bound on validation data.** The whole bound of chapter 5 has three terms: the integral, the reconstruction
# at $t = 0$, and the prior at $t = 1$. Together they are the *negative ELBO*, an upper bound on $-\log p$ of a window. For
# stories we compare it with the entropy of the grammar; for other text, bits per character are nats divided by $\log 2$ and
# by the number of characters that are not `<PAD>`. Each window gets one time and one corruption. For the reconstruction an
# eighth of the windows is read again, at the lowest noise. Both are folded.

# %% tags=["export:bound", "hide-input"]
"""The bound on negative log-likelihoods, estimated on validation windows."""

from collections.abc import Callable
from itertools import islice

from torch.utils.data import DataLoader

from ddlm_core.graph import ScoreModel
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.reverse import has_denoiser, reverse_probs
from ddlm_core.tokenizer import PAD_ID


@dataclass(frozen=True)
class Bound:
    r"""An estimated upper bound on $-\log p$; windows are counted with their padding."""

    nats_per_window: float
    bits_per_character: float  # padding is no character


# %% tags=["export:bound", "hide-input"]
def _diffusion(
    model: ScoreModel, x_0: Tensor, sigma_bar: Tensor, generator: torch.Generator
) -> Tensor:
    """Score entropy of windows (B, L) at noise (B,), mean over positions: (B,).

    If the network gives log q, each letter's own noise is averaged over, and the others' drawn.
    """
    graph, vocab_size = graph_of(model), model.config.vocab_size
    x_t = perturb_batch(x_0, sigma_bar, vocab_size, None, generator, graph.sample_prior)
    model = in_context(model, x_0)
    if has_denoiser(model):
        return graph.expected_loss(model.denoise(x_t, sigma_bar), sigma_bar, x_0).mean(-1)
    return graph.loss(model(x_t, sigma_bar), sigma_bar, x_t, x_0).mean(-1)


def _reconstruction(
    model: ScoreModel, x_0: Tensor, sigma_bar: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean of -log p(x_0 | x_t) per position at the noise (1,) of t = 0, over an eighth of the windows.

    They are drawn at random, so the mean is unbiased: the term is small and varies little.
    """
    graph, vocab_size = graph_of(model), model.config.vocab_size
    few = x_0[torch.randperm(len(x_0), generator=generator)[: math.ceil(len(x_0) / 8)]]
    x_t = perturb_batch(few, sigma_bar[0], vocab_size, None, generator, graph.sample_prior)
    pairs, which = torch.stack([x_t, few], 1).unique(dim=0, return_inverse=True)  # mostly copies
    (x_t, clean), noise = pairs.unbind(1), sigma_bar.expand(len(pairs))
    model = in_context(model, clean)
    if has_denoiser(model):
        return graph.expected_reconstruction(
            model.denoise(x_t, noise)[which], sigma_bar[0], few
        ).mean()
    probs = reverse_probs(model, x_t, noise, 0 * noise)
    return -probs[which].gather(-1, few[..., None]).log().mean()


# %% tags=["export:bound"]
@torch.inference_mode()
def window_nats(
    model: ScoreModel,
    x_0: Tensor,
    noise: NoiseSchedule,
    generator: torch.Generator,
    times: Callable[..., tuple[Tensor, Tensor]] = proposal_times,
) -> Tensor:
    """One-sample estimates of the whole bound for windows int64 (B, L), in nats per window: (B,).

    ``times(B, noise, generator=…)`` gives times and their importance weights, each (B,).
    """
    t, weight = (v.to(x_0.device) for v in times(len(x_0), noise, generator=generator))
    first, nats = noise.sigma_bar(torch.zeros_like(t[:1])), []
    for x, (sigma_bar, sigma), w in zip(x_0.split(64), map(noise, t.split(64)), weight.split(64)):
        diffusion = w * sigma * _diffusion(model, x, sigma_bar, generator)
        nats.append(diffusion + _reconstruction(model, x, first, generator))
    prior = graph_of(model).prior_kl(noise.sigma_max, model.config.vocab_size).item()
    return (torch.cat(nats) + prior) * x_0.shape[1]


# %% tags=["export:bound", "hide-input"]
def validation_bound(
    model: DiscreteDiffusionTransformer, loader: DataLoader, max_windows: int, seed: int = 0
) -> Bound:
    """Estimate the bound on the first ``max_windows`` windows; the same seed, the same noise."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    assert loader.batch_size  # None would mean windows, not batches
    batches = islice(loader, math.ceil(max_windows / loader.batch_size))
    windows = torch.cat(list(batches))[:max_windows].long()
    nats = window_nats(model, windows.to(device), model.config.noise, generator)
    per_window = nats.cpu().double().mean().item()
    characters = (windows != PAD_ID).sum().item() / len(windows)
    return Bound(per_window, per_window / max(1, characters) / math.log(2))


# %% [markdown]
# `validation_bound`, folded, averages it over windows, always with the same noise. For an untrained network every character
# is as likely as any other, so its bound must be $L\log V$ nats for $L$ characters. For 2,000 windows of random characters:

# %% tags=["hide-input"]
from ddlm_core.data import evaluation_loader
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer

torch.manual_seed(0)
network = DiscreteDiffusionConfig(block_size=10, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
tokens = torch.randint(2, 106, (20_000,)).numpy().astype("uint8")
bound = validation_bound(
    DiscreteDiffusionTransformer(network), evaluation_loader(tokens, 10, 500), max_windows=2000
)
print(f"{bound.nats_per_window:.1f} nats per window; 10 log 106 = {10 * math.log(106):.1f}")

# %% [markdown]
# Equal up to chance, as the noise is random. [Chapter 9](09_evaluation.ipynb) puts an interval around it.
#
# ## The trainer
#
# `Trainer`, folded, is `plain_training` with what a long run needs. It also measures, logs, and saves; it stops when the loss
# diverges; it multiplies in 16 bits where the hardware does that fast; and it splits a step, over several devices or, with
# *gradient accumulation*, into `micro_batches` that go one after the other. Three things can be replaced without touching
# it: `loss_fn`, `lr_schedule` and `callbacks`.

# %% tags=["export", "hide-input"]
import copy
from textwrap import shorten

from ddlm_core.support.errors import UserError


class TrainState:
    """All that changes during a run of a network: what a checkpoint holds."""

    def __init__(
        self,
        model: DiscreteDiffusionTransformer,
        config: TrainingConfig,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """The network lies on the device it trains on."""
        self.model, self.scaler = model, scaler
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = build_optimizers(model, config)
        self.step, self.best = 0, math.inf  # steps that are done, lowest bound in nats per window

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "average": self.average, "scaler": self.scaler}
        return parts | self.optimizers

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; the tensors are those of the run, not copies."""
        content = {name: part.state_dict() for name, part in self._parts().items()}
        return content | {"step": self.step, "best": self.best}

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            UserError: if a part does not fit; then nothing has changed.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self._load(content)
        except BaseException as error:
            self._load(before)
            if isinstance(error, (RuntimeError, KeyError, ValueError)):
                reason = shorten(str(error), 200)
                raise UserError(
                    f"this belongs to another network or optimizer: {reason}"
                ) from error
            raise

    def _load(self, content: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        self.step, self.best = content["step"], content["best"]


# %% tags=["export", "hide-input"]
def update_weights(
    state: TrainState, config: TrainingConfig, loss: float, rate_factor: float = 1.0
) -> None:
    """Finish a step whose gradients are there: move the weights, then their average, and count it.

    Raises:
        FloatingPointError: if the loss or its gradient says that the run has diverged; the weights
            are still those of the step before.
    """
    scaler = state.scaler
    peaks = {"adamw": config.learning_rate, "muon": config.matrix_learning_rate}
    rate_of = {"adamw": "learning_rate", "muon": "matrix_learning_rate"}
    for optimizer in state.optimizers.values():
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip).item()
    uniform = math.log(state.model.config.vocab_size) * (1 + 2 * config.auxiliary_loss_weight)
    if not (loss < 10 * uniform and (math.isfinite(norm) or scaler.is_enabled())):
        found = f"at step {state.step} the loss is {loss:.4g}, its gradient {norm:.4g}"
        rates = [f"{rate_of[name]} ({peaks[name]:g})" for name in state.optimizers]
        raise FloatingPointError(f"{found}: lower {' or '.join(rates)}")
    for name, optimizer in state.optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = peaks[name] * rate_factor
        if math.isfinite(norm):  # both step or none, and then fp16 shrinks its scale
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    update_average(state.average, state.model, config.ema_decay, state.step)
    state.step += 1


# %% tags=["export", "hide-input"]
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ddlm_core.data import batches_from
from ddlm_core.support.hardware import autocast, compiled, make_accelerator, pick_precision
from ddlm_core.support.progress import Report, StepResult, StopSignals
from ddlm_core.support.runs import BEST, FINAL, RunFiles, check_fit, describe_run


def plan_steps(config: TrainingConfig, batches: int, processes: int) -> tuple[int, int, int]:
    """Micro-batches in a step, steps of the run, steps between two checkpoints; UserError: none."""
    micro_batches = config.gradient_accumulation_steps * processes
    if not (epoch := batches // micro_batches):
        raise UserError(f"an epoch is shorter than a step, which takes {micro_batches} batches")
    total_steps = config.num_epochs * epoch
    total_steps = min(total_steps, config.max_steps or total_steps)
    return micro_batches, total_steps, min(config.save_every_steps, config.save_every * epoch)


# %% tags=["export", "hide-input"]
def accumulate_gradients(
    loss_fn: Callable[..., Tensor],
    drawn: NoisyBatch,
    micro_batches: int,
    accelerator: Any,
    scaler: torch.amp.GradScaler,
    precision: str,
) -> Tensor:
    """Add up the gradients of this process's micro-batches; their mean loss, a scalar."""
    device = accelerator.device
    mine = range(accelerator.process_index, micro_batches, accelerator.num_processes)
    total = torch.zeros((), device=device)
    for part in mine:
        batch = [values[part::micro_batches].to(device) for values in drawn]
        with nullcontext() if part == mine[-1] else accelerator.no_sync(loss_fn):
            with autocast(precision, device):
                loss = loss_fn(*batch) / len(mine)
            scaler.scale(loss).backward()
        total += loss.detach()
    return total


# %% tags=["export", "hide-input"]
class Trainer:
    """Trains a network on the batches of :func:`setup_dataloaders`.

    Args:
        val_loader: windows to measure the bound on; without, nothing is measured.
        loss_fn: a module that holds the network and takes the tensors of a :class:`NoisyBatch`; by
            default :class:`TrainingLoss`.
        lr_schedule: share of the peak learning rates, of the step and the number of steps; by default
            :func:`learning_rate_factor`.
        callbacks: called with a :class:`StepResult` after each step, in the first process.

    Raises:
        UserError: if settings, network and data do not belong together, or an epoch is no step.
    """

    def __init__(
        self,
        model: DiscreteDiffusionTransformer,
        train_loader: DataLoader,
        val_loader: DataLoader | None = None,
        config: TrainingConfig | None = None,
        *,
        loss_fn: nn.Module | None = None,
        lr_schedule: Callable[[int, int], float] | None = None,
        callbacks: Sequence[Callable[[StepResult], None]] = (),
    ) -> None:
        config = self.config = config or TrainingConfig()
        check_fit(config, model, train_loader)
        self.model, self.train_loader, self.val_loader = model, train_loader, val_loader
        self.callbacks, self.accelerator = callbacks, make_accelerator()
        device, processes = self.accelerator.device, self.accelerator.num_processes
        plan = plan_steps(config, len(train_loader), processes)
        self.micro_batches, self.total_steps, self.save_interval = plan
        self.precision = pick_precision(config.mixed_precision, device)
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.state = TrainState(model.to(device), config, scaler)
        self.average = self.state.average  # what is measured and published
        model.gradient_checkpointing = config.gradient_checkpointing
        loss_fn = loss_fn or TrainingLoss(model, config.objective, config.auxiliary_loss_weight)
        loss_fn = self.accelerator.prepare(loss_fn)
        self.loss_fn = compiled(loss_fn, device) if config.torch_compile else loss_fn
        self.lr_schedule = lr_schedule or default_lr_schedule(config)
        run = describe_run(config, model, (train_loader, val_loader), self.micro_batches)
        self.files = RunFiles(Path(config.checkpoint_dir), run)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.state.step

    def resume(self, path: str | Path) -> None:
        """Go on where the checkpoint ``path`` was written; it must be of the same run.

        Raises:
            UserError: if it is damaged or of another run; then the trainer is as it was.
        """
        source = self.files.load(Path(path), self.state, self.total_steps)
        self.accelerator.wait_for_everyone()  # all have read
        if source != Path(path) and self.accelerator.is_main_process:
            self.files.set_aside(Path(path))

    def evaluate(self) -> Bound:
        """The validation bound of the averaged weights."""
        if self.val_loader is None:
            raise UserError("there is nothing to measure on: give the trainer a val_loader")
        return validation_bound(self.average, self.val_loader, self.config.eval_windows)

    def train_step(self, x_0: Tensor, stop: bool = False) -> tuple[float, bool]:
        """A step on windows uint8 (B, L): the loss, and whether any process was told to stop."""
        drawn = draw_step(x_0, self.config, self.model, self.step, self.accelerator.process_index)
        how = (self.micro_batches, self.accelerator, self.state.scaler, self.precision)
        loss = accumulate_gradients(self.loss_fn, drawn, *how)
        both = torch.stack([loss, torch.full_like(loss, stop)])
        loss, stop = self.accelerator.reduce(both, "mean").tolist()
        update_weights(self.state, self.config, loss, self.lr_schedule(self.step, self.total_steps))
        return loss, stop > 0

    def train(self) -> Bound | None:
        """Train to the end; the last validation bound, in the first process.

        Raises:
            KeyboardInterrupt: after a signal, once the step is done and saved.
            FloatingPointError: if the run has diverged.
        """
        bound, stopped, main = None, False, self.accelerator.is_main_process
        batches = batches_from(self.train_loader, self.micro_batches, self.step)
        how = (self.config.log_every_steps, self.config.progress)
        report = Report(self.files.folder, self.step, self.total_steps, *how) if main else None
        with StopSignals() as signals, report or nullcontext():
            while self.step < self.total_steps and not stopped:
                loss, stopped = self.train_step(x_0 := next(batches), bool(signals))
                if report:
                    bound = self._measure_and_save(stopped)
                    result = StepResult(self.step, loss, int((x_0 != PAD_ID).sum()), bound)
                    report(result)
                    for tell in self.callbacks:
                        tell(result)
        self.accelerator.wait_for_everyone()
        if stopped:
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        return bound

    def _measure_and_save(self, stopped: bool) -> Bound | None:
        """Do what is due after a step; the validation bound, if it was measured."""
        at_end, bound, state = self.step == self.total_steps, None, self.state
        if self.val_loader and (at_end or self.step % self.config.eval_every_steps == 0):
            bound = self.evaluate()
            if bound.nats_per_window < state.best:
                state.best = bound.nats_per_window
                self.files.save_weights(BEST, state)
        if at_end:
            self.files.save_weights(FINAL, state)
        if stopped or at_end or self.step % self.save_interval == 0:
            self.files.save(state)
        return bound


# %% [markdown]
# Eight steps of a tiny network, once by the trainer and once by the fifteen lines above, end in the same bits:

# %%
from tempfile import TemporaryDirectory

from ddlm_core.testing import same_bits, tiny_trainer

with TemporaryDirectory() as folder:
    trainer = tiny_trainer(Path(folder))
    batches = batches_from(trainer.train_loader, trainer.micro_batches, 0)
    plain = plain_training(copy.deepcopy(trainer.model), trainer.config, batches, 8)
    trainer.train()
assert same_bits(plain.state_dict(), trainer.average.state_dict())
"the same bits"

# %% [markdown]
# **Stop and resume.** A long run gets interrupted: by Ctrl-C, or by a cluster that takes its machine back. Then the step is
# finished, a checkpoint is written, and `train` raises `KeyboardInterrupt`. The checkpoint holds the weights, their
# average, what the optimizers remember, and the number of the step; order and noise follow from that number and the seed.
# So a run that was stopped must end as if it had never stopped. Here the signal comes after step 5, and the run stops after
# step 6.

# %% tags=["test"]
import signal

from ddlm_core.support.checkpoints import LATEST
from ddlm_core.testing import same_bits, tiny_trainer


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


# %%
with TemporaryDirectory() as folder:
    test_resume_is_exact(Path(folder))
"the same bits, after a stop"

# %% [markdown]
# A [deeper page](deeper/exact_resume.ipynb) explains what a checkpoint file is, and which settings may change in between.
#
# ## Train on the story world
#
# Now for real, with a network small enough for a CPU: a few minutes. 600 steps of 16 windows are 9,600 stories, each read at
# most once. The learning rates are higher than the defaults, which are meant for larger networks and longer runs.

# %%
import os

from ddlm_core import stories

smoke = os.environ.get("DDLM_PRESET") == "smoke"
steps = 6 if smoke else 600
train, val, _, tokenizer = setup_dataloaders(
    "pocket-stories",
    train_samples=500 if smoke else 20_000,
    val_samples=16 if smoke else 128,
    context_length=160,
    batch_size=16,
)
folder = TemporaryDirectory()


def practice(steps, **changes):
    """Train a small network in the folder; the bound before and after, and the trainer."""
    torch.manual_seed(0)
    network = DiscreteDiffusionConfig(block_size=160, n_layer=4, n_head=3, n_embd=96, padded=True)
    settings = {"learning_rate": 5e-3, "matrix_learning_rate": 0.05, "progress": False}
    settings |= {"eval_every_steps": max(2, steps // 6), "eval_windows": 128}
    config = TrainingConfig(max_steps=steps, checkpoint_dir=folder.name, **(settings | changes))
    trainer = Trainer(DiscreteDiffusionTransformer(network), train, val, config)
    return trainer.evaluate(), trainer.train(), trainer


before, after, trainer = practice(steps)
print(f"before:  {before.nats_per_window:6.1f} nats per story")
print(f"after:   {after.nats_per_window:6.1f}, with {steps} steps")
print(f"entropy: {stories.entropy():6.1f}, the best that any model can do")

# %% [markdown]
# The first line should be $160 \log 106 = 746$. It is an estimate from at most 128 noisy windows: with twelve seeds an
# untrained network got 739 to 753. Read the second line with care, too. The validation stories are also a little rarer
# than average, because those that occur in training were taken out. So even the best model would be somewhat above the
# entropy here.
#
# **Is a run healthy?** The log tells. The table averages its losses between two measurements of the bound.

# %% tags=["hide-input"]
import json

log = (Path(folder.name) / "train_log.jsonl").read_text().splitlines()
log = [json.loads(line) for line in log]
measured = [line for line in log if "nats_per_window" in line]
shares = torch.bincount(torch.cat(list(val)).flatten().long()).double()
letters = torch.special.entr(shares / shares.sum()).sum()
print("step   loss, nats per token   characters per second   bound, nats per story")
since = 0
for line in measured:
    losses = [other["loss"] for other in log if since < other["step"] <= line["step"]]
    speed, since = line["characters_per_second"], line["step"]
    print(f"{since:4}{sum(losses) / len(losses):14.2f}{speed:24,}{line['nats_per_window']:24.1f}")
print(f"loss of a network that knows how frequent each letter is, and nothing else: {letters:.2f}")

# %% [markdown]
# The loss starts at $\log 106 = 4.66$. In a healthy run it soon falls below the last line, which knows letters but no words, and
# keeps falling. A run that stays there does not learn to use the context: look for a bug, or a learning rate that is too
# low. A loss that jumps up and stays up calls for a lower rate. The loss cannot be compared with the bound: it counts all
# corruption probabilities alike, and at high noise even a Bayes-optimal denoiser pays a lot. The bound has the last word.

# %% tags=["hide-input"]
# alt: The validation bound, on a logarithmic axis, over the training steps. It falls steeply at first and
#  then more slowly, and ends above the dashed line of the entropy of the stories.
plt.semilogy(
    [0, *(line["step"] for line in measured)],
    [before.nats_per_window, *(line["nats_per_window"] for line in measured)],
    "o-",
    label="validation bound",
)
plt.axhline(stories.entropy(), linestyle="--", color="C1", label="entropy of the stories")
plt.yticks([10, 20, 50, 100, 200, 500, 1000], ["10", "20", "50", "100", "200", "500", "1000"])
plt.xlabel("training steps")
plt.ylabel("nats per story")
plt.legend()
plt.show()

# %% [markdown]
# What does the average of the weights write after this short run, with 64 steps of the sampler?

# %% tags=["hide-input"]
from ddlm_core.sampler import sample_diffusion, sample_generators

tokens = sample_diffusion(
    trainer.average,
    trainer.average.config.noise,
    batch_size=2,
    seq_len=160,
    num_steps=8 if smoke else 64,
    schedule="cosine",
    generator=sample_generators(seed=0, batch_size=2),
)
for text in tokenizer.decode_batch(tokens):
    print(text)

# %% [markdown]
# It has the look of a story, and here and there a phrase is right. But words fall apart, and what should agree does not, as
# the distance between bound and entropy shows. The model that ships with the package is the same kind of network with six
# blocks of width 128. With the preset `pocket` it took 7,500 steps, 28 minutes on two cores, and has a bound of 25.3
# nats; with 64 steps and churn, 93 % of its stories are flawless ([model
# card](../ddlm_core/pretrained/pocket-stories/README.md)).
#
# ## Which proposal, which objective?
#
# How large is the standard deviation of one sample of the bound, for the network that we have just trained? And which bound
# does a new network reach in 150 steps? On score entropy the proposals can be compared fairly, because their weights keep the
# objective the same. The last row is cross-entropy.

# %% tags=["hide-input"]
windows, generator = torch.cat(list(val)).long(), torch.Generator()
print("objective      proposal       mean  std of a sample  bound after a short run")
rows = (("uniform in t", None), ("power 2", 2.0), ("power 1", 1.0))
for name, power in rows:
    t, weight = proposal_times(8 * len(windows), noise, power, generator=generator.manual_seed(0))
    with torch.inference_mode():
        loss = compute_loss(trainer.average, windows.repeat(8, 1), noise, t, generator=generator)
    sample = weight * loss  # nats per token
    changes = {"noise_power": power, "objective": "score_entropy", "eval_every_steps": 1000}
    _, bound, _ = practice(4 if smoke else 150, **changes)
    values = f"{sample.mean():6.3f}{sample.std():17.3f}{bound.nats_per_window:20.1f} nats per story"
    print(f"score entropy  {name:13}{values}")
_, bound, _ = practice(4 if smoke else 150, eval_every_steps=1000)
print(f"cross-entropy  power 1{bound.nats_per_window:50.1f}")
folder.cleanup()

# %% [markdown]
# The means agree up to chance: it is the same integral. Power 1 has the smallest standard deviation here, less than half of
# that of uniform times. That does not settle which proposal is better. With power 1 the mean square of a sample grows like
# $1/f$ toward clean text: the estimator is *heavy-tailed*, and our samples, at most 1,024, can miss the rare, large ones. A
# mean can then come out too low. On the [seven words of chapter 5](deeper/noise_levels.ipynb), where everything is exact,
# power 2 is best and power 1 last. To watch a run, power 1 will do: `window_nats` averages over each letter's own noise.
# Chapter 9 adds uniform times.
#
# In training, cross-entropy is ahead of score entropy by more than 50 nats with every proposal. For cross-entropy, the power
# decides how much each level *counts*. We take power 1, which counts all corruption probabilities alike, because it is the
# simplest.
#
# ## Which choices pay?
#
# Change one thing in the recipe, train for a minute on one core, and measure the bound on text that was held out.
# `python benchmarks/learning.py` does it for some thirty changes, with a network of 1.55 million weights on 1.4 million
# characters of TinyStories ([all rows](../benchmarks/README.md)).
#
# | changed | bits per character after a minute |
# |---|---|
# | nothing | 2.79 |
# | score entropy in place of cross-entropy | 3.22 |
# | score entropy, and a plain bidirectional network, not hollow, no convolution | 4.20 |
# | AdamW for the matrices, too | 3.31 |
# | no short convolution | 2.88 |
# | power 2: more low noise | 2.65 |
# | power 0.5: more high noise | 2.97 |
# | batches half as large | 2.56 |
# | no decay of the learning rate | 2.64 |
#
# **Two warnings.** *Each row is one run with one seed.* Three seeds without the short convolution gave 2.91, 2.96 and 2.91;
# another row, measured again, moved by 0.12. So **a difference of 0.15 bits or less may be chance**.
# *And a minute is short.* Small batches, or no decay of the learning rate, look good after a minute, but may not after an
# hour.
#
# What passes the threshold, and is not merely speed? Cross-entropy against score entropy: 0.43 bits. A *hollow network*:
# about 1.0 compared with the row on score entropy, but that row changes two things at once. Muon: 0.5, but nobody tuned
# AdamW's learning rate for the matrices, 0.005, so part of this may be the rate. More high noise, power 0.5, costs 0.18.
# Everything else is undecided here.
#
# ## On a GPU
#
# The command has presets: `ddlm-train --config-name smoke` (seconds), `pocket` (half an hour on two cores), `cpu`
# (hours), `gpu` and `gpu-large`. **Nothing in this book has been run on a GPU.** By a count of operations, an epoch of
# TinyStories with `gpu`, 54.6 million weights, would take about ten hours on a T4 and 40 minutes on an H100, *if* they reach
# 30 % of the speed on their data sheets. The count, and settings for faster or smaller runs, are on a
# [deeper page](deeper/cost.ipynb).

# %% [markdown]
# ## Change it safely
#
# 1. Forget the importance weight: let `proposal_times` return `torch.ones_like(t)` as its second value.
#    `test_every_proposal_has_the_same_integral` fails, and so does `tests/unit/test_objective.py`.
# 2. Give every step the same noise: in `draw_step`, leave `step` out of `derive_seed(config.seed, "noise", step)`. Resuming
#    is still exact, but `test_a_step_has_draws_of_its_own_and_all_processes_share_them` notices.
#
# After each: `make export && pytest tests/`.
#
# ## Exercises
#
# **1.** What share of uniform times falls where less than 1 % of the characters are corrupted? (Expected: 0.378.) And with
# power 1? (Expected: 0.01.)

# %% tags=["solution", "hide-input"]
generator, shares = torch.Generator().manual_seed(0), []
for power in (None, 1.0):
    t, _ = proposal_times(100_000, noise, power, generator=generator)
    shares.append((resample_probability(noise.sigma_bar(t)) < 0.01).double().mean().item())
assert abs(shares[0] - 0.378) < 1e-3 and abs(shares[1] - 0.01) < 1e-3
[round(share, 3) for share in shares]

# %% [markdown]
# **2.** With `condition_share=0.1`, what share of all characters is given in training? (Expected: 0.05.)

# %% tags=["solution", "hide-input"]
given = draw_condition((20_000, 160), 0.1, torch.Generator().manual_seed(0)).double().mean().item()
assert abs(given - 0.05) < 0.003
round(given, 3)

# %% [markdown]
# ## Summary
#
# We train a hollow network on cross-entropy, which is score entropy integrated over a letter's own noise, and report
# the bound, whose importance weights make it independent of the proposal. Muon moves the matrices, AdamW the rest, and the
# average of the weights is the model. All randomness of a step follows from the seed and its number, so a run that was
# stopped resumes exactly.
#
# | name | module | meaning |
# |---|---|---|
# | `training_loss`, `TrainingLoss` | `objective` | the loss; as a module |
# | `low_discrepancy_times`, `proposal_times` | `objective` | stratified noise levels, with importance weights |
# | `compute_loss`, `masked_mean` | `objective` | one-sample estimate of the bound's integral; mean over what is not given |
# | `draw_condition`, `draw_noise`, `draw_step`, `NoisyBatch` | `objective` | spans that are given; all that is random in a step |
# | `TrainingConfig`, `load_preset` | `settings` | the settings of a run; those of a preset |
# | `build_optimizers`, `learning_rate_factor`, `update_average` | `optimizers` | how weights move, how far, and their average |
# | `setup_dataloaders`, `Loaders`, `batches_from` | `data` | any text → batches, in an order that can be resumed |
# | `window_nats`, `validation_bound`, `Bound` | `training` | the bound, in nats per window and bits per character |
# | `Trainer`, `TrainState` | `training` | the run: `train`, `resume`, `evaluate`; what changes in it |
#
# ## Where this stands in the field
#
# Hollow networks come from [Sun et al. 2023](https://arxiv.org/abs/2211.16750), who learn the conditional distribution of each
# letter given the others (*categorical ratio matching*). [Haxholli et al. 2025](https://arxiv.org/abs/2507.04341) compare
# score entropy with *denoising cross-entropy*, and find the latter up to 10 % lower in perplexity. For masks, the bound itself
# is a weighted cross-entropy ([MDLM](https://arxiv.org/abs/2406.07524)); for uniform noise,
# [UDLM](https://arxiv.org/abs/2412.10193) and [Duo](https://arxiv.org/abs/2506.10892) train on a bound. A
# [2026 study](https://arxiv.org/abs/2605.22765) shows that for uniform noise the optimum of the usual bound is the
# *leave-one-out* distribution, the one that a hollow network outputs, and not the posterior that cross-entropy teaches a plain
# network.
#
# Next: [how good is it, really?](09_evaluation.ipynb).
