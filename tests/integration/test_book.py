"""The book: how its pages are made, and what a reader's browser makes of them."""

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from docutils import nodes

import book_api
import book_pages
import colab
import minutes
import repository
import vendor
from ddlm_core.animation import Animation, make_frames
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.support.player import HINT
from ddlm_core.tokenizer import CharacterLevelTokenizer
from pages import CONTRAST, RAW_MATH, TOO_WIDE, WITHOUT_NAME, lacking

ROOT = Path(__file__).parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
ENTRIES = [entry for part in TOC["parts"] for entry in part["chapters"]]
GLOBS = [entry["glob"] for entry in ENTRIES if "glob" in entry]
DEEPER = sorted({f"notebooks/deeper/{p.stem}" for p in (ROOT / "notebooks/deeper").glob("*.py")})
PAGES = [TOC["root"], *(entry["file"] for entry in ENTRIES if "file" in entry), *DEEPER]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/") and page not in DEEPER]

# --- the parts that make the pages


def test_every_chapter_is_in_the_book():
    files = {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.py")}
    assert set(CHAPTERS) == files
    assert sorted(CHAPTERS) == CHAPTERS


def test_each_deeper_page_is_in_the_book_and_a_chapter_leads_to_it_and_back():
    assert GLOBS == ["notebooks/deeper/*"]
    chapters = {page: (ROOT / f"{page}.py").read_text() for page in CHAPTERS}
    for page in DEEPER:
        asks = [c for c, text in chapters.items() if f"](deeper/{Path(page).name}.ipynb" in text]
        text = (ROOT / f"{page}.py").read_text()
        assert asks, f"no chapter links to {page}"
        assert any(f"](../{Path(chapter).name}.ipynb" in text for chapter in asks), page


def test_the_map_is_complete():
    """The README's table, which the landing page shows, against the chapters and the modules."""
    text = (ROOT / "README.md").read_text()
    table = text.split("<!-- chapters -->")[1].split("<!-- end of chapters -->")[0]
    rows = re.findall(r"^\| \[(\w+) ([^]]+)\]\((\S+)\.ipynb\) \| \d+ \| (.*?)\|", table, re.M)
    assert [page for _, _, page, _ in rows] == CHAPTERS
    for number, title, page, modules in rows:
        source = (ROOT / f"{page}.py").read_text()
        assert f"\n# # {title}\n" in source
        assert book_pages.CHAPTER.fullmatch(page)[1] == number
        made = [m.stem for m in sorted((ROOT / "ddlm_core").glob("*.py")) if page in m.read_text()]
        assert sorted(re.findall(r"`(\w+)`", modules)) == made


def test_the_tables_have_the_minutes_of_their_pages():
    for path, written in minutes.tables(ROOT).items():
        assert path.read_text() == written, "run `python tools/minutes.py`"


def test_minutes_are_written_into_both_tables(tmp_path):
    page = "# %% [markdown]\n# # {}\n# *About 5 minutes. *\n# {}\n"
    for name, text in {
        "README.md": "| [1 A](notebooks/01_a.ipynb) | ? | `a` |\n| [2 B](notebooks/02_b.ipynb) | |\n",
        "book/index.md": "Deeper:\n<!-- deeper -->\nold\n<!-- end of deeper -->\nEnd.\n",
        "notebooks/01_a.py": page.format("A", "Proof? [There](deeper/z.ipynb). " + "word " * 1500),
        "notebooks/02_b.py": page.format("B", "[Why?](deeper/a.ipynb)"),
        "notebooks/deeper/a.py": page.format("Why", "word " * 3000),
        "notebooks/deeper/z.py": page.format("Proof", ""),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    root = ["--root", str(tmp_path)]
    assert minutes.main([*root, "--check"]) == 1
    assert minutes.main(root) == 0 == minutes.main([*root, "--check"])
    rows = (tmp_path / "README.md").read_text().splitlines()
    assert rows == [
        "| [1 A](notebooks/01_a.ipynb) | 10 | `a` |",
        "| [2 B](notebooks/02_b.ipynb) | 5 |",
    ]
    table = (tmp_path / "book/index.md").read_text().splitlines()
    assert table[0] == "Deeper:" and table[-1] == "End."
    assert table[4:6] == [
        "| [Proof](../notebooks/deeper/z.ipynb) | 5 | [1](../notebooks/01_a.ipynb) |",
        "| [Why](../notebooks/deeper/a.ipynb) | 20 | [2](../notebooks/02_b.ipynb) |",
    ]


# --- the glossary

GLOSSARY = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
ENTRY = re.compile(r"^### (.+?)\n(.+?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)


def prose(page: str) -> tuple[set[str], set[str]]:
    """The anchors of a page's headings, and what stands there in italics or bold."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".py"):
        lines = [line.removeprefix("#")[1:] for line in text.splitlines() if line.startswith("#")]
        text = "\n".join(lines)
    anchors = {book_pages.slug(title) for title in re.findall(r"^#+ (.+)", text, re.MULTILINE)}
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    words = re.findall(r"(?<![*\w])\*{1,2}([^*\s][^*]*)\*", text)
    return anchors, {book_pages.term_key(word) for word in words}


def test_an_entry_has_its_names():
    text = "# *G*\n\n## A\n\n### total noise\n\nNoise.\n\nAlso called *noise\nlevels*, dose. "
    text += "Introduced in [chapter 3](x).\n\n### $x$-prediction\n\nIt.\n"
    assert book_pages.glossary_terms(text) == {
        "total noise": "total-noise",
        "noise level": "total-noise",
        "x-prediction": "-prediction",
    }


def test_the_first_italic_name_of_an_entry_leads_to_the_glossary():
    terms = {"score": "score", "concrete score": "score", "token": "token"}
    words = ["Tokens", "other", "score", "concrete score", "token"]
    title = nodes.title("", "", nodes.emphasis("", "score", nodes.Text("score")))
    text = nodes.paragraph("", "", *(nodes.strong("", word) for word in words))
    linked = nodes.paragraph("", "", nodes.reference("", "", nodes.emphasis("", "token")))
    page = nodes.section("", title, linked, text)
    found = [(word.astext(), to) for word, to in book_pages.first_terms(page, terms)]
    assert found == [("Tokens", "token"), ("score", "score")]


def test_each_entry_and_the_place_that_introduces_it_know_each_other():
    """The heading that an entry links to exists, and its page has a name of it in italics."""
    terms, wrong = book_pages.glossary_terms(GLOSSARY), []
    entries = ENTRY.findall(GLOSSARY)
    anchors = [book_pages.slug(term) for term, _ in entries]
    assert len(entries) > 80 and len(set(anchors)) == len(anchors)
    for term, text in entries:
        wrong += [
            f"{term}: no entry {a}" for a in re.findall(r"\]\(#(.+?)\)", text) if a not in anchors
        ]
        place = re.search(r"Introduced\s+in\s+\[[^]]+\]\(([^\s#]+)(?:#(\S+))?\)\.$", text.strip())
        if not place:
            wrong.append(f"{term}: no place")
            continue
        path = (ROOT / "book" / place[1]).resolve().relative_to(ROOT.resolve())
        headings, italics = prose(path.as_posix().replace(".ipynb", ".py"))
        if place[2] and place[2] not in headings:
            wrong.append(f"{term}: {place[1]} has no heading {place[2]}")
        if not any(terms.get(word) == book_pages.slug(term) for word in italics):
            wrong.append(f"{term}: no name of it stands in italics in {place[1]}")
    assert not wrong, "\n".join(wrong)


def figure_cell(*before: nodes.Node, code: str = "plot()") -> nodes.container:
    """A cell with a picture, as myst-nb makes it, in a section after some other nodes."""
    source = nodes.container("", nodes.literal_block(code, code), nb_element="cell_code_source")
    cell = nodes.container("", source, nodes.image(uri="x.png"), nb_element="cell_code")
    nodes.section("", *before, cell)
    return cell


def test_a_figure_is_described_by_the_text_before_it():
    words = "Back to the riddle. The figure shows it: two lines. They meet."
    said, other = nodes.paragraph("", words), nodes.paragraph("", "More about it.")
    title = nodes.title("", "The picture")
    rest = "The figure shows it: two lines. They meet."
    assert book_pages.figure_text(figure_cell(title, said)) == rest
    assert book_pages.figure_text(figure_cell(said.deepcopy(), other)) == f"{rest} More about it."
    assert book_pages.figure_text(figure_cell(other.deepcopy())) == "More about it."
    assert book_pages.figure_text(figure_cell(title.deepcopy())) is None
    test_cell = nodes.container("", nb_element="cell_code")
    assert book_pages.figure_text(figure_cell(said.deepcopy(), test_cell)) == rest
    code = "# alt: Two lines\n#   that meet.\nplot()"
    assert book_pages.figure_text(figure_cell(said.deepcopy(), code=code)) == "Two lines that meet."


def test_formulas_in_a_description_can_be_read_aloud():
    tex = r"\bar\sigma = 0.5"
    text = nodes.paragraph("", "", nodes.Text("The noise "), nodes.math(tex, tex))
    assert book_pages.words(text) == "The noise σ̄ = 0.5"


@pytest.mark.parametrize("package", vendor.PACKAGES, ids=lambda package: package.folder)
def test_another_package_is_refused(package, tmp_path):
    fake = tmp_path / "package.tgz"
    fake.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="sha512"):
        vendor.unpack(package, fake, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the address of the repository, and the cell that installs the package on Colab

CHAPTER = """\
# ---
# jupyter:
# ---

# %% [markdown]
# # A title
#
# Words.

# %%
import mpmath
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that repeat the address, and one chapter without its first cell."""
    element = "ddlm_core/support/element.py"
    for place in ("README.md", "CITATION.cff", "_config.yml", "book/index.md", element):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_a.py").write_text(CHAPTER)
    return tmp_path


def test_the_cell_for_colab_comes_right_after_the_title(project, capsys):
    root, chapter = ["--root", str(project)], project / "notebooks/01_a.py"
    assert colab.main([*root, "--check"]) == 1
    assert "01_a.py" in capsys.readouterr().err
    assert colab.main(root) == 0 == colab.main([*root, "--check"])
    head, title, cell, rest = chapter.read_text().split("# %%")
    assert head + "# %%" + title + "# %%" + rest == CHAPTER
    chapter.write_text(chapter.read_text().replace("tqdm", ""))
    assert colab.main([*root, "--check"]) == 1


def run_cell(project: Path, monkeypatch, on_colab: bool) -> list[list[str]]:
    """The commands that the cell starts."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(colab.cell(project, CHAPTER), {})
    return commands


def test_the_cell_does_nothing_elsewhere(project, monkeypatch):
    assert run_cell(project, monkeypatch, on_colab=False) == []


def test_the_cell_installs_on_colab_and_leaves_torch_alone(project, monkeypatch):
    package, needs = run_cell(project, monkeypatch, on_colab=True)
    assert package[-2:] == ["--no-deps", f"git+{repository.address(ROOT)}"]
    assert {"hydra-core", "lazy_loader", "datasets", "mpmath"} <= set(needs)
    assert not {"torch", "hypothesis", "ruff"} & set(needs)  # the chapter imports mpmath alone


def test_one_command_moves_the_repository(project, capsys):
    root, new = ["--root", str(project)], "https://github.com/some-one/a.book"
    colab.main(root)
    assert repository.main([*root, new, "--check"]) == 0
    for path in project.rglob("*.*"):
        if path.is_file():
            text = path.read_text()
            assert "OWNER" not in text or path.name == "pyproject.toml"  # its comment
            assert "some-one/a.book" in text or "some-one.github.io/a.book/" in text
    assert repository.address(project) == new
    assert colab.main([*root, "--check"]) == 0  # the cell was written with the rest
    (project / "README.md").write_text("nothing")
    assert repository.main([*root, "--check"]) == 1
    assert "README.md" in capsys.readouterr().err


# --- the pages


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """The book, built as `make book` builds it: any warning is an error."""
    stamps = [ROOT / "_vendor" / package.folder / "version.txt" for package in vendor.PACKAGES]
    if not all(stamp.exists() for stamp in stamps) and not shutil.which("npm"):
        lacking("npm, which fetches MathJax and ONNX Runtime Web")
    folder = tmp_path_factory.mktemp("book")
    command = ["make", "book", f"BOOK={folder}", f"PYTHON={sys.executable}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "_build/html"


@functools.cache
def soup(book: Path, page: str) -> BeautifulSoup:
    return BeautifulSoup((book / f"{page}.html").read_text(), "html.parser")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_small_and_well_formed(book, page):
    roomy = {"notebooks/11_blocks": 600_000, "book/api": 550_000}  # code in folds; all of the API
    assert (book / f"{page}.html").stat().st_size < roomy.get(page, 400_000)
    tree = soup(book, page)
    for image in tree.select("img"):
        assert len(image.get("alt", "")) > 3 and not image["alt"].endswith(".png"), image
    assert tree.html["lang"] == "en"
    assert tree.select_one("title").text.strip()
    sources = [tag["src"] for tag in tree.select("[src]")]
    sources += [tag["href"] for tag in tree.select("link[href]")]
    assert not [s for s in sources if re.match(r"(https?:)?//", s)]


@pytest.mark.slow
def test_buttons_lead_to_the_source(book):
    url, slug = repository.address(ROOT), repository.address(ROOT).split("github.com/")[1]
    links = {a["href"] for a in soup(book, CHAPTERS[4]).select("a[href]")}
    name = CHAPTERS[4]
    assert f"https://colab.research.google.com/github/{slug}/blob/main/{name}.ipynb" in links
    assert f"https://mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/{name}.ipynb" in links
    assert f"{url}/edit/main/{name}.py" in links  # the half that is the source
    assert any(link.startswith(f"{url}/issues/new") for link in links)


@pytest.mark.slow
def test_pages_link_to_each_other_or_to_what_exists(book):
    for page in PAGES:
        for tag in soup(book, page).select("article a[href]"):
            link = tag["href"].split("#")[0]
            if blob := re.match(rf"{repository.address(ROOT)}/(?:blob|tree)/main/(.+)", link):
                assert (ROOT / blob[1]).exists(), (page, link)
            elif link and not re.match(r"https?:", link):
                assert ((book / page).parent / link).exists(), (page, link)


@pytest.mark.slow
def test_the_place_that_introduces_a_term_links_back(book):
    glossary = soup(book, book_pages.GLOSSARY)
    entries = [h3.find_parent("section") for h3 in glossary.select("article h3")]
    for entry in entries:
        place = entry.select("a[href]")[-1]["href"].split("#")[0]
        if place.startswith("../notebooks/"):
            page = soup(book, place.removeprefix("../").removesuffix(".html"))
            back = page.select_one(f'article a[href$="glossary.html#{entry["id"]}"]')
            assert back and back.find_parent(["em", "strong"]), (place, entry["id"])
    ids = {entry["id"] for entry in entries}
    for page in [*CHAPTERS, *DEEPER]:
        for a in soup(book, page).select('article a[href*="glossary.html#"]'):
            assert a["href"].split("#")[1] in ids, (page, a)


@pytest.mark.slow
def test_each_public_name_has_an_entry_that_leads_to_its_cell_and_back(book):
    """API page → the cell that defines the name; the chapter's table and foot → API page."""
    api, names = soup(book, book_api.PAGE), 0
    links = {a["href"] for a in api.select("dt.sig a.api-chapter")}
    for module, (page, exported) in book_api.exports().items():
        chapter = soup(book, page)
        back = {a["href"] for a in chapter.select("article a[href]")}
        assert f"../{book_api.PAGE}.html#module-ddlm_core.{module}" in back, page
        for name in exported:
            assert api.find(id=f"ddlm_core.{module}.{name}"), (module, name)
            assert f"../{page}.html#{book_api.anchor(name)}" in links, (module, name)
            assert chapter.find(id=book_api.anchor(name)), (page, name)
            names += 1
    assert names == len(links)
    ids = {tag["id"] for tag in api.select("[id]")}
    for page in CHAPTERS:
        for a in soup(book, page).select(f'a[href^="../{book_api.PAGE}.html#"]'):
            assert a["href"].split("#")[1] in ids, (page, a["href"])


# --- the pages in a browser


@pytest.fixture(scope="module")
def site(book) -> Iterator[str]:
    """The book on a port of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=book))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(browser, site) -> Iterator:
    """A function that opens a page; at the end, nothing may have gone wrong in it."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    tab, wrong = context.new_page(), []
    tab.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    tab.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)

    def request(request) -> None:
        if not request.url.startswith((site, "data:", "blob:")):
            wrong.append(f"another host: {request.url}")

    tab.on("request", request)

    def open_page(page: str):
        tab.goto(f"{site}/{page}.html")
        tab.evaluate("window.MathJax?.startup.promise.then(() => null)")
        return tab

    yield open_page
    context.close()
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_the_browser(opened, page):
    tab = opened(page)
    assert tab.locator("h1:visible").count() == 1
    assert tab.evaluate(RAW_MATH) == []
    assert tab.evaluate(WITHOUT_NAME) == []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        assert tab.evaluate(CONTRAST) == {}, scheme
    tab.set_viewport_size({"width": 375, "height": 800})
    assert tab.evaluate(TOO_WIDE) == []


def with_players() -> list[str]:
    """The landing page, and each chapter whose stored outputs hold a player."""
    stored = [c for c in CHAPTERS if 'class=\\"ddlm-player\\"' in (ROOT / f"{c}.ipynb").read_text()]
    return [TOC["root"], *stored]


@pytest.mark.parametrize("page", with_players())
def test_the_players_of_a_page(opened, book, page):
    final = [pre.text for pre in soup(book, page).select(".ddlm-player pre")]
    tab = opened(page)
    players = tab.locator(".ddlm-player")
    assert players.count() == len(final) > 0
    for player, text in zip(players.all(), final):
        pre, slider, button = (player.locator(x) for x in ("pre", "input", "button"))
        last = slider.get_attribute("max")
        assert (pre.text_content(), slider.input_value()) == (text, last)  # as without scripts
        slider.press("Home")
        assert slider.input_value() == "0" and pre.text_content() != text
        slider.press("ArrowRight")
        assert slider.input_value() == "1"
        assert slider.get_attribute("aria-valuetext").startswith(f"step 1 of {last}")
        slider.press("End")
        assert pre.text_content() == text
        player.evaluate("player => { player.dataset.fps = 100 }")
        button.press("Space")
        assert button.inner_text() == "Pause"
        button.filter(has_text="Play").wait_for()
        assert (pre.text_content(), slider.input_value()) == (text, last)


def test_a_player_starts_by_itself_unless_the_reader_wants_less_motion(browser, site):
    for motion, state in (("no-preference", "Pause"), ("reduce", "Play")):
        context = browser.new_context(reduced_motion=motion)
        tab = context.new_page()
        tab.goto(f"{site}/{TOC['root']}.html")
        button = tab.locator(".ddlm-player button").first
        button.scroll_into_view_if_needed()
        tab.wait_for_timeout(500)
        assert button.inner_text() == state
        context.close()


def test_the_first_page_writes_a_story_after_one_click(opened, book):
    """That of Python, with the very weights; nothing of it is fetched before, and little then."""
    tab, sizes = opened(TOC["root"]), {}
    tab.wait_for_load_state("networkidle")
    tab.on("request", lambda request: sizes.setdefault(request.url, 0))
    live = tab.locator("ddlm-live")
    assert live.get_attribute("data-state") == "idle"
    assert not [url for url in sizes if "favicon" not in url]
    live.get_by_role("button", name="Run in this page").click()
    tab.wait_for_selector("ddlm-live[data-state=done]")
    steps, seed = (int(live.get_attribute(name)) for name in ("steps", "seed"))
    wanted = DiffusionPipeline.from_pretrained().generate(num_steps=steps, seed=seed)[0]
    assert live.locator("[data-ddlm-output]").text_content() == wanted
    paths = {url.split("/", 3)[3].split("?")[0] for url in sizes} - {"_static/favicon.svg"}
    assert {p for p in paths if "/live/" not in p and not p.startswith("web/")} == {
        "models/pocket-stories/model.json",
        "models/pocket-stories/model.onnx",
        "onnxruntime/ort.wasm.bundle.min.mjs",
        "onnxruntime/ort-wasm-simd-threaded.wasm",
    }
    promised = re.search(r"DOWNLOAD_MB = (\d+)", (book / "web/live/element.js").read_text())
    megabytes = sum((book / path).stat().st_size for path in paths) / 1e6
    assert int(promised[1]) - 1 < megabytes <= int(promised[1])


def with_a_model() -> list[str]:
    """Each chapter that has a live model."""
    return [c for c in CHAPTERS if "ddlm-element" in (ROOT / f"{c}.ipynb").read_text()]


@pytest.mark.parametrize("page", with_a_model())
def test_the_model_of_a_chapter_runs_in_its_page(opened, page):
    tab = opened(page)
    live = tab.locator("ddlm-live")
    assert live.count() == 1 and live.get_attribute("data-state") == "idle"
    live.get_by_role("button", name="Run in this page").click()
    tab.wait_for_selector("ddlm-live[data-state=done]", timeout=120_000)
    assert live.locator("[data-ddlm-output]").text_content().strip()


@pytest.mark.slow
def test_other_pages_do_not_load_the_element(book):
    pages = {page for page in PAGES if "live/element.js" in (book / f"{page}.html").read_text()}
    assert pages == {page for page in PAGES if soup(book, page).select_one("div.ddlm-element")}
    assert TOC["root"] in pages


def animation(text: str = "The end.") -> Animation:
    """Noise that becomes a text, in nine steps."""
    tokenizer = CharacterLevelTokenizer()
    end = tokenizer.encode(text)
    noise = torch.randint(2, 106, end.shape, generator=torch.Generator().manual_seed(0))
    states = [torch.where(torch.arange(len(end)) < k, end, noise) for k in range(len(end) + 1)]
    return Animation(make_frames(states, [1.0] * len(states)), tokenizer, title="Mo & Co")


@pytest.fixture
def tab(browser) -> Iterator:
    """A tab that shows files of this machine; it asks for nothing else, and nothing fails."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 360, "height": 500})
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith("file:") else wrong.append(r.url))
    yield page
    context.close()
    assert not wrong


def test_a_player_starts_however_it_came_into_the_page(tab, tmp_path):
    """In the file of a page; put in as HTML, as notebooks do; far down; without the event."""
    player, page = animation()._repr_html_(), tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{player}<main></main>", encoding="utf-8")
    tab.goto(page.as_uri())
    tab.locator("button").wait_for()
    insert = """html => document.querySelector('main').append(
      Object.assign(document.createElement('div'), {innerHTML: html}))"""
    tab.evaluate(insert, player)
    tab.evaluate(insert, "<p style='height: 9999px'></p>" + player)
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    tab.locator("#ddlm-player-3 button").wait_for()
    ids = [root.get_attribute("id") for root in tab.locator(".ddlm-player").all()]
    assert ids == ["ddlm-player", "ddlm-player-2", "ddlm-player-3"]
    assert tab.locator("button").count() == 3
    assert tab.get_by_text(HINT).count() == 0
    tab.locator("#ddlm-player-2 input").fill("0")
    texts = [pre.text_content() for pre in tab.locator("pre").all()]
    assert texts[0] == texts[2] == "The end." != texts[1]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360

    unknown = player.replace("content-visibility: auto", "")  # to a browser of some years ago
    tab.evaluate("html => { document.body.innerHTML = html }", unknown)
    assert tab.locator("button").count() == 0
    tab.get_by_text(HINT).hover()
    assert tab.locator("button").count() == 1


def test_a_saved_page_plays_also_when_the_browser_saved_it_again(tab, tmp_path):
    tab.goto(animation().save(tmp_path / "run.html").as_uri())
    tab.locator("input").fill("2")
    (tmp_path / "again.html").write_text(tab.content(), encoding="utf-8")
    tab.goto((tmp_path / "again.html").as_uri())
    assert (tab.locator("button").count(), tab.locator("output").count()) == (1, 1)
    assert tab.locator("pre").text_content() == "The end."


def test_without_scripts_a_player_is_its_final_text(browser, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(animation().save(tmp_path / "run.html").as_uri())
    shown = tab.locator("body").inner_text().splitlines()
    assert list(filter(None, shown)) == ["Mo & Co", "The end.", HINT]
    context.close()
