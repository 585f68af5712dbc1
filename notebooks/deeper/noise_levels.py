# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where to spend the samples
#
# *About 20 minutes. You need: [chapter 5](../05_loss.ipynb). You will have: the exact standard deviation of
# three ways to draw noise levels, the best that any way could reach, and a reason for the one that wins.*
#
# **We have** the bound as an integral over the noise, and a world in which it can be computed exactly.
# **We want** to estimate it from random noise levels with as few samples as possible.
# **Why**: a training step is such an estimate, and [chapter 8](../08_training.ipynb) has to choose its noise
# levels.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# ## The seven words again
#
# Texts of three letters from `a e n t`, of which only seven ever occur. `World` knows all about them, and
# `noise_nodes` are the levels and weights of a quadrature over the noise (Gauss–Legendre, in
# $\log\bar\sigma$).

# %%
import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ddlm_core.forward import perturb_batch
from ddlm_core.loss import denoiser_log_score, score_entropy_loss
from ddlm_core.noise import GeometricNoise
from ddlm_core.support.worlds import World, noise_nodes, small_worlds

WORDS = {"ant": 5, "ate": 4, "eat": 6, "net": 3, "tan": 1, "tea": 4, "ten": 7}
counts = torch.zeros(64, dtype=torch.float64)
for word, count in WORDS.items():
    counts[sum("aent".index(c) * 4**k for k, c in enumerate(reversed(word)))] = count
words = World(counts / counts.sum(), vocab_size=4, length=3)


def exact_area(world: World, sigma_min: float, sigma_max: float) -> float:
    """The integral of the expected loss of the true score over the noise, in nats per text."""
    levels, weight = noise_nodes(sigma_min, sigma_max)
    loss = world.expected_loss(score_entropy_loss, world.log_score(levels), levels)
    return (weight * loss).sum().item()


schedule = GeometricNoise()
area = exact_area(words, 1e-4, 20.0)
third = exact_area(words, 1e-4, schedule.sigma_bar(1 / 3).item())
print(f"area {area:.3f} nats, of which in the first third of the time {third / area:.1%}")

# %% [markdown]
# With geometric noise, $\log\bar\sigma$ grows evenly with $t$. So uniform times spend a third of all samples
# below a noise of 0.006, and find 0.6 % of the area there. In almost clean text hardly a letter is wrong; to
# train there is to proofread a printed book. Geometric noise was first used for images
# ([Song & Ermon 2019](https://arxiv.org/abs/1907.05600)), where each further octave of noise hides a coarser
# kind of detail. A text has no such scales.
#
# ## Importance sampling
#
# The *area* does not depend on how fast we walk along the noise, if each sample is weighted by the stretch
# that it stands for: its *importance weight*. Take the corruption probability as the new variable,
# $f = 1 - e^{-\bar\sigma}$. Then $df = (1-f)\,d\bar\sigma$, and if $\ell$, on this page, is the loss of the
# whole text, $\sum_i\ell_i$,
#
# $$ \int \mathbb E\,\ell\; d\bar\sigma = \int \mathbb E\,\ell\;\frac{df}{1-f}. $$
#
# So draw $f$ uniformly between its ends $f_{\min}$ and $f_{\max}$, set $\bar\sigma = -\log(1-f)$, and weight
# the loss with $(f_{\max}-f_{\min})/(1-f)$ in place of $\sigma(t)$. A little more generally: with $u$
# uniform in $[0, 1]$ and a power $p$,
#
# $$ f = f_{\min} + (f_{\max} - f_{\min})\,u^p, \qquad
#    w = \frac{d\bar\sigma}{du} = \frac{(f_{\max}-f_{\min})\;p\,u^{p-1}}{1-f}. $$
#
# For $p = 1$ that is the line before; a larger $p$ moves samples back toward clean text. By hand, with the
# ends taken as 0 and 1: $u = 0.5$ gives $f = 0.5$ and the weight $1/0.5 = 2$ for $p = 1$; and $f = 0.25$ and
# the weight $2\cdot0.5/0.75 = 1.33$ for $p = 2$. At the noisy end the weight grows like $e^{\bar\sigma}$.
# That does no harm: there the loss of the true score, and of any denoiser, falls like $\kappa^2$, so like
# $e^{-2\bar\sigma}$. But the code needs doubles, because `float32` cannot hold such a $1-f$. Is the area the
# same?


# %%
def noise_by_fraction(u: Tensor, power: float, ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Noise of the corruption probability u^power between two noise levels, and its weight dσ/du."""
    low, high = (-math.expm1(-end) for end in ends)
    f = low + (high - low) * u**power
    return -torch.log1p(-f), (high - low) * power * u ** (power - 1) / (1 - f)


import numpy as np

nodes, node_weights = map(torch.tensor, np.polynomial.legendre.leggauss(400))
world = small_worlds()[1]
for power in (1, 2, 3):
    sigma_bar, slope = noise_by_fraction((1 + nodes) / 2, power, (0.01, 5.0))
    loss = world.expected_loss(score_entropy_loss, world.log_score(sigma_bar), sigma_bar)
    found = (node_weights / 2 * slope * loss).sum().item()
    assert abs(found - exact_area(world, 0.01, 5.0)) < 1e-7
    print(f"f = u^{power}: {found:.6f} nats, over the noise {exact_area(world, 0.01, 5.0):.6f}")

# %% [markdown]
# ## The standard deviation of one sample
#
# The mean is the same for every proposal. What differs is the standard deviation of single samples, and with
# it how many it takes to *measure* the area. On our words no sampling is needed to know it. A sample is a
# weight $w$ times a loss, so its mean square is
# $\int w^2\,\mathbb E[\ell^2]\,du = \int w\,\mathbb E[\ell^2]\,d\bar\sigma$: one more weighted sum. Subtract
# the squared mean and take the root. We can even say what the best proposal of all would reach. Since
# $\int d\bar\sigma/w = \int du = 1$, the Cauchy–Schwarz inequality says
#
# $$ \Big(\int \sqrt{\mathbb E[\ell^2]}\;d\bar\sigma\Big)^2
#    = \Big(\int \sqrt{w\,\mathbb E[\ell^2]}\cdot\frac{1}{\sqrt w}\;d\bar\sigma\Big)^2
#    \le \int w\,\mathbb E[\ell^2]\,d\bar\sigma, $$
#
# with equality for $w \propto 1/\sqrt{\mathbb E[\ell^2]}$: that proposal is the best.

# %%
levels, weight = noise_nodes(1e-4, 20.0)
true_loss = words.expected_loss(score_entropy_loss, words.log_score(levels), levels)
square = words.expected_loss(score_entropy_loss, words.log_score(levels), levels, power=2)
low, high = -math.expm1(-1e-4), -math.expm1(-20.0)
share = (-torch.expm1(-levels) - low) / (high - low)  # f, as a share of its range
proposals = {
    "uniform in t": schedule.sigma(schedule.time(levels)),
    "uniform in f": (high - low) * torch.exp(levels),
    "f = u²": (high - low) * 2 * share.sqrt() * torch.exp(levels),  # u = √share
}
deviation = {}
for name, w in proposals.items():
    deviation[name] = ((weight * w * square).sum() - area**2).sqrt().item()
best = ((weight * square.sqrt()).sum() ** 2 - area**2).sqrt().item()
assert best < min(deviation.values())
for name, value in (deviation | {"best possible": best}).items():
    print(f"{name:13} {value:.2f} nats")

# %% [markdown]
# Halving a standard deviation is worth four times as many samples. So $f = u^2$ is a real gain over uniform
# times, and close to the best there is, and $f$ itself comes out last. Why? Look at almost clean text, where
# $f$ is small. A sample meets a wrong letter with a probability proportional to $f$. If it does, the loss is
# about $1/f$ times a factor of the order of 1: there $\bar\sigma \approx f$, so the ratio is
# $1+\kappa \approx V/f$, times $1/V$. (The factor measures the doubt about which letter it was; without any
# doubt it would be 0.) So $\mathbb E[\ell^2] \approx f\cdot\frac1{f^2} = \frac1f$, and the clean end adds to
# the mean square
#
# $$ \int_{f_{\min}} w\;\frac{df}{f}, \qquad\text{with } w \approx
#    \begin{cases} f\,\log(\bar\sigma_{\max}/\bar\sigma_{\min}) & \text{uniform in } t, \\
#    1 & \text{uniform in } f, \\ 2\sqrt f & f = u^2. \end{cases} $$
#
# With $w = 1$ this is $-\log f_{\min}$, and grows without end as $f_{\min}$ falls: the estimator is
# *heavy-tailed*, with rare samples, each a shock. Uniform times take too many samples there, $f$ too few.
# The square root lies between them.
#
# The figure shows the same area, 1.84 nats, under the three proposals. Against time (left) it is a narrow
# hill at 0.73, after nothing for half of the way. Against $f$ (middle) it is spread over the whole axis, with
# a spike at the clean end: there the loss per unit of $f$ is finite, since few letters are wrong but each
# costs a lot. Against $u$ with $f = u^2$ it rises gently from 0.

# %% tags=["hide-input"]
# alt: Three panels of one area. Against time the curve is flat for half of the axis, then a narrow hill
#  at 0.73. Against the corruption probability it is a low plateau with a spike at 0; against its square root
#  a broad hill that starts at 0.
import matplotlib.pyplot as plt

plt.style.use("ddlm_core.book")
fig, panels = plt.subplots(1, 3, sharey=True, figsize=(7, 2.8))
for ax, (name, w), at in zip(
    panels, proposals.items(), (schedule.time(levels), share, share.sqrt()), strict=True
):
    ax.fill_between(at, w * true_loss, alpha=0.3)
    ax.plot(at, w * true_loss)
    ax.set(title=name, xlabel="time $t$" if name == "uniform in t" else "$u$", ylim=(0, 10.5))
panels[0].set_ylabel("nats per text")
plt.show()

# %% [markdown]
# ## Does it help to learn?
#
# Gradients are a different matter from the area. Train the denoiser of chapter 5 with each proposal, with
# the same seed and the same 800 steps, and measure its excess loss, the area under its curve less the area
# under the true one.


# %%
def train(proposal, steps=800):
    """A small denoiser of the seven words, from noise levels and weights of ``proposal(u)``."""
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            *(torch.nn.Linear(16, 64), torch.nn.SiLU()),
            *(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 12)),
        )

    def model(x_t, sigma_bar):
        waves = torch.cos(torch.pi * schedule.time(sigma_bar)[:, None] * torch.arange(4))
        out = net(torch.cat([one_hot(x_t, 4).flatten(1), waves], 1).float()).view(-1, 3, 4)
        return denoiser_log_score(out.log_softmax(-1), sigma_bar, x_t)

    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(steps):
        x_0 = words.draw(256, g)
        sigma_bar, w = proposal(torch.rand(256, generator=g))
        x_t = perturb_batch(x_0, sigma_bar, 4, generator=g)
        loss = score_entropy_loss(model(x_t, sigma_bar), sigma_bar, x_t, x_0)
        optimizer.zero_grad()
        (w[:, None] * loss).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return model


@torch.no_grad()
def excess(model):
    scores = torch.stack([model(words.texts, level.expand(64)).double() for level in levels])
    loss = words.expected_loss(score_entropy_loss, scores, levels)
    return (weight * (loss - true_loss)).sum().item()


print(f"{'uniform in t':13} {excess(train(schedule)):.3f} nats per text above the truth")
for name, power in (("uniform in f", 1), ("f = u²", 2)):
    model = train(lambda u, p=power: noise_by_fraction(u.double(), p, (1e-4, 20.0)))
    print(f"{name:13} {excess(model):.3f} nats per text above the truth")

# %% [markdown]
# The same order as the standard deviations, in one run each. [Chapter 8](../08_training.ipynb) trains with
# these proposals: its `proposal_times` gives the times that belong to $f = u^p$, with their weights, and $p$
# is a setting. Which $p$ serves a large network best is a question for an experiment there. That all of them
# have the same mean is settled here.
#
# ## Low-discrepancy times
#
# Independent times waste something else: by chance one batch sees more noise than another.
# `low_discrepancy_times` draws one offset $u$ for a batch of $B$ and takes $t_b = (u + b/B) \bmod 1$:
# *stratified* samples ([Variational Diffusion Models](https://arxiv.org/abs/2107.00630)). Each $t_b$ alone is
# uniform, so the mean stays right. By what factor does the standard deviation of the mean loss of a batch of
# 64 shrink, in the second of `small_worlds()` with its true score?

# %%
from ddlm_core.objective import compute_loss

g, world = torch.Generator().manual_seed(0), small_worlds()[1]
means = {"stratified": [], "independent": []}
for _ in range(300):
    x_0 = world.draw(64, g)
    for name, t in (("stratified", None), ("independent", torch.rand(64, generator=g))):
        means[name].append(compute_loss(world, x_0, schedule, t, generator=g).mean())
spread = {name: torch.stack(values).std().item() for name, values in means.items()}
factor = spread["independent"] / spread["stratified"]
assert 1.1 < factor < 1.6
print(f"{factor:.2f}")

# %% [markdown]
# A factor of 1.33, as if the batch were 1.8 times as large. The rest of the noise comes from *which* letters
# are hit, and no choice of times removes that.
