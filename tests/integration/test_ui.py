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

from ddlm_core.apps import page, ui
from ddlm_core.block_pipeline import WRITING, BlockPipeline
from ddlm_core.model import DiscreteDiffusionTransformer
from ddlm_core.sampling_options import SamplingOptions
from ddlm_core.support.errors import UserError
from ddlm_core.support.models import bundled_models
from pages import CONTRAST, WITHOUT_NAME

# model, template, go on?, length, samples, steps, schedule, temperature, churn, seed, stop?, samplers
GOOD = ("tiny", "a_{9}", False, 40, 1, 3, "cosine", 1.0, 1.0, "1", False, *WRITING.values())


def but(**changes: Any) -> tuple:
    """Good controls with some changes."""
    return tuple((dict(zip(page.CONTROLS, GOOD, strict=True)) | changes).values())


BAD = {
    "model must be one of tiny, " + ", ".join(bundled_models()): but(model="../secret"),
    "model must be one of tiny": but(model=["tiny"]),
    "the template must be a text of at most 2000": but(template="_" * 2001),
    "the template has 41 characters": but(template="_{41}"),
    "the model does not know": but(template="smile 😀 _"),
    "the template has no blank": but(template="done"),
    "seq_len must be a whole number": but(template="", seq_len=0),
    "seq_len must be a whole number from": but(template="", seq_len=10**9),
    "num_samples must be a whole number from 1 to 8, got 0": but(num_samples=0),
    "num_samples must be a whole number from 1 to 8, got 9": but(num_samples=9),
    "num_samples must be a whole number from 1 to 8, got 'all'": but(num_samples="all"),
    "num_steps must be a whole number from 1 to 512, got 100000": but(num_steps=10**5),
    "num_steps must be a whole number from 1 to 512, got 1.5": but(num_steps=1.5),
    "schedule must be one of linear, cosine, fraction": but(schedule="slow"),
    "temperature must be a number from": but(temperature=0),
    "temperature must be a number": but(temperature=None),
    "churn must be a number from 0.0 to 1.0, got 2": but(churn=2),
    "churn must be a number from 0.0 to 1.0, got None": but(churn=None),
    "stop_at_end must be true or false, got 'yes'": but(stop_at_end="yes"),
    "sampler must be one of grid, entropy_bound": but(sampler="magic"),
    "entropy_bound must be a number": but(entropy_bound=-1),
    "top_p must be a number from 0.0 to 1.0, got 2": but(top_p=2),
    "annealing must be a number from 0.001 to 1000": but(annealing=0),
    "is no range of lengths": but(template="a_{9-2}"),
    "seed must be a whole number, got 'one'": but(seed="one"),
    "seed must be a whole number from 0": but(seed="-1"),
}


class Slow(DiscreteDiffusionTransformer):
    """Counts how often it is asked, and takes its time where it is told to."""

    asked, pause = 0, 0.0

    def logits(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        time.sleep(self.pause)
        return super().logits(*inputs)


@pytest.fixture(scope="module")
def pipeline(tiny_network) -> BlockPipeline:
    return BlockPipeline(tiny_network(Slow), "cpu")


@pytest.fixture(scope="module")
def models(pipeline) -> page.Models:
    return page.Models(pipeline, "tiny")


@pytest.fixture(scope="module")
def served(models) -> Iterator[Any]:
    """The page, served in this process."""
    blocks = page.build_page(models)
    ui.launch(blocks, server_name="127.0.0.1", server_port=ui.free_port("127.0.0.1", None))
    yield blocks
    blocks.close(verbose=False)


def test_the_count_follows_the_template(pipeline):
    assert page.count("", pipeline.config) == "empty: the model writes freely, up to 40 characters"
    assert page.count("a_{9}", pipeline.config) == "10 of 40 characters, 9 of them blank"
    for template, words in (("done", "no blank"), ("é_", "'é'"), ("_" * 5000, "at most 2000")):
        assert page.count(template, pipeline.config).startswith("⚠ ")
        assert words in page.count(template, pipeline.config)
    assert "<" not in page.count("<b>", pipeline.config)


def test_a_run_shows_every_step_and_gives_files(models, pipeline, monkeypatch):
    monkeypatch.setattr(page, "SECONDS_BETWEEN", 0)
    run = page.write(models, *but(template="a<_{9}", num_samples=2, num_steps=5, seed="7"))
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
    def options(**changes: Any) -> dict[str, Any]:
        return page.arguments(**dict(zip(page.CONTROLS, but(**changes), strict=True)))

    changes = {"num_samples": 3, "num_steps": 9, "schedule": "linear", "temperature": 0.5}
    asked = options(template="", seq_len=30, churn=0.25, seed="", **changes)
    assert asked.items() >= (changes | {"template": None, "seq_len": 30, "churn": 0.25}).items()
    assert 0 <= asked["seed"] < 2**32
    assert options()["seq_len"] is None and options(go_on=True)["seq_len"] == 40
    assert "model" not in asked and "go_on" not in asked
    assert options(stop_at_end=True)["stop_at_end"] is True


def test_one_set_of_defaults(models, pipeline, tiny_network):
    first = page.first_settings(pipeline.config)
    assert first.items() >= {"num_steps": 128, "schedule": "cosine", "temperature": 1.0}.items()
    assert first["churn"] == 1 and first["seq_len"] == 40
    options = SamplingOptions()
    assert (first["num_steps"], first["schedule"]) == (options.num_steps, options.schedule)
    built = {b.label: b for b in page.build_page(models).blocks.values() if hasattr(b, "label")}
    shown = {"Samples": 1, "Steps": 128, "Temperature": 1, "Length": 40, "Schedule": "cosine"}
    shown |= {"Model": "tiny", "Churn": 1}
    assert {label: built[label].value for label in shown} == shown
    masked = BlockPipeline(tiny_network(graph="absorbing"), "cpu")
    assert page.first_settings(masked.config)["churn"] == 0


def test_a_model_that_writes_in_blocks(tiny_network):
    """Its length is free, its steps are those of a block, and templates may have blanks of any length."""
    blocks = BlockPipeline(tiny_network(block_length=8), "cpu")
    first = page.first_settings(blocks.config)
    assert (first["num_steps"], first["seq_len"]) == (16, 40)
    assert page.longest(blocks.config) == page.MOST_TEXT
    assert (
        page.count("a_{2-4}b_", blocks.config) == "5 to 7 of 2000 characters, 3 to 5 of them blank"
    )
    asked = but(template="", seq_len=50, num_steps=2, sampler="entropy_bound", top_p=0.9)
    *_, (_, text, *_), _ = page.write(page.Models(blocks, "tiny"), *asked)
    assert text


def test_examples_are_settings_that_work():
    models = page.Models(BlockPipeline.from_pretrained(device="cpu"))
    config = models["pocket-stories"].config
    rows = page.examples(config, page.first_settings(config))
    assert [*rows] == [*page.SETTINGS]  # the model that ships with the package takes all of them
    names, changed = page.IN_EXAMPLES, set()
    for row in rows.values():
        asked = dict(zip(names, row, strict=True)) | {"model": "pocket-stories", "seed": "1"}
        models["pocket-stories"].generate_streaming(**page.arguments(**asked))  # checks
        changed |= {n for n in names if asked[n] != page.first_settings(config)[n]}
    assert changed >= {"template", "go_on", "num_samples", "num_steps", "churn", "temperature"}


def test_examples_that_a_model_cannot_take_are_left_out(pipeline):
    rows = page.examples(pipeline.config, page.first_settings(pipeline.config))  # 40 characters
    assert "Two blanks" not in rows and "Surer of itself" in rows


def test_models_are_loaded_once_and_no_others(models, monkeypatch):
    assert models.names == ["tiny", *bundled_models()]
    loads = []
    monkeypatch.setattr(
        page.BlockPipeline, "from_pretrained", lambda name, device: loads.append(name) or name
    )
    fresh = page.Models(models["tiny"], "tiny")
    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(fresh.__getitem__, ["tinystories-cpu"] * 8)} == {"tinystories-cpu"}
    assert loads == ["tinystories-cpu"] and fresh["tiny"] is models["tiny"]
    with pytest.raises(ValueError, match="model must be one of"):
        fresh["user/model"]
    names = page.Models(models["tiny"]).names
    assert names[0] == "pocket-stories" and {*names} == {*bundled_models()}


@pytest.mark.parametrize("reason", BAD)
def test_limits_hold_on_the_server(reason, models):
    import gradio as gr

    with pytest.raises(gr.Error) as caught:
        next(page.write(models, *BAD[reason]))
    assert reason in caught.value.message and "\n" not in caught.value.message


def memory() -> int:
    """Bytes in use, without what the allocator keeps for later (where it can be told to let go)."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return psutil.Process().memory_info().rss


@pytest.mark.slow
def test_a_crowd_of_good_and_bad_requests(served, models):
    from gradio_client import Client

    local = threading.local()

    def ask(number: int) -> str:
        local.client = getattr(local, "client", None) or Client(served.local_url, verbose=False)
        controls = GOOD if number % 2 else [*BAD.values()][number // 2 % len(BAD)]
        try:
            answer = local.client.predict(*controls, api_name="/generate")
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
    assert [*page.write(models, *GOOD)][-2][1]  # and it is still there


def opened(browser: Any, served: Any, **how: Any) -> tuple[Any, list[str]]:
    """A tab with the page, and what goes wrong in it: errors, and requests to other hosts."""
    context, wrong = browser.new_context(**how), []
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request",
        lambda r: r.url.startswith((served.local_url, "data:", "blob:")) or wrong.append(r.url),
    )
    tab.goto(served.local_url)
    tab.wait_for_selector("#generate")
    return tab, wrong


def test_in_a_browser(browser, served, pipeline, monkeypatch, tmp_path):
    tab, wrong = opened(browser, served, viewport={"width": 1200, "height": 900})
    tab.fill("#template textarea", "Max_{9} \\_ end")
    tab.wait_for_function("document.querySelector('#count').innerText.startsWith('18 of 40')")
    tab.fill("#seed textarea, #seed input", "5")
    monkeypatch.setattr(pipeline.model, "pause", 0.05)
    tab.click("#generate")
    tab.wait_for_function("document.querySelectorAll('#live b').length > 0")
    step = tab.inner_text("#live p").split(" of ")[0]
    tab.wait_for_function(f"!document.querySelector('#live p').innerText.startsWith('{step} ')")
    tab.click("#stop")
    tab.wait_for_timeout(1000)
    asked, text = pipeline.model.asked, tab.inner_text("#live p")
    tab.wait_for_timeout(1000)
    assert pipeline.model.asked == asked and tab.inner_text("#live p") == text  # it has stopped
    assert int(text.split()[1]) < 128 and "seed 5" in text

    monkeypatch.setattr(pipeline.model, "pause", 0.0)
    tab.click("#generate")
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
    tab.click("#generate")
    tab.wait_for_selector("text=the model does not know 'é' of the template")
    assert wrong == []


def test_examples_set_controls_and_a_model_is_chosen(browser, served):
    tab, wrong = opened(browser, served)
    tab.click("text=As in the paper")
    tab.wait_for_function("document.querySelector('[aria-label*=\"Steps\"]').value === '256'")
    assert tab.input_value("[aria-label*='Churn']") == "0"
    assert tab.is_checked("label:has-text('linear') input")
    tab.click("#model input")
    tab.click("[role=option]:has-text('tinystories-cpu')")
    tab.wait_for_function("document.querySelector('#count').innerText.includes('up to 160')")
    assert tab.input_value("[aria-label*='Length']") == "160"
    assert tab.input_value("[aria-label*='Churn']") == "1"
    tab.fill("[aria-label*='Steps']", "2")
    tab.click("#generate")
    tab.wait_for_function("document.querySelector('#texts textarea').value.length > 50")
    assert wrong == []


def test_a_closed_page_stops_its_run(browser, served, pipeline, monkeypatch):
    tab, _ = opened(browser, served)
    monkeypatch.setattr(pipeline.model, "pause", 0.3)
    tab.click("#generate")
    tab.wait_for_function("document.querySelectorAll('#live pre').length > 0")
    tab.context.close()
    time.sleep(3)
    asked = pipeline.model.asked
    time.sleep(2)
    assert pipeline.model.asked <= asked + 1


@pytest.mark.parametrize("how", ["light", "dark", "phone"])
def test_it_fits_in_light_dark_and_on_a_phone(how, browser, served):
    size = {"width": 375, "height": 800} if how == "phone" else {"width": 1200, "height": 900}
    tab, _ = opened(
        browser, served, viewport=size, color_scheme="dark" if how == "dark" else "light"
    )
    tab.click("#generate")
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


@pytest.mark.parametrize(
    "proxies",
    [
        {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
        {"all_proxy": "socks5://127.0.0.1:9", "NO_PROXY": "intern.example"},
    ],
)
def test_the_local_page_needs_no_proxy_and_no_shared_folder(proxies, tmp_path):
    """Another user of the machine owns Gradio's usual folder; here, a file is in its place."""
    (tmp_path / "gradio").touch()
    port = ui.free_port("127.0.0.1", None)
    command = [sys.executable, "-m", "ddlm_core.apps.ui", "--port", str(port), "--device", "cpu"]
    place = {name: str(tmp_path) for name in ("TMPDIR", "TEMP", "TMP")}
    kept = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=kept | place | proxies, **both) as process:
        line = process.stdout.readline().decode()
        (own,) = tmp_path.glob("ddlm-ui-*") if line else [None]
        mode = own and own.stat().st_mode & 0o777
        process.send_signal(2)
        errors = process.stderr.read().decode()
        assert line == f"listening on http://127.0.0.1:{port}/ (Ctrl-C stops)\n", errors
    assert mode == 0o700 and not own.exists() and (tmp_path / "gradio").is_file()


def test_a_folder_that_the_user_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "mine"))
    with ui.own_temporary_folder():
        assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as end:
        ui.main(["--port", str(ui.free_port("127.0.0.1", None))])
    errors = capsys.readouterr().err
    assert end.value.code == 2 and f"cannot use GRADIO_TEMP_DIR={tmp_path}/file" in errors


def test_what_is_asked_without_a_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intern.example")
    monkeypatch.delenv("no_proxy", raising=False)
    with ui.near():
        assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "*"
    with ui.near("0.0.0.0", share=True):
        assert os.environ["no_proxy"] == "intern.example,127.0.0.1,localhost,::1,0.0.0.0"
    assert "no_proxy" not in os.environ and os.environ["NO_PROXY"] == "intern.example"
    with pytest.raises(UserError, match=r"SOCKS proxy: pip install 'httpx\[socks\]'"), ui.near():
        raise ImportError("Using SOCKS proxy, but …")
    with pytest.raises(ImportError, match="another"), ui.near():
        raise ImportError("another")
