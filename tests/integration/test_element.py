"""<ddlm-live> in a page: every mode does what Python does, for every reader; and what makes it in Python."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

import ddlm_core
import live_models
import vendor
from ddlm_core.apps.export import export
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.forward import perturb_batch
from ddlm_core.reverse import analytic_probs
from ddlm_core.sampling_options import encode_template, texts_of
from ddlm_core.support.element import BOOK, MODES, OPTIONS, Live
from ddlm_core.support.errors import UserError
from ddlm_core.support.seeds import derive_seed
from ddlm_core.unknown_lengths import choose_length, expand_lengths
from pages import CONTRAST, TOO_WIDE, WITHOUT_NAME, lacking

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tests/web/live.html"
FIRST, TEMPLATE, CORRUPT, DENOISE, BOUND, BLOCKS = ALL = range(6)  # the elements of that page
RUN, STOP = "Run in this page", "Stop"
GIVEN = "_{4} lost _{3} blue _{4} in the park."
SENTENCE = "Tom lo%t his red bGll."

# --- in Python


class Drawn:
    def _repr_html_(self) -> str:
        return "<p id=drawn>Once.</p>"


def test_a_cell_shows_the_element_and_in_it_what_stands_where_nothing_runs():
    live = ddlm_core.Live("sample", stored=Drawn(), seed=3, template='_ "a" <b> & _')
    tree = BeautifulSoup(live._repr_html_(), "html.parser")
    [element] = tree.select("div.ddlm-element")
    wanted = {"data-mode": "sample", "data-seed": "3", "data-template": '_ "a" <b> & _'}
    assert element.attrs == wanted | {"class": ["ddlm-element"]}
    assert element.select_one("#drawn").text == "Once."
    link = element.select_one(".ddlm-elsewhere a")["href"]
    assert link == f"{BOOK}notebooks/07_sampler.html" and link in repr(live)
    assert "drawn" not in Live("bound")._repr_html_()


@pytest.mark.parametrize("mode", MODES)
def test_a_page_that_is_sanitized_shows_a_sentence_and_a_link(mode):
    """`jupyter nbconvert --to html --HTMLExporter.sanitize_html=True`: no tag is shown as text."""
    live = Live(mode, seed=3)
    data = {"text/html": live._repr_html_(), "text/plain": repr(live)}
    output = nbformat.v4.new_output("display_data", data)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    page, _ = HTMLExporter(sanitize_html=True).from_notebook_node(notebook)
    [shown] = BeautifulSoup(page, "html.parser").select(".jp-OutputArea-output")
    what, chapter = MODES[mode]
    assert shown.text.strip() == f"{what}: it runs in the page of the book."
    assert shown.a["href"] == BOOK + chapter


def test_what_no_mode_has_is_refused():
    with pytest.raises(UserError, match="mode must be one of sample, corrupt, denoise, bound"):
        Live("paint")
    with pytest.raises(
        UserError, match=r"mode bound has no sigma, steps: it has model, seed, text"
    ):
        Live("bound", sigma=1, steps=3)


def test_python_and_javascript_know_the_same_modes_and_options():
    source = (ROOT / "web/live/element.js").read_text()
    found = re.findall(r"^  (\w+): \{\n.*?options: \{(.*?)\},\n", source, re.M | re.S)
    options = {mode: {"model", *re.findall(r"(\w+): '", text)} for mode, text in found}
    options["sample"] -= {
        "length",
        "levels",
    }  # a reader chooses them: no cell of a chapter needs to
    assert options == OPTIONS and options.keys() == MODES.keys()


@pytest.mark.parametrize("page", sorted({page for _, page in MODES.values()}))
def test_a_link_leads_to_a_page(page):
    assert (ROOT / page).with_suffix(".ipynb").exists()


def test_models_for_the_book_are_exported_once(tmp_path, monkeypatch, capsys):
    written = []

    def fake(source: Path, folder: Path, weights: str) -> Iterator[str]:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"x" * (4_000_001 if source.name in big else 1))
        written.append(source.name)
        yield f"wrote {folder}"

    big: set[str] = set()
    monkeypatch.setattr("ddlm_core.apps.export.export", fake)
    live_models.main(tmp_path)
    wanted = sorted(live_models.named())
    assert {"pocket-stories", "tinystories-cpu"} <= set(wanted)
    assert written == wanted == sorted(p.name for p in tmp_path.iterdir())
    assert capsys.readouterr().out.count("wrote") == len(wanted)
    live_models.main(tmp_path)
    assert written == wanted
    (tmp_path / "pocket-stories/version.txt").write_text("of other weights")
    live_models.main(tmp_path)
    assert written == [*wanted, "pocket-stories"]
    big.add("pocket-stories")
    (tmp_path / "pocket-stories/version.txt").unlink()
    with pytest.raises(SystemExit, match="4000001 bytes"):
        live_models.main(tmp_path)
    assert not (tmp_path / "pocket-stories/version.txt").exists()


def test_a_model_that_a_chapter_names_is_exported(tmp_path):
    (tmp_path / "web/live").mkdir(parents=True)
    (tmp_path / "web/live/element.js").write_text("model: 'one',\n network: true, model: 'two',")
    (tmp_path / "notebooks").mkdir()
    cell = 'Live("sample", stored=Animation(frames), model="three")\nLive()\nload(model="four")'
    (tmp_path / "notebooks/01_a.py").write_text(f"# %%\nfor _ in (): pass\n{cell}\n")
    assert live_models.named(tmp_path) == {"one", "two", "three"}


# --- in a page


@pytest.fixture(scope="module")
def pipelines(tiny_network) -> dict[str, BlockPipeline]:
    """Tiny networks in the places of the bundled ones."""
    kinds = {
        "pocket-stories": {"padded": True},
        "tinystories-cpu": {"n_layer": 2},
        "tinystories-blocks": {"n_layer": 3, "block_length": 4},
    }
    return {name: BlockPipeline(tiny_network(**kind), "cpu") for name, kind in kinds.items()}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory, pipelines) -> Iterator[str]:
    """A page with every mode, in a folder of a plain server, as on GitHub Pages."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="an export needs it")
    if not (vendor.VENDOR / "onnxruntime/version.txt").exists() and not shutil.which("npm"):
        lacking("npm, which fetches ONNX Runtime Web")
    vendor.main()
    root = tmp_path_factory.mktemp("site")
    book = root / "some/where"
    book.mkdir(parents=True)
    (book / "web").symlink_to(ROOT / "web")
    (book / "onnxruntime").symlink_to(vendor.VENDOR / "onnxruntime")
    for name, pipeline in pipelines.items():
        source = root / name
        pipeline.model.save_pretrained(source, config=asdict(pipeline.model.config))
        list(export(source, book / "models" / name))
    shutil.copy(PAGE, book)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/some/where/"
    server.shutdown()
    server.server_close()


class Reader:
    """A tab with the page, and what it asked for and complained of."""

    def __init__(self, browser: Any, site: str, script: str = "", **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 900, "height": 800}} | options)
        if script:
            self.context.add_init_script(script)
        self.site, self.asked, self.wrong = site, [], []
        self.context.set_default_timeout(120_000)  # 200 steps on a machine with other work
        self.tab = self.context.new_page()
        self.tab.on(
            "console", lambda m: m.type in ("error", "warning") and self.wrong.append(m.text)
        )
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str = "live.html") -> "Reader":
        self.tab.goto(address if "//" in address else self.site + address)
        self.tab.wait_for_selector("ddlm-live[data-state]")
        return self

    def element(self, which: int) -> Any:
        return self.tab.locator("ddlm-live").nth(which)

    def state(self, which: int, *states: str) -> str:
        """Wait for one of the states."""
        script = "([i, s]) => s.includes(document.querySelectorAll('ddlm-live')[i].dataset.state)"
        self.tab.wait_for_function(script, arg=[which, list(states)])
        return self.element(which).get_attribute("data-state")

    def press(self, which: int, name: str = RUN) -> None:
        self.element(which).get_by_role("button", name=name).click()

    def run(self, which: int) -> str:
        """Press the button, and wait for the answer."""
        self.press(which)
        assert self.state(which, "done", "error") == "done", self.said(which)
        return self.text(which)

    def text(self, which: int) -> str:
        return self.element(which).locator("[data-ddlm-output]").text_content()

    def said(self, which: int) -> str:
        return self.element(which).get_by_role("status").text_content()

    def set(self, which: int, **options: Any) -> None:
        script = "(element, options) => Object.entries(options).forEach((o) => element.setAttribute(...o))"
        self.element(which).evaluate(script, options)

    def option(self, which: int, name: str) -> Any:
        return self.element(which).locator(f"[data-ddlm-option={name}]")


@pytest.fixture
def reader(browser, site) -> Iterator[Callable[..., Reader]]:
    """A function that opens the page; at the end nothing went wrong, and no other host was asked."""
    readers: list[Reader] = []

    def opened(script: str = "", **options: Any) -> Reader:
        readers.append(Reader(browser, site, script, **options))
        return readers[-1].open()

    yield opened
    for one in readers:
        one.context.close()
        assert not one.wrong
        assert not [a for a in one.asked if not a.startswith((site, "data:", "blob:"))]


def steps_of(pipeline: BlockPipeline, **options: Any) -> list[str]:
    """The start and the text after each step."""
    return [step.texts[0] for step in pipeline.generate_streaming(**options)]


SEQUENCE = """i => {
  const seen = window.seen = [];
  new MutationObserver((records) => seen.push(...records.map((r) => r.oldValue))).observe(
    document.querySelectorAll('ddlm-live')[i], {attributeFilter: ['data-state'], attributeOldValue: true});
}"""
DRAWN = """i => {
  const output = document.querySelectorAll('ddlm-live')[i].querySelector('[data-ddlm-output]');
  const drawn = window.drawn = new Set([output.textContent]);
  new MutationObserver(() => drawn.add(output.textContent)).observe(
    output, {subtree: true, childList: true, characterData: true});
}"""


def test_until_a_reader_asks_a_page_costs_two_scripts_and_a_style(reader, site):
    page = reader()
    page.tab.wait_for_load_state("networkidle")
    paths = {url.removeprefix(site) for url in page.asked if not url.startswith("data:")}
    assert paths == {"live.html", "web/live/element.js", "web/live/parts.js", "web/live/style.css"}
    for which in ALL:
        assert page.element(which).get_attribute("data-state") == "idle"
        assert page.element(which).get_by_role("button").all_inner_texts() == [RUN]
    assert page.tab.get_by_text("A story that was stored.").is_visible()
    assert page.element(TEMPLATE).get_by_text("One of a notebook.").is_visible()
    assert page.tab.get_by_text("It runs in the book.").count() == 0  # it does, here
    assert page.element(CORRUPT).inner_text().startswith("Your sentence under noise")
    shown = page.element(DENOISE).inner_text().split("\n")
    assert shown[:2] == ["What the network believes", "tinystories-cpu"]
    assert "MB" in page.said(FIRST) and page.said(CORRUPT) == ""


def test_a_free_text_is_that_of_python(reader, pipelines):
    page = reader()
    page.tab.evaluate(SEQUENCE, FIRST)
    text = page.run(FIRST)
    assert text == pipelines["pocket-stories"].generate(num_steps=24, seed=0)[0]
    assert page.tab.evaluate("seen") == ["idle", "loading", "ready", "running"]
    assert not page.tab.get_by_text("A story that was stored.").is_visible()
    assert page.said(FIRST).startswith("Done: 24 steps in ")
    strip = page.element(FIRST).get_by_role("img")
    assert strip.get_attribute("aria-label") == f"The text: {text}"


def test_a_template_is_filled_as_in_python(reader, pipelines):
    page, pipeline = reader(), pipelines["pocket-stories"]
    text = page.run(TEMPLATE)
    assert text == pipeline.generate(num_steps=16, seed=1, template=GIVEN)[0]
    options = {"steps": 9, "grid": "linear", "churn": 0.5, "temperature": 0.6, "seed": 2**32 - 1}
    page.set(TEMPLATE, template="a_{9}b", **options)
    run = {"num_steps": 9, "schedule": "linear", "churn": 0.5, "temperature": 0.6}
    wanted = pipeline.generate(seed=2**32 - 1, template="a_{9}b", **run)[0]
    assert page.run(TEMPLATE) == wanted != text


def test_a_model_of_blocks_writes_one_after_the_other(reader, pipelines):
    page, pipeline = reader(), pipelines["tinystories-blocks"]
    texts = steps_of(pipeline, seed=3)
    assert page.run(BLOCKS) == texts[-1]
    assert page.said(BLOCKS).startswith("Done: 10 blocks of 16 steps in ")
    element = page.element(BLOCKS)
    assert element.get_attribute("steps") == "16"
    slider, cells = (
        element.get_by_role("slider", name="Step"),
        element.locator(".ddlm-strip > span > span"),
    )
    assert slider.get_attribute("max") == str(len(texts) - 1) == "169"
    element.get_by_text("How sure is it?").click()
    for at, said in ((0, "block 1 of 10, step 0"), (55, "block 4 of 10, step 4")):
        slider.fill(str(at))
        assert page.text(BLOCKS) == texts[at]
        assert slider.get_attribute("aria-valuetext").startswith(f"{said} of 16 · noise σ̄ = ")
    classes = cells.evaluate_all(
        "cells => cells.map((cell) => cell.classList.contains('ddlm-end'))"
    )
    assert classes[16:] == [True] * 24 and not all(classes[12:16])
    heat = "cells => cells.map((c) => Number(c.style.getPropertyValue('--heat')))"
    found = cells.evaluate_all(heat)
    assert any(found[:12]) and any(found[12:16]) and not any(found[16:])
    for place, said in (
        (5, "Place 6, block 2 of 10, step 16"),
        (13, "Place 14, block 4 of 10, step 4"),
    ):
        cells.nth(place).click()
        assert element.locator("caption").inner_text() == said
        assert element.locator("tbody td").count() == 5
    cells.nth(20).click()
    assert element.locator("caption").inner_text() == "Place 21: not yet written"


def test_a_model_of_blocks_writes_texts_of_any_length(reader, pipelines):
    page, pipeline = reader(), pipelines["tinystories-blocks"]
    page.set(BLOCKS, steps=3, length=57)
    assert page.run(BLOCKS) == pipeline.generate(seed=3, num_steps=3, seq_len=57)[0]
    page.element(BLOCKS).get_by_text("How it writes").click()
    page.option(BLOCKS, "length").fill("")
    page.set(BLOCKS, template="_{40} and so it went on and on_{9}.")
    wanted = pipeline.generate(seed=3, num_steps=3, template="_{40} and so it went on and on_{9}.")
    assert page.run(BLOCKS) == wanted[0]
    for length, steps, said in (
        (2001, 3, "at most 2000 characters"),
        (2000, 16, "500 blocks of 16"),
    ):
        page.set(BLOCKS, template="", length=length, steps=steps)
        page.press(BLOCKS)
        page.tab.wait_for_timeout(100)
        assert page.state(BLOCKS, "error") and said in page.said(BLOCKS)
    assert page.option(FIRST, "length").count() == 0  # its stories end


SAID = """i => {
  const status = document.querySelectorAll('ddlm-live')[i].querySelector('[role=status]');
  const said = window.said = [];
  new MutationObserver(() => said.push(status.textContent)).observe(status, {childList: true});
}"""


def test_lengths_are_chosen_as_in_python(reader, pipelines):
    page, template = reader(), "a_{2-3}b _{6}."
    for which, name in ((FIRST, "pocket-stories"), (BLOCKS, "tinystories-blocks")):
        pipeline, options = pipelines[name], {"seed": 5, "steps": 3, "levels": 64}
        page.set(which, template=template, **options)
        page.tab.evaluate(SAID, which)
        assert page.run(which) == pipeline.generate(seed=5, num_steps=3, template=template)[0]
        said = [text for text in page.tab.evaluate("said") if text.startswith("Comparing")]
        start = "Comparing 2 lengths, 12 to 13 characters: "
        assert [text.removeprefix(start)[:6] for text in said] == [f"{i} of 2" for i in range(2)]
        bounds, fillings = 2 * 2 * 65, 2 * 24 if which == FIRST else 2 * 3 * 16
        assert said[0] == f"{start}0 of 2, {bounds + fillings} evaluations of the network…"
        assert said[-1].endswith(" s more…") and page.said(which).startswith("Done: ")
        pairs = [encode_template(one, None, pipeline.config) for one in expand_lengths(template)]
        choice = choose_length(pipeline.model, pipeline.config.noise, pairs, seed=5)
        best = sorted(zip(choice.probabilities.tolist(), (2, 3)), reverse=True)
        shares = ", ".join(f"{length} with {p:.2f}" for p, length in best if p >= 0.005)
        draw = torch.Generator().manual_seed(derive_seed(5, "length", 0))
        taken = 2 + int(choice.probabilities.multinomial(1, generator=draw))
        told = page.element(which).locator("[data-ddlm-lengths]").inner_text()
        assert told == f"Lengths 2 to 3: {shares}. This text takes {taken}."
        page.set(which, template="")
        page.run(which)
        assert page.element(which).locator("[data-ddlm-lengths]").text_content() == ""


def test_a_comparison_of_lengths_can_be_stopped(reader, pipelines):
    page = reader()
    page.set(FIRST, template="a_{1-30}b", levels=512)
    page.press(FIRST)
    page.element(FIRST).get_by_text("Comparing 30 lengths").wait_for()
    assert page.element(FIRST).get_by_role("button", name="Pause").is_disabled()
    page.press(FIRST, STOP)
    assert page.state(FIRST, "ready") and page.said(FIRST) == "Stopped."
    assert page.text(FIRST) == ""
    page.set(FIRST, template="a_{3}b")
    wanted = pipelines["pocket-stories"].generate(num_steps=24, seed=0, template="a_{3}b")[0]
    assert page.run(FIRST) == wanted
    for template, levels, said in (
        ("a_{3-2}b", 16, "_{3-2} is no range of lengths: write _{2-9}"),
        ("a_{1-65}b", 16, "The ranges of the template allow 65 lengths"),
        ("a_{2-39}b", 16, "The template has 41 characters"),
        ("a_{2-3}b", 0, "Levels must be a whole number from 1 to 512"),
    ):
        page.set(FIRST, template=template, levels=levels)
        page.press(FIRST)
        page.element(FIRST).get_by_text(said).wait_for()
        assert page.state(FIRST, "error")


def corrupted(sentence: str, sigma_bar: float, seed: int) -> str:
    tokenizer = ddlm_core.CharacterLevelTokenizer()
    clean = torch.as_tensor(tokenizer.encode(sentence))[None]
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor([sigma_bar])
    noisy = perturb_batch(clean, level, tokenizer.vocab_size, generator=generator)
    return texts_of(noisy.tolist(), tokenizer)[0]


def test_corruption_is_that_of_python_at_every_level(reader, site):
    page, sentence = reader(), "Tom has a red ball."
    assert page.run(CORRUPT) == corrupted(sentence, 0.5, 0) != sentence
    assert not [url for url in page.asked if "onnx" in url]  # it needs no network
    rows = page.element(CORRUPT).locator("tbody tr").all()
    for row in rows:
        level = float(row.locator("th").inner_text())
        assert row.locator("pre").text_content() == corrupted(sentence, level, 0)
    assert len(rows) == 7
    slider = page.option(CORRUPT, "sigma")
    slider.press("ArrowRight")
    page.tab.wait_for_function("document.querySelector('[mode=corrupt]').getAttribute('sigma')")
    level = float(page.element(CORRUPT).get_attribute("sigma"))
    assert 0.5 < level < 0.65
    page.state(CORRUPT, "done")
    assert page.text(CORRUPT) == corrupted(sentence, level, 0)
    assert slider.get_attribute("aria-valuetext").startswith(f"σ̄ = {level}")
    page.option(CORRUPT, "text").fill("Ja")
    page.option(CORRUPT, "seed").fill("7")
    page.tab.wait_for_timeout(200)
    assert page.text(CORRUPT) == corrupted("Ja", level, 7)
    page.option(CORRUPT, "text").fill("")
    assert page.state(CORRUPT, "error") and page.said(CORRUPT) == "Write a sentence first."
    page.option(CORRUPT, "text").fill("é!")
    page.state(CORRUPT, "done")
    assert "does not know é" in page.said(CORRUPT)


def beliefs(pipeline: BlockPipeline, sentence: str, sigma_bar: float) -> torch.Tensor:
    """(2, L, V): from all other letters, and with the letter's own evidence."""
    model, tokenizer = pipeline.model, pipeline.model.config.tokenizer
    tokens = torch.as_tensor(tokenizer.encode(sentence))[None]
    level = torch.tensor([sigma_bar])
    with torch.no_grad():
        log_q = model.denoise(tokens, level)
    return torch.cat([log_q.exp(), analytic_probs(log_q, tokens, level, torch.zeros(1))])


def test_beliefs_are_those_of_python(reader, pipelines):
    page, pipeline = reader(), pipelines["tinystories-cpu"]
    shown = ["unknown", "padding", *pipeline.model.config.tokenizer.vocab[2:]]
    shown = [{" ": "space", "\n": "line break", "\t": "tab"}.get(mark, mark) for mark in shown]

    def agrees(sentence: str, sigma_bar: float, place: int) -> torch.Tensor:
        found = beliefs(pipeline, sentence, sigma_bar)
        [best] = texts_of([found[1].argmax(-1).tolist()], pipeline.model.config.tokenizer)
        assert page.text(DENOISE) == best
        rows = page.element(DENOISE).locator("tbody tr").all()
        for row in rows:
            letter = row.locator("th").inner_text()
            for column, cell in enumerate(row.locator("td").all()):
                wanted = 100 * float(found[column, place - 1, shown.index(letter)])
                said = re.sub(r"[<>% ]", "", cell.inner_text())
                assert float(said) == pytest.approx(wanted, abs=0.51 if wanted > 9.9 else 0.11)
        assert len(rows) == 6
        return found

    page.run(DENOISE)
    agrees(SENTENCE, 0.2, 7)
    strip = page.element(DENOISE).locator(".ddlm-heat > span > span")
    strip.nth(15).click()
    assert page.element(DENOISE).get_attribute("place") == "16"
    agrees(SENTENCE, 0.2, 16)
    page.option(DENOISE, "place").press("ArrowLeft")
    agrees(SENTENCE, 0.2, 15)
    page.set(DENOISE, sigma="2", text="Hello")
    page.tab.wait_for_timeout(400)
    page.state(DENOISE, "done")
    found = agrees("Hello", 2.0, 5)
    entropy = -(found[1] * found[1].log()).nansum(-1) / torch.tensor(found.shape[-1]).log()
    heat = [float(cell.evaluate("c => c.style.getPropertyValue('--heat')")) for cell in strip.all()]
    assert heat == pytest.approx(entropy.sqrt().tolist(), abs=0.011)
    page.press(DENOISE, "Add that much noise")
    page.tab.wait_for_timeout(400)
    page.state(DENOISE, "done")
    noisy = page.element(DENOISE).get_attribute("text")
    assert noisy != "Hello" and len(noisy) == 5
    agrees(noisy, 2.0, 5)


def test_bits_are_those_of_python_and_the_interval_narrows(reader, pipelines):
    page = reader()
    page.press(BOUND)
    page.state(BOUND, "ready", "running")
    page.tab.evaluate(DRAWN, BOUND)
    page.state(BOUND, "done")
    wanted = pipelines["tinystories-cpu"].bits_per_character("Tom had a red ball.", seed=0)
    found = page.text(BOUND)
    pattern = r"(-?[\d.]+) bits per character \((-?[\d.]+) to (-?[\d.]+)\)"
    assert list(map(float, re.fullmatch(pattern, found).groups())) == pytest.approx(
        wanted, abs=0.011
    )
    drawn = [re.fullmatch(pattern, text) for text in page.tab.evaluate("[...drawn]")]
    widths = [float(m[3]) - float(m[2]) for m in drawn if m]
    assert len(widths) > 3 and widths[-1] < 0.7 * max(widths)
    assert max(widths) < 2  # what only a few estimates say is not shown
    assert page.said(BOUND) == f"Done: {found}."
    page.option(BOUND, "text").fill("Tom.")
    page.tab.evaluate(DRAWN, BOUND)
    page.run(BOUND)
    assert page.tab.evaluate("[...drawn][1]") == ""  # first of all the old number goes
    letter = page.element(BOUND).locator(".ddlm-heat > span > span").nth(2)
    letter.click()
    assert "3, m: " in page.element(BOUND).locator("label", has_text="Place").inner_text()


# --- stop, pause, two at once


def test_stop_and_start_again(reader, pipelines):
    page = reader()
    page.set(FIRST, steps=512)
    page.press(FIRST)
    page.state(FIRST, "running")
    page.tab.wait_for_timeout(100)
    page.press(FIRST, STOP)
    assert page.state(FIRST, "ready") and page.said(FIRST) == "Stopped."
    kept = page.text(FIRST)
    page.tab.wait_for_timeout(200)
    assert page.text(FIRST) == kept  # nothing goes on
    page.set(FIRST, steps=24)
    wanted = pipelines["pocket-stories"].generate(num_steps=24, seed=0)[0]
    assert page.run(FIRST) == wanted
    assert page.run(FIRST) == wanted  # and once more


def test_stop_while_it_loads(reader, pipelines):
    page = reader()
    page.tab.route(
        "**/model.onnx*", lambda route: (page.tab.wait_for_timeout(500), route.continue_())
    )
    page.press(FIRST)
    page.state(FIRST, "loading")
    page.press(FIRST, STOP)
    assert page.state(FIRST, "idle")
    assert page.tab.get_by_text("A story that was stored.").is_visible()
    assert page.run(FIRST) == pipelines["pocket-stories"].generate(num_steps=24, seed=0)[0]
    assert len([url for url in page.asked if "model.onnx" in url]) == 1


def test_pause_step_by_step_and_back(reader, pipelines):
    from playwright.sync_api import expect

    page, texts = reader(), steps_of(pipelines["pocket-stories"], num_steps=200, seed=0)
    page.set(FIRST, steps=200)
    page.press(FIRST)
    page.state(FIRST, "running")
    page.press(FIRST, "Pause")
    page.state(FIRST, "ready")
    slider = page.element(FIRST).get_by_role("slider", name="Step")
    here = int(slider.input_value())
    assert here < 200 and page.text(FIRST) == texts[here]
    page.press(FIRST, "Step")
    expect(slider).to_have_value(str(here + 1), timeout=60_000)
    assert page.text(FIRST) == texts[here + 1]
    slider.fill("200")  # not yet computed
    assert slider.input_value() == str(here + 1)
    page.press(FIRST, "Play")
    page.state(FIRST, "done")
    assert page.text(FIRST) == texts[-1]
    assert page.element(FIRST).get_by_role("button", name="Play").is_enabled()
    for at in (0, 120, 57):
        slider.fill(str(at))
        assert page.text(FIRST) == texts[at]
        assert slider.get_attribute("aria-valuetext").startswith(f"step {at} of 200 · noise σ̄ = ")
    slider.fill("197")
    page.press(FIRST, "Play")
    page.element(FIRST).get_by_role("button", name="Pause").wait_for()
    page.element(FIRST).get_by_role("button", name="Play").wait_for()
    assert slider.input_value() == "200"


def test_two_elements_on_a_page_share_a_model(reader, pipelines):
    page, pipeline = reader(), pipelines["pocket-stories"]
    page.press(FIRST)
    page.press(TEMPLATE)
    page.press(BOUND)
    for which in (FIRST, TEMPLATE, BOUND):
        assert page.state(which, "done", "error") == "done"
    assert page.text(FIRST) == pipeline.generate(num_steps=24, seed=0)[0]
    assert page.text(TEMPLATE) == pipeline.generate(num_steps=16, seed=1, template=GIVEN)[0]
    networks = [url for url in page.asked if "model.onnx" in url]
    assert len(networks) == len(set(networks)) == 2  # two models, each once


# --- for every reader


def test_with_the_keyboard_alone(reader, pipelines):
    page = reader()
    press, focused = page.tab.keyboard.press, "document.activeElement.textContent"
    press("Tab")
    assert page.tab.evaluate(focused) == RUN
    press("Enter")
    page.state(FIRST, "done")
    assert page.tab.evaluate(focused) == RUN  # the focus has not moved
    for _ in range(4):
        press("Shift+Tab")
    assert page.tab.evaluate(focused) == "Play"
    press("Tab")
    press("Tab")
    press("Home")
    texts = steps_of(pipelines["pocket-stories"], num_steps=24, seed=0)
    assert page.text(FIRST) == texts[0]
    press("ArrowRight")
    assert page.text(FIRST) == texts[1]
    press("Tab")
    page.tab.keyboard.type("a_{3}b")
    press("Tab")
    press("Space")
    page.tab.wait_for_function("document.activeElement.textContent === 'Run in this page'")
    page.state(FIRST, "done")
    wanted = pipelines["pocket-stories"].generate(num_steps=24, seed=0, template="a_{3}b")[0]
    assert page.text(FIRST) == wanted


def test_every_mode_on_a_phone_in_light_and_dark(reader):
    refuse = "navigator.clipboard.writeText = () => Promise.reject(new Error())"
    page = reader(refuse, viewport={"width": 360, "height": 700}, color_scheme="light")
    for which in ALL:
        page.run(which)
        for summary in page.element(which).locator("summary").all():
            summary.click()
        page.press(which, "Copy link")  # refused: a field appears
    assert page.tab.locator(".ddlm-link").count() == len(ALL)
    assert page.tab.evaluate(WITHOUT_NAME) == []
    for scheme in ("light", "dark"):
        page.tab.emulate_media(color_scheme=scheme)
        assert page.tab.evaluate(CONTRAST) == {}, scheme
    assert page.tab.evaluate(TOO_WIDE) == []
    page.tab.set_viewport_size({"width": 320, "height": 700})
    assert page.tab.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize(("motion", "most"), [("reduce", 3), ("no-preference", 999)])
def test_less_motion_means_start_and_end(reader, motion, most):
    page = reader(reduced_motion=motion)
    page.run(FIRST)
    page.set(FIRST, steps=40, seed=5)
    page.tab.evaluate(DRAWN, FIRST)
    text = page.run(FIRST)
    drawn = page.tab.evaluate("[...drawn]")
    assert drawn[-1] == text and len(drawn) <= most
    assert motion == "reduce" or len(drawn) > 20


def test_uncertainty_of_each_letter(reader):
    page = reader()
    page.run(FIRST)
    element, cells = page.element(FIRST), page.element(FIRST).locator(".ddlm-strip > span > span")
    element.get_by_text("How sure is it?").click()
    element.get_by_role("slider", name="Step").fill("0")
    heat = "cells => cells.map((c) => Number(c.style.getPropertyValue('--heat')))"
    assert set(cells.evaluate_all(heat)) == {1}
    element.get_by_role("slider", name="Step").fill("12")
    assert all(0 <= value < 1 for value in cells.evaluate_all(heat))
    cells.nth(4).click()
    assert element.locator("caption").inner_text() == "Place 5, step 12"
    shares = [
        float(re.sub("[^0-9.]", "", s)) for s in element.locator("tbody td").all_inner_texts()
    ]
    assert shares == sorted(shares, reverse=True) and len(shares) == 5
    assert cells.nth(4).get_attribute("data-ddlm-here") is not None


def test_a_link_brings_the_same_run_to_somebody_else(reader, site):
    page = reader(permissions=["clipboard-read", "clipboard-write"])
    page.set(TEMPLATE, steps=13, grid="fraction", churn=0.25, temperature=0.9)
    page.element(TEMPLATE).get_by_role("button", name=RUN).click()
    page.state(TEMPLATE, "done")
    page.press(TEMPLATE, "Another seed")
    page.tab.wait_for_timeout(50)
    page.state(TEMPLATE, "done")
    text = page.text(TEMPLATE)
    page.option(TEMPLATE, "template").fill("not yet run _")
    page.press(TEMPLATE, "Copy link")
    page.tab.get_by_text("The link is copied.").wait_for()
    link = page.tab.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{site}live.html?live=ddlm-live-2&template=")
    other = reader().open(link)
    other.tab.reload()
    assert "press" in other.said(TEMPLATE)
    assert other.element(FIRST).get_attribute("steps") == "24"
    assert other.run(TEMPLATE) == text
    assert other.option(TEMPLATE, "grid").input_value() == "fraction"


def test_controls_and_attributes_are_one(reader):
    page = reader()
    page.run(FIRST)
    page.set(FIRST, seed=5, temperature=0.4, grid="linear")
    page.element(FIRST).get_by_text("How it writes").click()
    shown = {
        name: page.option(FIRST, name).input_value() for name in ("seed", "temperature", "grid")
    }
    assert shown == {"seed": "5", "temperature": "0.4", "grid": "linear"}
    churn = page.element(FIRST).get_by_role("slider", name="Churn")
    hint = page.tab.locator(f"#{churn.get_attribute('aria-describedby')}")
    assert hint.is_visible() and hint.inner_text().startswith("fresh noise in each step")
    page.option(FIRST, "steps").fill("7")
    page.option(FIRST, "grid").select_option("cosine")
    page.option(FIRST, "churn").press("Home")
    attributes = {n: page.element(FIRST).get_attribute(n) for n in ("steps", "grid", "churn")}
    assert attributes == {"steps": "7", "grid": "cosine", "churn": "0"}


# --- when it cannot run


def test_what_the_model_cannot_do_is_said_in_a_sentence(reader):
    page = reader()
    page.set(FIRST, template="no blank")
    page.press(FIRST)
    page.state(FIRST, "error")
    assert page.said(FIRST).startswith("The template has no blank: write _")
    page.set(FIRST, template="", steps="513")
    page.press(FIRST)
    page.tab.wait_for_timeout(100)
    assert page.state(FIRST, "error") and "at most 512 steps" in page.said(FIRST)
    page.set(FIRST, steps="3")
    page.run(FIRST)


def test_without_webassembly_the_stored_text_stays(reader):
    page = reader("delete globalThis.WebAssembly")
    page.press(FIRST)
    page.state(FIRST, "error")
    assert page.said(FIRST) == "This browser cannot run the model: it has no WebAssembly."
    assert page.tab.get_by_text("A story that was stored.").is_visible()
    assert not [url for url in page.asked if "onnx" in url]
    page.run(CORRUPT)  # needs none


def test_when_memory_is_short_the_stored_text_stays(reader):
    page = reader()
    short = "export class Network { static async load() { throw new RangeError('could not allocate') } }"
    page.context.route(
        "**/web/runtime.js", lambda r: r.fulfill(body=short, content_type="text/javascript")
    )
    page.press(FIRST)
    page.state(FIRST, "error")
    assert page.said(FIRST).startswith("There is too little memory here")
    assert page.tab.get_by_text("A story that was stored.").is_visible()
    page.wrong.clear()  # the console has the error as it was


def test_a_model_that_did_not_come_can_be_asked_for_again(reader):
    page = reader()
    page.context.route("**/model.json", lambda route: route.fulfill(status=503))
    for which in (FIRST, CORRUPT):
        page.press(which)
        assert page.state(which, "error") and "503" in page.said(which)
    assert page.tab.get_by_text("A story that was stored.").is_visible()
    page.context.unroute("**/model.json")
    page.run(FIRST)
    page.run(CORRUPT)
    page.wrong.clear()


def test_a_page_of_ones_own(browser, site):
    """An element that a script adds, with an address for its model, on a page that has nothing else."""
    page = Reader(browser, site)
    page.context.route(
        "**/own.html",
        lambda r: r.fulfill(body="<!doctype html><title>Own</title>", content_type="text/html"),
    )
    page.tab.goto(f"{site}own.html")
    page.tab.evaluate("""async () => {
      await import('./web/live/element.js');
      document.body.innerHTML = '<ddlm-live model="models/pocket-stories" steps=3></ddlm-live>';
    }""")
    assert page.run(0)
    assert page.wrong == []
    page.context.close()
