"""The page of ``ddlm-ui``: its controls, what they may be, and a run that the visitor watches (Gradio)."""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ddlm_core.animation import Animation, characters, make_frames
from ddlm_core.block_pipeline import SAMPLERS, WRITING, BlockPipeline, default_steps
from ddlm_core.blocks import BlockDiffusionConfig
from ddlm_core.sampler import SCHEDULES
from ddlm_core.sampling_options import SamplingOptions, default_churn, encode_template
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.errors import UserError
from ddlm_core.support.live import SECONDS_BETWEEN, status, text_html
from ddlm_core.support.models import bundled_models
from ddlm_core.support.player import render_page
from ddlm_core.unknown_lengths import expand_lengths

LOST = (
    "One day, ____ lost her pink ball in the park. She felt so sad. A kind frog found it! "
    '"Thank you!" said ____. They are friends now.'
)
SETTINGS: dict[str, dict[str, Any]] = {  # name, and the settings that differ from the defaults
    "Two blanks": {"template": LOST},
    "A blank of any size": {
        "template": "It was misty. ____ sat inside with ___ pink _{4}. Knock, knock! _{40}"
    },
    "Go on after a beginning": {"template": "Lily wanted to ", "go_on": True, "num_samples": 3},
    "In a hurry: 16 steps": {"num_steps": 16, "num_samples": 4},
    "As in the paper: no churn": {"churn": 0.0, "schedule": "linear", "num_steps": 256},
    "Surer of itself": {"temperature": 0.7, "num_samples": 4},
    "Wild": {"temperature": 1.5, "num_steps": 64},
}
MOST_SAMPLES, MOST_STEPS, MOST_TEXT = 8, 512, 2000  # enforced here, whatever a browser sends
CONTROLS = (  # what a run is asked for, in the order in which the page sends it
    *("model", "template", "go_on", "seq_len", "num_samples", "num_steps", "schedule"),
    *("temperature", "churn", "seed", "stop_at_end", *WRITING),
)
IN_EXAMPLES = tuple(name for name in CONTROLS if name not in ("model", "seed"))


class Models:
    """The models that a visitor may choose: the one of the command, and those that ship with ddlm.

    Args:
        pipeline: the model to begin with.
        name: what it is called; None: the default of the package.
    """

    def __init__(self, pipeline: BlockPipeline, name: str | None = None) -> None:
        self.first = str(name or "pocket-stories")
        self.names = list(dict.fromkeys([self.first, *bundled_models()]))
        self._loaded, self._lock = {self.first: pipeline}, threading.Lock()

    def __getitem__(self, name: Any) -> BlockPipeline:
        """The model of that name, loaded when it is first asked for; no others than those offered."""
        check_choice(self.names, model=name)
        with self._lock:  # two visitors at once load it once
            if name not in self._loaded:
                device = str(self._loaded[self.first].device)
                self._loaded[name] = BlockPipeline.from_pretrained(name, device=device)
            return self._loaded[name]


def count(template: str, config: Any) -> str:
    """What is told under the template while somebody types."""
    most = longest(config)
    if not template:
        return f"empty: the model writes freely, up to {most} characters"
    try:
        check_size(template)
        roomy = replace(config, padded=False, block_size=most)
        masks = [encode_template(each, None, roomy)[1] for each in expand_lengths(template)]
    except UserError as error:
        return f"⚠ {escape(str(error), quote=False)}"
    sizes, blanks = [len(mask) for mask in masks], [int((~mask).sum()) for mask in masks]
    total, blank = (" to ".join(map(str, sorted({min(x), max(x)}))) for x in (sizes, blanks))
    return f"{total} of {most} characters, {blank} of them blank"


def longest(config: Any) -> int:
    """The longest text that the page asks a model for: block after block it goes on and on."""
    free = isinstance(config, BlockDiffusionConfig) and not config.padded
    return MOST_TEXT if free else config.block_size


def check_size(template: Any) -> None:
    """Raise a ``UserError`` for a template that no model could take."""
    if not isinstance(template, str) or len(template) > MOST_TEXT:
        raise UserError(f"the template must be a text of at most {MOST_TEXT} characters")


def arguments(**controls: Any) -> dict[str, Any]:
    """Arguments of ``generate_streaming`` from the ``CONTROLS``; a ``UserError`` if one is too large."""
    asked = {name: controls[name] for name in CONTROLS if name not in ("model", "go_on")}
    check_size(asked["template"] or "")
    check_range(1, MOST_SAMPLES, num_samples=asked["num_samples"])
    check_range(1, MOST_STEPS, num_steps=asked["num_steps"])
    check_range(0.0, 1.0, churn=asked["churn"])
    if asked["template"] and not controls["go_on"]:
        asked["seq_len"] = None  # the template is the whole text
    try:
        asked["seed"] = int(asked["seed"]) if asked["seed"] else secrets.randbits(32)
    except (ValueError, TypeError):
        raise UserError(f"seed must be a whole number, got {asked['seed']!r:.40}") from None
    return asked | {"template": asked["template"] or None}


def show(step: Any, seed: int, tokenizer: Any) -> str:
    """HTML of all texts after a step."""
    rows = zip(step.tokens.tolist(), step.changed, strict=True)
    texts = [text_html(characters(x, tokenizer), c.nonzero()[:, 0].tolist()) for x, c in rows]
    words = status(step.index, step.num_steps, step.sigma_bar, int(step.changed.sum()))
    bar = f'<progress max="{step.num_steps}" value="{step.index}"></progress>'
    return f'<div class="ddlm-live">{bar}<p>{words} · seed {seed}</p>{"".join(texts)}</div>'


def write(models: Models, *controls: Any) -> Iterator[tuple]:
    """One run: yields what the page shows, the texts to copy, and three files at the end."""
    import gradio as gr

    try:
        asked = dict(zip(CONTROLS, controls, strict=True))
        pipeline, options = models[asked["model"]], arguments(**asked)
        steps = pipeline.generate_streaming(**options)
    except UserError as error:
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


def examples(config: Any, defaults: dict[str, Any]) -> dict[str, list[Any]]:
    """Rows of settings that a model can take, by name: of each of ``IN_EXAMPLES``."""
    rows = {}
    for name, changes in SETTINGS.items():
        row = defaults | changes
        fits = "⚠" not in count(row["template"] if not row["go_on"] else "", config)
        if fits and (changes.get("churn") is None or defaults["churn"]):
            rows[name] = [row[control] for control in IN_EXAMPLES]
    return rows


def first_settings(config: Any) -> dict[str, Any]:
    """Where the controls stand at first: the defaults of ``pipeline.generate``."""
    return asdict(SamplingOptions()) | {
        "template": "",
        "go_on": False,
        "seq_len": config.block_size,
        "num_samples": 1,
        "num_steps": default_steps(config),
        "churn": default_churn(config),
        **WRITING,
    }


def build_page(models: Models) -> Any:
    """The page, and what happens on it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    config = models[models.first].config
    first = first_settings(config)
    with gr.Blocks(title="ddlm", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# Text out of noise\nA diffusion model writes all characters at once, or block after block. "
            "`_` is a blank, `_{12}` is twelve, `_{2-9}` two to nine, `\\_` a real underscore."
        )
        made: dict[str, Any] = {}  # the controls by name
        with gr.Row():
            with gr.Column(min_width=300):
                made["template"] = gr.Textbox(
                    label="Template",
                    placeholder="leave empty, or write a text with blanks: One day, ____ lost …",
                    lines=4,
                    elem_id="template",
                )
                counter = gr.HTML(count("", config), elem_id="count", padding=False)
                shown = gr.Column()  # for the examples, once their controls are made
                with gr.Row():
                    start = gr.Button(
                        "Generate", variant="primary", elem_id="generate", min_width=100
                    )
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
            samples = (1, MOST_SAMPLES, first["num_samples"])
            made["num_samples"] = gr.Slider(*samples, step=1, label="Samples")
            made["num_steps"] = gr.Slider(1, MOST_STEPS, first["num_steps"], step=1, label="Steps")
            heat = (0.1, 2, first["temperature"])
            made["temperature"] = gr.Slider(*heat, step=0.05, label="Temperature")
            made["churn"] = gr.Slider(0, 1, first["churn"], step=0.05, label="Churn")
            lengths = (1, longest(config), config.block_size)
            made["seq_len"] = gr.Slider(*lengths, step=1, label="Length")
        with gr.Row():
            made["model"] = gr.Dropdown(
                models.names, value=models.first, label="Model", elem_id="model", min_width=250
            )
            made["schedule"] = gr.Radio(SCHEDULES, value=first["schedule"], label="Schedule")
            made["sampler"] = gr.Radio(SAMPLERS, value=first["sampler"], label="Sampler")
            bound = (0.05, 2, first["entropy_bound"])
            made["entropy_bound"] = gr.Slider(*bound, step=0.05, label="Entropy bound")
            made["top_p"] = gr.Slider(0.05, 1, first["top_p"], step=0.05, label="Top-p")
            made["annealing"] = gr.Slider(0.1, 1, first["annealing"], step=0.05, label="Annealing")
            made["seed"] = gr.Textbox(label="Seed (empty: drawn)", max_lines=1, elem_id="seed")
            made["go_on"] = gr.Checkbox(label="Go on after the template, up to Length")
            made["stop_at_end"] = gr.Checkbox(label="Stop where the text first ends")
        rows = examples(config, first)
        with shown:
            gr.Examples(
                [*rows.values()],
                [made[name] for name in IN_EXAMPLES],
                example_labels=[*rows],
                elem_id="examples",
                label="Examples: settings to begin with",
            )
        made["template"].change(
            lambda text, name: count(text, models[name].config),
            [made["template"], made["model"]],
            counter,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

        def choose(name: str, text: str) -> tuple[Any, Any, Any, str]:
            """What another model changes on the page: its length, its churn, its steps, the count."""
            chosen = first_settings(new := models[name].config)
            length = gr.update(maximum=longest(new), value=chosen["seq_len"])
            churn = gr.update(value=chosen["churn"], interactive=chosen["churn"] > 0)
            return length, churn, gr.update(value=chosen["num_steps"]), count(text, new)

        made["model"].input(
            choose,
            [made["model"], made["template"]],
            [made["seq_len"], made["churn"], made["num_steps"], counter],
            show_progress="hidden",
            api_visibility="private",
        )
        run = start.click(
            lambda *controls: (yield from write(models, *controls)),
            [made[name] for name in CONTROLS],
            [live, texts, *downloads],
            show_progress="hidden",
            preprocess=False,  # what is wrong is told by `arguments`, in one line
            concurrency_limit=2,
            api_name="generate",
        )
        stop.click(None, cancels=[run])
    return page.queue(max_size=100)
