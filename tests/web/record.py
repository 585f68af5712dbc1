"""What Python computes, written down for the JavaScript of web/: the truth that it is compared with.

All is small and made anew by each test run: random numbers, tables of random networks, and every step of
runs, with the logits, the probabilities and the tokens.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import ddlm_core.sampler as sampler
from ddlm_core.absorbing import ABSORBING
from ddlm_core.apps.export import description, export
from ddlm_core.block_pipeline import BlockPipeline
from ddlm_core.block_sampler import context_start, denoising_blocks
from ddlm_core.blocks import BlockView
from ddlm_core.bound import window_nats
from ddlm_core.evaluation import estimate_bound, spread_times
from ddlm_core.forward import perturb_batch
from ddlm_core.graph import UNIFORM
from ddlm_core.loss import log_posterior
from ddlm_core.noise import GeometricNoise
from ddlm_core.pipeline import DiffusionPipeline
from ddlm_core.reverse import analytic_probs, euler_probs, staggered_score
from ddlm_core.sampling_options import encode_template
from ddlm_core.support.errors import UserError
from ddlm_core.tokenizer import PAD_ID

NOISES = {"GeometricNoise": GeometricNoise(1e-3, 15.0), "LogLinearNoise": ABSORBING.schedule(0, 0)}
TEXTS = ["", "Lily saw a cat.", "naïve 😀 “quotes”…\n\t", "a\0b\ufffd", "_" * 5]
TEMPLATES = [
    ("Lily ____.", None),
    ("Lily _{3} \\_x", None),
    ("Lily ", 20),
    ("\\__{2}", 9),
    ("_{0}", None),
    ("naïve ÿ_", None),
    ("no blank", None),
    ("too long ____", 5),
    ("a\n_", 7),
    ("Lil_", 4),
    ("A.<|endoftext|>\n__", None),
    ("a\r\n\n<|endoftext|>b_e\u0301", 12),
    ("a\r_", 7),
]
# what a run may be asked for; each stands for one kind of model and a few options
RUNS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"schedule": "linear"}),
    ({}, {"schedule": "cosine", "churn": 1.0}),
    ({}, {"schedule": "fraction", "churn": 0.4, "temperature": 0.7}),
    ({}, {"schedule": "cosine", "churn": 0.5, "denoise_last": False}),
    ({}, {"method": "euler", "temperature": 1.3}),
    ({}, {"schedule": "cosine", "churn": 1.0, "template": True}),
    ({"parametrization": "score"}, {"schedule": "cosine"}),
    ({"parametrization": "score"}, {"method": "euler", "churn": 0.3}),
    ({"graph": "absorbing"}, {"schedule": "fraction"}),
    ({"graph": "absorbing"}, {"schedule": "cosine", "temperature": 0.5, "template": True}),
]
# and what a user may ask of an exported model
LIVE: list[dict[str, Any]] = [
    {"num_steps": 12, "seed": 0},
    {"num_steps": 9, "seed": 2**40 + 3, "first": 2**33, "seq_len": 17, "churn": 0.3},
    {"num_steps": 7, "seed": 5, "template": "Lily ____ a _{4}.", "temperature": 0.8},
    {"num_steps": 7, "seed": 5, "template": "Lily ", "seq_len": 23, "schedule": "linear"},
    {"num_steps": 7, "seed": 6, "template": "The end.<|endoftext|>\nTom ____"},
    {"num_steps": 4, "seed": 7, "template": "The e__.<|endoftext|>\nTom ____", "stop_at_end": True},
    {
        "num_steps": 4,
        "seed": 8,
        "template": "<|endoftext|>\nTom __.<|endoftext|>\nA_",
        "stop_at_end": True,
    },
]
# of one that writes block after block
BLOCKS: list[dict[str, Any]] = [
    {"seed": 0},
    {"num_steps": 3, "seed": 2**40 + 3, "first": 2**33, "seq_len": 57, "churn": 0.3},
    {"num_steps": 3, "seed": 5, "template": "Lily ____ a _{4}.", "temperature": 0.8},
    {"num_steps": 3, "seed": 6, "template": "Lily ", "seq_len": 50, "schedule": "linear"},
    {"num_steps": 2, "seed": 7, "template": "_{30}s so long that no window holds it_{9}!"},
    {"num_steps": 2, "seed": 8, "seq_len": 90, "stop_at_end": True},
    {"num_steps": 2, "seed": 9, "template": "A__.<|endoftext|>B__", "stop_at_end": True},
]
BLOCK_RUNS: list[tuple[int, int, dict[str, Any]]] = [  # length of a block and of the text, options
    (4, 30, {"num_steps": 4, "schedule": "cosine", "churn": 1.0}),
    (1, 50, {"num_steps": 1}),
    (16, 70, {"num_steps": 3, "temperature": 0.7, "churn": 0.4, "schedule": "fraction"}),
    (6, 45, {"num_steps": 3, "stop_at_end": True}),
    (40, 90, {"num_steps": 2}),
    (7, 17, {"num_steps": 3, "template": "Lily ___ a ____.", "schedule": "cosine"}),
    (4, 19, {"num_steps": 2, "template": "A__.<|endoftext|>_{9}____B", "stop_at_end": True}),
]
# and what it refuses
REFUSED: list[dict[str, Any]] = [
    {"num_steps": 0},
    {"num_steps": 2.5},
    {"schedule": "cubic"},
    {"temperature": 0.0},
    {"churn": 1.5},
    {"seq_len": 41},
    {"seq_len": 0},
    {"template": "no blank"},
    {"template": "ÿ__"},
    {"seed": -1},
    {"stop_at_end": "yes"},
]


def plain(value: Any) -> Any:
    """As JSON knows it: tensors as flat lists, infinity as a word that JavaScript's Number() reads."""
    if isinstance(value, Tensor):
        return plain(value.detach().flatten().tolist())
    if isinstance(value, np.ndarray):
        return plain(value.flatten().tolist())
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}[value]
    return str(value) if isinstance(value, int) and value > 2**53 else value


def random_numbers() -> list[dict[str, Any]]:
    """Draws of several kinds from one generator for each seed, more than it makes at a time."""
    found = []
    for seed in (0, 1, 42, 2**32 - 1, 2**31 + 12345):
        generator = torch.Generator().manual_seed(seed)
        draws: list[tuple[str, Any]] = []
        for count in (3, 700):
            draws += [
                ("randint", torch.randint(106, (count,), generator=generator)),
                ("rand", torch.rand(count, generator=generator)),
                ("randDouble", torch.rand(count, dtype=torch.float64, generator=generator)),
                ("randperm", torch.randperm(count, generator=generator)),
            ]
        found.append({"seed": seed, "draws": draws})
    return found


def seeds() -> list[dict[str, Any]]:
    """What the generators of texts draw first."""
    found = []
    for seed, first in (
        (0, 0),
        (0, 7),
        (1, 0),
        (2**32, 1),
        (2**63 - 1, 2**40),
        (123456789012, 2**32),
    ):
        generators = sampler.sample_generators(seed, 2, first)
        draws = [torch.randint(10**6, (1,), generator=g).item() for g in generators]
        found.append({"seed": str(seed), "first": str(first), "draws": draws})
    return found


def noises() -> list[dict[str, Any]]:
    """Noise at several times, and the levels of several grids."""
    times = torch.tensor([0.0, 1e-6, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    found = []
    for name, noise in NOISES.items():
        levels = noise.sigma_bar(times)
        grids = [
            {
                "steps": n,
                "schedule": s,
                "last": last,
                "levels": sampler.noise_levels(noise, n, s, last),
            }
            for n in (1, 2, 7, 128)
            for s in sampler.SCHEDULES
            for last in (True, False)
        ]
        spread = spread_times(50, noise, torch.Generator().manual_seed(3))
        found.append(
            {
                "name": name,
                "times": times,
                "sigmaBar": levels,
                "sigma": noise.sigma(times),
                "back": noise.time(levels),
                "grids": grids,
                "spread": dict(zip(("t", "weight"), spread)),
            }
        )
    return found


def corruptions() -> list[dict[str, Any]]:
    """Texts at several noise levels, with and without tokens that are kept."""
    x_0 = torch.randint(9, (3, 200), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    sigma_bar = torch.tensor([0.05, 0.7, 30.0])
    found = []
    for graph in (UNIFORM, ABSORBING):
        for kept in (None, mask):
            generator = torch.Generator().manual_seed(8)
            x_t = perturb_batch(x_0, sigma_bar, 9, kept, generator, graph.sample_prior)
            case = {
                "graph": graph.name,
                "sigmaBar": sigma_bar,
                "xT": x_t.tolist(),
                "x0": x_0.tolist(),
            }
            found.append(case | {"mask": None if kept is None else kept.int().tolist()})
    return found


def tables() -> list[dict[str, Any]]:
    """All that is computed from one table of log q."""
    found = []
    generator = torch.Generator().manual_seed(4)
    for graph in (UNIFORM, ABSORBING):
        for now, after in ((0.01, 0.0), (1.0, 0.3), (12.0, 0.001)):
            log_q = (3 * torch.randn(1, 30, 9, generator=generator)).double().log_softmax(-1)
            x_t = torch.randint(9, (1, 30), generator=generator)
            x_0 = torch.randint(8, (1, 30), generator=generator)
            if graph is ABSORBING:  # a letter is the true one
                x_t = torch.where(torch.rand(1, 30, generator=generator) < 0.5, 8, x_0)
            log_score = graph.log_score(log_q, now, x_t)
            case = {
                "graph": graph.name,
                "now": now,
                "after": after,
                "logQ": log_q,
                "xT": x_t,
                "x0": x_0,
                "logScore": log_score,
                "loss": graph.loss(log_score, now, x_t, x_0),
                "expectedLoss": graph.expected_loss(log_q, now, x_0),
                "expectedReconstruction": graph.expected_reconstruction(log_q, now, x_0),
                "marginal": graph.marginal(log_q, x_t, after),
                "likelihood": graph.likelihood(x_t, torch.tensor(now - after).double(), 9),
                "analytic": analytic_probs(log_q, x_t, now, after, graph),
                "priorKl": [graph.prior_kl(sigma_bar, 9).item() for sigma_bar in (0.0, now)],
            }
            if graph is UNIFORM:
                score = log_score.exp()
                case |= {
                    "posterior": log_posterior(log_q, now, x_t),
                    "euler": euler_probs(score, x_t, now - after),
                    "staggered": staggered_score(score, now - after),
                }
            found.append(case)
    return found


def block_runs(tiny_network: Callable[..., Any]) -> list[dict[str, Any]]:
    """Runs of random networks that denoise block after block."""
    found = []
    for number, (block_length, length, options) in enumerate(BLOCK_RUNS):
        model = tiny_network(seed=number, block_length=block_length, n_layer=3).eval()
        if options.get("stop_at_end"):
            model.head.bias.data[PAD_ID] += 5.0  # so that it does end
        given = dict(options)
        if "template" in given:
            template, mask = encode_template(given["template"], length, model.config)
            given |= {"template": template, "condition_mask": mask}
        generator = torch.Generator().manual_seed(number)
        steps = recorded_blocks(
            model, denoising_blocks, model, 1, length, generator=generator, **given
        )
        about = description(model.config)
        found.append(
            {
                "seed": number,
                "length": length,
                "options": given,
                "description": about,
                "steps": steps,
            }
        )
    return found


def recorded_blocks(
    model: Any, run: Callable[..., Iterator[Any]], *arguments: Any, **options: Any
) -> list[dict[str, Any]]:
    """As ``recorded_steps``, of a text that is written block after block: with what each block has read."""
    asked: list[dict[str, Any]] = []
    read: list[Tensor] = []
    after, denoise, probs = model.after, BlockView.denoise, sampler.churned_probs

    def reads(tokens: Tensor, past: Any = None) -> BlockView:
        read.append(tokens)
        return after(tokens, past)

    def listen(view: BlockView, x_t: Tensor, sigma_bar: Tensor, mask: Any = None) -> Tensor:
        found = denoise(view, x_t, sigma_bar, mask)
        given = None if mask is None else mask.int()
        asked.append({"xT": x_t, "before": sigma_bar.item(), "mask": given, "logits": found})
        asked[-1]["clean"] = read[-1]
        return found

    def keep(*step: Any, **how: Any) -> Tensor:
        found = probs(*step, **how)
        asked[-1]["probs"] = found
        return found

    with (
        mock.patch.object(model, "after", reads),
        mock.patch.object(BlockView, "denoise", listen),
        mock.patch.object(sampler, "churned_probs", keep),
    ):
        steps = list(run(*arguments, **options))
    found, questions = [], iter(asked)
    of_block = 1 + len(asked) // (len(steps) - len(asked))  # steps, its random start among them
    for number, step in enumerate(steps):
        found.append({"sigmaBar": step.sigma_bar, "numSteps": step.num_steps})
        found[-1] |= {"tokens": step.tokens, "changed": step.changed.int()}
        found[-1] |= next(questions) if number % of_block else {}
    assert next(questions, None) is None
    return found


def recorded_steps(
    model: Any, run: Callable[..., Iterator[Any]], *arguments: Any, **options: Any
) -> list[dict[str, Any]]:
    """Each step of a run of one text, with what the network was asked and what it and the sampler said."""
    asked: list[dict[str, Any]] = []
    logits, probs = model.logits, sampler.churned_probs

    def listen(x_t: Tensor, sigma_bar: Tensor, *mask: Tensor) -> Tensor:
        found = logits(x_t, sigma_bar, *mask)
        given = mask[0].int() if mask and mask[0] is not None else None
        asked.append({"xT": x_t, "before": sigma_bar.item(), "mask": given, "logits": found})
        return found

    def keep(*step: Any, **how: Any) -> Tensor:
        found = probs(*step, **how)
        asked[-1]["probs"] = found
        return found

    with (
        mock.patch.object(model, "logits", listen),
        mock.patch.object(sampler, "churned_probs", keep),
    ):
        steps = list(run(*arguments, **options))
    assert len(asked) == len(steps) - 1
    return [
        {"sigmaBar": step.sigma_bar, "tokens": step.tokens, "changed": step.changed.int()}
        | question
        for step, question in zip(steps, [{}, *asked])
    ]


def runs(tiny_network: Callable[..., Any]) -> list[dict[str, Any]]:
    """Runs of random networks, on which all options of the sampler are tried."""
    found = []
    for number, (kind, options) in enumerate(RUNS):
        model = tiny_network(seed=number, **kind).eval()
        given = dict(options)
        if given.pop("template", False):
            template, mask = encode_template("Lily ___ a ____.", None, model.config)
            given |= {"template": template, "condition_mask": mask}
        length = len(given["template"]) if "template" in given else 15
        asked = (model.config.noise, 1, length)
        given |= {"num_steps": 8, "generator": torch.Generator().manual_seed(number)}
        steps = recorded_steps(model, sampler.denoising_steps, model, *asked, **given)
        given.pop("generator")
        about = description(model.config)
        found.append(
            {
                "seed": number,
                "length": length,
                "options": given,
                "description": about,
                "steps": steps,
            }
        )
    return found


def templates(tiny_network: Callable[..., Any]) -> list[dict[str, Any]]:
    """Templates as tokens and masks, or the reason why there are none."""
    found = []
    for padded in (False, True):
        config = tiny_network(padded=padded).config
        for template, length in TEMPLATES:
            case: dict[str, Any] = {"template": template, "seqLen": length, "padded": padded}
            try:
                tokens, mask = encode_template(template, length, config)
                case |= {"tokens": tokens, "mask": mask.int()}
            except UserError as error:
                case["error"] = str(error)
            found.append(case)
    return [{"description": description(tiny_network().config), "cases": found}]


def live(
    source: Path, folder: Path, judged: list[str], asked: list[dict[str, Any]], weights: str
) -> dict[str, Any]:
    """An exported model in ``folder``, runs of it, and its bound on texts."""
    for _ in export(source, folder, weights):
        pass
    pipeline = BlockPipeline.from_pretrained(source, device="cpu")
    model = pipeline.model
    written = []
    for options in asked:
        recorded = recorded_blocks if hasattr(model, "after") else recorded_steps
        steps = recorded(model, pipeline.generate_streaming, **options)
        left_out = {"logits", "xT", "clean"}
        if "template" in options and "seq_len" not in options and not model.config.padded:
            left_out.add("numSteps")  # Python expects a whole window, until it knows better
        few = [{k: v for k, v in step.items() if k not in left_out} for step in steps]
        text = pipeline.generate(**options)[0]
        written.append({"options": options, "steps": few, "text": text})
    bounds = [
        {"text": text, "bits": pipeline.bits_per_character(text)._asdict()} for text in judged
    ]
    balls = [f"Tom had a {color} ball." for color in ("red", "big", "green")]
    x_0 = torch.stack([pipeline.tokenizer.pad(text, 22) for text in balls])
    rows, generator = x_0.repeat(23, 1), torch.Generator().manual_seed(9)
    nats = window_nats(model, rows, model.config.noise, generator, spread_times)
    estimates = [
        options | {"nats": estimate_bound(model, x_0, **options)._asdict()}
        for options in (
            {"of": "text", "repeats": 3, "seed": 2},
            {"of": "text", "repeats": 17, "seed": 3},
            {"of": "source", "repeats": 2, "seed": 4},
        )
    ]
    windows = {"seed": 9, "rows": rows.tolist(), "nats": nats}
    windows |= {"x0": x_0.tolist(), "estimates": estimates}
    return {"folder": folder.name, "runs": written, "bounds": bounds, "windows": windows}


def refused(pipeline: DiffusionPipeline) -> list[dict[str, Any]]:
    """Options that Python refuses, every one of them."""
    for options in REFUSED:
        try:
            pipeline.generate_streaming(**options)
        except UserError:
            continue
        raise AssertionError(f"Python takes {options}")
    return REFUSED


def record(tiny_network: Callable[..., Any]) -> dict[str, Any]:
    """All that needs no exported model."""
    tokenizer = tiny_network().config.tokenizer
    encoded = [
        {
            "text": text,
            "ids": tokenizer.encode(text),
            "decoded": tokenizer.decode(tokenizer.encode(text)),
            "padded": tokenizer.pad(text, 30),
            "unknown": tokenizer.unknown_characters(text),
        }
        for text in TEXTS
    ]
    return {
        "vocab": list(tokenizer.vocab),
        "texts": encoded,
        "random": random_numbers(),
        "seeds": seeds(),
        "noises": noises(),
        "corruptions": corruptions(),
        "tables": tables(),
        "runs": runs(tiny_network),
        "blockRuns": block_runs(tiny_network),
        "starts": [
            [written, length, size, context_start(written, length, size)]
            for length, size in ((1, 40), (4, 40), (6, 40), (16, 160), (40, 40), (30, 40))
            for written in range(0, 12 * length, length)
        ],
        "templates": templates(tiny_network),
        "refused": refused(DiffusionPipeline(tiny_network(), "cpu")),
    }
