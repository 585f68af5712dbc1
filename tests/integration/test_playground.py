"""The playground, at the level of its widgets: what a notebook would show and send."""

import asyncio
import re

import pytest

import ddlm_core
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.sampling_options import SamplingOptions


@pytest.fixture
def playground(tiny_pipeline):
    return ddlm_core.Playground(tiny_pipeline, num_steps=6, seed=3)


def shown(playground) -> str:
    """The text in the view, without its marks."""
    inner = re.search("<pre>(.*)</pre>", playground.view.value, re.DOTALL)[1]
    return re.sub("</?[bi]>", "", inner)


def test_steps_are_those_of_the_pipeline(playground, tiny_pipeline):
    animation = tiny_pipeline.generate_with_visualization(num_steps=6, seed=3)
    for index, frame in enumerate(animation.frames):
        playground.step_button.click()
        assert playground.frames[-1] == frame and playground.position.value == index
        assert f"step {index} of 6 · noise σ̄ = {frame.sigma_bar:.3g}" in playground.view.value
        marked = "".join(re.findall("<b>(.*?)</b>", playground.view.value, re.DOTALL))
        assert marked.count("&") or len(marked) == len(frame.changed)
    playground.step_button.click()
    assert len(playground.frames) == 7


def test_scrubbing_goes_back_and_running_goes_on(playground):
    for _ in range(4):
        playground.step()
    texts = [playground.frames[k] for k in range(4)]
    last = playground.view.value
    playground.position.value = 1  # as a person drags it
    assert "step 1 of 6" in playground.view.value and len(playground.frames) == 4
    assert playground.view.value.count("<circle") == 1
    playground.step()
    playground.step()
    assert playground.view.value == last and playground.frames[:4] == texts
    playground.run()  # no event loop here: to the end
    assert len(playground.frames) == 7 and "step 6 of 6" in playground.view.value


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("template", "abc_{9}"),
        ("steps", 5),
        ("schedule", "linear"),
        ("temperature", 0.3),
        ("churn", 0.0),
        ("seed", 4),
    ],
)
def test_each_control_starts_another_run(control, value, playground):
    playground.run()
    before = playground.frames[-1]
    getattr(playground, control).value = value
    assert playground.frames == [] and playground.view.value == ""
    playground.run()
    assert playground.frames[-1] != before
    if control == "template":
        assert shown(playground).startswith("abc")


def test_a_run_can_be_interrupted_and_goes_on(playground):
    async def people() -> None:
        playground.speed.value = 60
        playground.run_button.click()
        assert playground.run_button.description == "Pause"
        while len(playground.frames) < 3:
            await asyncio.sleep(0.001)
        playground.run_button.click()
        count = len(playground.frames)
        assert playground.run_button.description == "Run" and count < 7
        await asyncio.sleep(0.1)
        assert len(playground.frames) == count  # it has really stopped
        playground.run_button.click()
        while playground.task:
            await asyncio.sleep(0.01)
        assert len(playground.frames) == 7 and playground.run_button.description == "Run"
        playground.run_button.click()  # at the end: from the start again
        await asyncio.sleep(0.001)
        assert playground.position.value < 6
        playground.position.value = 4  # dragging stops it
        await asyncio.sleep(0.1)
        assert playground.task is None and playground.position.value == 4

    asyncio.run(people())


def test_what_cannot_work_is_told_in_place(playground):
    playground.template.value = "é_<b>"
    playground.run()
    assert (
        playground.view.value
        == "<p><b>⚠</b> the model does not know &#x27;é&#x27; of the template: "
        "leave them out, or train with vocabulary=auto</p>"
    )
    playground.template.value = "e_"
    playground.run()
    assert shown(playground).startswith("e")


def test_text_cannot_become_html(playground):
    playground.template.value = "<i>&_"
    playground.step()
    assert shown(playground).startswith("&lt;i&gt;&amp;")


def test_it_begins_with_the_defaults_of_the_pipeline(tiny_pipeline, tiny_network):
    playground, default = ddlm_core.Playground(tiny_pipeline), SamplingOptions()
    assert playground.steps.value == default.num_steps
    assert playground.schedule.value == default.schedule
    assert playground.temperature.value == default.temperature
    assert playground.churn.value == 1 and not playground.churn.disabled
    masked = DiffusionPipeline(tiny_network(graph="absorbing"), "cpu")
    playground = ddlm_core.Playground(masked, num_steps=2)
    assert playground.churn.value == 0 and playground.churn.disabled
    playground.run()
    assert len(playground.frames) == 3
