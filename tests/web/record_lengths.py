"""What Python computes of blanks of unknown length, for the JavaScript of web/: as record.py."""

from typing import Any

import torch

from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.sampling_options import encode_template
from ddlm_core.support.errors import UserError
from ddlm_core.support.seeds import derive_seed
from ddlm_core.unknown_lengths import (
    aligned_columns,
    choose_length,
    expand_lengths,
    filled,
    free_nats,
)

EXPANDED = ["", "a__b", "_{12}", "\\_{2-3}", "{2-3}", "_{a-b}", "_ {2-3}", "_{0}", "_{ }"]
EXPANDED += ["a _{2-3} b", "_{1-2}_{4-5}.", "_{7-7}", "_{ 2 - 3 }", "\\__{2-3}", "_{1-64}"]
EXPANDED += ["_{1-8}_{2-9}", "ö_{2-3}\n_{1-2} \U0001f600"]
EXPANDED += [f"so {{}} _{{{inside}}}." for inside in ("", "-", "2-", "-3", "0-3", "3-2", "1-2-3")]
EXPANDED += ["_{1-65}", "_{1-8}_{1-9}", "_{1-9999}" * 6, "_{" + "9" * 400 + "-1}", "_{1-1e3}"]
EXPANDED += ["_{1-" + "9" * 400 + "}"]
MASKS = [["ab_c_d", "ab___c_d"], ["_a", "__a"], ["abc", "_____", "a_b_c", "__abc__"]]
SEEDS: list[tuple[int, str, list[int]]] = [
    (0, "length", [0]),
    (1, "column", [159]),
    (2**63 - 1, "fill", []),
    (2**40 + 3, "a purpose of more than a word, ö", [2**33, 0, 5]),
]
# of texts whose lengths are compared: templates, seed, levels, options of the sampler
CHOICES: list[tuple[list[str], int, dict[str, Any]]] = [
    (["Lily __ a", "Lily ___ a", "Lily _____ a"], 3, {"levels": 4, "num_steps": 2}),
    (["_{3} so.", "_{4} so."], 2**40, {"levels": 2, "num_steps": 3, "temperature": 9.0}),
    (["A__", "A____"], 1, {"levels": 3, "num_steps": 2, "temperature": 0.0}),
    (["A__B"], 1, {}),
]
# and what a user may ask for
ASKED: list[dict[str, Any]] = [
    {"num_steps": 2, "seed": 0, "template": "Lily _{1-3} a"},
    {"num_steps": 2, "seed": 0, "first": 2**33 + 1, "template": "Lily _{1-3} a"},
    {"num_steps": 2, "seed": 2**35, "template": "A_{1-2}B_{2-3}.", "temperature": 0.8},
    {"num_steps": 2, "seed": 4, "template": "A_{1-2}B", "seq_len": 9},
]


def derived() -> list[dict[str, Any]]:
    """Seeds for a purpose, and which of several things they choose."""
    found = []
    probs = torch.tensor([0.1, 0.0, 0.2, 0.5, 0.2], dtype=torch.float64)
    for seed, purpose, numbers in SEEDS:
        new = derive_seed(seed, purpose, *numbers)
        generator = torch.Generator().manual_seed(new)
        drawn = [int(probs.multinomial(1, generator=generator)) for _ in range(40)]
        case = {"seed": str(seed), "purpose": purpose, "numbers": [str(n) for n in numbers]}
        found.append(case | {"derived": str(new), "drawn": drawn})
    return [{"probs": probs, "cases": found}]


def ranges() -> list[dict[str, Any]]:
    """Templates, and what they stand for, or the reason why it is nothing."""
    found = []
    for template in EXPANDED:
        try:
            found.append({"template": template, "plain": expand_lengths(template)})
        except UserError as error:
            found.append({"template": template, "error": str(error)})
    return found


def columns() -> list[dict[str, Any]]:
    """Masks that share letters, and their columns."""
    found = []
    for signs in MASKS:
        masks = [torch.tensor([sign != "_" for sign in of]) for of in signs]
        tables = [column.tolist() for column in aligned_columns(masks)]
        found.append({"masks": [mask.int().tolist() for mask in masks], "columns": tables})
    return found


def bounds(pipeline: BlockPipeline) -> list[dict[str, Any]]:
    """A filled template, and the bound on its free letters and on all of it."""
    config, found = pipeline.config, []
    tokens, given = encode_template("Lily ____ a__.", None, config)
    longer = torch.cat([given[:7], given[5:]])  # one more blank, so that columns are not places
    column = aligned_columns([given, longer])[0]
    x_0 = filled(pipeline.model, config.noise, tokens, given, 7, num_steps=3)
    for mask in (given, torch.zeros_like(given)):
        nats = free_nats(pipeline.model, config.noise, x_0, mask, column, 5, 2**62 + 1)
        case = {"tokens": tokens, "given": given.int(), "x0": x_0, "mask": mask.int()}
        found.append(case | {"column": column, "nats": nats})
    return found


def choices(pipeline: BlockPipeline) -> list[dict[str, Any]]:
    """Templates that are compared, and what is chosen."""
    config, found = pipeline.config, []
    for texts, seed, options in CHOICES:
        pairs = [encode_template(text, None, config) for text in texts]
        choice = choose_length(pipeline.model, config.noise, pairs, seed=seed, **options)
        templates = [{"tokens": tokens.tolist(), "mask": m.int().tolist()} for tokens, m in pairs]
        given = {k: v for k, v in options.items() if k != "num_steps"}
        given |= {"seed": str(seed)} | (
            {"sampler": {"numSteps": options["num_steps"]}} if options else {}
        )
        found.append({"templates": templates, "options": given, "choice": choice._asdict()})
    return found


def written(pipeline: BlockPipeline) -> list[dict[str, Any]]:
    """Texts with blanks of unknown length, step by step."""
    found = []
    for options in ASKED:
        if "seq_len" in options and pipeline.config.padded:
            continue
        steps = [step.tokens[0].tolist() for step in pipeline.generate_streaming(**options)]
        found.append({"options": options, "steps": steps, "text": pipeline.generate(**options)[0]})
    return found


def record(pipelines: dict[str, BlockPipeline]) -> dict[str, Any]:
    """All of it, by the folder of each model."""
    kinds = {
        name: {"bounds": bounds(one), "choices": choices(one), "written": written(one)}
        for name, one in pipelines.items()
    }
    return {"derived": derived(), "ranges": ranges(), "columns": columns(), "models": kinds}
