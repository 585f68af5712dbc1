# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The network as engineering
#
# *About 20 minutes. You need: [chapter 6](../06_model.ipynb). You will have: the reasons for those of its lines that the
# mathematics does not ask for.*
#
# **We have** the network of chapter 6. **We want** it to fail loudly, to be the same after saving and loading, and to stay exact
# where half the bits are missing. **Why**: a transformer with a bug still trains, only a little worse.

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
# ## A configuration refuses what cannot work
#
# `DiscreteDiffusionConfig` is frozen and holds plain values only. Whatever cannot make a network is refused when the
# configuration is made, in one line that says what to do, instead of as a shape error five calls deep:

# %%
from ddlm_core.config import DiscreteDiffusionConfig

BAD = [
    {"n_embd": 100, "n_head": 3},
    {"cond_dim": 7},
    {"dropout": 1.0},
    {"graph": "ring"},
    {"sigma_min": 5.0, "sigma_max": 1.0},
    {"graph": "absorbing", "parametrization": "score"},
]
for changes in BAD:
    try:
        DiscreteDiffusionConfig(**changes)
    except ValueError as error:  # a UserError is one
        print(error)
    else:
        raise AssertionError(f"{changes} was accepted")

# %% [markdown]
# An even number of features per head is what rotary positions need, because they rotate pairs. Dropout is 0 by default, where SEDD's published
# configuration has 0.1: the noise makes every text new each time it is seen. That is an argument; we have not compared.
#
# The network checks shapes and types of its inputs in the same way (`check_input`), but not their values: to look at
# them, the processor would have to wait for the GPU at each call.
#
# ## Why the logarithm of the noise
#
# The sinusoidal features are taken of $\log\bar\sigma$. At the frequency $\omega$, two levels whose angles are $\alpha$ and $\beta$ lie at
# the squared distance $(\sin\alpha - \sin\beta)^2 + (\cos\alpha - \cos\beta)^2 = 2 - 2\cos(\alpha - \beta)$. When the noise doubles,
# $\alpha - \beta = \omega\log 2$, wherever we start. So twice the noise is equally far at every level, the flat line below.
#
# The SEDD authors' code takes sines and cosines of $\bar\sigma$ itself, with frequencies from 1 down
# to $10^{-4}$. That is the rising line: below $\bar\sigma = 0.01$ all levels look alike. It may matter little
# for a network that outputs $q$, because nearly clean texts call for nearly the same $q$. It would matter most for a
# network that outputs scores, which grow like $1/\bar\sigma$. We have not trained with theirs.

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import torch

from ddlm_core.model import sinusoidal_features

plt.style.use("ddlm_core.book")
levels = torch.logspace(-4, math.log10(20), 200, dtype=torch.float64)


def features_of_noise_itself(sigma_bar: torch.Tensor, size: int) -> torch.Tensor:
    frequencies = 10_000.0 ** -(torch.arange(size // 2) / (size // 2))
    phase = sigma_bar[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


for name, features, style in (
    (r"features of $\log\,\bar\sigma$", sinusoidal_features, "-"),
    (r"features of $\bar\sigma$", features_of_noise_itself, "--"),
):
    moved = (features(2 * levels, 64) - features(levels, 64)).norm(dim=-1)
    plt.loglog(levels, moved, style, label=name)
    if features is sinusoidal_features:
        assert (moved / moved[0] - 1).abs().max() < 1e-9
plt.xlabel(r"total noise $\bar\sigma$")
plt.ylabel("distance, noise against twice the noise")
plt.legend()
plt.show()

# %% [markdown]
# ## Half the bits: bfloat16
#
# In mixed precision PyTorch runs linear maps in bfloat16, which has the range of float32 and 8 significant bits. Three
# places of the network ask for more.
#
# **Positions.** With 8 bits one cannot count beyond 256. A table of angles that follows the network into bfloat16 would give two
# neighbors the same angle. So `rope_angles` computes them anew on each call, in float32:

# %%
from ddlm_core.model import rope_angles

print(torch.tensor([255.0, 256.0, 257.0, 258.0]).to(torch.bfloat16))
assert torch.tensor(257.0).to(torch.bfloat16) == 256
assert rope_angles(300, 32).dtype == torch.float32

# %% [markdown]
# **From logits to scores.** At $\bar\sigma = 10^{-4}$, $\kappa$ is about a million, and log-scores run from about $-14$ to 14. At that
# size, neighboring numbers of bfloat16 are $1/16$ apart, so one rounding changes a score by up to 3 %, before the network has made
# any mistake of its own. So `_read_out` passes on float32 even if the head worked in bfloat16. Take random logits that
# bfloat16 represents exactly, and go from there to scores in either precision. Several roundings in a row add up to 6 %:

# %%
from ddlm_core.loss import denoiser_log_score

generator = torch.Generator().manual_seed(0)
logits = (4 * torch.randn(4, 32, 106, generator=generator)).to(torch.bfloat16)
x_t = torch.randint(106, (4, 32), generator=generator)
low = torch.full((4,), 1e-4, dtype=torch.float64)
exact = denoiser_log_score(logits.double().log_softmax(-1), low, x_t)
for dtype in (torch.float32, torch.bfloat16):
    found = denoiser_log_score(logits.to(dtype).log_softmax(-1), low.to(dtype), x_t)
    error = (found.double() - exact).abs().max().item()
    print(f"{dtype!s:15} largest error of a log-score: {error:.0e}")
    assert error < 1e-4 or dtype == torch.bfloat16

# %% [markdown]
# **Attention.** Norms and rotations of queries and keys run in the precision of the weights (`exact` in the code). On a CPU, `autocast` is
# off for attention itself: more exact, and faster, because the backward pass of PyTorch's bfloat16 attention was three times slower there.
# The mask is a dense table of true and false. It keeps the code short, and it rules out PyTorch's
# FlashAttention kernel, which accepts none; with long texts one would describe the mask to FlexAttention instead.
#
# ## Zeros that somebody overwrites
#
# Many programs end the construction of a network with a walk over all layers that gives each linear map fresh random numbers.
# Here that undoes adaLN-zero. If the head is spared, the network's answer shows no sign of it:

# %%
from torch import nn

from ddlm_core.model import Modulation
from ddlm_core.testing import fresh_network, noised_batch

torch.manual_seed(0)
walked = fresh_network()
for module in walked.modules():
    if isinstance(module, nn.Linear) and module is not walked.head:
        nn.init.normal_(module.weight, std=0.02)
tokens, sigma_bar = noised_batch()
largest = max(
    m.linear.weight.abs().max().item() for m in walked.modules() if isinstance(m, Modulation)
)
print(
    f"largest log-score {walked(tokens, sigma_bar).abs().max():.1f}, largest modulation weight {largest:.3f}"
)
assert (walked(tokens, sigma_bar) == 0).all() and largest > 0

# %% [markdown]
# That is why `test_fresh_network_is_the_uniform_baseline` looks at the modulations and not at the answer alone.
#
# ## How many parameters?
#
# A linear map from $a$ to $b$ features has $ab$ weights and $b$ biases. Go through the picture of chapter 6, with
# $V$ tokens, windows of $L$ tokens, $d$ features, $h$ heads, $d_c$ features of the noise vector, $N$ blocks, of which
# $N_c = 2\lfloor (N-1)/2\rfloor$ are causal, with convolutions over $k$ positions, and no biases in attention and feed-forward:
#
# $$ \begin{aligned} &\underbrace{(V + L + 1)\,d}_{\text{embedding, positions, condition}} + \underbrace{2d_c(d_c+1)}_{\text{noise}}
#    + N\big[\underbrace{6d(d_c+1)}_{\text{modulation}} + \underbrace{4d^2 + 2d/h}_{\text{attention}}
#    + \underbrace{8d^2}_{\text{feed-forward}}\big] \\
#    &+ \underbrace{2kd\,N_c}_{\text{convolutions}} + \underbrace{2d(d_c+1)}_{\text{last modulation}}
#    + \underbrace{V(d+1)}_{\text{head}} \end{aligned} $$
#
# The $2d/h$ are the learned factors of QK-norm. For large $d$ the rule of thumb is $12\,N d^2$. A formula that agrees with the network says
# that nothing was forgotten and nothing is there twice.


# %%
from ddlm_core.model import DiscreteDiffusionTransformer


def expected_parameters(config: DiscreteDiffusionConfig) -> int:
    """The formula above, without biases in the blocks."""
    V, d, d_c = config.vocab_size, config.n_embd, config.cond_dim
    block = 6 * d * (d_c + 1) + 4 * d * d + 2 * d // config.n_head + 8 * d * d
    ends = (V + config.block_size + 1) * d + 2 * (d_c + d) * (d_c + 1) + V * (d + 1)
    causal_blocks = (config.n_layer - 1) // 2 * 2
    return ends + config.n_layer * block + 2 * config.conv_size * d * causal_blocks


config = DiscreteDiffusionConfig()
torch.manual_seed(0)
network = DiscreteDiffusionTransformer(config)
assert sum(p.numel() for p in network.parameters()) == expected_parameters(config)
small = {"n_layer": 12, "n_head": 12, "n_embd": 768, "cond_dim": 128, "block_size": 1024}
total = expected_parameters(DiscreteDiffusionConfig(**small))
modulation = (12 * 6 + 2) * 768 * 129
print(f"default: {expected_parameters(config):,}, rule of thumb {12 * 6 * 128**2:,}")
print(f"at the size of SEDD small: {total:,}, of which {modulation / total:.1%} are modulation")

# %% [markdown]
# SEDD's small model has 12 blocks of 12 heads and 768 features, a noise vector of 128, and windows of 1,024 tokens. Ours at that size, with 106
# tokens, has 93.3 million parameters.
#
# What does hiding a position's own letter cost in arithmetic? Per position, a plain block does about $12d^2 + 2Ld$
# multiplications: its weights, and the products of attention with $L$ positions. A merge block makes keys and values of
# $2L$ states and attends to all of them: $2d^2 + 2Ld$ more. At $d = 128$ and $L = 256$ that is 37 % more, in two blocks of
# six:

# %%
d, L = 128, 256
plain, merge = 12 * d * d + 2 * L * d, 14 * d * d + 4 * L * d
print(
    f"a merge block {merge / plain:.3f} plain ones, the network {(4 * plain + 2 * merge) / (6 * plain):.3f}"
)
assert round(merge / plain, 3) == 1.375

# %% [markdown]
# ## Gradient checkpointing
#
# Training keeps the inner values of every block for the backward pass. With `network.gradient_checkpointing = True` a block keeps
# its inputs only and computes the rest again: less memory, more time. The gradients must not change:

# %%
gradients = []
for setting in (False, True):
    network.gradient_checkpointing = setting
    network.zero_grad()
    text = config.tokenizer.encode("Once upon a time")[None]
    network.head.weight.data.fill_(0.01).mul_(torch.linspace(-1, 1, 106)[:, None])
    network(text, torch.tensor([0.5])).square().sum().backward()
    gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
network.gradient_checkpointing = False
print(f"{len(gradients[0])} gradients, equal to the last bit")

# %% [markdown]
# ## Save and load
#
# `PyTorchModelHubMixin` of [huggingface_hub](https://huggingface.co/docs/huggingface_hub/package_reference/mixins)
# gives the network `save_pretrained`, `from_pretrained` and `push_to_hub`. A folder holds `config.json`,
# `model.safetensors`, a format that holds numbers only and cannot run code, and a model card. All of `config.json` but the alphabet:

# %%
import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

with tempfile.TemporaryDirectory() as folder:
    network.save_pretrained(folder)
    saved = json.loads((Path(folder) / "config.json").read_text())
    print(sorted(path.name for path in Path(folder).iterdir()), f"{len(saved.pop('vocab'))} tokens")
    print(json.dumps(saved))
    loaded = DiscreteDiffusionTransformer.from_pretrained(folder)
    assert loaded.config == network.config
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), loaded.parameters()))
    weights = load_file(Path(folder) / "model.safetensors")
    weights.pop("modulation.linear.weight")  # a file that lost a piece
    save_file(weights, Path(folder) / "model.safetensors")
    try:
        DiscreteDiffusionTransformer.from_pretrained(folder)
    except RuntimeError as error:
        print(str(error).splitlines()[-1].strip())
    else:
        raise AssertionError("a file without the last modulation was loaded")

# %% [markdown]
# The last line is a default of the mixin that we turn around. Its `from_pretrained` accepts a file in which weights are
# missing, and leaves those as they were made. In most networks that shows quickly. Here a missing modulation stays at zero:
# its gates let nothing through, or its shift and scale do nothing; the rest works, and the text gets a little worse. So
# `_from_pretrained` asks for `strict=True`: all weights, or an error.
#
# What is saved is the frozen configuration that the network was made with. To note the training step, hand over a new one:
# `save_pretrained(folder, config=replace(model.config, step=step))`.
#
# ## What differs from SEDD's network
#
# | | SEDD | here |
# |---|---|---|
# | output | log-scores; the entry of the current token is overwritten with 0 | $\log q$, then Bayes' rule; as `"score"`: the entry of the current token is subtracted from all |
# | a position's own letter | visible | hidden, by a hollow transformer |
# | noise features | of $\bar\sigma$ | of $\log\bar\sigma$ |
# | layer norm | with a learned scale | without, since $1+\gamma$ does the same |
# | queries and keys | as they are | RMS-normed |
# | positions | rotary | rotary and learned |
# | short convolution | no | in causal blocks |
# | infilling | with the plain network | given tokens are marked |
# | dropout | 0.1 | 0 |
#
# Subtracting gives 0 at the current token, too, and the answer stays the same when all numbers are raised by a constant, as a
# ratio should. Today's large language models use RMSNorm for LayerNorm and SwiGLU for GELU. In a minute of training here,
# neither made a difference that one seed could show ([benchmarks](../../benchmarks/README.md)).
#
# Back to [chapter 6](../06_model.ipynb).
