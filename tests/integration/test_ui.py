"""``ddlm-ui``: its functions, the server under load, and the page in a real browser."""

import ctypes
import gc
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ddlm_core.apps import ui
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.pipeline import DiffusionPipeline
from pages import CONTRAST, WITHOUT_NAME

GOOD = ("a_{9}", False, 40, 1, 3, "cosine", 1.0, "1")
BAD = {
    "the template must be a text of at most 2000": ("_" * 2001, *GOOD[1:]),
    "the template has 41 characters": ("_{41}", *GOOD[1:]),
    "the model does not know": ("smile 😀 _", *GOOD[1:]),
    "the template has no blank": ("done", *GOOD[1:]),
    "seq_len must be a whole number": ("", False, 0, *GOOD[3:]),
    "seq_len must be a whole number from": ("", False, 10**9, *GOOD[3:]),
    "samples must be a whole number from 1 to 8, got 0": (*GOOD[:3], 0, *GOOD[4:]),
    "samples must be a whole number from 1 to 8, got 9": (*GOOD[:3], 9, *GOOD[4:]),
    "samples must be a whole number from 1 to 8, got 'all'": (*GOOD[:3], "all", *GOOD[4:]),
    "steps must be a whole number from 1 to 512, got 100000": (*GOOD[:4], 10**5, *GOOD[5:]),
    "steps must be a whole number from 1 to 512, got 1.5": (*GOOD[:4], 1.5, *GOOD[5:]),
    "schedule must be one of linear, cosine, fraction": (*GOOD[:5], "slow", *GOOD[6:]),
    "temperature must be a number from": (*GOOD[:6], 0, GOOD[7]),
    "temperature must be a number": (*GOOD[:6], None, GOOD[7]),
    "seed must be a whole number, got 'one'": (*GOOD[:7], "one"),
    "seed must be a whole number from 0": (*GOOD[:7], "-1"),
}


class Slow(DiscreteDiffusionTransformer):
    """Counts how often it is asked, and takes its time where it is told to."""

    asked, pause = 0, 0.0

    def logits(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        time.sleep(self.pause)
        return super().logits(*inputs)


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    config = DiscreteDiffusionConfig(block_size=40, n_layer=1, n_head=1, n_embd=8, cond_dim=4)
    network, generator = Slow(config), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return DiffusionPipeline(network, "cpu")


@pytest.fixture(scope="module")
def page(pipeline: DiffusionPipeline) -> Iterator[Any]:
    """The page, served in this process."""
    page = ui.build_page(pipeline)
    ui.launch(page, server_name="127.0.0.1", server_port=ui.free_port("127.0.0.1", None))
    yield page
    page.close(verbose=False)


def test_the_count_follows_the_template(pipeline):
    assert ui.count("", pipeline.config) == "empty: the model writes freely, up to 40 characters"
    assert ui.count("a_{9}", pipeline.config) == "10 of 40 characters, 9 of them blank"
    for template, words in (("done", "no blank"), ("é_", "'é'"), ("_" * 5000, "at most 2000")):
        assert ui.count(template, pipeline.config).startswith("⚠ ")
        assert words in ui.count(template, pipeline.config)
    assert "<" not in ui.count("<b>", pipeline.config)


def test_a_run_shows_every_step_and_gives_files(pipeline, monkeypatch):
    monkeypatch.setattr(ui, "SECONDS_BETWEEN", 0)
    run = ui.write(pipeline, "a<_{9}", False, 40, 2, 5, "cosine", 1.0, "7")
    shown = [next(run) for _ in range(6)]
    for step, (html, texts, *_) in enumerate(shown):
        assert f"step {step} of 5 · noise σ̄ = " in html and f'max="5" value="{step}"' in html
        assert html.count("<pre>") == 2 and "a&lt;" in html and "seed 7" in html
        assert bool(texts) == (step == 5)
    assert any("<b>" in html for html, *_ in shown)
    expected = pipeline.generate(2, template="a<_{9}", num_steps=5, seed=7)
    assert shown[-1][1] == "\n\n".join(expected)
    paths = [Path(update["value"]) for update in next(run)[2:]]
    assert paths[0].read_text(encoding="utf-8") == shown[-1][1] + "\n"
    assert paths[1].read_text(encoding="utf-8").count('class="ddlm-player"') == 2
    assert paths[2].read_bytes().startswith(b"GIF8")
    assert [*run] == [] and not any(path.exists() for path in paths)


def test_controls_reach_the_sampler():
    options = ui.arguments("", False, 30, 3, 9, "linear", 0.5, "")
    assert options["template"] is None and options["seq_len"] == 30 and options["num_samples"] == 3
    assert options["num_steps"] == 9 and options["schedule"] == "linear"
    assert options["temperature"] == 0.5 and 0 <= options["seed"] < 2**32
    assert ui.arguments(*GOOD)["seq_len"] is None
    assert ui.arguments("a_", True, *GOOD[2:])["seq_len"] == 40


@pytest.mark.parametrize("reason", BAD)
def test_limits_hold_on_the_server(reason, pipeline):
    import gradio as gr

    with pytest.raises(gr.Error) as caught:
        next(ui.write(pipeline, *BAD[reason]))
    assert reason in caught.value.message and "\n" not in caught.value.message


@pytest.mark.slow
def memory() -> int:
    """Bytes in use, without what the allocator keeps for later (where it can be told to let go)."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return psutil.Process().memory_info().rss


def test_a_crowd_of_good_and_bad_requests(page, pipeline):
    from gradio_client import Client

    local = threading.local()

    def ask(number: int) -> str:
        local.client = getattr(local, "client", None) or Client(page.local_url, verbose=False)
        controls = GOOD if number % 2 else [*BAD.values()][number // 2 % len(BAD)]
        try:
            answer = local.client.predict(*controls, api_name="/write")
        except Exception as error:
            return str(error)
        return answer[1]

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(ask, range(50))]  # what a server and its clients keep for good, they have now
        before = memory()
        answers = [*pool.map(ask, range(200))]
    assert memory() - before < 100e6
    assert len({*answers[1::2]}) == 1 and len(answers[1]) > 3  # the same seed, the same text
    for number, answer in enumerate(answers[::2]):
        assert answer != answers[1] and "Traceback" not in answer, number
    assert [*ui.write(pipeline, *GOOD)][-2][1]  # and it is still there


def opened(browser: Any, page: Any, **how: Any) -> tuple[Any, list[str]]:
    """A tab with the page, and what goes wrong in it: errors, and requests to other hosts."""
    context, wrong = browser.new_context(**how), []
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request",
        lambda r: r.url.startswith((page.local_url, "data:", "blob:")) or wrong.append(r.url),
    )
    tab.goto(page.local_url)
    tab.wait_for_selector("#write")
    return tab, wrong


def test_in_a_browser(browser, page, pipeline, monkeypatch, tmp_path):
    tab, wrong = opened(browser, page, viewport={"width": 1200, "height": 900})
    tab.fill("#template textarea", "Max_{9} \\_ end")
    tab.wait_for_function("document.querySelector('#count').innerText.startsWith('18 of 40')")
    tab.fill("#seed textarea, #seed input", "5")
    monkeypatch.setattr(pipeline.model, "pause", 0.05)
    tab.click("#write")
    tab.wait_for_function("document.querySelectorAll('#live b').length > 0")
    step = tab.inner_text("#live p").split(" of ")[0]
    tab.wait_for_function(f"!document.querySelector('#live p').innerText.startsWith('{step} ')")
    tab.click("#stop")
    tab.wait_for_timeout(1000)
    asked, text = pipeline.model.asked, tab.inner_text("#live p")
    tab.wait_for_timeout(1000)
    assert pipeline.model.asked == asked and tab.inner_text("#live p") == text  # it has stopped
    assert int(text.split()[1]) < 64 and "seed 5" in text

    monkeypatch.setattr(pipeline.model, "pause", 0.0)
    tab.click("#write")
    tab.wait_for_function("document.querySelector('#texts textarea').value.length > 5")
    text = tab.input_value("#texts textarea")
    assert re.fullmatch(r"Max.{0,9} _ end", text, re.DOTALL)
    tab.click("#texts button")
    assert tab.evaluate("navigator.clipboard.readText()") == text
    tab.wait_for_selector("a:has-text('GIF'), button:has-text('GIF'):not([disabled])")
    with tab.expect_download() as download:
        tab.click("text=GIF")
    download.value.save_as(tmp_path / "text.gif")
    assert (tmp_path / "text.gif").read_bytes().startswith(b"GIF8")

    tab.fill("#template textarea", "é_")
    tab.click("#write")
    tab.wait_for_selector("text=the model does not know 'é' of the template")
    assert wrong == []


def test_a_closed_page_stops_its_run(browser, page, pipeline, monkeypatch):
    tab, _ = opened(browser, page)
    monkeypatch.setattr(pipeline.model, "pause", 0.3)
    tab.click("#write")
    tab.wait_for_function("document.querySelectorAll('#live pre').length > 0")
    tab.context.close()
    time.sleep(3)
    asked = pipeline.model.asked
    time.sleep(2)
    assert pipeline.model.asked <= asked + 1


@pytest.mark.parametrize("how", ["light", "dark", "phone"])
def test_it_fits_in_light_dark_and_on_a_phone(how, browser, page):
    size = {"width": 375, "height": 800} if how == "phone" else {"width": 1200, "height": 900}
    tab, _ = opened(browser, page, viewport=size, color_scheme="dark" if how == "dark" else "light")
    tab.click("#write")
    tab.wait_for_function("document.querySelector('#texts textarea').value.length > 5")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ink = tab.evaluate("getComputedStyle(document.querySelector('#live pre')).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 384) == (how == "dark")
    assert tab.evaluate(CONTRAST) == {} and tab.evaluate(WITHOUT_NAME) == []
    if folder := os.environ.get("DDLM_SCREENSHOTS"):
        tab.screenshot(path=f"{folder}/ui_{how}.png", full_page=True)


def test_a_port_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on port {port} of 127.0.0.1 "):
            ui.free_port("127.0.0.1", port)


def test_the_command_says_where_it_listens():
    port = ui.free_port("127.0.0.1", None)
    command = [sys.executable, "-m", "ddlm_core.apps.ui", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        line = process.stdout.readline().decode()
        assert line == f"listening on http://127.0.0.1:{port}/ (Ctrl-C stops)\n"
        process.send_signal(2)
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == process.stderr.read() == b""
