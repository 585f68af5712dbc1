# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From files to windows
#
# *About 10 minutes. You need: [chapter 8](../08_training.ipynb). You will have: how any text becomes windows to train on, without
# filling the memory, without a story in both training and test, and in an order that can be resumed.*
#
# **We have** files, or a data set with millions of stories.
#
# **We want** batches of windows, one byte per character, and stories to measure with that training has never seen.
#
# **Why**: a model that is measured on its own training data looks better than it is, and nobody notices.

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
# ## One row of tokens
#
# A source is `pocket-stories`, local files and folders, or a data set on the Hugging Face Hub. In tables (`.csv`, `.json`, `.jsonl`, `.parquet`)
# every row is a story, and so is any other file of text, unless `<|endoftext|>` cuts it into several. Line ends become `\n`, and letters get one form
# in Unicode (NFC): an `a` and the two dots for above it become one `ä`. `read_stories` gives pieces of text, each with a yes or no: does a
# story end after it? `encode_stories` turns them into one row of tokens with a `<PAD>` (token 1) after each story:

# %%
from ddlm_core.data import WindowSampler, encode_stories, setup_dataloaders, split_stories
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

tokenizer = CharacterLevelTokenizer()
tokens, ends, hashes = next(encode_stories([("Hi.", True), ("Go!", True)], tokenizer))
assert tokens[3] == tokens[7] == PAD_ID
print("tokens:", tokens.tolist())
print("stories end at:", ends.tolist())
print("hashes:", [hex(value) for value in hashes.tolist()])

# %% [markdown]
# The vocabulary has 106 tokens, so a token is one byte (`uint8`), and a story takes no more room than its text did. The text goes through in
# blocks of about a million characters. A block is encoded in one call, and all its `<PAD>` are inserted at once.
#
# ## On disk
#
# Each block is appended to a file, and the trainer never loads that file. It *maps* it (`numpy.memmap`): the operating
# system brings in the pages that a window touches, and drops them when memory runs short. The files are in the cache of
# the Hugging Face libraries, in a folder whose name is a hash of everything that the tokens depend on: which files, how
# long they are, when they changed; which vocabulary; which options. The folder gets its name when it is complete, so a
# second start finds all of it or nothing. Here is the second start, which reads no text:

# %%
from tempfile import TemporaryDirectory

from huggingface_hub import constants

from ddlm_core.support.store import stored

read = []


def blocks():
    read.append("once")
    yield from encode_stories([("Hi.", True), ("Go!", True)], tokenizer)


before = constants.HF_ASSETS_CACHE
with TemporaryDirectory() as folder:
    constants.HF_ASSETS_CACHE = folder
    first, second = stored("greetings", blocks), stored("greetings", blocks)
    assert first.tokens[:].tolist() == second.tokens[:].tolist() == tokens.tolist()
    constants.HF_ASSETS_CACHE = before
assert read == ["once"]
print("the text was read", read[0])

# %% [markdown]
# `python benchmarks/data.py` measures it on 2 GB of text made from our stories, on one core that other programs used as well. The first start
# took 217 s for rows of `.jsonl` and 86 s for one `.txt`, most of it waiting for the disk and for the other programs. On a file of 60 MB, counting only the seconds
# in which the processor worked for us, it is 88 and 107 MB per second. The memory stayed below 274 MB, of which the
# libraries took 152 MB.
#
# ## Stories to measure with
#
# Large data sets hold some stories twice. So we hold out the *last* stories, and of those only the ones that occur in no earlier part:
# first the stories to test with, then, of what is left, those to validate with. To find a story among two million, no texts are
# compared. Each has a *hash*, 64 bits that look random but are the same for the same text. Two million stories make $2\cdot10^{12}$
# pairs, and two different stories agree by chance once in $2^{64} = 1.8\cdot10^{19}$ pairs: the chance of a single false alarm is
# $10^{-7}$, and it would cost one story.
#
# By hand: 30 stories, of which number 5 and number 29 are the same. Three each are held out.

# %%
told = [f"Story {i}." for i in range(30)]
told[5] = told[29] = "a" * 90
encoded = next(encode_stories([(story, True) for story in told], tokenizer))
parts = split_stories(*encoded, held_out=3)
counts = [int((part == PAD_ID).sum()) for part in parts]
assert counts == [24, 3, 2]
print("to train, validate and test with:", counts)

# %% [markdown]
# Number 29 is gone from the test set, because training reads it as number 5. Only exact copies are found: a story that
# differs in one letter passes as new. Our grammar makes enough stories that this hardly matters; for a real data set it is
# a limit of this book. TinyStories comes with a validation set of its own, which `val_dataset_name` can name. One
# story, or a few long ones, count as running text, in which nothing can be compared; its last two twentieths are held out.
#
# ## Windows
#
# Our own stories get a window each, filled up with `<PAD>`. In any other text a story may be cut by the border of a window. So that no
# character always sits at a border, every epoch cuts at a different place. By hand, 14 tokens, numbered from 0, and windows
# of 4: cut at 0, there are three, `0–3`, `4–7`, `8–11`. Cut at 3, there are only two, `3–6` and `7–10`; the next would end
# at token 14. Every epoch must have the same number of windows, or the number of the step would not tell the epoch. So each
# takes two:

# %%
sampler, seen = WindowSampler(14, 4, seed=0), set()
for sampler.epoch in range(200):
    starts = list(sampler)
    assert len(starts) == 2
    seen |= {start + i for start in starts for i in range(4)}
    if sampler.epoch < 4:
        print(f"epoch {sampler.epoch}:", [f"{start}–{start + 3}" for start in starts])
print("tokens read in 200 epochs:", sorted(seen))
assert seen == set(range(12))

# %% [markdown]
# The cuts go from 0 to 4. The few tokens at the very end, always fewer than a window, are in no epoch.
#
# The order is a function of the seed and of the number of the epoch. So a run that resumes needs nothing but the number of
# the step: it follows which epoch that is, and how many windows to `skip`, without reading them. To *measure*, all windows
# are read in order, and the last one is filled up: every token counts once.

# %%
sampler = WindowSampler(1000, 10, seed=0)
sampler.epoch = 3
whole = list(sampler)
sampler.skip = 40
assert list(sampler) == whole[40:]
print("the order of epoch 3, without its first 40 windows")

# %% [markdown]
# ## All together
#
# `setup_dataloaders` reads the text or finds the stored tokens, splits, cuts, and makes batches. The vocabulary must be that of the network, so a
# network with another one passes it on: `setup_dataloaders(…, tokenizer=model.config.tokenizer)`. In training, a last batch
# that is not full is dropped, so that all steps have the same size.

# %%
loaders = setup_dataloaders(
    "pocket-stories", train_samples=200, val_samples=10, context_length=160, batch_size=16
)
assert len(loaders.train) == 200 // 16
print(len(loaders.train), "batches to train on; a batch:", tuple(next(iter(loaders.train)).shape))

# %% [markdown]
# Back to [chapter 8](../08_training.ipynb). The same care for a run that stops: [exact resume](exact_resume.ipynb).
