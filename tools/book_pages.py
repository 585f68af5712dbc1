"""What the book adds to Sphinx: alt texts of figures, links to the sources, numbers of chapters,
and players taken from stored outputs.

A chapter stays plain Markdown, for GitHub and Colab; these are added when it is rendered.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from ddlm_core.support.player import START

logger = logging.getLogger(__name__)
NAME_THE_BUTTONS = """addEventListener("load", () => {
  document.querySelectorAll(".copybtn").forEach((button) => { button.ariaLabel = "Copy"; });
});"""  # that copy a cell: an icon alone says nothing to a screen reader
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


class ChapterNumber(SphinxTransform):
    """`05_loss` is chapter 5 in every list of the book; the notebook's title is without number."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        title = next(self.document.findall(nodes.title), None)
        if title and (match := CHAPTER.fullmatch(self.env.docname)):
            title.insert(0, nodes.Text(f"{match[1]}. "))


class StoredPlayer(Directive):
    """The first player that a chapter's stored outputs hold: `{stored-player} 10_pipeline`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        env = self.state.document.settings.env
        path = Path(env.srcdir, "notebooks", f"{self.arguments[0]}.ipynb")
        env.note_dependency(str(path))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                html = "".join(output.get("data", {}).get("text/html", ""))
                if "ddlm-player" in html:
                    return [nodes.raw("", html, format="html")]
        raise self.error(f"{path.name} holds no player")


def page_context(app: Sphinx, page: str, template: str, context: dict, tree) -> None:
    """The button "Suggest edit" of a chapter opens its .py half, which is the source."""
    context["default_mode"] = "auto"  # unset, the theme logs an error on a reader's first visit
    scripts = context["script_files"]  # in place: the builder still adds to this list
    scripts[:] = [
        script  # thebe would run cells on a server; unused, and declared twice, which is an error
        for script in scripts
        if "thebe" not in f"{script.filename} {script.attributes.get('body')}".lower()
    ]
    if CHAPTER.fullmatch(page):
        context["page_source_suffix"] = ".py"


def setup(app: Sphinx) -> dict:
    app.add_transform(FigureText)
    app.add_transform(SourceLinks)
    app.add_transform(ChapterNumber)
    app.add_directive("stored-player", StoredPlayer)
    app.add_css_file("book.css")
    app.add_js_file(None, body=NAME_THE_BUTTONS)
    app.add_js_file(None, body=f'addEventListener("load", () => {{ {START} }});')
    app.connect("html-page-context", page_context, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
