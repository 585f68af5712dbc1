# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Random numbers
#
# *About 10 minutes. You need: [chapter 7](../07_sampler.ipynb). You will have: why the sampler draws as it does, and why the same seed gives
# the same text.*

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
# ## One number for each letter
#
# To draw from $V$ probabilities, lay them end to end from 0 to 1, and see which segment a uniform random number falls into.
# This is *inverse-CDF sampling*: one random number for each position, and one cumulative sum. The index of the letter is
# the number of letters whose segments end at the number or before it.

# %%
import torch

from ddlm_core.noise import GeometricNoise
from ddlm_core.sampler import denoising_steps, sample_diffusion, sample_generators
from ddlm_core.tiny_world import three_letter_world

probs = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
for number in (0.49, 0.5, 0.74, 0.75):
    print(number, "gives letter", int((probs.cumsum(-1) <= number).sum()))

# %% [markdown]
# Many implementations use the *Gumbel trick* instead: add to each log-probability a random number $-\log(-\log u)$ and take the largest.
# That needs $V$ random numbers for each position, and it is less exact than it looks. In float32 a random $u$ from `torch.rand` is a multiple of
# $2^{-24}$ and below 1, so the noise has a largest value:

# %%
largest = -torch.log(-torch.log(torch.tensor(1 - 2.0**-24)))
print(f"largest Gumbel noise in float32: {largest:.2f}")
assert 16 < largest < 17

# %% [markdown]
# A letter with probability $p$ wins against a sure one about once in $1/p$ draws, for which its noise must be larger than that of the other by
# $-\log p$. Below $p\approx e^{-16}$ this nearly cannot happen. Over a text of thousands of positions and steps the rare letters are
# missing, as if the temperature were lower ([Zheng et al. 2024](https://arxiv.org/abs/2409.02908)). The cumulative sum errs too, but only by about
# $10^{-7}$ in the probability of any letter.
#
# Even so one detail needs care. The random number is below 1, but rounded into float32 and multiplied by a total that is
# not exactly 1 it can reach the total, and the letter would have the index $V$, which does not exist. So `_sample_categorical` takes the number just
# below the total (`nextafter`) if that happens.

# %%
almost_one = torch.tensor(1 - 1e-9, dtype=torch.float64)
print("as float32:", almost_one.float().item())
assert almost_one.float() == 1

# %% [markdown]
# ## One generator for each text
#
# If one random generator served the whole batch, text 3 would depend on how many texts are drawn with it, and splitting a
# large batch to save memory would change every text. So `sample_generators` gives **each text its own generator**, made
# from the seed and the number of the text alone. It lives on the CPU, which costs next to nothing and gives the same
# numbers on every device.

# %%
world, noise = three_letter_world(), GeometricNoise()
whole = sample_diffusion(world, noise, 20, 2, num_steps=6, generator=sample_generators(7, 20))
parts = [
    sample_diffusion(world, noise, 10, 2, num_steps=6, generator=sample_generators(7, 10, first))
    for first in (0, 10)
]
assert torch.equal(whole, torch.cat(parts))
other = sample_diffusion(world, noise, 20, 2, num_steps=6, generator=sample_generators(8, 20))
assert not torch.equal(whole, other)
print("twenty texts at once are twice ten texts")

# %% [markdown]
# The seed goes through a hash first. Otherwise the second text of seed 7 would be the first text of seed 8. After the hash
# we count up, because PyTorch's CPU generator looks at only 32 bits of its seed. A hash for every text would now and then
# give two texts of a large batch the same 32 bits, and so the same text: by the birthday problem the chance is one half
# with 77,000 texts. Consecutive numbers are all different.

# %%
texts = 77_000
print(f"{1 - torch.exp(torch.tensor(-(texts**2) / 2 / 2**32)):.2f}")

# %% [markdown]
# ## No gradients, but not around the loop
#
# `reverse_probs` runs in `torch.inference_mode()`, in which no gradients are prepared; this saves time. The mode must not be wrapped around
# the *loop*. A Python generator that stops at a `yield` inside such a block leaves the mode switched on in the code of whoever
# reads the steps:


# %%
def careless():
    with torch.inference_mode():
        yield 1


steps = careless()
next(steps)
print("after a careless generator:", torch.is_inference_mode_enabled())
steps.close()
run = denoising_steps(world, noise, 1, 2, num_steps=3)
next(run), next(run)
print("after ours:                ", torch.is_inference_mode_enabled())
assert not torch.is_inference_mode_enabled()

# %% [markdown]
# Back to [chapter 7](../07_sampler.ipynb).
