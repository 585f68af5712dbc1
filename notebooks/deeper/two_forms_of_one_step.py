# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two forms of one step
#
# *About 10 minutes. You need: [chapter 7](../07_sampler.ipynb), up to the exact step of one position. You will have: the same step from
# scores, as the paper has it, and the reason why we do not take it when we have a choice.*
#
# Chapter 7 steps back from noise $\bar\sigma_t$ to $\bar\sigma_s$ by Bayes' rule, from the denoising distribution $q$. The network of [SEDD](https://arxiv.org/abs/2310.16834)
# gives no $q$. It gives $\mathrm{score}_y=p_t(\dots y\dots)/p_t(x_t)$, the ratio of the probabilities of two noisy texts. Can
# the step be had from that alone? Yes, exactly.

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
# ## Undo the noise of one position
#
# Look at position $i$ alone. List the probabilities of the $V$ texts that differ from $x_t$ only there,
# $v_y = p_t(\dots y\dots)$. Suppose that only position $i$ had been spared the last noise increment $\Delta$. That gives another list, $\hat v$. The
# noise acts on each position by itself, and the other letters are the same in all $V$ texts, so the increment mixes only the entries of this list:
# with the rates $Q$ of [chapter 3](../03_noise.ipynb), $v = e^{\Delta Q}\hat v$. ($Q$ is symmetric, so rows and columns are the same.) Hence
# $\hat v = e^{-\Delta Q}v$. Chapter 3 has this exponential in closed form, and the form holds for negative noise as well
# ($I$ is the identity matrix, $J$ the matrix of ones):
#
# $$ e^{-\Delta Q} = e^{\Delta} I + (1-e^{\Delta})\tfrac1V J . $$
#
# Divide both lists by $p_t(x_t)$. Then $v$ becomes the score, and $\hat v$ the *staggered score*:
#
# $$ \widehat{\mathrm{score}}_y = \mathrm{score}_y + (e^{\Delta}-1)\,(\mathrm{score}_y-m), \qquad m=\tfrac1V\textstyle\sum_z \mathrm{score}_z . $$
#
# The noise blurred the ratios toward their mean $m$, and this sharpens them away from it. The sum includes the letter that
# is there, whose score is
# 1. One application of Bayes' rule is left: the letter was $y$ with weight $\widehat{\mathrm{score}}_y$, and then turned into $x_t$ with
# the probability that `transition` gives,
#
# $$ p(x_s = y\mid x_t) \;=\; \widehat{\mathrm{score}}_y \cdot\Big(e^{-\Delta}[y=x_t]+\frac{1-e^{-\Delta}}V\Big). $$
#
# The paper calls this the *discrete Tweedie theorem*, after its Gaussian relative. The right side sums to 1 over $y$ by
# itself, because the sum over $y$ is $p_t(x_t)/p_t(x_t)$.
#
# For scores that come from a denoising distribution it must agree with the analytic step, without any normalization:

# %%
import torch

from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score
from ddlm_core.reverse import analytic_probs, staggered_score
from ddlm_core.tiny_world import three_letter_world

generator = torch.Generator().manual_seed(1)
log_q = (3 * torch.randn(3, 5, 106, generator=generator, dtype=torch.float64)).log_softmax(-1)
x_t = torch.randint(106, (3, 5), generator=generator)
start = torch.tensor([0.01, 0.8, 5.0], dtype=torch.float64)
end = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
score = denoiser_log_score(log_q, start, x_t).exp()
tweedie = staggered_score(score, start - end) * transition(x_t, start - end, 106)
torch.testing.assert_close(tweedie, analytic_probs(log_q, x_t, start, end), rtol=1e-9, atol=1e-12)
torch.testing.assert_close(tweedie.sum(-1), torch.ones(3, 5, dtype=torch.float64))

# %% [markdown]
# (`test_both_forms_of_the_step_agree` checks the same with three alphabets.)
#
# ## Why we prefer the other
#
# The factor $e^{\Delta}-1$ should make you uneasy. Undoing noise amplifies whatever is wrong with the score, and a long step
# has a large $\Delta$. Here is the exact score of chapter 7's world with an error of one percent (*b* too high, *c* too
# low), and what a step down to $\bar\sigma_s=0.1$ makes of it:

# %%
world = three_letter_world()
x_t = world.words[:1]  # the word aa
for start in (3.0, 5.0):
    now = torch.tensor([start], dtype=torch.float64)
    score = denoiser_log_score(world.denoise(x_t, now), now, x_t).exp()
    for name, factors in (("exact score", [1.0, 1.0, 1.0]), ("1 % off", [1.0, 1.01, 0.99])):
        ratios = score * torch.tensor(factors)
        step = staggered_score(ratios, now - 0.1) * transition(x_t, now - 0.1, 3)
        print(f"from {start}, {name:12} first letter a, b, c: {step[0, 0].numpy().round(3)}")
assert step.min() < 0

# %% [markdown]
# From $\bar\sigma_t=3$, one percent of error in the ratios has become six points in the probabilities. From 5, the same one percent
# drives one of them below zero. The formula is exact, and yet the longer the step, the less it can be trusted with a trained
# network. `reverse_probs` clamps negative entries to 0 and normalizes, which the paper does not do.
#
# The analytic step of chapter 7 has no such factor. All that it multiplies are probabilities, so an error of one percent in $q$ stays an error of about that size:

# %%
for start in (3.0, 5.0):
    now = torch.tensor([start], dtype=torch.float64)
    log_q = world.denoise(x_t, now)
    off = log_q + torch.tensor([1.0, 1.01, 0.99], dtype=torch.float64).log()
    exact, step = (analytic_probs(q, x_t, now, 0.1) for q in (log_q, off.log_softmax(-1)))
    print(f"from {start}, 1 % off in q: at most {(step - exact).abs().max():.4f} off in the step")
    assert (step - exact).abs().max() < 0.01

# %% [markdown]
# Back to [chapter 7](../07_sampler.ipynb).
