"""``ddlm-ui``: a web page to write with (Gradio)."""

import argparse
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddlm_core.apps.commandline import OneLineParser, one_line_errors

EXAMPLES = """examples:
  ddlm-ui                                          the model that ships with ddlm
  ddlm-ui --model checkpoints/best_model_hf        a model that ddlm-train wrote
  ddlm-ui --model user/model --device cpu          one from the Hugging Face Hub, without a GPU
  ddlm-ui --port 8080 --server-name 0.0.0.0        for everybody in your network
  ddlm-ui --share                                  for everybody, through a server of Gradio
"""
TEMPLATES = (
    "One day, ____ lost her pink ball in the park. She felt so sad. A kind frog found it! "
    '"Thank you!" said ____. They are friends now.',
    "It was misty. ____ sat inside with ___ pink _{4}. Knock, knock! _{40}",
    "Lily wanted to _{100}",
)
MOST_SAMPLES, MOST_STEPS, MOST_TEXT = 8, 512, 2000  # enforced here, whatever a browser sends
SECONDS_BETWEEN = 0.08  # a page that is redrawn more often only looks restless


def parser() -> argparse.ArgumentParser:
    """The options, with help."""
    p = OneLineParser(
        prog="ddlm-ui",
        description="Write with a discrete diffusion language model in your browser.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", help="folder, bundled name or Hub id (default: the bundled model)")
    p.add_argument("--port", type=int, help="where to listen (default: the first free from 7860)")
    p.add_argument(
        "--server-name",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    p.add_argument("--share", action="store_true", help="make a public link, too")
    p.add_argument("--device", help="cpu, cuda, mps (default: a GPU if there is one)")
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    args = parser().parse_args(argv)
    with one_line_errors("ddlm-ui"):
        try:
            serve(args)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def serve(args: argparse.Namespace) -> None:
    """Load the model, open the page, and wait until somebody stops it."""
    port = free_port(args.server_name, args.port)  # before the model: that takes longer
    from ddlm_core.pipeline import DiffusionPipeline

    page = build_page(DiffusionPipeline.from_pretrained(args.model, args.device))
    launch(page, server_name=args.server_name, server_port=port, share=args.share)
    public = f" and on {page.share_url}" if getattr(page, "share_url", None) else ""
    print(f"listening on {page.local_url}{public} (Ctrl-C stops)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def free_port(host: str, port: int | None) -> int:
    """A port that can be listened on; a ``ValueError`` says why there is none."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"--port must be a whole number from 1 to 65535, got {port}")
    for candidate in range(7860, 7960) if port is None else [port]:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, candidate), family=family):
                return candidate
        except OSError as error:
            reason = error
    what = f"port {port}" if port else "any port from 7860 to 7959"
    raise ValueError(
        f"cannot listen on {what} of {host} ({reason.strerror}): choose another --port, or leave out "
        "--server-name"
    )


def launch(page: Any, **where: Any) -> None:
    """Open the page and return. No analytics, no fonts from other hosts."""
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="blue", **fonts).set(  # all of it readable: see the tests
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_500",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    )
    page.launch(
        **where,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        theme=theme,
        css=live_css(),
    )


def live_css() -> str:
    from ddlm_core.support.live import CSS

    return CSS


def count(template: str, config: Any) -> str:
    """What is told under the template while somebody types."""
    from ddlm_core.pipeline import encode_template

    if not template:
        return f"empty: the model writes freely, up to {config.block_size} characters"
    try:
        check_size(template)
        _, mask = encode_template(template, None, replace(config, padded=False))
    except ValueError as error:
        return f"⚠ {escape(str(error), quote=False)}"
    return f"{len(mask)} of {config.block_size} characters, {int((~mask).sum())} of them blank"


def check_size(template: Any) -> None:
    if not isinstance(template, str) or len(template) > MOST_TEXT:
        raise ValueError(f"the template must be a text of at most {MOST_TEXT} characters")


def arguments(
    template: str,
    go_on: bool,
    seq_len: int,
    num_samples: int,
    num_steps: int,
    schedule: str,
    temperature: float,
    seed: str,
) -> dict[str, Any]:
    """Arguments of ``generate_streaming`` from the controls; a ``ValueError`` if one is too large."""
    check_size(template or "")
    for name, value, most in (
        ("samples", num_samples, MOST_SAMPLES),
        ("steps", num_steps, MOST_STEPS),
    ):
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r:.40}")
    try:
        number = int(seed) if seed else secrets.randbits(32)
    except ValueError:
        raise ValueError(f"seed must be a whole number, got {seed!r:.40}") from None
    return {
        "template": template or None,
        "seq_len": seq_len if go_on or not template else None,
        "num_samples": num_samples,
        "num_steps": num_steps,
        "schedule": schedule,
        "temperature": temperature,
        "seed": number,
    }


def show(step: Any, seed: int, tokenizer: Any) -> str:
    """HTML of all texts after a step."""
    from ddlm_core.animation import characters
    from ddlm_core.support.live import status, text_html

    texts = [
        text_html(characters(tokens, tokenizer), changed.nonzero()[:, 0].tolist())
        for tokens, changed in zip(step.tokens.tolist(), step.changed)
    ]
    words = status(step.index, step.num_steps, step.sigma_bar, int(step.changed.sum()))
    bar = f'<progress max="{step.num_steps}" value="{step.index}"></progress>'
    return f'<div class="ddlm-live">{bar}<p>{words} · seed {seed}</p>{"".join(texts)}</div>'


def write(pipeline: Any, *controls: Any) -> Iterator[tuple]:
    """One run: yields what the page shows, the texts to copy, and three files at the end."""
    import gradio as gr

    try:
        options = arguments(*controls)
        steps = pipeline.generate_streaming(**options)
    except (ValueError, TypeError) as error:
        raise gr.Error(
            escape(str(error), quote=False), print_exception=False, duration=None
        ) from None
    kept, due = [], 0.0
    for step in steps:
        kept.append((step.tokens, step.sigma_bar))
        last = step.index == step.num_steps
        if last or time.monotonic() >= due:
            html = show(step, options["seed"], pipeline.tokenizer)
            finished = "\n\n".join(step.texts) if last else ""
            yield html, finished, *[gr.skip()] * 3
            due = time.monotonic() + SECONDS_BETWEEN
    with TemporaryDirectory() as folder:  # Gradio makes copies, and removes them after an hour
        paths = write_files(Path(folder), kept, step.texts, pipeline.tokenizer)
        yield html, finished, *[gr.update(value=p, interactive=True) for p in paths]


def write_files(folder: Path, kept: list[tuple], texts: list[str], tokenizer: Any) -> list[str]:
    """The texts; a page with a player for each; a picture of the first, of 64 steps at most."""
    from ddlm_core.animation import Animation, make_frames
    from ddlm_core.support.player import render_page

    def animation(sample: int, every: int = 1) -> Animation:
        states = [*kept[:-1:every], kept[-1]]
        frames = make_frames(
            [tokens[sample] for tokens, _ in states], [noise for _, noise in states]
        )
        return Animation(frames, tokenizer, f"Text {sample + 1}", f"ddlm-player-{sample + 1}")

    players = "\n".join(animation(i)._repr_html_() for i in range(len(texts)))
    (folder / "texts.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    (folder / "texts.html").write_text(render_page(players, "Texts"), encoding="utf-8")
    animation(0, every=-(-len(kept) // 64)).save(folder / "text.gif")
    return [str(folder / name) for name in ("texts.txt", "texts.html", "text.gif")]


def build_page(pipeline: Any) -> Any:
    """The page, and what happens on it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    from ddlm_core.sampler import SCHEDULES

    config = pipeline.config
    with gr.Blocks(title="ddlm", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# Text out of noise\nA diffusion language model writes all characters at once. "
            "`_` is a blank, `_{12}` is twelve, `\\_` is a real underscore."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                template = gr.Textbox(
                    label="Template",
                    placeholder="leave empty, or write a text with blanks: One day, ____ lost …",
                    lines=4,
                    elem_id="template",
                )
                counter = gr.HTML(count("", config), elem_id="count", padding=False)
                gr.Examples([t for t in TEMPLATES if "⚠" not in count(t, config)], template)
                with gr.Row():
                    start = gr.Button("Write", variant="primary", elem_id="write", min_width=100)
                    stop = gr.Button("Stop", elem_id="stop", min_width=100)
            with gr.Column(min_width=300):
                live = gr.HTML('<div class="ddlm-live"></div>', elem_id="live", min_height=180)
                texts = gr.Textbox(
                    label="Finished",
                    placeholder="appears here, to copy",
                    lines=4,
                    buttons=["copy"],
                    interactive=False,
                    elem_id="texts",
                )
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(label, interactive=False, size="sm", min_width=80)
                        for label in ("Save text", "Save HTML", "Save GIF")
                    ]
        with gr.Row():  # below the text, so that a phone shows it right under the buttons
            samples = gr.Slider(1, MOST_SAMPLES, 1, step=1, label="Samples")
            steps = gr.Slider(1, MOST_STEPS, 64, step=1, label="Steps")
            temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature")
            length = gr.Slider(1, config.block_size, config.block_size, step=1, label="Length")
        with gr.Row():
            schedule = gr.Radio(SCHEDULES, value="cosine", label="Schedule")
            seed = gr.Textbox(label="Seed (empty: drawn)", max_lines=1, elem_id="seed")
            go_on = gr.Checkbox(label="Go on after the template, up to Length")
        template.change(
            lambda text: count(text, config),
            template,
            counter,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        run = start.click(
            lambda *controls: (yield from write(pipeline, *controls)),
            [template, go_on, length, samples, steps, schedule, temperature, seed],
            [live, texts, *downloads],
            show_progress="hidden",
            preprocess=False,  # what is wrong is told by `arguments`, in one line
            concurrency_limit=2,
            api_name="write",
        )
        stop.click(None, cancels=[run])
    return page.queue(max_size=100)


if __name__ == "__main__":
    main()
