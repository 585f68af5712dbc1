"""``<ddlm-live>``: a model that runs in the page, in the pages of the book (``web/live/``)."""

from html import escape
from typing import Any

from ddlm_core.support.checks import check_choice
from ddlm_core.support.errors import UserError

BOOK = "https://OWNER.github.io/ddlm/"  # where the pages are; written by tools/repository.py
MODES = {  # what each does, and the page of the book that has it
    "sample": ("The model writes a text, step by step", "notebooks/07_sampler.html"),
    "corrupt": ("Your own sentence under noise", "notebooks/03_noise.html"),
    "denoise": (
        "What the network believes of your own noisy sentence",
        "notebooks/06_model.html",
    ),
    "bound": ("How surprising your own sentence is to a model", "notebooks/09_evaluation.html"),
}
COMMON = {"model", "seed"}
OPTIONS = {
    "sample": COMMON | {"template", "steps", "grid", "churn", "temperature"},
    "corrupt": COMMON | {"text", "sigma"},
    "denoise": COMMON | {"text", "sigma", "place"},
    "bound": COMMON | {"text"},
}


class Live:
    """A model that runs in the page, once a reader presses its button: what a cell of a chapter ends with.

    In the book it is alive. Elsewhere (GitHub, Colab, a notebook on your machine) there is nothing that could
    run it: there ``stored`` is shown, and a link to the page of the book. Hosts that do not trust an output
    show unknown tags as text, so a cell holds a plain ``<div>``, and ``web/live/element.js`` makes a
    ``<ddlm-live>`` of it.

    Args:
        mode: "sample", "corrupt", "denoise" or "bound".
        stored: what is shown until then, and where nothing runs: an ``Animation``, say.
        options: what the controls say at first: ``model`` (a bundled one) and ``seed`` in all modes;
            ``template``, ``steps``, ``grid``, ``churn``, ``temperature`` for "sample"; ``text`` in the
            others; ``sigma`` for "corrupt" and "denoise"; ``place``, from 1, for "denoise".

    Raises:
        UserError: another mode, or an option that the mode does not have.
    """

    def __init__(self, mode: str = "sample", *, stored: Any = None, **options: str | float) -> None:
        check_choice(tuple(MODES), mode=mode)
        if unknown := sorted(options.keys() - OPTIONS[mode]):
            known = ", ".join(sorted(OPTIONS[mode]))
            raise UserError(f"the mode {mode} has no {', '.join(unknown)}: it has {known}")
        self.mode, self.options, self.stored = mode, options, stored

    def __repr__(self) -> str:
        return f"{MODES[self.mode][0]}: {BOOK}{MODES[self.mode][1]}"

    def _repr_html_(self) -> str:
        what, page = MODES[self.mode]
        given = {"mode": self.mode} | self.options
        data = " ".join(f'data-{name}="{escape(str(value))}"' for name, value in given.items())
        stored = f"{self.stored._repr_html_()}\n" if self.stored is not None else ""
        elsewhere = f'{what}: it runs <a href="{BOOK}{page}">in the page of the book</a>.'
        return (
            f'<div class="ddlm-element" {data}>\n{stored}'
            f'<div class="ddlm-elsewhere">{elsewhere}</div>\n</div>'
        )
