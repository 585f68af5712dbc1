# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # In one sitting
#
# *About 35 minutes. You need: Python, some PyTorch, Bayes' rule, and to have met a transformer before. You will have:
# a discrete diffusion language model, written and trained on this page, whose sentences you can check.*
#
# **We have** a computer without a GPU, and three minutes of its time.
#
# **We want** a model that starts from random characters and turns all of them, together, into a sentence.
#
# **Why**: the whole method fits on one page. Here it is, once, from end to end. The chapters then take it apart,
# prove each formula, and build the real thing.
#
# The code needs PyTorch and Matplotlib, nothing else. Only the last check imports the package of this book,
# `ddlm_core`.

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
import os
import time
from itertools import pairwise, product

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

torch.manual_seed(0)
SMOKE = os.environ.get("DDLM_PRESET") == "smoke"  # a run of seconds, to see that all works

# %% [markdown]
# ## A world of sentences
#
# A model is easy to judge if we know exactly what it should write. So we make up a small world, in which all
# sentences follow one pattern and are equally probable.

# %%
WORDS = """\
tom ben max leo ann eve mia zoe
one two six ten
red old big shy wet fat sad odd
cat dog hen pig owl cow bat ant bee rat ape emu
loves feeds likes needs calls finds hears walks"""


def sentence(name: str, count: str, look: str, animal: str, verb: str) -> str:
    pronoun = "he" if name in "tom ben max leo" else "she"
    plural, them = ("", "it") if count == "one" else ("s", "them")
    return f"{name} has {count} {look} {animal}{plural}. {pronoun} {verb} {them}."


world = [sentence(*words) for words in product(*map(str.split, WORDS.splitlines()))]
entropy = math.log(len(world))
print(*world[::9001], f"{len(world):,} sentences, entropy {entropy:.2f} nats", sep="\n")

# %% [markdown]
# Two things must agree across the sentence: the name decides between *he* and *she*, and the number decides both the
# *s* of the animal and the last word, *it* or *them*. A model that only knows which letters are common near each other
# often gets these wrong.
#
# With $N$ equally probable sentences, the *entropy* is $\log N$. It is the smallest average *negative log-likelihood*,
# $-\log p(\text{sentence})$, that any model can reach. [Chapter 2](02_stories.ipynb) builds such a world for whole
# stories. We keep 2,048 sentences out of training, to see later whether the model learned the rule or only a list.
#
# The model works on characters. Short sentences are filled up with spaces, so that all have the same length $L$
# ([chapter 1](01_tokenizer.ipynb) has a proper tokenizer).

# %%
alphabet = sorted(set("".join(world)))  # a space, a period, and the letters that occur
V, L = len(alphabet), max(map(len, world))


def encode(text: str) -> list[int]:
    return [alphabet.index(character) for character in text.ljust(L)]


def decode(tokens: Tensor) -> str:
    return "".join(alphabet[i] for i in tokens.tolist())


data = torch.tensor([encode(text) for text in world])[torch.randperm(len(world))]
held_out, train = data[:2048], data[2048:]
V, L

# %% [markdown]
# ## Noise
#
# To learn how to repair text, we need broken text. We break a character in the simplest way: it is *resampled*,
# replaced by one drawn uniformly from all $V$, perhaps by itself. After a total noise $\bar\sigma$ a character has
# survived with probability $e^{-\bar\sigma}$, so
#
# $$ p(x_t = y \mid x_0) = e^{-\bar\sigma}\,[y = x_0] + \frac{1-e^{-\bar\sigma}}{V}, $$
#
# where $x_0$ is the clean character, $x_t$ the noisy one, and $[\dots]$ is 1 if true and 0 if not. This is the
# *kernel* of *uniform-state diffusion*; [chapter 3](03_noise.ipynb) derives it, [chapter 4](04_forward.ipynb)
# corrupts text with it. Most diffusion language models of today use a mask instead of a random character ([appendix
# A](A_absorbing.ipynb) does it too); we do not, because a random character can be changed again and again, so a
# mistake is never final.
#
# The noise level depends on a time $t$ from 0 to 1, and is *geometric*: it grows by equal factors in equal times,
# from almost nothing to so much that nothing is left, $\bar\sigma(t) = 0.0001^{1-t}\cdot 20^{\,t}$. Here is one
# sentence at five noise levels. At 0.1 about a tenth of it is resampled ($1-e^{-0.1}=0.095$).

# %%
SIGMA_MIN, SIGMA_MAX = 1e-4, 20.0


def noise_level(t: Tensor) -> Tensor:
    return SIGMA_MIN ** (1 - t) * SIGMA_MAX**t


def add_noise(probs: Tensor, sigma_bar: Tensor) -> Tensor:
    """What probabilities (B, L, V) become after a noise, (B,) or one for all."""
    sigma_bar = sigma_bar[..., None, None]
    return torch.exp(-sigma_bar) * probs - torch.expm1(-sigma_bar) / V


def kernel(x: Tensor, sigma_bar: Tensor) -> Tensor:
    """p(y | x) for tokens (B, L): (B, L, V)."""
    return add_noise(F.one_hot(x, V), sigma_bar)


def draw(probs: Tensor) -> Tensor:
    """Probabilities (B, L, V) → tokens (B, L), each position on its own."""
    return torch.multinomial(probs.flatten(0, 1), 1).view(probs.shape[:2])


for sigma_bar in torch.tensor([0.0001, 0.1, 0.5, 1.0, 20.0]):
    print(f"{sigma_bar:7.4f}  {decode(draw(kernel(data[:1], sigma_bar))[0])}")

# %% [markdown]
# ## What the network is asked
#
# It sees a noisy text and the noise level, and answers one question per position: **what was the clean character
# here, judging by all the *other* positions?** The answer is a distribution $q$ over the alphabet, the *denoising
# distribution*; since it leaves the character itself out, a *leave-one-out* distribution.
#
# Why not look at the character itself? Because we know exactly what it tells: it went through the kernel. Bayes' rule
# adds this evidence in closed form, and the network has less to learn. **By hand**, with two letters, *a* and
# *b*: the neighbors say *a* with $q_a = 0.9$. Half of the letters are resampled, so a letter is still right
# with probability $\tfrac12+\tfrac12\cdot\tfrac12= \tfrac34$. At our position stands a *b*. Then
#
# $$ p(a) : p(b) = 0.9\cdot\tfrac14 : 0.1\cdot\tfrac34 = 0.225 : 0.075 = 3 : 1. $$
#
# The neighbors win: it was an *a*, with probability 0.75. If $q$ had already counted the *b*, we would count it
# twice.
#
# So the network must not see the character at its own place, not even on a detour through other positions. A
# transformer whose layers all look both ways would leak it: a neighbor sees it, and hands it back one layer later.
# The *hollow transformer* ([Sun et al. 2023](https://arxiv.org/abs/2211.16750)) cannot. One stack of blocks reads
# from left to right, another from right to left. At position $i$ the first knows only what lies to its left, the
# second only what lies to its right; a last block attends to both, and merges them. [Chapter 6](06_model.ipynb)
# builds a better one, piece by piece.


# %%
class Block(nn.Module):
    """Attention to a context, then a feed-forward network, each added to the residual stream."""

    def __init__(self, d: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm, self.norm_2 = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key_value, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.feed_forward = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        queries = self.query(self.norm(x))
        keys, values = self.key_value(self.norm(context)).chunk(2, -1)
        split = [z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (queries, keys, values)]
        x = x + self.out(F.scaled_dot_product_attention(*split, mask).transpose(1, 2).flatten(2))
        return x + self.feed_forward(self.norm_2(x))


class HollowTransformer(nn.Module):
    """Noisy tokens (B, L), noise (B,) or () → log q of the merge and of both stacks (3, B, L, V)."""

    def __init__(self, d: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.embedding, self.place = (nn.Parameter(0.3 * torch.randn(n, d)) for n in (V, L))
        self.noise = nn.Linear(1, d)
        self.left = nn.ModuleList(Block(d) for _ in range(depth))
        self.right = nn.ModuleList(Block(d) for _ in range(depth))
        self.merge, self.norm, self.head = Block(d), nn.LayerNorm(d), nn.Linear(d, V)

    def forward(self, x_t: Tensor, sigma_bar: Tensor) -> Tensor:
        resampled = -torch.expm1(-sigma_bar).expand(len(x_t))  # share of resampled characters
        place = self.place + self.noise(resampled[:, None])[:, None]  # (B, L, d)
        x = F.embedding(x_t, self.embedding)
        left = F.pad(x, (0, 0, 1, -1)) + place  # the neighbor on the left; nothing at the edge
        right = F.pad(x, (0, 0, -1, 1)) + place  # the neighbor on the right
        past = torch.ones(L, L, dtype=torch.bool).tril()
        for rightward, leftward in zip(self.left, self.right):
            left, right = rightward(left, left, past), leftward(right, right, past.T)
        both, mask = torch.cat([left, right], 1), torch.cat([past, past.T], 1)
        states = torch.stack([self.merge(left + right, both, mask), left, right])
        return self.head(self.norm(states)).log_softmax(-1)


# %% [markdown]
# Is it really blind? Change one character: the answer at its own place must stay the same, to the last bit, and the
# answers elsewhere must not.

# %%
model = HollowTransformer()
x = data[:1].clone()
before = model(x, torch.tensor(1.0))
x[0, 7] = (x[0, 7] + 1) % V
changed = (model(x, torch.tensor(1.0)) != before).any(-1)[0, 0]
assert not changed[7] and changed[:7].all() and changed[8:].all()

# %% [markdown]
# ## The loss, and the training
#
# A network that must guess the clean character is graded by the *cross-entropy*, $-\log q_{x_0}$. We
# only have to choose which noise levels to practice on: here every share of resampled characters,
# $1-e^{-\bar\sigma}$, counts alike, and each batch spreads them evenly. The two stacks are graded as well, each with a
# weight of 0.3 (an *auxiliary loss*): so the one learns by itself what comes next, and the other what came before.
# When the model writes, only the merge is asked.


# %%
def loss_of(model: nn.Module, x_0: Tensor) -> Tensor:
    share = (torch.rand(1) + torch.arange(len(x_0)) / len(x_0)) % 1  # of resampled characters
    sigma_bar = (-torch.log1p(-share)).clamp(SIGMA_MIN, SIGMA_MAX)
    x_t = draw(kernel(x_0, sigma_bar))
    return torch.stack([F.nll_loss(log_q.mT, x_0) for log_q in model(x_t, sigma_bar)])


steps = 20 if SMOKE else 2000
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
start = time.time()
for step in range(steps):
    losses = loss_of(model, train[torch.randint(len(train), (64,))])
    optimizer.zero_grad()
    (losses @ torch.tensor([1, 0.3, 0.3])).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if (step + 1) % (steps // 5) == 0:
        print(f"step {step + 1}: {losses[0].item():.3f} nats per character")
seconds = time.time() - start

# %% [markdown]
# The name of the book's method is *score entropy* (SEDD, [Lou, Meng and Ermon
# 2024](https://arxiv.org/abs/2310.16834)). Its network answers with ratios, the *score* $s_y$: how many times as
# probable would the whole noisy text be with $y$ in this place, where now $x_t$ stands? Bayes' rule turns our $q$ into
# these ratios in one line. With $\kappa = V/(e^{\bar\sigma}-1)$,
#
# $$ s_y = \frac{1+\kappa\,q_y}{1+\kappa\,q_{x_t}}, \qquad
#    \ell = \frac1V\sum_{y\ne x_t} s_y - a_y\log s_y + a_y(\log a_y - 1), $$
#
# where $a_y$ is the same ratio for a $q$ that knows the clean character for certain, and $\ell$ is the score entropy,
# 0 where $s = a$. The two losses are related: keep all other characters as they are, and let the noise of this one
# grow from nothing to infinity; its expected score entropy, integrated, is exactly $-\log q_{x_0}$. So both are
# smallest for the same $q$, and the cross-entropy learns faster ([chapter 8](08_training.ipynb) proves the one and
# measures the other).
#
# What score entropy is for, here, is a *number* that means something: summed over all characters and integrated over
# all the noise, it is an upper bound on the negative log-likelihood of a text, the *negative ELBO* ([chapter
# 5](05_loss.ipynb) adds two tiny terms, for the least noise and the most). On average over the world, no model can
# get below the entropy.


# %%
def log_score(log_q: Tensor, sigma_bar: Tensor, x_t: Tensor) -> Tensor:
    kappa = (V / torch.expm1(sigma_bar))[..., None, None]
    log_s = torch.log1p(kappa * log_q.exp())
    return log_s - log_s.gather(-1, x_t[..., None])  # 0 at y = x_t


def score_entropy(log_q: Tensor, sigma_bar: Tensor, x_t: Tensor, x_0: Tensor) -> Tensor:
    log_s = log_score(log_q, sigma_bar, x_t).double()
    log_a = log_score(F.one_hot(x_0, V).double().log(), sigma_bar.double(), x_t)
    d = log_s - log_a
    return (log_a.exp() * (torch.expm1(d) - d)).sum(-1) / V  # the same ℓ, without cancellation


t, rates = torch.linspace(0, 1, 5 if SMOKE else 41), []
for sigma_bar in noise_level(t):
    x_0 = held_out[torch.randperm(2048)[: 32 if SMOKE else 512]]
    x_t = draw(kernel(x_0, sigma_bar))
    with torch.no_grad():
        nats = score_entropy(model(x_t, sigma_bar)[0], sigma_bar, x_t, x_0).sum(-1).mean()
    rates.append((math.log(SIGMA_MAX / SIGMA_MIN) * sigma_bar * nats).item())
bound = torch.trapezoid(torch.tensor(rates), t).item()

# %% [markdown]
# The figure shows where these nats come from, on sentences that the network has never seen. The area under the curve
# is the bound. Nearly all of it lies between $t=0.6$, where 14 % of the characters are resampled, and $t=0.9$, where
# 99.7 % are: there it is decided which sentence it will be. With less noise, most errors are easy to correct.

# %%
plt.fill_between(t, rates, alpha=0.4)
plt.xlabel("time t (noise grows to the right)")
plt.ylabel("nats per sentence\nand unit of time")
plt.title(f"area: {bound:.2f} nats per sentence; entropy of the world: {entropy:.2f}")
plt.show()

# %% [markdown]
# ## Writing: the noise backward
#
# Start with random characters and go back from one noise level, $\bar\sigma_t$, to the next lower one,
# $\bar\sigma_s$. Each character one step earlier is drawn by Bayes' rule once more: what could it have been ($q$
# after noise $\bar\sigma_s$), and could that have turned into what we see, with the rest of the noise?
#
# $$ p(x_s = y \mid x_t) \propto \Big(e^{-\bar\sigma_s} q_y + \frac{1-e^{-\bar\sigma_s}}V\Big)
#    \Big(e^{-(\bar\sigma_t-\bar\sigma_s)}[y=x_t] + \frac{1-e^{-(\bar\sigma_t-\bar\sigma_s)}}V\Big). $$
#
# If $q$ is right, this is exact for each character. But all characters are drawn at once, each without knowing what the
# others are about to become: this is the *factorization error*, and many small steps make it small. On the *cosine*
# grid, the share of surviving characters follows a quarter of a cosine wave, run backward: it grows fast at first, and
# ever more slowly as the text takes shape. [Chapter 7](07_sampler.ipynb) derives the step, and measures the error.


# %%
def reverse_step(log_q: Tensor, x_t: Tensor, sigma_bar_t: Tensor, sigma_bar_s: Tensor) -> Tensor:
    weight = add_noise(log_q.exp(), sigma_bar_s) * kernel(x_t, sigma_bar_t - sigma_bar_s)
    return weight / weight.sum(-1, keepdim=True)


def noise_grid(num_steps: int) -> Tensor:
    """From much noise to none: the share of survivors is a quarter of a cosine wave, backward."""
    survival = torch.sin(torch.linspace(0, 1, num_steps + 1) * torch.pi / 2)
    return -torch.log(survival).clamp(-SIGMA_MAX, 0)


@torch.no_grad()
def write(model: nn.Module, count: int, num_steps: int = 64) -> list[Tensor]:
    """Each step of the way, from random characters to sentences: tokens (count, L)."""
    states = [torch.randint(V, (count, L))]
    for sigma_bar_t, sigma_bar_s in pairwise(noise_grid(num_steps)):
        log_q = model(states[-1], sigma_bar_t)[0]
        states.append(draw(reverse_step(log_q, states[-1], sigma_bar_t, sigma_bar_s)))
    return states


states = write(model, 16 if SMOKE else 512)
texts = [decode(tokens).rstrip() for tokens in states[-1]]
print(*texts[:10], sep="\n")

# %% [markdown]
# Are these sentences? A text is flawless if it is one of the world's, to the last letter.

# %%
flawless = set(texts) & set(world)
share = sum(text in flawless for text in texts) / len(texts)
new = flawless & {decode(tokens).rstrip() for tokens in held_out}
print(f"{seconds:.0f} seconds of training; {share:.1%} of {len(texts)} texts are flawless:")
print(f"{len(flawless)} different sentences, {len(new)} of them never seen in training")

# %% [markdown]
# More than nine of ten are sentences, to the last letter. Some were never shown in training, about as large a share as
# was held out, one in twelve. It has learned the pattern, not the list. The bound lies half a nat per sentence above
# the entropy: at most that much is left to learn. [Chapter 9](09_evaluation.ipynb) asks such questions with error bars.
#
# ## Watch it write
#
# Here are eight states of one text, from noise to the last step. The frame of the sentence stands first, then the
# words, and at the end single letters are corrected.

# %%
for i in torch.linspace(0, len(states) - 1, 8).long().tolist():
    print(f"{i:3}  {decode(states[i][0])}")

# %% [markdown]
# Run the next cell to watch it in one line.

# %%
for state in states:
    print("\r" + decode(state[0]), end="", flush=True)
    time.sleep(0 if SMOKE or os.environ.get("DDLM_STORED") else 0.1)

# %% [markdown]
# ## The check: the same as the package
#
# In the package every formula is compared with an independent truth: a matrix exponential, a sum over all cases, a
# world small enough to enumerate. So it is enough that this page agrees with the package. The next cell (open it)
# compares the two.

# %% tags=["hide-input"]
from ddlm_core.forward import transition
from ddlm_core.loss import denoiser_log_score, score_entropy_loss
from ddlm_core.noise import GeometricNoise
from ddlm_core.reverse import analytic_probs
from ddlm_core.sampler import noise_levels

x_0, sigma_bar = data[:4], torch.tensor([0.01, 0.3, 1.0, 5.0])
x_t = draw(kernel(x_0, sigma_bar))
log_q = torch.randn(4, L, V).log_softmax(-1)
score = log_score(log_q, sigma_bar, x_t)
pairs = {
    "noise level": (noise_level(t), GeometricNoise()(t)[0]),
    "kernel": (kernel(x_0, sigma_bar), transition(x_0, sigma_bar, V)),
    "score": (score, denoiser_log_score(log_q, sigma_bar, x_t)),
    "score entropy": (
        score_entropy(log_q, sigma_bar, x_t, x_0).float(),
        score_entropy_loss(score, sigma_bar, x_t, x_0),
    ),
    "reverse step": (
        reverse_step(log_q, x_t, sigma_bar, sigma_bar / 2),
        analytic_probs(log_q, x_t, sigma_bar, sigma_bar / 2),
    ),
}
for name, (ours, package) in pairs.items():
    torch.testing.assert_close(ours, package, rtol=1e-4, atol=1e-6)
    print(f"{name:14} agrees")
grid, levels = noise_grid(64), noise_levels(GeometricNoise(), 64, "cosine").float()
assert ((-grid).exp() - (-levels).exp()).abs().max() < 2e-4  # the package starts at SIGMA_MIN
print("time grid      agrees")
if not SMOKE:
    assert share > 0.88 and bound < entropy + 1

# %% [markdown]
# ## Change it safely
#
# In `add_noise`, divide by `V - 1` instead of `V`: the last check fails at the kernel. In the network, start both
# stacks from `x + place`, without the shifts: the check for blindness fails. The package is guarded in the same way,
# by tests such as `test_transition_gives_the_rows_of_the_matrix` and
# `test_every_position_depends_on_every_other_and_nothing_else`: edit a chapter, then `make export && pytest tests/`.
#
# **Exercise 1: infilling.** Fix some characters, and let the model write the rest: after each step, put the known
# ones back. Write four sentences like `ann has ___ ___ ____. she _____ them.` This is an approximation: the noise
# level that the network is told is wrong for the known characters ([chapter 8](08_training.ipynb) trains for it).


# %% tags=["solution", "hide-input"]
@torch.no_grad()
def infill(template: str, count: int) -> list[str]:
    known = torch.tensor([c != "_" for c in template.ljust(L)])
    wanted = torch.tensor(encode(template.replace("_", " ")))
    x_t = torch.where(known, wanted, torch.randint(V, (count, L)))
    for sigma_bar_t, sigma_bar_s in pairwise(noise_grid(64)):
        drawn = draw(reverse_step(model(x_t, sigma_bar_t)[0], x_t, sigma_bar_t, sigma_bar_s))
        x_t = torch.where(known, wanted, drawn)
    return [decode(tokens).rstrip() for tokens in x_t]


filled = infill("ann has ___ ___ ____. she _____ them.", 4)
assert all(text.startswith("ann has") and text.endswith("them.") for text in filled)
print(*filled, sep="\n")

# %% [markdown]
# **Exercise 2: how many steps?** Write 512 texts with 8, 16 and 32 steps. How does the share of flawless texts grow up
# to the 64 steps above, and why? Then let each step go all the way back to clean text, and add fresh noise up to
# $\bar\sigma_s$. Does that make a difference? Give each share $p$ its *standard error*, $\sqrt{p(1-p)/512}$.


# %% tags=["solution", "hide-input"]
@torch.no_grad()
def write_afresh(count: int, num_steps: int) -> Tensor:
    x_t = torch.randint(V, (count, L))
    for sigma_bar_t, sigma_bar_s in pairwise(noise_grid(num_steps)):
        log_q = model(x_t, sigma_bar_t)[0]
        clean = reverse_step(log_q, x_t, sigma_bar_t, torch.tensor(0.0))
        x_t = draw(add_noise(clean, sigma_bar_s))
    return x_t


def share_of(tokens: Tensor) -> float:
    return sum(decode(x).rstrip() in every_sentence for x in tokens) / len(tokens)


def with_error(p: float) -> str:
    return f"{p:.3f} ± {math.sqrt(p * (1 - p) / len(texts)):.3f}"


every_sentence, shares = set(world), []
for num_steps in (8, 16) if SMOKE else (8, 16, 32):
    shares.append(share_of(write(model, len(texts), num_steps)[-1]))
    afresh = share_of(write_afresh(len(texts), num_steps))
    print(f"{num_steps:2} steps: {with_error(shares[-1])}, with fresh noise {with_error(afresh)}")
print(f"64 steps: {with_error(share)}, the texts above")
variance = (shares[0] * (1 - shares[0]) + share * (1 - share)) / len(texts)  # of the difference
assert SMOKE or share - shares[0] > 3 * math.sqrt(variance)

# The share grows, by several standard errors: a smaller step draws fewer characters at once. It levels
# off below 1, since what many steps leave are errors of the network. Fresh noise makes no difference that
# 512 texts could tell from chance.

# %% [markdown]
# ## Summary
#
# | step | on this page | properly |
# |---|---|---|
# | characters | `encode`, `decode` | [chapter 1](01_tokenizer.ipynb) |
# | a world with a known entropy | `world` | [chapter 2](02_stories.ipynb) |
# | noise | `noise_level`, `kernel` | [chapters 3](03_noise.ipynb) and [4](04_forward.ipynb) |
# | what the numbers mean | `log_score`, `score_entropy` | [chapter 5](05_loss.ipynb) |
# | network | `HollowTransformer` | [chapter 6](06_model.ipynb) |
# | writing | `reverse_step`, `noise_grid`, `write` | [chapter 7](07_sampler.ipynb) |
# | training | `loss_of` | [chapter 8](08_training.ipynb) |
# | judging | `bound`, `flawless` | [chapter 9](09_evaluation.ipynb) |
# | real stories, infilling | | [chapter 10](10_pipeline.ipynb) |
#
# ## Where this stands in the field
#
# This page is uniform-state *discrete diffusion* ([D3PM, Austin et al. 2021](https://arxiv.org/abs/2107.03006)) with
# the bound of SEDD. Most large models of the kind use masks instead, such as
# [MDLM](https://arxiv.org/abs/2406.07524) and [LLaDA](https://arxiv.org/abs/2502.09992);
# [UDLM](https://arxiv.org/abs/2412.10193) and [Duo](https://arxiv.org/abs/2506.10892) went back to uniform noise,
# which lets a model correct itself. [Where the ideas come from](../book/history.md) tells the rest.
#
# Go on with [chapter 1](01_tokenizer.ipynb). Or, if you have met all this before, with [chapter 5](05_loss.ipynb),
# where the mathematics is.
