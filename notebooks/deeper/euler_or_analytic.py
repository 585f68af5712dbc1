# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Euler or analytic?
#
# *About 15 minutes. You need: [chapter 7](../07_sampler.ipynb), up to "When Euler wins". You will have: the error of a run, taken apart into that of
# drawing independently and that of frozen rates, and the reason why the two sometimes cancel.*
#
# The analytic step is exact for each position, and Euler's is not. Yet in a world whose strings are mostly not words,
# Euler comes closer to the language. Here we take the errors of both apart, exactly, on chapter 7's tiny worlds.

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
# ## Two worlds
#
# Both have three letters and words of two. The *generous* one has *ab* 0.4, *bc* 0.3, *ca* 0.2, and 0.1 for the other six words together. The
# *strict* one has *ab* 0.5, *bc* 0.3, *ca* 0.2, and no other word. In between lies any share of rare words:

# %%
import torch
from torch import Tensor

from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import reverse_probs
from ddlm_core.sampler import noise_levels
from ddlm_core.tiny_world import (
    TinyWorld,
    product_of_positions,
    three_letter_world,
    total_variation,
    true_reverse,
    word_kernel,
    written,
)

NOISE, COMMON = GeometricNoise(), [1, 5, 6]  # the numbers of ab, bc, ca


def world_with(rare: float) -> TinyWorld:
    """The strict world, of which the six other words take a share in equal parts."""
    probs = torch.full((9,), rare / 6, dtype=torch.float64)
    probs[COMMON] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) * (1 - rare)
    return TinyWorld(probs.reshape(3, 3))


print("distance of the analytic step, divided by that of Euler's, on the linear grid")
print("rare words   " + "".join(f"N = {n:<6}" for n in (4, 16, 64, 256)))
for rare in (0.0, 0.001, 0.01, 0.03, 0.1):
    world, ratios = world_with(rare), []
    for n in (4, 16, 64, 256):
        runs = (written(world, noise_levels(NOISE, n), method=m) for m in ("analytic", "euler"))
        one, other = (total_variation(run, world.probs) for run in runs)
        ratios.append(one / other)
    print(f"{rare:10.3f}   " + "".join(f"{ratio:<10.2f}" for ratio in ratios))
assert ratios[-1] < 1

# %% [markdown]
# Above 1, Euler is closer. From 16 steps on it is, as long as the share of rare words is below a limit somewhere between
# 3 % and 10 %. With four steps the order can be the other way around: Euler wastes its first step.
#
# ## Two errors
#
# Each step of a run replaces the true table for whole words, $R$, by another one: the analytic step by the product of its exact marginals, $A$, and
# Euler's by the product of frozen rates, $E$. Write Euler's error as
#
# $$ E - R = (A - R) + (E - A), $$
#
# *drawing independently* plus *freezing rates*. To first order, what a run gets wrong in the end is the sum of what each step gets wrong, carried to
# the end by the true tables. So each part has a sum of its own.


# %%
def parts(world: TinyWorld, num_steps: int) -> tuple[Tensor, Tensor]:
    """What the two errors of all steps, each carried to the end by true tables, do to each word."""
    levels = noise_levels(NOISE, num_steps)
    drawing, freezing = torch.zeros(2, 9, dtype=torch.float64)
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        true = true_reverse(world, now, after)
        analytic, euler = (
            product_of_positions(world, reverse_probs(world, world.words, now, after, method=m))
            for m in ("analytic", "euler")
        )
        noisy = world.probs @ word_kernel(world, now)
        drawing = drawing @ true + noisy @ (analytic - true)
        freezing = freezing @ true + noisy @ (euler - analytic)
    return drawing, freezing


for name, world in (("strict", world_with(0.0)), ("generous", three_letter_world())):
    print(f"{name}, times N = 256:    ab      bc      ca   others")
    for error, kind in zip(parts(world, 256), ("independently", "frozen rates"), strict=True):
        others = error.sum() - error[COMMON].sum()
        print(f"  {kind:18}" + "".join(f"{256 * v:8.2f}" for v in (*error[COMMON], others)))

# %% [markdown]
# **Drawing independently favors the favorite.** In one step from noise each letter votes for a word without asking the other. Two votes for *ab*, with
# probability $0.5^2$, write *ab*. A split vote writes something that is not a word, and later steps settle it by the odds of the
# two words. So *ab* would get $0.5^2+2\cdot0.5\cdot0.3\cdot\tfrac58+2\cdot0.5\cdot0.2\cdot\tfrac57=0.58$. Whatever the number of steps, some votes
# are taken at the same time.
#
# **Frozen rates favor the rare.** Euler uses the rates at the start of a step. There the text is noisier than in the rest of the step, and all
# ratios are nearer to 1. So Euler treats a rare word better than it should.
#
# In the strict world the two push in opposite directions, for *ab*, *bc* and *ca* alike. Next to nothing is left of what is not a word: later steps correct it. In the generous
# world drawing independently leaves rare words, because there no later step objects to them, and so do frozen rates. The
# two errors add up for the rare words and for *ab*.
#
# If this is right, Euler cannot win where the words are equally likely, since there is no favorite. The assertion below checks that, for three words of a third each:

# %%
fair = torch.zeros(3, 3, dtype=torch.float64)
fair[0, 1] = fair[1, 2] = fair[2, 0] = 1 / 3
fair_world = TinyWorld(fair)
for n in (4, 16, 64):
    runs = (written(fair_world, noise_levels(NOISE, n), method=m) for m in ("analytic", "euler"))
    one, other = (total_variation(run, fair_world.probs) for run in runs)
    print(f"{n:3} steps: analytic {one:.5f}, Euler {other:.5f}")
    assert one <= other * 1.001

# %% [markdown]
# (Equally likely words alone are not enough: a word that shares letters with many others is a favorite, too.)
#
# ## An accident of three words?
#
# Take twelve strict worlds at random: five words out of the 81 strings of four letters, equally likely in the first six, and with weights 1, 1/2, 1/3, 1/4, 1/5 in the others.

# %%
from ddlm_core.reverse import METHODS

print(
    "        distance: analytic   euler   not a word: analytic    euler      (16 steps of cosine)"
)
for number in range(12):
    generator = torch.Generator().manual_seed(number)
    weights = torch.ones(5) if number < 6 else 1 / torch.arange(1, 6)
    probs = torch.zeros(81, dtype=torch.float64)
    probs[torch.randperm(81, generator=generator)[:5]] = (weights / weights.sum()).double()
    world = TinyWorld(probs.reshape(3, 3, 3, 3))
    levels = noise_levels(NOISE, 16, "cosine")
    runs = [written(world, levels, method=method) for method in METHODS]
    one, other = (total_variation(run, world.probs) for run in runs)
    shares = [run[probs == 0].sum() for run in runs]
    print(f"world {number:2}{one:19.4f} {other:7.4f} {shares[0]:22.4f} {shares[1]:8.4f}")
    assert shares[1] > shares[0]

# %% [markdown]
# Euler comes closer in ten of the twelve, and in worlds 3 and 7 it does not: that the two errors oppose each other is a tendency, not a law. And in all twelve it writes a few more strings that are not words.
#
# ## What this means for text
#
# Text is closer to the strict world: nearly all strings are not words. But the cancellation is in *how often* each word comes, and not in *whether* it is
# a word. For a story it would be in how often each hero and each template comes, and it would not make fewer broken
# stories. `benchmarks/euler.py` counts those of the bundled network; chapter 7 has the result. A trained network also makes
# errors of its own, which do not shrink with $N$.
#
# Back to [chapter 7](../07_sampler.ipynb).
