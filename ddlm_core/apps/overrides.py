"""The arguments of ``ddlm-train``, as people type them, made into those that Hydra reads."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ddlm_core.support.errors import UserError, error_context
from ddlm_core.support.presets import preset_names

# their values are taken letter by letter: 7 and 2026_01_05 are folders, [v2] is a part of a name
PATHS = {"dataset_name", "val_dataset_name", "checkpoint_dir", "resume_from", "init_from"}
TEXTS = PATHS | {"text_column", "dataset_config", "encoding", "separator", "vocabulary"}

OPTIONS = [  # of Hydra
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p"),
    *("--run", "-r", "--multirun", "-m", "--info", "-i", "--shell-completion", "-sc"),
    *(
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
        "--experimental-rerun",
    ),
]


def readable(arguments: Iterable[str], keys: dict[str, Any], network: Iterable[str]) -> list[str]:
    """The arguments as Hydra reads them.

    ``--config-name pocket`` means ``--config-name training/pocket``; a text is taken as it stands;
    and a ``+`` is neither needed nor wrong, for whatever ``keys`` and fields of the ``network`` there are.

    Raises:
        UserError: one line that names a key that does not exist, or a value that cannot be read.
    """
    arguments = list(arguments)
    sweep = bool({"-m", "--multirun"} & {*arguments})
    found, known = [], [*keys, *(f"model.{name}" for name in {*keys["model"], *network})]
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in ("--config-name", "-cn") and equals:
            argument = f"{option}={_preset(value)}"
        elif argument.startswith("-") and not any(o.startswith(option) for o in OPTIONS):
            raise UserError(f"there is no option {option}: see ddlm-train --help")
        elif i and arguments[i - 1] in ("--config-name", "-cn"):
            argument = _preset(argument)
        elif equals and not argument.startswith("-"):
            argument = _override(option, value, known, keys, sweep)
        found.append(argument)
    # Hydra does not find those after an option that comes after others
    return sorted(found, key=lambda a: a.startswith("~") or ("=" in a and not a.startswith("-")))


def _preset(name: str) -> str:
    if "/" not in name and name not in preset_names():
        raise UserError(f"no preset {name!r}: there are {', '.join(preset_names())}")
    return name if "/" in name else f"training/{name}"


def _override(option: str, value: str, known: list[str], keys: dict[str, Any], sweep: bool) -> str:
    """One ``key=value``."""
    key = option.lstrip("+~")
    foreign = key.startswith("hydra") or "/" in key or option.startswith("~")
    if not foreign and key not in known:
        close = get_close_matches(key, known, 1)
        hint = f"did you mean {close[0]}?" if close else "all keys: ddlm-train --help"
        raise UserError(f"cannot read {option}={value} (there is no key {key}): {hint}")
    if key in PATHS and not value:
        raise UserError(f"{key}= names nothing: name one, or leave out {key}=")
    if key in TEXTS:
        value = _literal(key, value, sweep)
    elif not foreign:
        _check(option, value, sweep)
    if foreign:
        return f"{option}={value}"
    of_network = key.startswith("model.") and key.removeprefix("model.") not in keys["model"]
    return f"{'++' if of_network else ''}{key}={value}"


def _literal(key: str, value: str, sweep: bool) -> str:
    """A text in quotes, unless it has them, means nothing, or is one of several runs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"{key}={value}")
        is_list = key == "vocabulary" and isinstance(read.value(), list)
        if (sweep and read.is_sweep_override()) or is_list or value in ("", "null"):
            return value
        value = str(read.value()) if value[0] in "'\"" else value
    except HydraException:  # then it is no grammar, but a name like any other
        if key == "vocabulary" and value[:1] + value[-1:] == "[]":
            characters = [
                QuotedString(c, Quote.single).with_quotes() for c in value[1:-1].split(",")
            ]
            return f"[{','.join(characters)}]"
    if key in PATHS and value.startswith("~"):
        value = str(Path(value).expanduser())
    if key == "separator":  # as it can be typed
        value = value.replace("\\n", "\n").replace("\\t", "\t")
    return QuotedString(value, Quote.single).with_quotes()


def _check(option: str, value: str, sweep: bool) -> None:
    """Raise a ``UserError`` for a value that is no number, word, list or mapping, or is several."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    hint = "a value is a number, a word, or a list such as betas=[0.9,0.98]"
    with error_context(f"cannot read {option}={value}", hint, HydraException):
        read = OverridesParser.create().parse_override(f"{option}={value}")
    if read.is_sweep_override() and not sweep:
        raise UserError(f"{option}={value} means several runs: start them with ddlm-train -m")


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Turn what Hydra finds wrong with a configuration into one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    hint = "see ddlm-train --help; --cfg job shows a configuration"
    with error_context(
        "cannot read the configuration", hint, HydraException, OmegaConfBaseException
    ):
        yield
