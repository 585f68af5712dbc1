# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Loading a stranger's model
#
# *About 10 minutes. You need: [chapter 10](../10_pipeline.ipynb). You will have: a file of weights read by hand, a pickle caught in the
# act, and the list of what is checked before a model may write.*
#
# **We have** a folder of two files, from a download or from a colleague. **We want** a network out of it, or one line that says why not.
# **Why**: a file can be broken in many ways, and it can be made to harm you. Garbled text is a late way to find out.

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
# ## The configuration
#
# `config.json` says what the network is. Here is that of the bundled model, without its vocabulary:

# %%
import json

from ddlm_core.support.models import bundled_models, model_folder

folder = bundled_models()["pocket-stories"]
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
{name: value for name, value in config.items() if name != "vocab"}

# %% [markdown]
# Everything that sampling depends on is in there. If the limits of the noise, say, were left to the program that loads the weights, another
# program would use its own, and write worse text without any error. The `README.md` beside it, the *model card*, is for people; no program reads it.
#
# ## The weights, by hand
#
# The format of the second file, [safetensors](https://github.com/huggingface/safetensors), is so simple
# that we can read it without a library. The first 8 bytes are a number $n$, lowest byte first. The next
# $n$ bytes are JSON: for each weight its type, its shape, and where it starts and ends. The rest is the
# numbers, one after another. Let us look up one weight, the vector that the network adds wherever a
# character is given:

# %%
import numpy as np

from ddlm_core.pipeline import DiffusionPipeline, load_model

pipeline = DiffusionPipeline.from_pretrained(device="cpu")
raw = (folder / "model.safetensors").read_bytes()
n = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8 : 8 + n])
header["condition_embedding"]

# %%
start, end = header["condition_embedding"]["data_offsets"]
by_hand = np.frombuffer(raw[8 + n :][start:end], dtype="<f4")  # F32: four bytes per number
assert (by_hand == pipeline.model.condition_embedding.numpy(force=True)).all()
by_hand[:4]

# %% [markdown]
# The header alone says how many numbers the model has:

# %%
shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
count = sum(int(np.prod(shape)) for shape in shapes)
assert count == sum(weight.numel() for weight in pipeline.model.parameters())
count

# %% [markdown]
# ## Why never a pickle
#
# PyTorch's own format is a zip file around a *pickle*, and a pickle is not data. It is a little program
# that Python runs to build an object again, and this program may call any function. Ours calls `print`.
# It could just as well call `os.system`:

# %%
import pickle


class Letter:
    def __reduce__(self):  # pickle asks: which function, called with what, builds you again?
        return print, ("This line was printed by a file, because somebody opened it.",)


pickle.loads(pickle.dumps(Letter()))

# %% [markdown]
# A file of numbers cannot do that. So no file that you name is ever unpickled by this book. Resuming a training run takes
# more than weights; there `torch.load(…, weights_only=True)` takes tensors and plain values and refuses the rest.
#
# Safetensors protects you from the file of weights, and from nothing else. A repository may also hold code, and a loader that
# runs it (`trust_remote_code`) trusts it. Ours fetches two files from the Hub, `config.json` and `model.safetensors`. And a configuration
# can ask for a network that does not fit into your memory.
#
# ## A trap
#
# What happens if somebody puts a pickle where the weights should be? This one would make a folder. `load_model` must refuse the file, and the
# folder must not appear. Then we open the pickle ourselves, to see that the trap was armed.

# %%
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from ddlm_core.support.errors import UserError

scratch = TemporaryDirectory()
copy, victim = Path(scratch.name, "copy"), Path(scratch.name, "victim")
shutil.copytree(folder, copy)
trap = f"cos\nmkdir\n(S'{victim.as_posix()}'\ntR.".encode()  # a pickle: call os.mkdir(victim)
(copy / "model.safetensors").write_bytes(trap)


def refusal() -> str:
    """Why the copy cannot be loaded; the path left out."""
    try:
        load_model(copy)
    except UserError as error:
        return str(error).replace(f"{copy}/", "")
    raise AssertionError("it was loaded")


print(refusal())
assert not victim.exists()
pickle.loads(trap)
assert victim.exists()

# %% [markdown]
# ## Broken in other ways
#
# A full disk cuts a file off. Two models get mixed up. A training run goes astray and saves NaN. The libraries below us
# each have their own kinds of errors, some of them many lines long. One helper, `error_context`, turns those that a broken
# file can cause into a `UserError`, a line with three parts: what cannot be done, why, and what to do about it. All other
# errors are bugs of ours, and crash with their traceback. When weights are loaded, PyTorch compares names and shapes. It
# says nothing about NaN, so `load_model` looks for it.

# %%
from safetensors.numpy import load, save

weights = load(raw)
broken = {
    "cut off": raw[:-1],
    "one weight too many": save(weights | {"more": np.ones(2, np.float32)}),
    "NaN": save(weights | {"condition_embedding": by_hand * np.float32("nan")}),
}
for name, content in broken.items():
    (copy / "model.safetensors").write_bytes(content)
    print(f"{name}: {refusal()}")

(copy / "model.safetensors").write_bytes(raw)
(copy / "config.json").write_text(json.dumps(config | {"layers": 2}), encoding="utf-8")
print(f"an unknown setting: {refusal()}")

# %% [markdown]
# `tests/unit/test_pipeline.py` tries nineteen such files.
#
# ## From a name to a folder
#
# A model can be named in four ways: by its folder, by the name of one that ships with the package, by an id
# on the [Hugging Face Hub](https://huggingface.co) such as `user/model`, or not at all. Folders come
# first, so a download can never stand in for what is on your disk.
#
# A mistyped path can look like an id: `checkpoints/best_modle`. If there is a folder `checkpoints`, we
# take it for the path that it is, and ask nobody. The device is tried out, too, before the weights go there: PyTorch knows
# devices that this machine lacks, and one, `meta`, that holds no numbers at all. Neither is part of the method. They are plain files,
# `ddlm_core/support/models.py` and `ddlm_core/support/hardware.py`.

# %%
assert model_folder(None) == folder == model_folder("pocket-stories")
assert model_folder(folder) == folder
model_folder(None).name

# %% [markdown]
# Back to [chapter 10](../10_pipeline.ipynb).
