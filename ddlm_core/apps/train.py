"""``ddlm-train``: train a model from a configuration (Hydra)."""

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ddlm_core.apps.commandline import one_line_errors
from ddlm_core.support.errors import UserError, error_context
from ddlm_core.support.presets import CONFIGS, plain_values, register_defaults

if TYPE_CHECKING:
    from ddlm_core.bound import Bound
    from ddlm_core.settings import TrainingConfig
    from ddlm_core.training import Trainer

HELP = """ddlm-train: train a discrete diffusion language model.

  ddlm-train                                              TinyStories, from the Hugging Face Hub
  ddlm-train --config-name pocket                         stories of our own grammar, no network
  ddlm-train --config-name smoke                          the same for a few seconds: does it run?
  ddlm-train --config-name cpu                            TinyStories, for hours on a CPU
  ddlm-train --config-name gpu                            TinyStories, 10 layers; also: gpu-large
  ddlm-train dataset_name=my.txt num_epochs=9             your own text (.txt, .jsonl, .parquet, glob)
  ddlm-train "dataset_name='my/part_[1-9].txt'"           quotes around what is not plain: []{}(),=~é
  ddlm-train +resume_from=checkpoints/checkpoint_latest.pth
  ddlm-train model.n_layer=8 batch_size=32 --cfg job      show the configuration, train nothing
  torchrun --nproc_per_node 2 -m ddlm_core.apps.train     two GPUs, or two cores where there is none

Every key of the configuration can be overridden: key=value. The keys:

$CONFIG
"""


def prefixed(arguments: list[str]) -> list[str]:
    """``--config-name pocket`` means ``--config-name training/pocket``."""
    arguments = list(arguments)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config-name", "-cn"):
            if equals and "/" not in value:
                arguments[i] = f"{name}=training/{value}"
            elif not equals and i + 1 < len(arguments) and "/" not in arguments[i + 1]:
                arguments[i + 1] = f"training/{arguments[i + 1]}"
    return arguments


def check_overrides(arguments: list[str]) -> None:
    """Raise a ``UserError`` that shows how to quote a value that Hydra would not take as it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parse = OverridesParser.create().parse_override
    one_run = not {"-m", "--multirun"} & set(arguments)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            continue
        quote = '"' if "'" in value else "'"
        shown = f"{key}={quote}{value}{quote}"
        shown = shlex.quote(shown) if {*'"$`\\!'} & {*shown} else f'"{shown}"'
        hint = f"quote the value, and all for the shell: {shown}"
        with error_context(f"cannot read {argument}", hint, HydraException):
            if parse(argument).is_sweep_override() and one_run:
                raise UserError("this means several runs")


def train(settings: dict[str, Any]) -> None:
    """Train as ``settings`` say: the fields of ``TrainingConfig``, and ``resume_from``."""
    import torch

    from ddlm_core.data import setup_dataloaders
    from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
    from ddlm_core.settings import TrainingConfig
    from ddlm_core.training import Trainer

    resume_from = settings.pop("resume_from", None)
    try:
        config = TrainingConfig(**settings)
        network = DiscreteDiffusionConfig(**network_settings(config))
    except TypeError as error:  # of the constructors: the values are checked there
        raise UserError(f"unknown or missing key: {error}") from None
    torch.manual_seed(config.seed)
    data = setup_dataloaders(
        config.dataset_name,
        train_samples=config.train_samples,
        val_samples=config.val_samples,
        context_length=config.context_length,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        val_dataset_name=config.val_dataset_name,
        text_column=config.text_column,
        seed=config.seed,
        tokenizer=network.tokenizer,
    )
    model = DiscreteDiffusionTransformer(network)
    trainer = Trainer(model=model, train_loader=data.train, val_loader=data.val, config=config)
    if resume_from is not None:
        trainer.resume(resume_from)
    if trainer.accelerator.is_main_process:
        introduce(trainer)
    try:
        bound = trainer.train()
    except FloatingPointError as error:  # the run diverged; the message has the advice
        raise UserError(str(error)) from error
    if trainer.accelerator.is_main_process:
        report("after", bound or trainer.evaluate())
        folder = trainer.files.folder
        print(f"models: {folder / 'best_model_hf'} and {folder / 'final_model_hf'}")
    trainer.accelerator.end_training()


def network_settings(config: "TrainingConfig") -> dict[str, Any]:
    """The fields of the network that a configuration asks for: what ``model`` says goes first."""
    from ddlm_core.data import POCKET

    found = {"block_size": config.context_length, "padded": config.dataset_name == POCKET}
    found |= {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max} | {
        name: value for name, value in config.model.items() if value is not None
    }
    return {name: value for name, value in found.items() if value is not None}


def introduce(trainer: "Trainer") -> None:
    """Say what is going to be trained, and where it starts."""
    from ddlm_core.data import TokenWindows

    engine, parameters = trainer.accelerator, sum(p.numel() for p in trainer.model.parameters())
    epoch = len(trainer.train_loader) // trainer.micro_batches
    print(f"{parameters:,} parameters, {trainer.total_steps:,} steps, {epoch:,} in an epoch")
    if isinstance(text := trainer.train_loader.dataset, TokenWindows):
        print(f"training text: {len(text.tokens):,} tokens")
    print(f"on {engine.device}, precision {trainer.precision}, processes {engine.num_processes}")
    if trainer.total_steps < (trainer.config.max_steps or 0):
        print(f"max_steps={trainer.config.max_steps:,} will not be reached: raise num_epochs")
    when = "before" if trainer.step == 0 else f"at step {trainer.step:,}"
    report(when, trainer.evaluate())


def report(when: str, bound: "Bound") -> None:
    """Say how good the averaged weights are."""
    print(
        f"{when}: {bound.bits_per_character:.3f} bits per character "
        f"({bound.nats_per_window:.1f} nats per window)",
        flush=True,
    )


def compose(collect: Callable[[], None]) -> None:
    """Let Hydra read the configuration; what is wrong with it, it has told when it exits with 1."""
    try:
        collect()
    except SystemExit as end:
        raise SystemExit(2 if end.code == 1 else end.code) from None


def main() -> None:
    """Entry point of the command."""
    import hydra
    from omegaconf import DictConfig, OmegaConf

    from ddlm_core.settings import every_key

    register_defaults(every_key(), HELP)

    runs: list[dict[str, Any]] = []  # one, or several with --multirun

    @hydra.main(version_base=None, config_path=str(CONFIGS), config_name="training/default")
    def collect(cfg: DictConfig) -> None:
        runs.append(plain_values(cfg))

    # before and after the training itself, SIGTERM ends the command as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first one speaks
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")
    warnings.showwarning = lambda message, *_: print(f"ddlm-train: {message}", file=sys.stderr)
    sys.argv[1:] = prefixed(sys.argv[1:])
    try:
        with one_line_errors("ddlm-train"):
            check_overrides(sys.argv[1:])
            compose(collect)
            for settings in runs:  # outside of Hydra, which would hide where an error comes from
                print(OmegaConf.to_yaml(OmegaConf.create(settings)))
                train(settings)
    except KeyboardInterrupt as stop:
        message = f"{stop}; go on with +resume_from=<checkpoint_dir>/checkpoint_latest.pth"
        print(f"\nddlm-train: {message if stop.args else 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
