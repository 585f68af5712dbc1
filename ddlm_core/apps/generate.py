"""``ddlm-generate``: let a model write."""

import argparse
import secrets
import sys
from typing import Any

from ddlm_core.apps.errors import OneLineParser, one_line_errors

EXAMPLES = r"""examples:
  ddlm-generate                                    one story by the model that ships with ddlm
  ddlm-generate --visualize                        the same, written in front of you
  ddlm-generate --model checkpoints/best_model_hf  by a model that ddlm-train wrote
  ddlm-generate --model user/model --device cpu    by one from the Hugging Face Hub, without a GPU
  ddlm-generate --num-samples 5 --seed 1           five stories, the same ones every time
  ddlm-generate --num-samples 100 > stories.txt    a hundred, in a file
  ddlm-generate --num-steps 16 --schedule linear   faster and worse; steps that are equal in time
  ddlm-generate --temperature 0.7                  surer of itself: fewer slips, less surprise
  ddlm-generate --template 'It was misty. ____ sat inside with ___ pink _{4}. _{103}'
                                                   fill in blanks: _ is one character, _{4} is four,
                                                   \_ a real underscore; the template is the whole text
  ddlm-generate --template 'Lily wanted to ' --seq-len 160
                                                   with a length, it is only how the text begins
  ddlm-generate --num-samples 9 --null | xargs -0 -n 1 echo
                                                   texts apart, even if there are line breaks in them

Each text ends with a line break, or with a NUL character after --null. The seed that was drawn goes
to stderr. What is wrong with your input is told there too, in one line, with exit code 2.
"""


def parser() -> argparse.ArgumentParser:
    """The options, with help."""
    p = OneLineParser(
        prog="ddlm-generate",
        description="Write text out of noise with a discrete diffusion language model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", help="folder, bundled name or Hub id (default: the bundled model)")
    p.add_argument("--num-samples", type=int, default=1, help="number of texts (default: 1)")
    p.add_argument(
        "--seq-len", type=int, help="characters in a text (default: what the model takes)"
    )
    p.add_argument("--num-steps", type=int, default=128, help="denoising steps (default: 128)")
    p.add_argument(
        "--schedule",
        default="cosine",
        help="where the steps lie: linear, cosine or fraction (default: cosine)",
    )
    p.add_argument("--temperature", type=float, default=1.0, help="below 1 is surer (default: 1)")
    p.add_argument("--template", help="text with blanks to fill in")
    p.add_argument("--seed", type=int, help="same seed, same texts (default: drawn, and told)")
    p.add_argument("--visualize", action="store_true", help="show the denoising in the terminal")
    p.add_argument("--null", action="store_true", help="end each text with NUL, not a line break")
    p.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    args = parser().parse_args(argv)
    with one_line_errors("ddlm-generate"):
        try:
            write_texts(args)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def write_texts(args: argparse.Namespace) -> None:
    """Load the model and print what it writes, text by text."""
    from ddlm_core.pipeline import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(args.model, args.device)
    options = {
        name: getattr(args, name)
        for name in ("seq_len", "num_steps", "schedule", "temperature", "template")
    }
    options["seed"] = secrets.randbits(32) if args.seed is None else args.seed
    pipeline.generate_streaming(min(args.num_samples, 1), **options)  # checks; no work yet
    if args.seed is None:
        print(f"seed {options['seed']}", file=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # ? for a character that the terminal lacks
    at_once = 1 if args.visualize or pipeline.device.type == "cpu" else 64
    for first in range(0, args.num_samples, at_once):
        count = min(at_once, args.num_samples - first)
        if args.visualize and sys.stdout.isatty():
            show(pipeline, first=first, **options)
            continue
        for text in pipeline.generate(count, first=first, **options):
            print(text, end="\0" if args.null else "\n", flush=True)


def show(pipeline: Any, **options: Any) -> None:
    """Let one text appear in the terminal, character by character."""
    from ddlm_core.animation import iter_frames
    from ddlm_core.views.terminal import render_terminal

    steps = pipeline.generate_streaming(**options)
    render_terminal(iter_frames((s.tokens[0], s.sigma_bar) for s in steps), pipeline.tokenizer)


if __name__ == "__main__":
    main()
