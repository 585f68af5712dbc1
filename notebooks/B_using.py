# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Using it: command line, web page, your own text
#
# *About 25 minutes. You need: Python 3.11 or newer, and a terminal. You will have: each command with its output, and a small model of your own text.*
#
# **We have** a package with three commands and a pipeline.
#
# **We want** to use them, each once: write stories, fill in blanks, save them, train on a text of our own, write in a browser, share a model.
#
# **Why**: the other chapters explain how it works. This one needs none of them.
#
# | you want | take |
# |---|---|
# | a story, now | `ddlm-generate` |
# | to watch it being written | `ddlm-generate --visualize` |
# | the same story again | `--seed 1729`, with the same options |
# | many stories, for another program | `--num-samples 100 --output stories.jsonl` |
# | an animation to send to somebody | `--output story.html`, or `.gif` |
# | blanks filled in | `--template 'a whole text with ____ in it'` |
# | the beginning given, the rest free | `--template 'Lily wanted to ' --seq-len 160` |
# | it faster | `--num-steps 32` |
# | fewer mistakes | `--temperature 0.8` |
# | to click instead of type | `ddlm-ui` |
# | a model of your own text | `ddlm-train dataset_name=poem.txt num_epochs=100` |
# | to continue after a stop | the same command, plus `resume_from=checkpoints/checkpoint_latest.pth` |
# | stories inside your own program | `DiffusionPipeline` |
# | controls in a notebook | `Playground`, in [chapter 10](10_pipeline.ipynb) |
#
# To install the package, go to a copy of the repository and type `pip install -e .` there. It installs all three commands,
# and PyTorch 2.9 or newer if you have none. On Colab the next cell does it.

# %% tags=["hide-input"]
# On Colab this installs the package of the book. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "git+https://github.com/OWNER/ddlm"], check=True)
    needs = """numpy safetensors huggingface_hub datasets accelerate hydra-core omegaconf
        lazy_loader tqdm pillow ipywidgets matplotlib gradio gradio_client"""
    subprocess.run([*pip, *needs.split()], check=True)

# %% [markdown]
# The cells below run real commands. Each output begins with the command, after a `$`; long lines are folded to fit the page, and the exit code
# is shown if it is not 0. The Python around it is collapsed. All files go to a temporary folder.

# %% tags=["hide-input"]
import importlib
import io
import json
import os
import shlex
import subprocess
import textwrap
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

smoke = os.environ.get("DDLM_PRESET") == "smoke"  # only to see that the chapter runs
desk = TemporaryDirectory()
here = Path(desk.name)
programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
environment = os.environ | {"PATH": programs, "COLUMNS": "96", "PYTHONIOENCODING": "utf-8"}
options = {"cwd": here, "env": environment, "text": True, "encoding": "utf-8"}


outputs: list[str] = []  # of all commands


def run(line: str, code: int = 0) -> None:
    """Run a line as a shell does, show it and what it prints; it must end with this exit code."""
    if smoke:
        found, out = in_process(line)
    else:
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(line, shell=True, **both, **options)
        found, out = done.returncode, done.stdout
    print(f"$ {line}")
    for row in out.splitlines():
        print(row if len(row) <= 104 else textwrap.fill(row, 96))
    if found:
        print(f"(exit code {found})")
    assert found == code, found
    outputs.append(out)


def in_process(line: str) -> tuple[int, str]:
    """The same without a new process, and with 4 steps: a short cut for the smoke preset."""
    argv, out = shlex.split(line.split(" | ")[0]), io.StringIO()
    argv += ["--num-steps=4"] if argv[0] == "ddlm-generate" else []
    command = importlib.import_module(f"ddlm_core.apps.{argv[0].removeprefix('ddlm-')}")
    place, words = chdir(here), patch.object(sys, "argv", argv)
    with place, words, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(out):
        try:
            command.main()
        except SystemExit as end:
            return end.code or 0, out.getvalue()
    return 0, out.getvalue()


# %% [markdown]
# ## Let it write
#
# `ddlm-generate` needs no arguments: it loads the model that ships with the package. We give it a seed, so that you get this story, too. A GPU,
# or another kind of CPU, rounds differently, and then you may get another one. Without `--seed` a seed is drawn and printed
# to stderr, as `seed 1729`. So you can get any story again.

# %% tags=["hide-input"]
run("ddlm-generate --seed 1")

# %% [markdown]
# Ask for several, and the first is the one that you would get alone, however many you ask for. But a seed means the same story only with the same
# model and the same options. Here we take 32 steps instead of 128, the default, so the first is a new story.

# %% tags=["hide-input"]
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 32")

# %% [markdown]
# Read them twice. A story can look fine and still not agree with itself: a name changes along the way, a *he* follows a
# girl's name, one thing is lost and another one is found. How many are flawless, to the last character? [Chapter
# 9](09_evaluation.ipynb) counts a share of 0.930 among 1,000 stories written in 64 steps (95 % interval 0.912 to 0.944),
# and finds no difference with 256 steps. With 8 steps the story comes at once, and words begin to fall apart:

# %% tags=["hide-input"]
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 8")

# %% [markdown]
# Four more options decide how a text is written.
#
# * `--temperature 0.8` makes likely characters more likely: in 64 steps a share of 0.956 is then flawless, and chapter 9
#   finds no sign that the stories are less diverse.
# * `--churn`, from 0 to 1, says how much of its noise each step draws afresh. At 1, the default, a character that was drawn wrongly gets a new chance in each step. At
#   0, as in the paper of this method ([SEDD](https://arxiv.org/abs/2310.16834)), it mostly stays, and a share of 0.654 is flawless.
# * `--schedule` says where the steps are: `cosine`, the default, makes them shorter toward the end. `fraction` and `linear`
#   are the other time grids of [chapter 7](07_sampler.ipynb).
# * `--device` says where: `cpu`, `cuda`, or `mps` on a Mac. Only `cpu` has been tried.
#
# ### Blanks
#
# In a template, `_` is one character to fill in, and everything else is given. **The template is the whole text.** Put it in single quotes, or the shell
# takes `!`, `"` and `$` for itself. An apostrophe inside them is written `'\''`. These quotes are those of Linux and macOS; on Windows the web page and
# the Python below need none.

# %% tags=["hide-input"]
lost = (
    "One day, ____ lost her pink ball in the park. She felt so sad. "
    'A kind frog found it! "Thank you!" said ____. They are friends now.'
)
run(f"ddlm-generate --template '{lost}' --seed 1 --num-samples 2 --num-steps 32")
filled = outputs[-1]

# %% [markdown]
# The two blanks of a story should get the same name, and one that goes with *her* and *She*. Both times it is Lily; there
# are twelve girls' names, so this can happen. Counts save you from counting underscores: `_{40}` is forty blanks.

# %% tags=["hide-input"]
run("ddlm-generate --template 'It was misty. _{4} sat inside with _{60}' --seed 2 --num-steps 32")

# %% [markdown]
# What goes wrong here? The number of blanks is part of the question. This text has to end right after them, and no story that begins like this is so
# short. So the model breaks off in the middle of a word, and Jack gets a *her*. If the length does not matter, give the beginning alone and a
# `--seq-len`. Then the model decides where the story ends. The longest text has the length of the windows that it was trained on, 160 for ours.

# %% tags=["hide-input"]
run("ddlm-generate --template 'It was misty. ' --seq-len 160 --seed 2 --num-steps 32")

# %% [markdown]
# A real underscore in the text is written `\_`.
#
# ### Watch
#
# `ddlm-generate --visualize` draws each step over the one before. What a step has changed is
# magenta, bold and underlined. A dot is padding, which in the end should appear only after the story, or a `¶` before
# more text; `↵` is a line break, `⇥` a tab, `�` an unknown character. The line below counts the steps, and says how much noise is left (pure noise
# is 20, a finished text 0) and how many characters the step has changed. Ctrl-C stops it. Here are three of the pictures
# that it draws, without the colors:

# %% tags=["hide-input"]
import pty
import re


def pictures(line: str) -> list[str]:
    """What a command draws on a terminal of 80 columns, picture by picture."""
    screen, terminal = pty.openpty()
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    size = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(shlex.split(line), **streams, **options | {"env": environment | size}):
        os.close(terminal)
        sent = b""
        try:
            while chunk := os.read(screen, 1 << 16):
                sent += chunk
        except OSError:  # the command has ended
            pass
    os.close(screen)
    drawn = re.split(r"\x1b\[\d+A", sent.decode())  # each picture starts by going up
    return [re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", picture) for picture in drawn]


command = f"ddlm-generate --seed 1 --num-steps {4 if smoke else 32} --visualize"
drawn = pictures(command)
print(f"$ {command}\n")
for number in (len(drawn) // 4, len(drawn) // 2, 3 * len(drawn) // 4):
    print(drawn[number])

# %% [markdown]
# ### Files and pipes
#
# With `--output`, the extension of the name decides. `.txt` holds one text per line. `.jsonl` also holds everything needed
# to write each text again. `.html` is a page with a player, for one text, and `.gif` a picture of it. A file appears only
# when it is complete. If you stop a run, the old one is still there.

# %% tags=["hide-input"]
run("ddlm-generate --num-samples 2 --seed 1 --num-steps 32 --output stories.jsonl")
for record in map(json.loads, (here / "stories.jsonl").read_text(encoding="utf-8").splitlines()):
    print(record)
run("ddlm-generate --seed 1 --num-steps 32 --output story.gif")

# %% [markdown]
# The output of the command is the texts and nothing else, so other programs can read it. `--null` ends each text with a NUL
# character, for texts that contain line breaks themselves. How many words are in three stories?

# %% tags=["hide-input"]
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 32 | wc -w")

# %% [markdown]
# ### When something is wrong
#
# Here is a mistake, on purpose. It gets one line that says what is wrong and what to do about it, and the exit code 2, before any work is done. A traceback
# and the exit code 1 would be a bug of ours. `DDLM_DEBUG=1` in the environment shows the traceback of every error.

# %% tags=["hide-input"]
run("ddlm-generate --template 'Lily _{170}'", code=2)

# %% [markdown]
# `ddlm-generate --help` lists all options with their defaults and an example of each. It begins like this:

# %% tags=["hide-input"]
run("ddlm-generate --help | head -16")

# %% [markdown]
# ## Your own text: from a folder to a model that writes
#
# Any text will do: a file of text, a table (`.csv`, `.json`, `.jsonl`, `.parquet`), a folder of them, or a pattern. By default a model knows the letters,
# digits and signs of an American keyboard, space, tab, line break, and `“”‘’—–…` ([chapter 1](01_tokenizer.ipynb)). Every other
# character is read as the same unknown one, `�`. With `vocabulary=auto` the model learns the characters of its text instead, the 254 most
# frequent ones; `vocabulary=letters.txt` takes those in a file.
#
# ### A folder of German tales
#
# Here is a run with real sentences: 300 short German fairy tales, a file each, in the folder `maerchen`. They came from a
# program with six plots and many choices of words. One command reads them and trains:
#
# ```text
# OMP_NUM_THREADS=1 ddlm-train dataset_name=maerchen vocabulary=auto num_epochs=100 max_steps=1500 \
#     model.n_layer=4 model.n_embd=96 context_length=160 batch_size=16 eval_every_steps=250 eval_windows=128 \
#     checkpoint_dir=tales
# ```
#
# After the list of all settings come the lines to read before you go for a coffee:
#
# ```text
# text: 300 files, 300 documents, 367,236 characters
# windows: 1,835 to train on; held out: 20.1%
# 642,080 parameters, 1,500 steps: 13.2 epochs of 114 steps
# on cpu, precision bf16, processes 1
# before: 5.807 bits per character (643.6 nats per window)
# expected: about 12 minutes to step 1,500
# ```
#
# A *window* is what the network sees at once, `context_length` characters. An *epoch* is one pass through the text. A tenth of the tales is held out to
# measure on, and another tenth stays untouched for a test of your own. Without `vocabulary=auto`, a line would name the characters that are lost, `ü` and `„` among them.
#
# The machine was busy with other work, so the run took 13 minutes, five of them at work on one core. The bound fell from 5.81 bits per
# character to 2.43 at step 250, and to 1.80 at the end. Another four minutes of one core, with the same command and
# `max_steps=2900 checkpoint_dir=tales10 resume_from=tales`, brought it to 1.66. Then
# `ddlm-generate --model tales10/best_model_hf --num-samples 3 --seed 1 --temperature 0.8` wrote, first:
#
# > ten. Die Eules und rief nichts an einem herbei fing in eine Kröte langen sich Grete und den sie über den sieben Bein und
# > dreutel ganzen Wand fing kamens eine gl
#
# > agte Michel, und ich dirt, und rief war einer alten. Danger überlege ganz leise. Das war das ist dochmord, an es die
# > Armen“, sagte der Zauber, langes schneller
#
# It writes German words, names from the tales, umlauts and closing quotation marks; a few words at a time belong together. It does not write
# sentences. Each sample is a window out of the middle of a tale, so it begins and ends in the middle of a word.
#
# ### Sizes that make sense
#
# | text | network | window | steps | minutes of one core | bits per character |
# |---|---|---|---|---|---|
# | 9,700 characters, 8 tales | 4 layers, width 96 | 128 | 700 (233 epochs): then it gets worse | 2 | 2.59 |
# | 367,000 characters, 300 tales | 4 layers, width 96 | 160 | 2,900 (25 epochs) | 9 | 1.66 |
# | 1.3 million characters of TinyStories | 6 layers, width 128 | 160 | 7,000 | 67 (with `torch_compile=true`) | 1.78 |
#
# In a few minutes on a CPU, a small network that takes more steps gets further than a large one that takes fewer: after one minute of one core, the tales
# cost 2.56 bits with 4 layers of width 96 (280 steps), and 2.84 with 6 layers of width 128 (150 steps). Beginning with the weights of a bundled
# model (`init_from=tinystories-cpu`) brought the second to 2.78. The default settings, windows of 256 in batches of 64, are too
# slow for a CPU. `OMP_NUM_THREADS=1` helps where other programs use the machine, too; leave it out where none do.
#
# ### Too little text
#
# A network that sees the same few tales again and again learns them by heart: it *overfits*. Here are the last two lines of a run on eight of the tales, with
# `context_length=128 num_epochs=400 max_steps=1000 eval_every_steps=50` (folded):
#
# ```text
# few8run/best_model_hf: step 700, 2.585 bits per character, the lowest on the text held out: take this one
# few8run/final_model_hf: step 1,000, 2.665 bits per character, the last;
#     it has begun to learn its text by heart (more text, or fewer steps)
# ```
#
# The loss in training still fell when the bound on the text held out was rising: 2.585 at step 700, 2.623 at step 800, 2.665 at the
# end. `best_model_hf` is the model with the lowest, `final_model_hf` the last one. The bound is measured every `eval_every_steps` steps, so keep
# that small for a small text; `train_log.jsonl` and `curve.png`, beside the models, keep the numbers. The cure is more text: with 300 tales
# the bound was still falling after 25 epochs.
#
# ### The same in seconds
#
# The rest of this section runs while you watch, so its text is a toy: a
# poem of 2,000 lines. A few lines of Python write it, so that we know all about it: each line is five choices among four
# options, so it carries exactly 10 bits.

# %%
import random

rng, choices = (
    random.Random(0),
    ["One Two Six Ten", "small gray calm wet", "frogs geese moles hares"],
)
choices = [c.split() for c in (*choices, "sing hum wait doze")]
choices += [["by the lake", "in the rain", "under the moon", "on the hill"]]
poem = "".join(" ".join(map(rng.choice, choices)) + ".\n" for _ in range(2000))
(here / "poem.txt").write_text(poem, encoding="utf-8")
print(poem[:131])
least = 10 * 2000 / len(poem)
print(f"{len(poem):,} characters of {least:.2f} bits each")

# %% [markdown]
# Settings are written as `key=value`, and whatever you leave out keeps its default. Ours
# make the network tiny, so that the cell takes only seconds. `progress=false` turns off the progress bar, and
# `tail` leaves out the list of all settings, which comes first.

# %% tags=["hide-input"]
tiny = "context_length=64 batch_size=16 model.n_layer=2 model.n_head=2 model.n_embd=64 model.cond_dim=32"
first_part = (
    f"dataset_name=poem.txt num_epochs=100 {tiny} progress=false max_steps={4 if smoke else 60}"
)
run(f"ddlm-train {first_part} | tail -8")

# %% [markdown]
# `before` and `after` are measured on text that the run does not train on; of a single file, this is a twentieth. A nat is 1.44 bits.
#
# An untrained network of this book considers all 106 tokens equally likely. That costs $\log_2 106 = 6.73$ bits per
# character, 298 nats per window of 64. The number at `before` is an estimate of it, from 53 windows at one random
# noise level each.
#
# After 60 steps a character is much cheaper. Let the model write. Below it, we list those of its words that the poem has,
# too:

# %% tags=["hide-input"]
run("ddlm-generate --model checkpoints/best_model_hf --num-samples 2 --seed 1")


def words_of_the_poem(text: str) -> str:
    """Which words of a text are words of the poem, full stops included."""
    known = set(poem.split())
    return " ".join(word for word in text.split() if word in known) or "none"


print("words of the poem:", words_of_the_poem(outputs[-1]))

# %% [markdown]
# It has learned which letters are common, and that there are spaces and short lines. After 60 steps, whole words would be a lot to ask.
#
# ### Stop, and go on
#
# You can stop a run with Ctrl-C at any time. It saves where it is, and tells you how to continue: with the same command,
# plus `resume_from=`. If nothing else changes, the run ends with exactly the weights it would have had without the stop.
#
# A run that is over can also be made longer, as here, from 60 steps to 400. That is *not* the run that 400 steps would have been from the start: the
# learning rate had fallen to 0 at step 60, and now rises again.

# %% tags=["hide-input"]
second_part = first_part.replace("max_steps=60", "max_steps=400")
resume = "resume_from=checkpoints/checkpoint_latest.pth"
run(f"ddlm-train {second_part} {resume} | tail -3")
run("ddlm-generate --model checkpoints/best_model_hf --num-samples 2 --seed 1")
print("words of the poem:", words_of_the_poem(outputs[-1]))

# %% [markdown]
# Many words now come out right, and parts of lines. A perfect model would pay little more than 0.3 bits, so this run has
# further to go. We stop here only because a cell should be short.
#
# Besides too little text, three things go wrong most often with a text of your own.
#
# * **It ends too soon.** `num_epochs` is 1 unless you say
#   otherwise, and a small text is used up in a few steps, whatever `max_steps` says. The command tells you so.
# * **The second run moves the first.** It uses the same folder, `checkpoints`; what lies there goes to
#   `checkpoints/earlier-1`. Give it a folder of its own, as with `checkpoint_dir=checkpoints/rain`.
# * **There is a slip in a name.** The command says what it could not read:

# %% tags=["hide-input"]
run("ddlm-train 'dataset_name=poem [ab].txt'", code=2)

# %% [markdown]
# `--cfg job` shows the configuration that a command would have, and trains nothing. `ddlm-train --help` lists all keys with their defaults.
#
# ### What to expect from a longer run
#
# A poem of 1,024 different lines is a toy. What about English? `tinystories-cpu` ships with the package, too: 1.6 million parameters, trained on
# 1.3 million characters of TinyStories on one core of a CPU. The log of its training is in its folder:

# %% tags=["hide-input"]
from importlib.resources import files

bundled = files("ddlm_core") / "pretrained"
log = (bundled / "tinystories-cpu/train_log.jsonl").read_text(encoding="utf-8")
for line in map(json.loads, log.splitlines()):
    if "bits_per_character" in line:
        minutes, bits = line["seconds"] / 60, line["bits_per_character"]
        print(f"{line['step']:6,} steps {minutes:4.0f} minutes  {bits:.2f} bits per character")
run("ddlm-generate --model tinystories-cpu --seed 1")

# %% [markdown]
# The uniform baseline is 6.73 bits, so most of the gain comes before the first row. Then the gains get small, and in
# the end the model still writes words and short phrases, not sentences. That is what an hour on one core buys for English;
# the stories of our grammar, which are far easier, took 28 minutes on two cores. `--config-name` picks a ready-made
# configuration: `pocket` trains the bundled model again, `smoke` checks in seconds whether everything runs, `cpu`, `gpu`
# and `gpu-large` take TinyStories. The two for a GPU have never been run. `init_from=tinystories-cpu`
# begins with the weights of a bundled model.
#
# ## In a browser
#
# `ddlm-ui` serves a page and prints one line that says where. Only your own machine can reach it, unless you say
# `--server-name 0.0.0.0` (everybody in your network) or `--share` (everybody, through a server of Gradio).
#
# ![The page of ddlm-ui: on the left a template with two blanks, example settings, and the buttons Generate and Stop; on the right the finished story; below it the controls](../book/_static/ddlm-ui.png)
#
# *Generate* starts a run, and the text appears on the right while it is written. Each button under *Examples* is a set of settings to begin with, such as
# *In a hurry: 16 steps* or *As in the paper: no churn*. *Model* offers the one that you named with `--model`, and those that ship with the package. *Churn* is off for
# a model that cannot do it. The story in the picture is broken: Cora lost the ball, and Nora says thank you. The bundled
# model mixes up these two more than any others.
#
# Whatever the page does, it asks its server to do, and a program can ask the same. The collapsed cell starts the command, asks for the template from above, and
# stops it as Ctrl-C would.

# %% tags=["hide-input"]
import signal

from gradio_client import Client

num_steps = 4 if smoke else 32
server = subprocess.Popen(["ddlm-ui"], stdout=subprocess.PIPE, **options)
try:
    line = server.stdout.readline()
    print(f"$ ddlm-ui\n{line}", end="")
    client = Client(re.search(r"http\S+", line)[0], verbose=False)
    # model, template, only a beginning?, length, texts, steps, schedule, temperature, churn, seed
    controls = ["pocket-stories", lost, False, 160, 2, num_steps, "cosine", 1.0, 1.0, "1"]
    _, texts, *_ = client.predict(*controls, api_name="/generate")
finally:
    server.send_signal(signal.SIGINT)
    print(f"(exit code {server.wait()})\n")
print(texts)
assert texts.split("\n\n") == filled.splitlines()  # same seed, same texts, whoever asks

# %% [markdown]
# Exit code 130 is what Ctrl-C leaves. The texts are those that the command line wrote for seed 1. The page, the command and your program go
# through one loop, so with the same options a seed means the same everywhere.
#
# In the rendered book, a model even runs without a server, in the page itself. `ddlm-export MODEL --output FOLDER` writes the
# network for it, as ONNX.

# %% tags=["hide-input"]
from ddlm_core import DiffusionPipeline, Live
from ddlm_core.animation import Animation, make_frames

author = DiffusionPipeline.from_pretrained("tinystories-cpu")
steps = [*author.generate_streaming(num_steps=4 if smoke else 64, seed=0)]
frames = make_frames([step.tokens[0] for step in steps], [step.sigma_bar for step in steps])
stored = Animation(frames, author.tokenizer)
Live("sample", model="tinystories-cpu", stored=stored, steps=64)

# %% [markdown]
# ## In a program of your own
#
# `DiffusionPipeline` is all you need to know. It loads a model by folder, by the name of a bundled one, or
# by its id on the Hub. Without a name it takes the bundled one.

# %%
from ddlm_core import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained()
(story,) = pipeline.generate(template="Lily wanted to ", seq_len=160, num_steps=num_steps, seed=1)
print(textwrap.fill(story, 96))

# %% [markdown]
# `generate_with_visualization` shows one text while it is written, in a notebook or in a terminal. In a notebook the player
# then takes its place. `str()` of what comes back is the text, and `animation.save("story.gif")` writes a file.

# %%
animation = pipeline.generate_with_visualization(num_steps=num_steps, seed=1)
print(textwrap.fill(str(animation), 96))

# %% [markdown]
# `generate_streaming` hands out the text after each step ([chapter 10](10_pipeline.ipynb)).
# `bits_per_character` judges a text: the lower, the more it is like what the model has read. The answer comes
# with its 95 % interval. Two models, two texts:

# %%
poet = DiffusionPipeline.from_pretrained(here / "checkpoints/best_model_hf")
tale = (
    "Nora met a calm frog by the pond. It was dirty, so she gave it a hot bath. "
    "Soon the frog was not dirty any more. Nora was happy again."
)
for text in (tale, poem[:131]):
    for name, judge in (("the bundled model", pipeline), ("our poet", poet)):
        mean, low, high = judge.bits_per_character(text)
        print(f"{text[:32]!r:37} {name:17} {mean:6.2f}  ({low:.2f} to {high:.2f})")

# %% [markdown]
# Each is at home in its own text and lost in the other's. The bundled model has been trained much longer, so it is more sure of its own stories, and also more
# surprised by anything else: 13 bits per character is twice the uniform baseline.
#
# A model is a folder of two files, and a `README.md` for you to fill in. `save_pretrained` writes it,
# `from_pretrained` and `--model` read it. `push_to_hub` uploads the same folder to the Hugging Face Hub, public or private.
# Log in once with `hf auth login`. The cell uploads only if you set `DDLM_PUSH_TO` to a name such as `your-name/poet`.

# %% tags=["hide-input"]
poet.save_pretrained(here / "poet")
print(sorted(path.name for path in (here / "poet").iterdir()))
if name := os.environ.get("DDLM_PUSH_TO"):  # such as your-name/poet
    poet.push_to_hub(name, private=True)
else:
    print("not uploaded: DDLM_PUSH_TO is not set")

run("ddlm-generate --model poet --seed 1 --template 'Two ____ geese ____ by the lake.'")

# %% [markdown]
# The code of the package is under the MIT license, and so are the weights of `pocket-stories`. Those of `tinystories-cpu` carry the license of the data, CDLA-Sharing-1.0.
#
# ## Change it safely
#
# The commands are not part of the method. They are written by hand, in
# `ddlm_core/apps`, and `pytest tests/integration` checks them. Give `ddlm-generate` an
# option `--upper` that prints all texts in capitals: one line in `parser`, one in `write_texts`, where the
# texts are printed. Then `test_help_has_an_example_of_each_option` fails, until `--help` has an example of it. The command: `make export && pytest tests/`.
#
# ## Exercises
#
# **1.** Which names does the model give to the girl who lost her ball? Let the template be filled in eight times, with seed 7 and
# 32 steps, and count the names with `cut`, `sort` and `uniq -c`, without any Python. (Expected: a list of girls' names.)

# %% tags=["solution", "hide-input"]
run(
    f"ddlm-generate --template '{lost}' --seed 7 --num-samples 8 --num-steps 32"
    " | cut -c 10-13 | sort | uniq -c"
)

# %% [markdown]
# **2.** You have two files, `poem.txt` and a second one, `rain.txt`. Which setting validates on the second instead of on a
# part of the first? Look through the keys in `ddlm-train --help`, and check without training that the command understands
# yours. (Expected: the second line of `--cfg job` is your setting.)

# %% tags=["solution", "hide-input"]
run("ddlm-train dataset_name=poem.txt val_dataset_name=rain.txt --cfg job | head -2")
assert "val_dataset_name: rain.txt" in outputs[-1]

# %% [markdown]
# ## Summary
#
# | | command line | program |
# |---|---|---|
# | write | `ddlm-generate --num-samples 3 --seed 1` | `pipeline.generate(3, seed=1)` |
# | fill in | `--template 'a whole text with ____'` | `template="a whole text with ____"` |
# | watch | `--visualize` | `pipeline.generate_with_visualization()`, `Playground(pipeline)` |
# | save texts | `--output stories.jsonl` | the list that `generate` returns |
# | train | `ddlm-train dataset_name=poem.txt` | `Trainer`, in [chapter 8](08_training.ipynb) |
# | load | `--model folder` | `DiffusionPipeline.from_pretrained(folder)` |
# | share with everybody | `ddlm-ui --share` | `pipeline.push_to_hub("user/model")` |
#
# This chapter exports nothing.
#
# ## Where this stands in the field
#
# The pipeline follows the conventions of Hugging Face's libraries: a folder with `config.json` and [safetensors](https://github.com/huggingface/safetensors), `from_pretrained`,
# `push_to_hub`. It needs neither `transformers` nor `diffusers`. If you want to use large diffusion language models, begin
# with those whose weights are open, such as [LLaDA](https://arxiv.org/abs/2502.09992) and
# [Dream](https://arxiv.org/abs/2508.15487); both use masks ([appendix A](A_absorbing.ipynb)). The page is made with
# [Gradio](https://www.gradio.app), the settings with Hydra.
