"""What the book adds to Sphinx: alt texts of figures, links to the sources and to the glossary,
numbers of chapters, models that run in a page, and players taken from stored outputs.

A chapter stays plain Markdown, for GitHub and Colab; these are added when it is rendered.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from ddlm_core.support.element import OPTIONS, Live
from ddlm_core.support.player import START

logger = logging.getLogger(__name__)
NAME_THE_BUTTONS = """addEventListener("load", () => {
  document.querySelectorAll(".copybtn").forEach((button) => { button.ariaLabel = "Copy"; });
});"""  # that copy a cell: an icon alone says nothing to a screen reader
GLOSSARY = "book/glossary"
CHAPTER = re.compile(r"notebooks/0?(\d+|[A-Z])_\w+")
GREEK = {r"\bar\sigma": "σ̄", r"\sigma": "σ", r"\kappa": "κ", r"\delta": "δ", r"\times": "×"}


def plain(tex: str) -> str:
    """A short formula as a screen reader should get it."""
    for command, sign in GREEK.items():
        tex = tex.replace(command, sign)
    return re.sub(r"[\\{}$]|\\tfrac", "", tex)


def words(node: nodes.Node) -> str:
    """The text of a paragraph on one line."""
    node = node.deepcopy()
    for formula in list(node.findall(nodes.math)):
        formula.replace_self(nodes.Text(plain(formula.astext())))
    return " ".join(node.astext().split())


def parts(cell: nodes.Node, kind: str) -> Iterator[nodes.Node]:
    return (n for n in cell.findall(nodes.container) if n.get("nb_element") == kind)


def figure_text(cell: nodes.Node) -> str | None:
    """What a figure shows: a comment `# alt: …` in its cell, else the text right before the cell.

    The book describes each figure before it shows it. The description starts at the first sentence
    with the word "figure" or "picture", if the text since the last heading or cell of code has one,
    and else it is the last paragraph.
    """
    for source in parts(cell, "cell_code_source"):
        if found := re.search(r"^# alt: (.+(?:\n#  .+)*)", source.astext(), re.MULTILINE):
            return " ".join(found[1].replace("\n#", " ").split())
    before = cell.parent.children[: cell.parent.index(cell)]
    while before and not isinstance(before[-1], nodes.paragraph | nodes.title):
        before.pop()
    paragraphs = []
    while before and isinstance(before[-1], nodes.paragraph | nodes.math_block):
        paragraphs.insert(0, words(before.pop()))
    text = " ".join(paragraphs)
    if start := re.search(r"(?:^|(?<=[.:!?)] ))[A-Z][^.!?]*\b(?:figure|picture)\b", text):
        return text[start.start() :]
    return paragraphs[-1] if paragraphs else None


class FigureText(SphinxTransform):
    """Give every figure of a notebook an alt text; a figure that nothing describes is a warning."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        for cell in parts(self.document, "cell_code"):
            for image in cell.findall(nodes.image):
                if not image.get("alt"):
                    if text := figure_text(cell):
                        image["alt"] = text
                    else:
                        logger.warning(
                            "a figure needs a paragraph right before its cell, or `# alt: …` in it",
                            location=cell,
                        )


class SourceLinks(SphinxTransform):
    """A link to a file that is no page of the book leads to the repository."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        root, url = Path(self.env.srcdir), self.config.html_theme_options["repository_url"]
        links = [*self.document.findall(addnodes.download_reference)]
        links += [
            link
            for link in self.document.findall(addnodes.pending_xref)
            if link.get("refdomain") == "doc" and link["reftarget"] not in self.env.found_docs
        ]
        for link in links:
            name, _ = self.env.relfn2path(link["reftarget"], self.env.docname)
            if link.get("refdomain") == "doc":
                name = link["reftarget"] + ".md"
            if (root / name).exists():
                target = f"{url}/blob/main/{name}"
                link.replace_self(nodes.reference("", "", *link.children, refuri=target))


def slug(title: str) -> str:
    """The anchor that GitHub and the book give a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\$.*?\$", "", title).lower()).replace(" ", "-")


def term_key(text: str) -> str:
    """A term as it is compared: without case, dollars, line ends, a period and a plural's s."""
    return " ".join(text.replace("$", "").lower().split()).rstrip(".:").removesuffix("s")


def glossary_terms(text: str) -> dict[str, str]:
    """Each name in the glossary, and the anchor of its entry.

    An entry is a heading `### term`; all that it has in italics are names, too.
    """
    found: dict[str, str] = {}
    for entry in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        term = entry.partition("\n")[0].strip()
        anchor = slug(term)
        found[term_key(term)] = anchor
        for name in re.findall(r"\*([^*]+)\*", entry):
            found.setdefault(term_key(name), anchor)
    return found


class GlossaryLinks(SphinxTransform):
    """On the pages from notebooks, the first *italic* or **bold** name of each entry is a link to it."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        page, path = self.env.docname, Path(self.env.srcdir, f"{GLOSSARY}.md")
        if not page.startswith("notebooks/") or not path.exists():
            return
        self.env.note_dependency(str(path))
        for word, anchor in first_terms(self.document, glossary_terms(path.read_text("utf-8"))):
            link = addnodes.pending_xref("", refdoc=page, refdomain="doc", reftype="myst")
            link.update_all_atts(dict(reftarget=GLOSSARY, reftargetid=anchor, refexplicit=True))
            link += nodes.inline("", "", *word.children)
            word.children = []
            word += link


def first_terms(document: nodes.Node, terms: dict[str, str]) -> Iterator[tuple[nodes.Node, str]]:
    """The first name of each entry in italics or bold, and the entry's anchor."""
    seen, links = set(), nodes.reference | addnodes.pending_xref
    for word in list(document.findall(lambda n: isinstance(n, nodes.emphasis | nodes.strong))):
        anchor = terms.get(term_key(word.astext()))
        linked = isinstance(word.parent, nodes.title | links) or isinstance(word[0], links)
        if anchor and anchor not in seen and not linked:
            seen.add(anchor)
            yield word, anchor


class ChapterNumber(SphinxTransform):
    """`05_loss` is chapter 5 in every list of the book; the notebook's title is without number."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        title = next(self.document.findall(nodes.title), None)
        if title and (match := CHAPTER.fullmatch(self.env.docname)):
            title.insert(0, nodes.Text(f"{match[1]}. "))


class Stored(str):
    """A piece of HTML that was stored."""

    _repr_html_ = str.__str__


class LiveModel(Directive):
    """A model that runs in the page: a mode, and its options.

    `:stored: 10_pipeline` is the first player of that chapter, shown until a reader asks for a run.
    """

    required_arguments = 1
    option_spec: ClassVar = {
        name: directives.unchanged for name in {"stored"}.union(*OPTIONS.values())
    }

    def run(self) -> list[nodes.Node]:
        options = dict(self.options)
        stored = self.player(options.pop("stored")) if "stored" in options else None
        live = Live(self.arguments[0], stored=stored, **options)
        return [nodes.raw("", live._repr_html_(), format="html")]

    def player(self, chapter: str) -> Stored:
        env = self.state.document.settings.env
        path = Path(env.srcdir, "notebooks", f"{chapter}.ipynb")
        env.note_dependency(str(path))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                html = "".join(output.get("data", {}).get("text/html", ""))
                if "ddlm-player" in html:
                    return Stored(html)
        raise self.error(f"{path.name} holds no player")


def copy_library(app: Sphinx, error: Exception | None) -> None:
    """The JavaScript of web/ becomes part of the site, as it is."""
    if error is None and app.builder.format == "html":
        ignored = shutil.ignore_patterns("README.md", "tsconfig.json")
        target = Path(app.outdir, "web")
        shutil.copytree(Path(app.srcdir, "web"), target, ignore=ignored, dirs_exist_ok=True)


def page_context(app: Sphinx, page: str, template: str, context: dict, tree) -> None:
    """The button "Suggest edit" of a chapter opens its .py half, which is the source."""
    context["default_mode"] = "auto"  # unset, the theme logs an error on a reader's first visit
    scripts = context["script_files"]  # in place: the builder still adds to this list
    scripts[:] = [
        script  # thebe would run cells on a server; unused, and declared twice, which is an error
        for script in scripts
        if "thebe" not in f"{script.filename} {script.attributes.get('body')}".lower()
    ]
    if re.search('<ddlm-live|class="ddlm-element"', context.get("body", "")):  # others do without
        app.add_js_file("../web/live/element.js", type="module")
    if CHAPTER.fullmatch(page):
        context["page_source_suffix"] = ".py"


def setup(app: Sphinx) -> dict:
    app.add_transform(FigureText)
    app.add_transform(SourceLinks)
    app.add_transform(GlossaryLinks)
    app.add_transform(ChapterNumber)
    app.add_directive("live", LiveModel)
    app.add_css_file("book.css")
    app.add_js_file(None, body=NAME_THE_BUTTONS)
    app.add_js_file(None, body=f'addEventListener("load", () => {{ {START} }});')
    app.connect("html-page-context", page_context, priority=400)
    app.connect("build-finished", copy_library)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
