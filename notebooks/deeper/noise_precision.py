# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Noise and precision
#
# *About 5 minutes. You need: [chapter 3](../03_noise.ipynb). You will have: the reasons behind three small choices in its
# code, and the distance from pure noise at the end.*
#
# **We have** the kernel and the schedule of chapter 3, as formulas.
# **We want** their digits, in single precision too.
# **Why**: at $t = 0$ one character in ten thousand is resampled. A careless subtraction keeps fewer than four digits of
# that number, careless times change it by two percent, and the loss at small noise goes with it.

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

# %%
import torch

from ddlm_core.noise import GeometricNoise, resample_probability, transition_matrix

# %% [markdown]
# ## Why `expm1`
#
# The corruption probability is $1 - e^{-\bar\sigma}$. For $\bar\sigma = 10^{-4}$, $e^{-\bar\sigma} = 0.9999$ is stored in single
# precision with an error of up to $3\cdot10^{-8}$, and the subtraction keeps that error while the result shrinks to $10^{-4}$.
# `expm1(x)` computes $e^x - 1$ without the detour over a number near 1:

# %%
little = torch.tensor(1e-4)
exact = -torch.expm1(-little.double())
for name, value in (("1 - exp", 1 - torch.exp(-little)), ("-expm1", -torch.expm1(-little))):
    print(f"{name:8} is off by {abs(value / exact - 1):.0e}")
assert abs(resample_probability(little) / exact - 1) < 1e-6

# %% [markdown]
# ## Both ends are exact
#
# `GeometricNoise.sigma_bar` multiplies two powers, $\sigma_{\min}^{1-t}\,\sigma_{\max}^{t}$, as in the formula. The exponential of
# the line $(1-t)\log\sigma_{\min} + t\log\sigma_{\max}$ would miss the ends by a rounding:

# %%
noise, ends = GeometricNoise(), torch.tensor([0.0, 1.0])
line = (1 - ends) * torch.log(torch.tensor(1e-4)) + ends * torch.log(torch.tensor(20.0))
print("powers:", noise.sigma_bar(ends).tolist(), " line:", line.exp().tolist())
assert torch.equal(noise.sigma_bar(ends), torch.tensor([1e-4, 20.0]))

# %% [markdown]
# ## bfloat16 is too coarse for times
#
# Times keep the precision in which they come. A time in bfloat16 has 8 significant bits, so below 1 it is rounded by up to
# $2^{-9}$. The slope of $\log\bar\sigma$ is $\log(20/10^{-4}) = 12.2$, so this alone changes the noise by a factor of up to
# $e^{12.2/512} = 1.024$:

# %%
t = torch.linspace(0.5, 1, 1001, dtype=torch.float64)
rounded = t.bfloat16().double()
worst = (noise.sigma_bar(rounded) / noise.sigma_bar(t) - 1).abs().max()
print(f"bfloat16 times change the noise by up to {worst:.1%}")
assert 0.02 < worst < 0.025

# %% [markdown]
# Times are also not checked: to look at a number on a GPU, the processor must wait for it, in every training step.
#
# ## How far from pure noise at $t = 1$?
#
# A new text will start from pure noise, so whatever the noise at $t = 1$ still tells is an error. Put
# $\alpha = e^{-\bar\sigma}$, the survival probability. The kernel gives $\alpha + (1-\alpha)/V = (1 + (V-1)\alpha)/V$ to
# the clean token, and $(1-\alpha)/V$ to each of the $V - 1$ others. The KL divergence from uniform, the sum of
# $p\log(p/\tfrac1V)$, is
#
# $$ KL = \tfrac1V\Big[(1 + (V-1)\alpha)\log(1 + (V-1)\alpha) + (V-1)(1-\alpha)\log(1-\alpha)\Big]
#    \approx \tfrac{V-1}{2}\,\alpha^2. $$
#
# For small $\alpha$, use $(1+x)\log(1+x) \approx x + x^2/2$: the terms in $\alpha$ cancel, and those in $\alpha^2$ add up to
# $\tfrac1{2V}\big((V-1)^2 + (V-1)\big) = \tfrac{V-1}{2}$.

# %%
V = 106
alpha = torch.exp(-noise.sigma_bar(1.0))
clean, other = (V - 1) * alpha, -alpha  # how much each token has more than 1/V, times V
kl = ((1 + clean) * torch.log1p(clean) + (V - 1) * (1 + other) * torch.log1p(other)) / V
print(f"KL to uniform at t = 1: {kl:.1e}, by the approximation {(V - 1) / 2 * alpha**2:.1e}")
assert abs(kl / ((V - 1) / 2 * alpha**2) - 1) < 1e-3

# %% [markdown]
# The divergence is the *expected log-likelihood ratio*, in nats, that one character gives against uniform noise. Given the clean text,
# characters are corrupted independently, so it adds up: a window of 160 characters has $4\cdot10^{-14}$ nats. Chapter 5's bound has
# this number as a term of its own, `prior_kl`.
#
# The number must be computed with `log1p`, as here. A direct sum of $p \log(pV)$ adds terms near $10^{-9}$ and
# $-10^{-11}$, whose rounding errors are as large as the answer:

# %%
row = transition_matrix(20.0, V)[0]
print(f"without log1p: {(row * torch.log(row * V)).sum():.1e}")

# %% [markdown]
# Back to [chapter 3](../03_noise.ipynb).
