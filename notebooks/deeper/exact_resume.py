# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exact resume
#
# *About 15 minutes. You need: [chapter 8](../08_training.ipynb). You will have: what it takes that a run which was stopped, killed, or split over
# several processes is the same run.*
#
# **We have** a trainer. **We want** a stop in the middle to change nothing, to the last bit. **Why**: if a resumed run may differ a little,
# no test can tell a difference from a bug.

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
# ## Random numbers that need no memory
#
# A run that draws all its noise from one generator must save that generator's state, and the state of the one that shuffles, and so on. We save
# none. The noise of step $k$ comes from a generator that is made from the seed and $k$, the order of the windows from the
# seed and the number of the epoch. `derive_seed` mixes the seed, a word for the purpose, and numbers:

# %%
import math
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ddlm_core.objective import draw_noise, draw_step, training_loss
from ddlm_core.support.checkpoints import LATEST
from ddlm_core.support.errors import UserError
from ddlm_core.support.seeds import derive_seed
from ddlm_core.testing import same_bits, tiny_trainer

for arguments in ((0, "noise", 1), (1, "noise", 0), (0, "windows", 1)):
    print(arguments, "→", derive_seed(*arguments))

# %% [markdown]
# Why not simply `seed + step`? Then step 1 of seed 0 would be step 0 of seed 1, and two runs that are meant to be independent would share nearly all of
# their noise. And why a word? So that the order of an epoch and the noise of a step with the same number have nothing in common. The
# mixing is numpy's `SeedSequence`.

# %%
folder = TemporaryDirectory()
trainer = tiny_trainer(Path(folder.name) / "run")
x_0 = next(iter(trainer.train_loader)).long()
first = draw_step(x_0, trainer.config, trainer.model, step=3)
torch.rand(1000)  # whatever happens in between
assert same_bits(first, draw_step(x_0, trainer.config, trainer.model, step=3))
assert not torch.equal(first.x_t, draw_step(x_0, trainer.config, trainer.model, step=4).x_t)

# %% [markdown]
# Only dropout uses torch's global generator, so `draw_step` seeds that one, too.
#
# ## One step, in parts
#
# A step may be too large for one pass. Then it is done in `micro_batches`, one after the other (*gradient accumulation*) or by several
# processes. All noise of the step is drawn first and dealt out afterward, so no matter who does which part, the step is the
# same. Gradients add up; each loss is divided by the number of parts. Only the order of a few sums changes, and with it the
# last digits:

# %%
model = trainer.model.eval()
drawn = draw_noise(x_0, trainer.config, model, torch.Generator().manual_seed(0))


def gradient(parts):
    """The gradient of the head, from so many micro-batches."""
    model.zero_grad()
    for part in range(parts):
        (training_loss(model, [values[part::parts] for values in drawn]) / parts).backward()
    return model.head.weight.grad.clone()


one, four = gradient(1), gradient(4)
print(f"largest entry {one.abs().max():.1e}, largest difference {(one - four).abs().max():.0e}")
assert torch.allclose(one, four, atol=1e-6)

# %% [markdown]
# With dropout the parts matter, because what dropout drops depends on them. With several processes, one on each GPU,
# [accelerate](https://huggingface.co/docs/accelerate) averages the gradients; all hold the same weights, and the first one measures, writes and prints. Of two processes the first takes
# the parts 0, 2, 4, … The loss and the wish to stop travel together: each process contributes 0 or 1, and if the mean is above 0, someone was told to stop, and all
# stop after the same step.
#
# ## A signal only raises a flag
#
# Ctrl-C sends SIGINT, and a cluster sends SIGTERM before it takes the machine away. Both only raise a flag. The step is finished, a checkpoint
# written, and then `train` raises `KeyboardInterrupt`. So no step is ever half done. A fourth signal stops at once.
#
# ## A file that is whole or not there
#
# A machine can die at any moment, even while it writes. A checkpoint is therefore written to a temporary file. Once that is
# complete, the checkpoint before it is renamed to `checkpoint_previous.pth`, and the new one gets its name. A rename
# happens completely or not at all. Every piece of the file has a checksum, and reading compares all of them. Let us train,
# and then flip the bits of one byte in the middle of the file:

# %%
trainer = tiny_trainer(Path(folder.name) / "run")
trainer.train()
path = Path(folder.name) / "run" / LATEST
print(sorted(file.name for file in path.parent.iterdir()))
content = bytearray(path.read_bytes())
content[len(content) // 2] ^= 0xFF
path.write_bytes(content)

second = tiny_trainer(Path(folder.name) / "run")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    second.resume(path)
print("resumed at step", second.step, "of", second.total_steps)
assert second.step == 6 and any("going on from" in str(w.message) for w in caught)
second.train()
assert same_bits(trainer.state.state_dict(), second.state.state_dict())

# %% [markdown]
# The checkpoint of step 8 was damaged, so the run resumed from that of step 6 (here one is saved every third step), and
# ended with the same bits. The damaged file is kept under another name (`*.damaged`); reading itself changes nothing.
# `python benchmarks/resume.py` kills a run again and again at random moments, with a signal that cannot be caught, and
# compares the outcome.
#
# The format is torch's own, which has a pickle inside, and a pickle can run code when it is read. So we read with
# `weights_only=True`, which refuses everything but tensors and plain values.
#
# ## The same run, or another one
#
# Resuming is exact only if it is the same run. So a checkpoint also holds what it was trained on: the settings, the
# network, a fingerprint of the text, and how many windows a step takes. `resume` refuses what differs, and names it:

# %%
try:
    tiny_trainer(Path(folder.name) / "run", seed=1, ema_decay=0.9).resume(path)
except UserError as error:
    print(error)
else:
    raise AssertionError("another run was accepted")

# %% [markdown]
# Some settings may differ: where a run writes, how often it measures, how fast it computes, how long it is; and those that a
# diverged run needs to go on, the learning rates and `gradient_clip`. Where the text comes from may differ if the text is the same.
#
# ## When a run diverges
#
# It ends *before* the weights change, so that the last checkpoint is good. The sign is a loss that is NaN, or ten times that of the uniform
# baseline, $\log 106$ nats per token; or a gradient that is not finite. Ten is our choice, because score entropy is heavy-tailed.

# %%
broken = tiny_trainer(Path(folder.name) / "other", lr_schedule=lambda step, total: 1e9)
try:
    broken.train()
except FloatingPointError as error:
    print(error)
else:
    raise AssertionError("it should have diverged")
assert all(math.isfinite(p.sum().item()) for p in broken.model.parameters())
folder.cleanup()

# %% [markdown]
# Back to [chapter 8](../08_training.ipynb).
