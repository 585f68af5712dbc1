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
# **We have** a package with three commands, a pipeline and a playground. **We want** to use them, each
# once, with its real output: write stories, fill in blanks, save them, train on a text of our own, stop
# and go on, write in a browser, put a model on the Hub. **Why**: the chapters before this one tell how it
# works. This one needs none of them. It is for the day when you only want a story, or your own text.
#
# Which command when?
#
# | you want | take |
# |---|---|
# | a story, now | `ddlm-generate` |
# | to watch it being written | `ddlm-generate --visualize` |
# | the same story again | `--seed 1729`, the seed that it told, and the same options |
# | many stories, for another program | `--num-samples 100 --output stories.jsonl` |
# | an animation to send to somebody | `--output story.html`, or `.gif` |
# | blanks filled in | `--template 'Lily lost her ____.'` |
# | the beginning given, the rest free | `--template 'Lily wanted to ' --seq-len 160` |
# | it faster | `--num-steps 32` |
# | fewer slips, less surprise | `--temperature 0.7` |
# | to click, not to type | `ddlm-ui` |
# | a model of your own text | `ddlm-train dataset_name=poem.txt num_epochs=100` |
# | to go on after a stop | the same command, and `+resume_from=checkpoints/checkpoint_latest.pth` |
# | stories inside your own program | `DiffusionPipeline` |
# | controls in a notebook | `Playground`, in [chapter 10](10_pipeline.ipynb) |
#
# To install the package, go to a copy of the repository and type `pip install -e .` there (Python 3.11 or newer).
# All three commands come with it; `ddlm-ui` needs nothing more. (The `README.md` has the line that installs exactly
# the versions of this book.) On Colab the next cell does it. Its address is the one that `pyproject.toml` gives
# for the project.

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
# The cells below run real commands. The helper `run` does what a terminal does: it prints the line after
# a `$`, then what the command says, and the exit code if that is not 0. Only this is its own: it folds long
# lines, so that they fit on the page. All files go to a temporary folder.

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
# `ddlm-generate` needs no arguments: it loads the model that ships with the package. We give it a seed,
# so that you get this story, too. (A GPU, or another kind of CPU, rounds differently, and then it may be
# another one.) Without a seed, one is drawn, and told on the error stream: `seed 1729`. So you can get any
# story again.

# %%
run("ddlm-generate --seed 1")
# %% [markdown]
# Ask for several, and the first is the one that you would get alone, however many you ask for. But a seed
# means the same story only with the same model and the same options: steps, schedule, temperature, length,
# template. Here we take 32 steps instead of 128, so the first is a new story.

# %%
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 32")
# %% [markdown]
# Read them twice. A story can look fine and break its own promise: a name changes on the way, a *he* follows
# a girl's name, one thing is lost and another one is found. How many are flawless, to the last character? The
# model's card has counted:

# %%
from importlib.resources import files

bundled = files("ddlm_core") / "pretrained"
card = (bundled / "pocket-stories/README.md").read_text(encoding="utf-8")
print(*(row for row in card.splitlines() if row.startswith(("| samples", "| flawless"))), sep="\n")

# %% [markdown]
# The steps cost time: on one core, each takes this model about a hundredth of a second. The default is 128.
# [Chapter 9](09_evaluation.ipynb) counts flawless stories: more steps make more of them, but each doubling adds less. With 8
# the story comes at once, and words begin to fall apart:

# %%
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 8")
# %% [markdown]
# `--schedule` says where the steps lie: `cosine`, the default, makes them shorter towards the end; `fraction` and
# `linear` are the other two of [chapter 7](07_sampler.ipynb). With few steps, `linear` spends most of them where nearly
# everything or nearly nothing is noise, and crosses the middle, where the letters are settled, in a few leaps. With 24,
# a share of 0.70 of its stories is flawless, and of those of `cosine` 0.87 (chapter 9).

# %%
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 8 --schedule linear")

# %% [markdown]
# `--churn` says how much of its noise each step draws afresh, from 0 to 1. At 1, the default, whatever was drawn
# wrongly gets a new chance at each step, and [chapter 9](09_evaluation.ipynb) finds far fewer broken stories. With 0 a
# letter that is in place mostly stays, as in the paper. `--temperature 0.8` makes the model a little surer of itself:
# in 64 steps, 0.956 of its stories are then flawless, instead of 0.930, and chapter 9 finds no sign that they are
# duller.

# %% [markdown]
# ### Blanks
#
# In a template, `_` is one character to fill in, and everything else is given. The template is the whole
# text. Put it in single quotes, or the shell takes `!`, `"` and `$` for itself. An apostrophe inside them is
# written `'\''`, as in `--template 'Lily'\''s ____'`. (All lines on this page are for the shells of Linux and macOS. Others
# have their own rules for quotes, and may lack `wc` or `cut`. The web page and a program of your own, both below, need no
# such quotes.)

# %%
lost = (
    "One day, ____ lost her pink ball in the park. She felt so sad. "
    'A kind frog found it! "Thank you!" said ____. They are friends now.'
)
run(f"ddlm-generate --template '{lost}' --seed 1 --num-samples 2 --num-steps 32")
filled = outputs[-1]

# %% [markdown]
# The two blanks of a story should get the same name, and one that goes with *her* and *She*. (Two stories, and both
# times it is Lily: there are twelve girls' names, so that happens.) Counts save you from counting underscores: `_{40}`
# is forty blanks.

# %%
run("ddlm-generate --template 'It was misty. _{4} sat inside with _{60}' --seed 2 --num-steps 32")
# %% [markdown]
# What goes wrong here? The number of blanks is part of the question. This text has to end right after them, and no
# story that begins like this is so short. The model goes on as if there were room, and breaks off in the middle of a
# word. (And Jack gets a *her*: a usual slip.) If you do not care about the length, give the beginning alone and a
# `--seq-len`. Then the model decides where the story ends. The most that it can be is the length that the model was
# trained with: 160 for ours, your `context_length` for one of yours.

# %%
run("ddlm-generate --template 'It was misty. ' --seq-len 160 --seed 2 --num-steps 32")
# %% [markdown]
# And how do you write an underscore that is one? With a backslash before it. Ours has never read one in a
# story, so do not expect sense around it; but it stays.

# %%
run(r"ddlm-generate --template 'my\_friend ____' --seed 1 --num-steps 32")
assert outputs[-1].startswith("my_friend ")

# %% [markdown]
# ### Watch
#
# `ddlm-generate --visualize` draws each step over the one before, in place. What a step has changed is
# magenta, bold and underlined. A dot is padding, which in the end should stand only after the story; `↵` is a line
# break, `⇥` a tab, `�` an unknown character. The line below counts the steps. It says how much noise is left
# (at 20 nothing of a text shows through, at 0 there is none), and how many characters the step has changed. At the end
# the story alone remains. Ctrl-C stops it and gives the terminal back. A page cannot show a terminal, but it can
# show what a terminal is sent. Here are five of the pictures, without the colors:

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
for number in (0, len(drawn) // 4, len(drawn) // 2, 3 * len(drawn) // 4, len(drawn) - 1):
    print(drawn[number])

# %% [markdown]
# ### Files
#
# With `--output`, the ending of the name decides. `.txt` holds one text a line. `.jsonl` also holds all
# that it takes to write each text again (its `number` counts from 0). `.html` is a page with a player, for one
# text, and `.gif` a picture of it. A file appears when it is complete. If you stop a run, the old one is still there.

# %%
run("ddlm-generate --num-samples 2 --seed 1 --num-steps 32 --output stories.jsonl")
for record in map(json.loads, (here / "stories.jsonl").read_text(encoding="utf-8").splitlines()):
    print(record)

# %%
for name in ("story.html", "story.gif"):
    run(f"ddlm-generate --seed 1 --num-steps 32 --output {name}")
    print(f"{(here / name).stat().st_size / 1000:.0f} kB")

# %% [markdown]
# ### Pipes
#
# The output is the texts and nothing else: the seed and every message go to the error stream. So other
# programs can read it. How many words are in three stories?

# %%
run("ddlm-generate --num-samples 3 --seed 1 --num-steps 32 | wc -w")
# %% [markdown]
# Each text ends with a line break. A model of your own text may write line breaks, too. Then `--null`
# helps: it ends each text with a NUL character, which `xargs -0` and `sort -z` understand.
#
# ### When something is wrong
#
# Two mistakes, on purpose. Each gets one line that says what is wrong and what to do about it, and the
# exit code 2, before any work is done. A script can rely on that. (A traceback and the exit code 1 would be a mistake of
# ours. `DDLM_DEBUG=1` in the environment shows the traceback of every error.)

# %%
run("ddlm-generate --output nowhere/story.txt", code=2)
run("ddlm-generate --template 'Lily _{170}'", code=2)
# %% [markdown]
# All options, with an example of each:

# %%
run("ddlm-generate --help")
# %% [markdown]
# ## Train it on your own text
#
# Any text will do whose characters the models of this book know: the letters, digits and signs of an
# American keyboard, space, tab, line break, and `“”‘’—–…`. Every other one is read as the same unknown character, `�`: the
# umlauts of a German text, all of a Greek one, the `\r` in the line ends of Windows. ([Chapter 1](01_tokenizer.ipynb) lists
# the alphabet: 106 tokens, of which one is *unknown* and one is padding.)
#
# It may be a `.txt`, a `.jsonl` or `.parquet` with a column `text`, or several files by a pattern, such as
# `"dataset_name='part_*.txt'"`, with quotes as below. Ours is a poem that never ends. A few lines of Python write
# it, so that we know all about it: each line of the poem is five choices out of four, so it carries exactly 10 bits.

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
# Now the command. Settings are written as `key=value`, and whatever you leave out keeps its default. Ours
# make the network tiny, since a cell should take seconds. (`progress=false` turns off the progress bar,
# which looks odd in a book; `tail` leaves out the list of all settings, which comes first.)

# %%
tiny = "context_length=64 batch_size=16 model.n_layer=2 model.n_head=2 model.n_embd=64 model.cond_dim=32"
first_part = (
    f"dataset_name=poem.txt num_epochs=100 {tiny} progress=false max_steps={4 if smoke else 60}"
)
run(f"ddlm-train {first_part} | tail -6")

# %% [markdown]
# `before` and `after` are measured on text that the run does not train on: here a twentieth of the poem (another one is
# kept for a test at the end); of three `.txt` files or more, whole files ([chapter 8](08_training.ipynb) has the rule).
# A *window* is what the network sees at once: `context_length` characters. A nat is 1.44 bits.
#
# Before training, a character costs more than a blind guess among 106 tokens, which takes $\log_2 106 = 6.7$ bits: the
# weights are random, and a random guesser is sure of wrong things. After 60 steps it is much cheaper. That is a
# beginning, no more. Let it write. Below, we list the words that the poem has, too:

# %%
run("ddlm-generate --model checkpoints/best_model_hf --num-samples 2 --seed 1")


def words_of_the_poem(text: str) -> str:
    """Which words of a text are words of the poem, full stops included."""
    known = set(poem.split())
    return " ".join(word for word in text.split() if word in known) or "none"


print("words of the poem:", words_of_the_poem(outputs[-1]))

# %% [markdown]
# It has learned which letters are common, and that there are spaces. We should not expect words after 60 steps.
#
# ### Stop, and go on
#
# You can stop a run with Ctrl-C at any time. It saves where it is, and tells how to go on: with the same
# command, and `+resume_from=`. (The `+` adds a key that the configuration does not have.) If nothing else
# changes, the run ends with exactly the weights it would have had without the stop. A run that is over can
# also be made longer, as here:

# %%
second_part = first_part.replace("max_steps=60", "max_steps=400")
resume = "+resume_from=checkpoints/checkpoint_latest.pth"
run(f"ddlm-train {second_part} {resume} | tail -3")
run("ddlm-generate --model checkpoints/best_model_hf --num-samples 2 --seed 1")
print("words of the poem:", words_of_the_poem(outputs[-1]))

# %% [markdown]
# Some words come out right now, whole lines hardly ever. The price of a character (`after:`) has fallen far, and a
# perfect model would pay little more than 0.3 bits. So this run is not at its end. We stop here only
# because a cell should be short.
#
# Four things go wrong most often with a text of one's own.
#
# * **It ends too soon.** One *epoch* is one pass through the text. `num_epochs` is 1 unless you say
#   otherwise, and a small text is over in a few steps, whatever `max_steps` says. The command tells you:
#   `max_steps=400 will not be reached: raise num_epochs`.
# * **The text is too small.** Then the model learns it by heart. Watch the bits per character of the part that was
#   held out: when they rise again, stop. They are measured every `eval_every_steps` steps (500, unless you say
#   otherwise) and at the end. The progress bar shows them, and `train_log.jsonl`, beside the models, keeps them.
#   `best_model_hf` is the model that had the lowest, `final_model_hf` the last one. (Our poem cannot show this: there
#   are only 1,024 different lines, so most of those that are held out also occur in the rest.)
# * **The second model replaces the first.** A new run writes to the same folder, `checkpoints`. Give it one of its own,
#   as with `checkpoint_dir=checkpoints/rain`.
# * **The name needs quotes.** Settings have a grammar of their own (that of
#   [Hydra](https://hydra.cc)). In it, brackets, commas, `=` and accents mean something, or nothing. Put
#   such a value in single quotes, and all of it in double quotes for the shell:

# %%
run("ddlm-train dataset_name=poem_[ab].txt", code=2)
run("ddlm-train \"dataset_name='poem_[ab].txt'\" --cfg job | head -3")
# %% [markdown]
# `--cfg job` shows the configuration that a command would have, and trains nothing. So you see whether your settings
# were understood. It looks neither for the files nor at the values: for that, let a run take one step, with
# `max_steps=1 checkpoint_dir=checkpoints/try`.
#
# ### What to expect from a longer run
#
# A poem of 1,024 different lines is a toy. What about English? `tinystories-cpu` ships with the package, too: a network of
# 1.6 million parameters (`model: small`), trained on an excerpt of TinyStories on one core of a CPU. The log of its
# training, the `train_log.jsonl` from above, lies in its folder:

# %%
log = (bundled / "tinystories-cpu/train_log.jsonl").read_text(encoding="utf-8")
for line in map(json.loads, log.splitlines()):
    if "bits_per_character" in line:
        minutes, bits = line["seconds"] / 60, line["bits_per_character"]
        print(f"{line['step']:6,} steps {minutes:4.0f} minutes  {bits:.2f} bits per character")
run("ddlm-generate --model tinystories-cpu --seed 1")

# %% [markdown]
# How to read it: a blind guess costs 6.7 bits, so most is won before the first row. Then the gains get small, and in
# the end the model still writes words and short phrases rather than sentences that hold together, as its card says. The
# stories of [chapter 2](02_stories.ipynb), which the bundled model learned in half an hour, are far easier than
# English.
#
# ### The ready-made configurations
#
# `--config-name` picks one: `pocket` trains the bundled model again, `smoke` sees in seconds whether
# everything runs, `cpu`, `gpu` and `gpu-large` take TinyStories. Without it, `ddlm-train` trains a small
# network on TinyStories, which it downloads from the Hugging Face Hub. (So we do not run that here.)

# %%
run("ddlm-train --config-name smoke progress=false max_steps=4 val_samples=4 | tail -6")
# %% [markdown]
# Four held-out stories (`val_samples=4`) give a very rough number. It may even lie below the 6.7 bits of a blind guess
# before anything is learned.
#
# `--help` shows a line for each kind of run, and then all keys with their defaults. We show the beginning:

# %%
run("ddlm-train --help | head -18")
# %% [markdown]
# ## In a browser
#
# `ddlm-ui` serves a page and prints one line: where. It listens to your own machine alone, unless you say
# `--server-name 0.0.0.0` (everybody in your network) or `--share` (everybody, through a server of Gradio).
# The picture shows the page after one click on *Generate*. Each button under *Examples* sets several controls at once. *Model*
# offers the one that you named with `--model`, and those that ship with the package. All controls begin where the
# command line begins.
#
# ![The page of ddlm-ui: on the left a template with blanks, on the right the finished story, below it the controls](../book/_static/ddlm-ui.png)
#
# A page is hard to click from a cell. But whatever the page does, it asks of its server, and so can we.
# We start the command, read its line, ask for the template from above, and stop the command as Ctrl-C would.

# %%
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
# These are the texts that the command line wrote for seed 1. The page, the command and your program go
# through one loop, so with the same options a seed means the same everywhere.

# %%
run("ddlm-ui --help")
# %% [markdown]
# A port in use, or one that cannot be, is told in one line:

# %%
run("ddlm-ui --port 99999", code=2)
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
# `generate_streaming` hands out the text after each step, while it is being written:

# %%
for step in pipeline.generate_streaming(num_steps=num_steps, seed=1):
    if step.index % (num_steps // 4) == 0:
        print(f"{step.index:2} of {step.num_steps}: {step.texts[0][:60]!r}")

# %% [markdown]
# `generate_with_visualization` shows one text while it is written, in a notebook or in a terminal. At the end the player
# stands in its place, and `str()` of what comes back is the text. (`animation.save("story.gif")` writes a file.)

# %%
animation = pipeline.generate_with_visualization(num_steps=num_steps, seed=1)
print(textwrap.fill(str(animation), 96))

# %% [markdown]
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
# Each is at home in its own text and lost in the other's. The bundled model is much surer of itself, since
# it has been trained much longer. So it is also much more surprised where it does not know its way.

# %% [markdown]
# A model is a folder of two files, and a `README.md` for you to fill in. `save_pretrained` writes it,
# `from_pretrained` and `--model` read it. `push_to_hub` uploads the same folder to the Hugging Face Hub. From there
# everybody can load it by its name, or you alone, with `private=True`, as in the cell. This needs an account: log in
# once with `hf auth login`. The cell uploads only if you set `DDLM_PUSH_TO` to such a name.

# %%
poet.save_pretrained(here / "poet")
print(sorted(path.name for path in (here / "poet").iterdir()))
if name := os.environ.get("DDLM_PUSH_TO"):  # such as your-name/poet
    poet.push_to_hub(name, private=True)
else:
    print("not uploaded: DDLM_PUSH_TO is not set")

# %%
run("ddlm-generate --model poet --seed 1 --template 'Two ____ geese ____ by the lake.'")
# %% [markdown]
# In a notebook, `Playground(pipeline)` gives you controls for all of this: run, pause, step, go back.
# [Chapter 10](10_pipeline.ipynb) ends with it. It needs a running notebook.

# %% [markdown]
# ## Change it safely
#
# The commands are no part of the method. They are written by hand, in
# `ddlm_core/apps`, and `pytest tests/integration` checks them. Give `ddlm-generate` an
# option `--upper` that prints all texts in capitals: one line in `parser`, one in `write_texts`, where the
# texts are printed. Then `test_help_has_an_example_of_each_option` fails, until `--help` has an example of it.
#
# ## Exercises
#
# **1.** Whom does the frog help? Let the template with the ball be filled in eight times, with seed 7 and
# 32 steps, and count the names with `cut`, `sort` and `uniq -c`, without any Python. (Expected: a list of girls' names.)

# %% tags=["solution", "hide-input"]
run(
    f"ddlm-generate --template '{lost}' --seed 7 --num-samples 8 --num-steps 32"
    " | cut -c 10-13 | sort | uniq -c"
)

# %% [markdown]
# **2.** You have two files, `poem.txt` and a second one, `rain.txt`. Which setting validates on the second
# and not on a part of the first? Look through the keys in `ddlm-train --help`, and check without training
# that the command understands yours. (Expected: the second line of `--cfg job` is your setting.)

# %% tags=["solution", "hide-input"]
run("ddlm-train dataset_name=poem.txt val_dataset_name=rain.txt --cfg job | head -2")
assert "val_dataset_name: rain.txt" in outputs[-1]

# %% [markdown]
# ## Summary
#
# | | command line | program |
# |---|---|---|
# | write | `ddlm-generate --num-samples 3 --seed 1` | `pipeline.generate(3, seed=1)` |
# | fill in | `--template 'Lily ____'` | `template="Lily ____"` |
# | watch | `--visualize` | `pipeline.generate_with_visualization()`, `Playground(pipeline)` |
# | save texts | `--output stories.jsonl` | the list that `generate` returns |
# | train | `ddlm-train dataset_name=poem.txt` | `Trainer`, in [chapter 8](08_training.ipynb) |
# | load | `--model folder` | `DiffusionPipeline.from_pretrained(folder)` |
# | share with everybody | `ddlm-ui --share` | `pipeline.push_to_hub("user/model")` |
#
# This chapter exports nothing.
