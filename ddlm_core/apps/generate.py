"""``ddlm-generate``: let a model write."""

import argparse
import json
import os
import re
import secrets
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddlm_core.apps.commandline import OneLineParser, one_line_errors
from ddlm_core.support.drawing import harmless
from ddlm_core.support.errors import UserError

EXAMPLES = r"""examples:
  ddlm-generate                                    one story by the model that ships with ddlm
  ddlm-generate --visualize                        the same, written in front of you
  ddlm-generate --model checkpoints/best_model_hf  by a model that ddlm-train wrote
  ddlm-generate --model user/model --device cpu    by one from the Hugging Face Hub, without a GPU
  ddlm-generate --model user/model --revision v2   by the version of it that is tagged v2
  ddlm-generate --num-samples 5 --seed 1           five stories, the same ones every time
  ddlm-generate --num-samples 100 --output stories.txt
                                                   a hundred, in a file
  ddlm-generate --num-samples 100 --output stories.jsonl
                                                   the same, with the seed and all options of each
  ddlm-generate --output story.html                one, as a page to scrub through; as a picture: .gif
  ddlm-generate --num-steps 16 --schedule linear   faster and worse; steps that are equal in time
  ddlm-generate --churn 0                          as in the paper: letters mostly stay; more mistakes
  ddlm-generate --temperature 0.7                  fewer mistakes; the likely gets more likely
  ddlm-generate --template 'It was misty. ____ sat inside with ___ pink _{4}. _{103}'
                                                   fill in blanks: _ is one character, _{4} is four,
                                                   \_ a real underscore; the template is the whole text
  ddlm-generate --template 'Lily wanted to ' --seq-len 160
                                                   with a length, it is only how the text begins
  ddlm-generate --template 'One day, _{2-9} lost his pink ball in the park. _{60}'
                                                   _{2-9} is a blank of 2 to 9 characters
  ddlm-generate --template 'Two lines:\n_{20}'     \n is a line break, \t a tab; with \\n and \\t
                                                   these signs themselves are meant
  ddlm-generate --model checkpoints/best_model_hf --stop-at-end
                                                   nothing behind the first <|endoftext|>
  ddlm-generate --num-samples 9 --null | xargs -0 -n 1 echo
                                                   texts apart, even if there are line breaks in them
  ddlm-generate --model tinystories-blocks --seq-len 1500
                                                   block after block: a text of any length
  ddlm-generate --sampler entropy_bound --entropy-bound 0.1
                                                   as many steps as the text needs, and less variety
  ddlm-generate --top-p 0.9                        without the least likely characters
  ddlm-generate --temperature 0.8 --annealing 0.5  from 0.8 at first down to 0.4
  ddlm-generate --compare pocket-stories pocket-blocks
                                                   the same task for several models, on one clock

Each text ends with a line break, or with a NUL character after --null. A line <|endoftext|> in it is
where one text of the model ends and another begins; templates can have it, too. The seed that was
drawn goes to stderr. What is wrong with your input is printed there too, in one line, with exit code 2.
A file appears when it is complete; one of the same name is then replaced.
"""


WRITTEN, MOVING = (".txt", ".jsonl"), (".html", ".gif")  # files of texts, of one animation


def parser() -> argparse.ArgumentParser:
    """The options, with help."""
    # What is left out gets the default of `pipeline.generate`. A test compares the numbers told here:
    # to ask for them would take as long as to import PyTorch.
    p = OneLineParser(
        prog="ddlm-generate",
        description="Write text out of noise with a discrete diffusion language model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", help="folder, bundled name or Hub id (default: the bundled model)")
    p.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    p.add_argument("--num-samples", type=int, default=1, help="number of texts (default: 1)")
    p.add_argument(
        "--seq-len", type=int, help="characters in a text (default: what the model takes)"
    )
    p.add_argument(
        "--num-steps",
        type=int,
        help="denoising steps (default: 128), or those of each block (default: 16)",
    )
    p.add_argument(
        "--schedule", help="where the steps lie: linear, cosine or fraction (default: cosine)"
    )
    p.add_argument("--temperature", type=float, help="below 1: fewer mistakes (default: 1)")
    p.add_argument(
        "--churn",
        type=float,
        help="0 to 1: how much of each step's noise is fresh (default: 1, for most models)",
    )
    p.add_argument("--sampler", help="grid (default) or entropy_bound, which stops when it is sure")
    p.add_argument(
        "--entropy-bound",
        type=float,
        help="how unsure it may be, in nats, of what it accepts at once (default: 0.3)",
    )
    p.add_argument(
        "--top-p", type=float, help="probability that is kept, from the top (default: 1, all)"
    )
    p.add_argument(
        "--annealing", type=float, help="share of the temperature left at the end (default: 1, all)"
    )
    p.add_argument("--template", help="text with blanks to fill in")
    p.add_argument("--stop-at-end", action="store_true", help="end each text where it first ends")
    p.add_argument("--seed", type=int, help="same seed, same texts (default: drawn, and printed)")
    p.add_argument("--visualize", action="store_true", help="show the denoising in the terminal")
    p.add_argument(
        "--compare", nargs="+", metavar="MODEL", help="let these models write, side by side"
    )
    p.add_argument("--output", type=Path, help="file to write: .txt, .jsonl, .html or .gif")
    p.add_argument("--null", action="store_true", help="end each text with NUL, not a line break")
    p.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    args = parser().parse_args(argv)
    warnings.showwarning = lambda message, *_: print(f"ddlm-generate: {message}", file=sys.stderr)
    with one_line_errors("ddlm-generate"):
        try:
            write_texts(args)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def write_texts(args: argparse.Namespace) -> None:
    """Load the model and print what it writes, or write it to a file."""
    if args.compare and args.model:
        raise UserError("--model and --compare both name what writes: use one of them")
    if args.compare and args.output and args.output.suffix not in MOVING:
        raise UserError(f"--compare makes an animation: --output must end in {' or '.join(MOVING)}")
    with whole_file(args.output, args.num_samples) as path:
        from ddlm_core.block_pipeline import BlockPipeline

        names = args.compare or [args.model]
        pipelines = [
            BlockPipeline.from_pretrained(name, device=args.device, revision=args.revision)
            for name in names
        ]
        pipeline, options = pipelines[0], options_of(args, pipelines[0])
        for each in pipelines:  # checks; no work yet
            each.generate_streaming(
                min(args.num_samples, 1), **options_of(args, each, options["seed"])
            )
        if args.seed is None:
            print(f"seed {options['seed']}", file=sys.stderr)
        if options["template"] is not None:
            from ddlm_core.unknown_lengths import expand_lengths

            if (count := len(expand_lengths(options["template"]))) > 1:
                print(f"comparing {count} lengths: this takes some seconds", file=sys.stderr)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # ? for a character that the terminal lacks
        terminal = sys.stdout is not None and sys.stdout.isatty()
        visible = args.visualize and terminal
        if args.compare:
            each = [options_of(args, each, options["seed"]) for each in pipelines]
            compare(names, pipelines, each, path, terminal)
        elif path is not None and path.suffix in MOVING:
            from ddlm_core.animation import Animation

            Animation(write_one(pipeline, options, visible), pipeline.tokenizer).save(path)
        elif path is not None:
            save(path, texts(pipeline, args, options, visible), {"model": args.model, **options})
        else:
            for text in texts(pipeline, args, options, visible):
                if terminal:  # a model of strangers may know what a terminal obeys
                    text = "".join(c if harmless(c) else "�" for c in text)
                if not visible:
                    print(text, end="\0" if args.null else "\n", flush=True)
    if path is not None:
        print(f"wrote {args.output}", file=sys.stderr)


def options_of(args: argparse.Namespace, pipeline: Any, seed: int | None = None) -> dict[str, Any]:
    """The options of ``generate_streaming``, all but what this model does anyway as they were asked for."""
    from ddlm_core.block_pipeline import WRITING, default_steps
    from ddlm_core.sampling_options import SamplingOptions, default_churn

    names = [field.name for field in fields(SamplingOptions)]
    asked = {name: getattr(args, name) for name in [*names, *WRITING]}
    asked = {name: value for name, value in asked.items() if value is not None}
    if args.template is not None:
        asked["template"] = typed(args.template)
    defaults = asdict(SamplingOptions()) | WRITING  # what is left out has its default
    defaults |= {
        "churn": default_churn(pipeline.config),
        "num_steps": default_steps(pipeline.config),
    }
    seed = args.seed if seed is None else seed
    return defaults | asked | {"seed": secrets.randbits(32) if seed is None else seed}


def compare(
    names: list[str],
    pipelines: list[Any],
    options: list[dict[str, Any]],
    path: Path | None,
    terminal: bool,
) -> None:
    """Let several models write one text each, then play them on one clock, or write that to a file."""
    from ddlm_core.comparison import side_by_side, timed_run

    runs = []
    for name, pipeline, how in zip(names, pipelines, options, strict=True):
        print(f"{name} is writing …", file=sys.stderr)
        runs.append(timed_run(Path(name).name, pipeline, **how))
    shown = side_by_side(runs, pipelines[0])
    if path is None:
        shown.play_in_terminal()
    else:
        shown.save(path)


def typed(template: str) -> str:
    r"""A template as it was typed: ``\n`` becomes a line break, ``\t`` a tab, ``\\n`` the signs ``\n``."""
    signs = {"n": "\n", "t": "\t"}
    return re.sub(r"(\\?)\\([nt])", lambda m: m[0][1:] if m[1] else signs[m[2]], template)


def save(path: Path, lines: Iterable[str], options: dict[str, Any]) -> None:
    """Write texts to a file, each with all that it takes to write it again if that is .jsonl."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for number, text in enumerate(lines):
            if path.suffix == ".jsonl":
                text = json.dumps({"text": text, "number": number, **options}, ensure_ascii=False)
            file.write(f"{text}\n")


def texts(
    pipeline: Any, args: argparse.Namespace, options: dict[str, Any], visible: bool
) -> Iterator[str]:
    """The texts as they come: one by one if somebody watches, as many at once as a GPU can take."""
    from ddlm_core.sampling_options import texts_of

    at_once = 1 if args.visualize or pipeline.device.type == "cpu" else 64
    for first in range(0, args.num_samples, at_once):
        if visible:
            frames = write_one(pipeline, options | {"first": first}, visible)
            last, stopped = frames[-1].tokens, options["stop_at_end"]
            yield from texts_of([last], pipeline.tokenizer, stopped)
        else:
            count = min(at_once, args.num_samples - first)
            yield from pipeline.generate(count, first=first, **options)


def write_one(pipeline: Any, options: dict[str, Any], visible: bool) -> list[Any]:
    """All frames of one text; if somebody watches, it appears in the terminal."""
    from ddlm_core.animation import draw, iter_frames
    from ddlm_core.support.terminal import render_terminal

    kept: list[Any] = []

    def frames() -> Iterator[Any]:
        steps = pipeline.generate_streaming(**options)
        for frame in iter_frames((step.tokens[0], step.sigma_bar) for step in steps):
            kept.append(frame)
            yield frame

    if visible:
        render_terminal(draw(frame, pipeline.tokenizer) for frame in frames())
    return kept or list(frames())


@contextmanager
def whole_file(path: Path | None, num_samples: int) -> Iterator[Path | None]:
    """Where to write what will be ``path`` once it is complete; checked before there is any work."""
    if path is None:
        yield None
        return
    if path.suffix not in WRITTEN + MOVING:
        ends = ", ".join(WRITTEN + MOVING)
        raise UserError(f"--output must end in one of {ends}, got {str(path)!r}")
    if path.suffix in MOVING and num_samples > 1:
        raise UserError(
            f"a {path.suffix} file shows one text: write .txt or .jsonl, or leave out --num-samples"
        )
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a file")
    try:
        folder = TemporaryDirectory(dir=path.parent, prefix=".ddlm-")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot write {path} ({reason}): make its folder first") from error
    with folder as name:
        yield Path(name, path.name)
        os.replace(Path(name, path.name), path)


if __name__ == "__main__":
    main()
