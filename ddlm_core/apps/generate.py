"""``ddlm-generate``: let a model write."""

import argparse
import os
import secrets
import sys
from collections.abc import Iterator

from ddlm_core.apps.errors import one_line_errors

EXAMPLES = """examples:
  ddlm-generate --visualize                         the bundled model writes in front of you
  ddlm-generate --num-samples 5 --seed 1            five stories, always the same ones
  ddlm-generate --num-samples 100 > stories.txt     to a file: text only
  ddlm-generate --template "Lily ____ her _{4} drum in the park."
                                                    fill in blanks: _ is one character, _{4} four,
                                                    \\_ a real underscore
  ddlm-generate --model checkpoints/best_model_hf   a model that ddlm-train wrote
  ddlm-generate --num-steps 32 --schedule linear    fewer steps, faster and worse
"""


def parser() -> argparse.ArgumentParser:
    """The options, with help."""
    p = argparse.ArgumentParser(
        prog="ddlm-generate",
        description="Write text out of noise with a discrete diffusion language model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", help="folder, bundled name or Hub id (default: the bundled model)")
    p.add_argument("--num-samples", type=int, default=1, help="number of texts (default: 1)")
    p.add_argument("--seq-len", type=int, help="tokens in a text (default: what the model takes)")
    p.add_argument("--num-steps", type=int, default=128, help="denoising steps (default: 128)")
    p.add_argument(
        "--schedule",
        default="fraction",
        help="where the steps lie: fraction, linear or cosine (default: fraction)",
    )
    p.add_argument("--temperature", type=float, default=1.0, help="below 1: surer (default: 1)")
    p.add_argument("--template", help="text with blanks to fill in")
    p.add_argument("--seed", type=int, help="same seed, same texts (default: drawn, and told)")
    p.add_argument("--visualize", action="store_true", help="show the denoising in the terminal")
    p.add_argument("--device", help="cpu, cuda, mps (default: the fastest at hand)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    args = parser().parse_args(argv)
    with one_line_errors("ddlm-generate"):
        try:
            write_texts(args)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_texts(args: argparse.Namespace) -> None:
    """Load the model and print what it writes."""
    from ddlm_core.pipeline import DiffusionPipeline

    if args.seed is not None and args.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {args.seed}")
    pipeline = DiffusionPipeline.from_pretrained(args.model, args.device)
    seed = secrets.randbits(31) if args.seed is None else args.seed
    if args.seed is None:
        print(f"seed {seed}", file=sys.stderr)
    options = {
        name: getattr(args, name)
        for name in ("seq_len", "num_steps", "schedule", "temperature", "template")
    }
    for text in texts(pipeline, args, options | {"seed": seed}):
        print(text, flush=True)


def texts(pipeline, args: argparse.Namespace, options: dict) -> Iterator[str]:
    """The texts, as they get ready; with ``--visualize`` each is shown while it is written."""
    from ddlm_core.animation import iter_frames, render_terminal
    from ddlm_core.pipeline import stream

    if not args.visualize:
        yield from pipeline.generate(args.num_samples, **options)
        return
    if args.num_samples < 1:
        raise ValueError(f"--num-samples must be at least 1, got {args.num_samples}")
    for number in range(args.num_samples):
        steps = stream(pipeline, 1, first=number, **options)
        states = ((step.tokens[0].cpu(), step.sigma_bar) for step in steps)
        render_terminal(iter_frames(states), pipeline.tokenizer)


if __name__ == "__main__":
    main()
