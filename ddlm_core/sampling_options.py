# Generated from notebooks/10_pipeline.py by tools/export.py: edit that, then run `make export`.
"""How a text is written: templates, and the options of generation with their limits."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ddlm_core.model import DiscreteDiffusionConfig
from ddlm_core.sampler import SCHEDULES
from ddlm_core.support.checks import check_choice, check_range
from ddlm_core.support.errors import UserError
from ddlm_core.support.fields import Limits, check_fields
from ddlm_core.support.text import END, END_OF_TEXT, normalized, with_ends
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

__all__ = [
    "template_characters",
    "encode_template",
    "default_churn",
    "SamplingOptions",
    "texts_of",
    "cut_at_end",
]


def template_characters(template: str) -> list[str | None]:
    """The characters of a template: None for a blank, the empty string for the end of a text."""
    counts = re.compile(r"(?<!\\)_\{(\d+)\}")
    long = counts.sub(lambda m: "_" * int(min(float(m[1]), 9999)), normalized(template))
    signs = re.findall(rf"{END.pattern}|\\_|.", long, re.DOTALL)
    return [None if c == "_" else "" if END.fullmatch(c) else c[-1] for c in signs]


def encode_template(
    template: str, seq_len: int | None, config: DiscreteDiffusionConfig
) -> tuple[Tensor, Tensor]:
    r"""Tokens of a template, int64 (L,), and a mask, bool (L,), true where a token is given.

    A ``_`` is a blank, ``_{12}`` is twelve, ``\_`` an underscore, ``<|endoftext|>`` a ``<PAD>``. Without
    ``seq_len`` the template is the whole text, with it the beginning of one of L = ``seq_len`` tokens.

    Raises:
        UserError: the model of ``config`` cannot fill it in; one line says why.
    """
    characters = template_characters(template)
    room, count = config.block_size if seq_len is None else seq_len, len(characters)
    if not 1 <= count <= room:
        raise UserError(f"the template has {count} characters, there is room for 1 to {room}")
    text = "".join(filter(None, characters))
    if unknown := ", ".join(map(repr, config.tokenizer.unknown_characters(text))):
        hint = "leave them out, or train with vocabulary=auto"
        raise UserError(f"the model does not know {unknown:.200} of the template: {hint}")
    length = count if seq_len is None and not config.padded else room
    mask = torch.full((length,), seq_len is None)  # after the template: <PAD> is given, or all free
    mask[:count] = torch.tensor([character is not None for character in characters])
    if mask.all():
        raise UserError("the template has no blank: write _ for each character to fill in")
    tokens = torch.full((length,), PAD_ID)
    tokens[:count][[bool(character) for character in characters]] = config.tokenizer.encode(text)
    return tokens, mask


def default_churn(config: DiscreteDiffusionConfig) -> float:
    """1, or 0 for a model whose sampler can draw no fresh noise."""
    return float(config.process.supports_churn and config.parametrization == "denoiser")


@dataclass(frozen=True)
class SamplingOptions:
    """How a text is written, and the defaults of everything that writes: command, web page, playground.

    Raises:
        UserError: one line, if a value makes no sense for any model.
    """

    seq_len: int | None = None  # characters; None: as many as the model takes
    num_steps: Annotated[int, Limits(1, 100_000)] = 128
    schedule: str = "cosine"  # one of SCHEDULES: where the steps lie
    temperature: Annotated[float, Limits(0.001, 1000)] = 1.0  # below 1 is surer
    churn: Annotated[float | None, Limits(0, 1)] = None  # share of fresh noise; see default_churn
    template: str | None = None  # see encode_template
    stop_at_end: bool = False  # nothing after the first <PAD> that follows some text

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice(SCHEDULES, schedule=self.schedule)

    def arguments(self, config: DiscreteDiffusionConfig) -> dict[str, Any]:
        """Arguments of ``denoising_steps``; a ``UserError`` if the model of ``config`` cannot do that."""
        found = vars(self) | {
            "seq_len": config.block_size if self.seq_len is None else self.seq_len
        }
        found.pop("stop_at_end")  # the loop goes on to the end: it writes all at once
        check_range(1, config.block_size, seq_len=found["seq_len"])
        if self.churn is None:
            found["churn"] = default_churn(config)
        if self.template is not None:
            tokens, mask = encode_template(self.template, self.seq_len, config)
            found |= {"template": tokens, "condition_mask": mask, "seq_len": len(mask)}
        return found


def texts_of(
    rows: Iterable[Sequence[int]], tokenizer: CharacterLevelTokenizer, stopped: bool = False
) -> list[str]:
    """The texts of rows of tokens; a ``<PAD>`` before more text is ``<|endoftext|>`` on its own line.

    Of texts that were ``stopped`` at their end, a ``<PAD>`` in front says nothing.
    """
    texts = [with_ends(tokenizer.shown[token] for token in row) for row in rows]
    return [text.removeprefix(f"{END_OF_TEXT}\n") for text in texts] if stopped else texts


def cut_at_end(tokens: Tensor) -> Tensor:
    """Tokens (B, L), all of them ``<PAD>`` from the first ``<PAD>`` after some text on."""
    begun = (tokens != PAD_ID).cumsum(1) > 0
    ended = (begun & (tokens == PAD_ID)).cumsum(1) > 0
    return tokens.masked_fill(ended, PAD_ID)
