# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where the p-value comes from
#
# *About 10 minutes. You need: [chapter 4](../04_forward.ipynb), polar coordinates, and the normal distribution. You will have: the
# chi-squared p-value derived from waiting times, and a check that the test deserves trust.*
#
# **We have** Pearson's $X^2$, the sum of $(O_y - E_y)^2 / E_y$ over the outcomes, and a library function for its p-value.
# **We want** to know why that function is right, and whether the p-values of right code behave as they should.
# **Why**: a statistical test that cannot fail, or fails at random, protects nothing.

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
import math

import torch
from torch import Tensor

from ddlm_core.forward import perturb_batch
from ddlm_core.noise import transition_matrix

# %% [markdown]
# ## From squares to waiting times
#
# Pearson showed in 1900 that, for many draws, $X^2$ behaves like a sum of $k$ squared standard normal numbers, with $k$ one less than the number
# of outcomes: the counts add up to the number of draws, so the last one is not free. We take this from him, and need the
# probability that such a sum exceeds $c$.
#
# Let $k$ be even, and take the squares in pairs. Two normal numbers are a point in the plane, with density $\tfrac1{2\pi}e^{-r^2/2}$ at
# distance $r$ from the center. The ring between $r$ and $r + dr$ has the area $2\pi r\,dr$. So half of the squared distance exceeds $c/2$ with
# probability
#
# $$ \int_{\sqrt c}^\infty e^{-r^2/2}\, r\,dr = e^{-c/2}. $$
#
# This is the *exponential distribution* with mean 1: the waiting time for the first event of a *Poisson process* that has one event per unit of
# time, on average. Chapter 3 has such a process; its events are the jumps, its time is the noise.
#
# So $X^2/2$ is a sum of $k/2$ independent waiting times: the moment of event number $k/2$. It lies beyond $c/2$ exactly if fewer than $k/2$
# events came before $c/2$, and the number of these has the Poisson distribution with mean $c/2$. Therefore
#
# $$ P(X^2 > c) = e^{-c/2} \sum_{j=0}^{k/2-1} \frac{(c/2)^j}{j!}. $$
#
# For odd $k$ no such sum exists, but the same function of $k$, the *regularized incomplete gamma function*
# $\Gamma(k/2, c/2)/\Gamma(k/2)$, remains right. Chapter 4 uses PyTorch's; here both agree, at the limit that chapter 4 sets
# and elsewhere:


# %%
def p_value(observed: Tensor, expected: Tensor) -> float:
    """Probability of an X² at least as large if ``expected`` is right (chi-squared test)."""
    half = ((observed - expected) ** 2 / expected).sum().double() / 2
    return torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2).double(), half).item()


def tail(c: float, k: int) -> float:
    """P(X² > c) for an even number k of squares: the sum above."""
    return math.exp(-c / 2) * sum((c / 2) ** j / math.factorial(j) for j in range(k // 2))


for k, c in ((2, 4.0), (4, 33.4), (24, 30.0), (100, 120.0)):
    library = torch.special.gammaincc(torch.tensor(k / 2).double(), torch.tensor(c / 2).double())
    print(f"k = {k:3}, c = {c:5}: {tail(c, k):.3e} by the sum, {library:.3e} by PyTorch")
    assert abs(tail(c, k) / library - 1) < 1e-4

# %% [markdown]
# The second line is chapter 4's limit: five outcomes, $X^2 = 33.4$, one in a million.
#
# ## Are the p-values uniform?
#
# If the formula under test is right, and Pearson's theorem applies, *p-values are uniform*: below 0.5 in half of all experiments, below 0.1 in
# a tenth, below 0.01 in a hundredth. (The p-value falls as $X^2$ grows. So it is below 0.1 exactly when $X^2$ exceeds the value that it exceeds
# with probability 0.1.) Here are two thousand experiments of a thousand draws each; chance alone moves the three shares by
# about 0.011, 0.007 and 0.002:

# %%
generator, expected = torch.Generator().manual_seed(3), 1000 * transition_matrix(0.8, 5)[2]
draws = perturb_batch(torch.full((2000, 1000), 2), 0.8, 5, generator=generator)  # (2000, 1000)
p_values = torch.tensor([p_value(row.bincount(minlength=5), expected) for row in draws])
for share, chance in ((0.5, 0.011), (0.1, 0.007), (0.01, 0.0022)):
    measured = (p_values < share).double().mean().item()
    print(f"below {share}: {measured:.4f}")
    assert abs(measured - share) < 4 * chance

# %% [markdown]
# Farther out the theorem is only an approximation, and we do not need it there. Right code has $X^2$ around $k$. A real error adds to $X^2$ in
# proportion to the number of draws, 72 in chapter 4's example, and no rough edge of the approximation comes near that.
#
# **Exercise.** How many draws does it take until an error of one percentage point, at a probability of $\tfrac12$, adds 33.4 to $X^2$? (Expected:
# about 83,500. The error counts twice, because another token must lose what one gains; take that one to have probability
# $\tfrac12$, too.)

# %% tags=["solution", "hide-input"]
needed = 33.4 / (2 * 0.01**2 / 0.5)
assert abs(needed - 83_500) < 1
round(needed)

# %% [markdown]
# Back to [chapter 4](../04_forward.ipynb).
