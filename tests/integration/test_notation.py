"""The page Notation against the code: each name, each call, its arguments and its shape."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import ddlm_core
from ddlm_core import DiscreteDiffusionConfig, DiscreteDiffusionTransformer, GeometricNoise

ROOT = Path(__file__).parents[2]
B, L, V, N = 2, 5, 7, 3


class Row(NamedTuple):
    code: str
    shape: str
    chapter: str  # notebooks/NN_name


def rows() -> list[Row]:
    """What the page's tables say, one row for each name."""
    found = []
    for line in (ROOT / "book/notation.md").read_text().splitlines():
        if link := re.search(r"\((?:\.\./)(notebooks/\w+)\.ipynb\) \|$", line):
            _, _, names, shape, *_ = line.split("|")
            for name in re.findall(r"`([^`]+)`", names):
                found.append(Row(name, re.search(r"`([^`]+)`", shape)[1], link[1]))
    return found


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """Something for every name that the page uses: two texts of five characters out of seven."""
    config = DiscreteDiffusionConfig(
        block_size=L, n_layer=1, n_head=1, n_embd=8, cond_dim=4, vocab=("<UNK>", "<PAD>", *"abcde")
    )
    x_0, sigma_bar = torch.arange(B * L).reshape(B, L) % V, torch.tensor([0.1, 2.0])
    log_q = torch.randn(B, L, V, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    given = dict(vocab_size=V, batch_size=B, length=L, seq_len=L, num_steps=N)
    given |= dict(x_0=x_0, x_t=x_0.flip(0), input_ids=x_0, t=torch.tensor([0.2, 0.9]), mask=x_0 > 3)
    given |= dict(sigma_bar=sigma_bar, sigma_bar_t=sigma_bar, sigma_bar_s=sigma_bar / 2)
    given |= dict(sigma_bar_0=torch.tensor(1e-4), sigma_bar_1=torch.tensor(20.0))
    given |= dict(tokens=x_0, churn=0.5, temperature=1.0, condition_mask=x_0 > 3)
    given |= dict(delta_sigma=torch.tensor(0.5), log_q=log_q, log_score=log_q, score=log_q.exp())
    return given | dict(noise=GeometricNoise(), model=DiscreteDiffusionTransformer(config))


def functions(chapter: str) -> dict[str, Any]:
    """Name → function or method of the modules that a chapter exports."""
    found = {}
    for path in (ROOT / "ddlm_core").glob("*.py"):
        if chapter in path.read_text().splitlines()[0]:
            for name, value in vars(getattr(ddlm_core, path.stem)).items():
                if getattr(value, "__module__", "") == f"ddlm_core.{path.stem}":
                    found[name] = value
                    if inspect.isclass(value):
                        methods = inspect.getmembers(value, inspect.isfunction)
                        found |= {f"{name}.{m}": method for m, method in methods}
    return found


def test_the_page_has_its_rows():
    assert len(rows()) > 30
    assert {row.chapter[-2:] for row in rows()} and len({row.code for row in rows()}) == len(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.code)
def test_a_row_is_what_the_code_does(row, values):
    expression, ours = ast.parse(row.code, mode="eval").body, functions(row.chapter)
    if isinstance(expression, ast.Name):  # an argument
        taken = {p for f in ours.values() for p in inspect.signature(f).parameters}
        assert row.code in taken, f"no function of {row.chapter} takes {row.code}"
    else:
        thing = expression.func if isinstance(expression, ast.Call) else expression
        value = eval(
            ast.unparse(thing), {"noise": values["noise"], "model": values["model"]} | ours
        )
        owner = getattr(value, "__func__", value)
        kinds = {type(values[k]) for k in ("noise", "model") if row.code.startswith(k)}
        assert owner in ours.values() or kinds & set(ours.values()), f"not from {row.chapter}"
    if isinstance(expression, ast.Call):
        call = value.forward if isinstance(value, torch.nn.Module) else value
        parameters = list(inspect.signature(call).parameters.values())
        named = [argument.id for argument in expression.args]
        for name, parameter in zip(named, parameters):
            assert name in (parameter.name, f"{parameter.name}_1", f"{parameter.name}_0")
        more = [p for p in parameters[len(named) :] if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert all(p.default is not p.empty for p in more), "an argument is missing on the page"
    torch.manual_seed(0)
    result = eval(row.code, values | {k: v for k, v in ours.items() if "." not in k})
    sizes = {"B": B, "L": L, "V": V, "N": N}
    assert tuple(torch.as_tensor(result).shape) == eval(row.shape, sizes), row.code
