# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a run costs
#
# *About 10 minutes. You need: [chapter 8](../08_training.ipynb). You will have: the operations and the memory of a training step, counted and not
# guessed, an estimate of hours on three GPUs, and the settings that change them.*
#
# **We have** a preset for a GPU, `gpu`. **We want** to know what a run costs before renting one. **Why**: nothing in this
# book has been run on a GPU, so all that can be offered is a count.

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
# ## Operations
#
# The preset has 10 layers of width 640 and takes 64 windows of 256 characters in a step. PyTorch counts the matrix products of one
# forward and backward pass. On a CPU it does not see those inside attention, nor those of Muon, so we add both by formula.
#
# *Attention.* A block with $M$ positions in its context multiplies $L$ queries by $M$ keys and $L\times M$ weights by $M$
# values: $4LMd$ operations per window, a multiplication and an addition counted as two. The backward pass takes twice as
# much as the forward pass. In the merge blocks $M = 2L$.
#
# *Muon.* Each of five Newton–Schulz iterations on a matrix with $m \le n$ sides takes three products, $XX^\top$, its
# square, and the result times $X$: $4m^2n + 2m^3$ operations. It does not depend on the batch.

# %%
import torch
from torch.utils.flop_counter import FlopCounterMode

from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.objective import draw_noise, training_loss
from ddlm_core.optimizers import build_optimizers
from ddlm_core.settings import TrainingConfig

WINDOWS, LENGTH = 64, 256
network = DiscreteDiffusionConfig(
    block_size=LENGTH, n_layer=10, n_head=10, n_embd=640, cond_dim=128
)
model, config = DiscreteDiffusionTransformer(network), TrainingConfig()
own = {parameter.data_ptr() for parameter in model.parameters()}


def cost(windows):
    """Operations of a step on so many windows, and bytes that its forward pass keeps."""
    x_0, kept = torch.randint(2, 106, (windows, LENGTH)), {}  # kept: address → bytes

    def keep(x):
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    drawn = draw_noise(x_0, config, model, torch.Generator().manual_seed(0))
    with counter, hooks, torch.autocast("cpu", torch.bfloat16):
        training_loss(model, drawn).backward()
    return counter.get_total_flops(), sum(kept.values())


(_, bytes_1), (flops_2, bytes_2) = cost(1), cost(2)
counted = flops_2 / 2 * WINDOWS
stacks = sum(bool(block.conv) for block in model.blocks)  # causal blocks; the rest merge
context = stacks * LENGTH + (len(model.blocks) - stacks) * 2 * LENGTH
attention = 3 * WINDOWS * 4 * LENGTH * context * network.n_embd
moved = build_optimizers(model, config)["muon"].param_groups[0]["params"]
sides = [sorted(matrix.shape) for matrix in moved]
muon = sum(5 * (4 * m**2 * n + 2 * m**3) for m, n in sides)
flops = counted + attention + muon
for name, value in (("counted", counted), ("attention", attention), ("Muon", muon), ("sum", flops)):
    print(f"{name:10}{value / 1e12:6.2f} · 10¹² operations per step")
assert 0.05 < attention / counted < 0.15 and 0.1 < muon / counted < 0.2

# %% [markdown]
# A known rule of thumb says 6 operations per weight and token. It leaves out attention and Muon, and comes close:

# %%
parameters = sum(p.numel() for p in model.parameters())
rule = 6 * parameters * WINDOWS * LENGTH
print(f"{parameters / 1e6:.1f} million weights; rule of thumb {rule / 1e12:.2f} · 10¹²")
assert abs(rule / counted - 1) < 0.2

# %% [markdown]
# ## Memory
#
# Weights, gradients and the average take four bytes per weight each; Muon remembers one number per weight, AdamW two. The rest grows with the batch: the values that the forward pass
# keeps for the gradient. PyTorch lets us look at each (`saved_tensors_hooks`), and we note how many bytes it takes, once for each address. Some of them, such as the copies of the
# weights in 16 bits, are there once however many windows there are. So what grows is the *difference* between two windows and one.

# %%
matrices = sum(matrix.numel() for matrix in moved)
state = 4 * (3 * parameters + matrices + 2 * (parameters - matrices))
batch = bytes_1 + (bytes_2 - bytes_1) * (WINDOWS - 1)
print(f"weights and what belongs to them: {state / 1e9:.1f} GB; a batch: {batch / 1e9:.1f} GB")

# %% [markdown]
# ## Hours
#
# One epoch of TinyStories, about 1.9 billion characters, is some 116,000 such steps. What follows is an **estimate**, for a GPU that reaches
# 30 % of the speed on its data sheet (dense, 16 bits).

# %%
steps = 1.9e9 / LENGTH / WINDOWS
for card, peak in (("T4", 65e12), ("RTX 4090", 165e12), ("H100", 989e12)):
    print(f"{card:9} {steps * flops / (0.3 * peak) / 3600:5.1f} hours per epoch (estimated)")

# %% [markdown]
# ## Numbers of 16 bits
#
# Much hardware multiplies 16-bit numbers several times as fast as 32-bit ones. There are two kinds. *bf16* has the range of
# float32 with fewer digits, and needs no care. *fp16* has more digits and a small range, in which small gradients become 0:

# %%
small = torch.tensor(1e-8)
print("bf16:", small.bfloat16().item(), " fp16:", small.half().item())
print("fp16, multiplied by 65,536 first:", ((small * 65536).half().float() / 65536).item())
assert small.half() == 0 and small.bfloat16() > 0

# %% [markdown]
# So with fp16 the loss is first multiplied by a large number, the *scale*, and the gradients are divided by it again before their length is measured
# (*loss scaling*, [Micikevicius et al. 2017](https://arxiv.org/abs/1710.03740)). Now and then a scaled gradient overflows. Then the step is skipped, by both optimizers, and the scale is halved. Both, because
# all gradients are shortened by one common factor, and an overflow in one half would spoil the other. Weights, averages and sums stay in 32 bits. `mixed_precision=auto` takes bf16 where the hardware
# multiplies it fast, else fp16 on a GPU, else 32 bits.
#
# ## What makes a run faster or smaller
#
# | key | what it does |
# |---|---|
# | `mixed_precision` | see above; what stays in 32 bits uses TF32 on newer NVIDIA cards |
# | `torch_compile=true` | fuses operations. On one core, 1.55 million weights: 0.26 s per step instead of 0.32, after 45 s of compiling, so worth it from some 700 steps on |
# | `gradient_accumulation_steps=4`, a quarter of `batch_size` | the same step in less memory |
# | `gradient_checkpointing=true` | computes the inner values of a block twice instead of keeping them |
# | `use_8bit_optimizer=true` | AdamW's memory in 8 bits per number, with CUDA and `bitsandbytes` |
#
# `torchrun --nproc_per_node 4 -m ddlm_core.apps.train` uses four GPUs, or four cores where there are none. The global batch is `batch_size` × `gradient_accumulation_steps` × processes, and without dropout
# the losses in training depend on that product alone. Two processes with 8 stories each take 0.21 s per step on two cores; one process with 16 takes 0.33 s on one
# core, and 0.27 s if PyTorch may use both, all three compiled.
#
# Back to [chapter 8](../08_training.ipynb).
