"""The playground: a live run in a notebook (ipywidgets), to stop, step through and go back in."""

import asyncio
from collections.abc import Iterator
from html import escape
from typing import Any

import ipywidgets as widgets

from ddlm_core.animation import Frame, draw, iter_frames
from ddlm_core.block_pipeline import BlockPipeline, default_steps
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.sampler import SCHEDULES
from ddlm_core.sampling_options import SamplingOptions, default_churn
from ddlm_core.support.errors import UserError
from ddlm_core.support.live import live_html, noise_plot


class Playground(widgets.VBox):
    """Controls and one text of a pipeline; a change of a control starts over.

    Args:
        pipeline: writes the text.
        template: text with blanks, as ``pipeline.generate`` takes it; empty: none.
        num_steps: denoising steps (default: 128; of a model that writes in blocks, 16 for each).
        seed: the same seed, the same text.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline | BlockPipeline,
        template: str = "",
        num_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        num_steps = default_steps(pipeline.config) if num_steps is None else num_steps
        wide = {
            "layout": widgets.Layout(width="min(32em, 98%)"),
            "style": {"description_width": "7em"},
        }
        self.pipeline = pipeline
        self.frames: list[Frame] = []
        self.task: asyncio.Task[None] | None = None
        self._steps: Iterator[Frame] | None = None
        self._by_hand = True  # is it a person who moves the slider?
        blanks = "blanks: ____, _{4} or _{2-9}; empty: the model writes freely"
        self.template = widgets.Textarea(
            template, description="Template", placeholder=blanks, rows=3, **wide
        )
        self.steps = widgets.IntSlider(num_steps, 1, 512, description="Steps", **wide)
        default, churn = SamplingOptions(), default_churn(pipeline.config)
        self.schedule = widgets.Dropdown(
            options=SCHEDULES, value=default.schedule, description="Schedule", **wide
        )
        self.temperature = widgets.FloatSlider(
            default.temperature, min=0.1, max=2.0, step=0.05, description="Temperature", **wide
        )
        self.churn = widgets.FloatSlider(
            churn, min=0.0, max=1.0, step=0.05, description="Churn", disabled=not churn, **wide
        )
        self.seed = widgets.BoundedIntText(seed, 0, 2**31 - 1, description="Seed", **wide)
        self.speed = widgets.IntSlider(12, 1, 60, description="Steps/second", **wide)
        self.run_button = widgets.Button(description="Run", button_style="primary")
        self.step_button = widgets.Button(description="Step")
        self.again_button = widgets.Button(description="Start over")
        self.position = widgets.IntSlider(0, 0, 1, description="Step", readout=False, **wide)
        self.view = widgets.HTML()
        self._connect()
        buttons = widgets.HBox([self.run_button, self.step_button, self.again_button])
        controls = [
            self.template,
            self.steps,
            self.schedule,
            self.temperature,
            self.churn,
            self.seed,
            self.speed,
        ]
        super().__init__([*controls, buttons, self.position, self.view])
        self.start_over()

    def _connect(self) -> None:
        self.run_button.on_click(lambda _: self.pause() if self.task else self.run())
        self.step_button.on_click(lambda _: self.step())
        self.again_button.on_click(lambda _: self.start_over())
        self.position.observe(self._moved, "value")
        changing = (self.template, self.steps, self.schedule, self.temperature, self.churn)
        for control in (*changing, self.seed):
            control.observe(lambda _: self.start_over(), "value")

    def start_over(self) -> None:
        """Forget the run."""
        self.pause()
        self.frames, self._steps, self.total = [], None, self.steps.value
        self._go(0)
        self.view.value = ""

    def run(self) -> None:
        """Play on from where we are: in the background, or to the end where there is no event loop."""
        self.pause()
        if self.position.value == self.total:  # at the end: play it again
            self._go(0)
        try:
            self.task = asyncio.get_running_loop().create_task(self._play())
        except RuntimeError:
            while self._advance():
                pass
        else:
            self.run_button.description = "Pause"

    def pause(self) -> None:
        """Stop playing; ``run`` and ``step`` go on from here."""
        if self.task:
            self.task.cancel()
        self.task, self.run_button.description = None, "Run"

    def step(self) -> None:
        """One step on."""
        self.pause()
        self._advance()

    async def _play(self) -> None:
        while self._advance():
            await asyncio.sleep(1 / self.speed.value)
        self.pause()

    def _advance(self) -> bool:
        """Show the next step: one that has been, or a new one. False if there is none."""
        here = self.position.value + 1 if self.frames else 0
        if here == len(self.frames):
            try:
                self._steps = self._steps or self._begin()
            except UserError as error:
                self.view.value = f"<p><b>⚠</b> {escape(str(error))}</p>"
                return False
            if (frame := next(self._steps, None)) is None:
                return False
            self.frames.append(frame)
        self._go(here)
        return True

    def _begin(self) -> Iterator[Frame]:
        steps = self.pipeline.generate_streaming(
            template=self.template.value or None,
            num_steps=self.steps.value,
            schedule=self.schedule.value,
            temperature=self.temperature.value,
            churn=self.churn.value,
            seed=self.seed.value,
        )

        def states() -> Iterator[tuple[Any, float]]:
            for step in steps:
                self.total = step.num_steps  # of all blocks; known for sure at the end
                yield step.tokens[0], step.sigma_bar

        return iter_frames(states())

    def _moved(self, change: dict[str, Any]) -> None:
        if self._by_hand:
            self.pause()
            self._draw()

    def _go(self, here: int) -> None:
        """Move the slider, and draw."""
        self._by_hand = False
        self.position.max = max(1, len(self.frames) - 1)
        self.position.value = here
        self._by_hand = True
        self._draw()

    def _draw(self) -> None:
        if self.frames:
            here = min(self.position.value, len(self.frames) - 1)
            frame, levels = self.frames[here], [frame.sigma_bar for frame in self.frames]
            plot = noise_plot(levels, here, self.total)
            picture = draw(frame, self.pipeline.tokenizer)
            self.view.value = live_html(picture, here, self.total, plot)
