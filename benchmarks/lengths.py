"""Does a model know how long a blank is? Its distribution of lengths beside that of the grammar of stories.

Writes a JSON file, which chapter 11 shows. It also notes what comes of it if lengths are compared by how
probable their filled texts are.
"""

import argparse
import itertools
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlm_core import stories
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.sampling_options import encode_template
from ddlm_core.tiny_world import total_variation
from ddlm_core.unknown_lengths import (
    aligned_columns,
    choose_length,
    expand_lengths,
    filled,
    free_nats,
)

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/length_choices.json"  # package data
BED = (
    "It was tired, so {hero.he} gave it a soft bed. Soon the duck was not tired any more. "
    "They are friends now."
)
LOST = (
    "At noon, {hero} lost {hero.his} blue ball on the hill. {hero.He} ran and ran. "
    'A gray crow found it! "Well done!" said {hero}. They are friends now.'
)


def lost(hero: str, pronoun: str = "_{1-4}") -> str:
    """The story of the ball with blanks: ``hero`` and ``pronoun`` as a template has them."""
    said = "____" if "_" in hero else hero
    words = {"{hero.his}": "h__", "{hero.He}": pronoun}
    text = LOST.replace("{hero}", hero, 1).replace("{hero}", said)
    return re.sub("|".join(map(re.escape, words)), lambda m: words[m[0]], text)


TEMPLATES = {  # name: what the grammar would write (all ways to fill it are compared), the template
    "name of a hero": (
        "{hero} met a kind duck in the park. " + BED,
        "_{2-6} met a kind duck in the park. " + BED.replace("{hero.he}", "he"),
    ),
    "place": (
        "Rick met a kind duck {place}. " + BED.replace("{hero.he}", "he"),
        "Rick met a kind duck _{8-13}. " + BED.replace("{hero.he}", "he"),
    ),
    "He or She, Lily": (LOST, lost("Lily")),
    "He or She, R___": (LOST, lost("R___")),
    "He or She, ____": (LOST, lost("____")),
    "He or She, _a__": (LOST, lost("_a__")),
    "name and pronoun": (LOST, lost("_{3-5}")),
}


def exact(skeleton: str, templates: list[str]) -> Tensor:
    """Of each plain template the probability that a story fits it, by the grammar, normalized: (N,)."""
    variables = sorted(set(re.findall(r"\{(\w+)", skeleton)))
    weights = torch.zeros(len(templates), dtype=torch.float64)
    for words in itertools.product(*(stories.VARIABLES[v] for v in variables)):
        chosen = dict(zip(variables, words, strict=True))
        text = re.sub(r"\{(\w+)\.?(\w*)\}", lambda m, c=chosen: c[m[1]][m[2]], skeleton)
        for n, template in enumerate(templates):
            plain = re.sub(r"_\{(\d+)\}", lambda m: "_" * int(m[1]), template)
            pattern = "".join("." if c == "_" else re.escape(c) for c in plain)
            if re.fullmatch(pattern, text):
                weights[n] += math.exp(stories.log_prob(text))
    return weights / weights.sum()


def by_texts(pipeline: Any, templates: list, levels: int, seed: int) -> Tensor:
    """Probabilities of lengths if filled texts are compared, by the bound on the whole text."""
    model, noise, nats = pipeline.model, pipeline.config.noise, []
    columns = aligned_columns([given for _, given in templates])
    for (tokens, given), column in zip(templates, columns, strict=True):
        x_0 = filled(model, noise, tokens, given, seed)
        free = torch.zeros_like(given)
        nats.append(free_nats(model, noise, x_0, free, column, levels, seed))
    return (-torch.tensor(nats, dtype=torch.float64)).softmax(0)


def save(args: argparse.Namespace, seeds: int, levels: int, rows: list[dict[str, Any]]) -> None:
    """Write what is known so far beside what the file has of other models."""
    output = args.output or OUTPUT
    stored = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    stored[Path(args.model).name] = {"seeds": seeds, "levels": levels, "rows": rows}
    if args.output or not args.quick:
        output.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="pocket-stories", help="a model of stories")
    p.add_argument("--seeds", type=int, default=4, help="choices for each template (default: 4)")
    p.add_argument("--levels", type=int, default=64, help="noise levels of a bound (default: 64)")
    p.add_argument("--output", type=Path, help="JSON file (default: that of the package)")
    p.add_argument("--quick", action="store_true", help="one template: does it run?")
    args = p.parse_args()
    pipeline = BlockPipeline.from_pretrained(args.model, device="cpu")
    model, config, rows = pipeline.model, pipeline.config, []
    seeds, levels = (1, 2) if args.quick else (args.seeds, args.levels)
    print("| blank | lengths | grammar | model | total variation | evaluations | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, (skeleton, template) in list(TEMPLATES.items())[: 1 if args.quick else None]:
        plain = expand_lengths(template)
        encoded = [encode_template(text, None, config) for text in plain]
        truth, start = exact(skeleton, plain), time.perf_counter()
        runs = [
            choose_length(model, config.noise, encoded, seed=s, levels=levels) for s in range(seeds)
        ]
        found = torch.stack([run.probabilities for run in runs])
        row = {
            "name": name,
            "template": template,
            "lengths": [re.findall(r"_\{(\d+)\}", text) for text in plain],
            "exact": truth.tolist(),
            "model": found.mean(0).tolist(),
            "total_variation": total_variation(found.mean(0), truth),
            "of_one_choice": sum(total_variation(f, truth) for f in found) / seeds,
            "evaluations": sum(run.evaluations for run in runs) / seeds,
            "seconds": (time.perf_counter() - start) / seeds,
        }
        possible = truth.nonzero()[:, 0].tolist()
        if len(possible) > 1:
            few = [encoded[n] for n in possible]
            tried = torch.stack([by_texts(pipeline, few, levels, s) for s in range(seeds)])
            row["by_texts"] = tried.mean(0).tolist()
        rows.append(json.loads(json.dumps(row), parse_float=lambda x: float(f"{float(x):.4g}")))
        shown = [" ".join(f"{v:.2f}" for v in row[key]) for key in ("exact", "model")]
        cost = f"{row['evaluations']:.0f} | {row['seconds']:.1f}"
        sizes = " ".join("+".join(some) for some in row["lengths"])
        far = f"{row['total_variation']:.3f} ({row['of_one_choice']:.3f} of one choice)"
        print(
            f"| {name} | {sizes} | {shown[0]} | {shown[1]} | {far} | {cost} |",
            flush=True,
        )
        save(args, seeds, levels, rows)


if __name__ == "__main__":
    main()
