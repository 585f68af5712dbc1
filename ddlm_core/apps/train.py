"""``ddlm-train``: train a model from a configuration (Hydra)."""

import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from ddlm_core.apps.commandline import environment, one_line_errors
from ddlm_core.apps.overrides import configuration_errors, readable
from ddlm_core.apps.run_report import compare_models, introduce, report, way_to_go_on
from ddlm_core.support.checkpoints import LATEST
from ddlm_core.support.errors import UserError
from ddlm_core.support.presets import CONFIGS, plain_values, register_defaults
from ddlm_core.support.progress import has_bar

if TYPE_CHECKING:
    from ddlm_core.bound import Bound
    from ddlm_core.settings import TrainingConfig

HELP = """ddlm-train: train a discrete diffusion language model.

  ddlm-train                                              TinyStories, from the Hugging Face Hub
  ddlm-train --config-name pocket                         stories of our own grammar, no network
  ddlm-train --config-name smoke                          the same for a few seconds: does it run?
  ddlm-train --config-name cpu                            TinyStories, for hours on a CPU
  ddlm-train --config-name gpu                            TinyStories, 10 layers; also: gpu-large
  ddlm-train dataset_name=my.txt num_epochs=9             your own text: a file, a folder, a glob
  ddlm-train dataset_name=my.csv text_column=story        one column of a table
  ddlm-train dataset_name=my.txt vocabulary=auto          in any language
  ddlm-train dataset_name=my.txt init_from=tinystories-cpu
                                                          begin with the weights of a model
  ddlm-train resume_from=checkpoints/checkpoint_latest.pth
                                                          go on after a stop: with the same settings
  ddlm-train -m learning_rate=1e-3,3e-3 seed=0,1          several runs, each in a folder of its own
  ddlm-train model.n_layer=8 batch_size=32 --cfg job      show the configuration, train nothing
  torchrun --nproc_per_node 2 -m ddlm_core.apps.train     two GPUs, or two cores where there is none

Names and other texts stand as they are. For the shell, write "dataset_name=my [v2].txt".
Every key of the configuration can be overridden: key=value. The keys:

$CONFIG
"""


def train(settings: dict[str, Any]) -> "Bound | None":
    """Train as ``settings`` say: the fields of ``TrainingConfig``, and ``resume_from``."""
    import torch
    from huggingface_hub.utils import disable_progress_bars

    from ddlm_core.apps.warm_start import warm_start
    from ddlm_core.blocks import make_config, make_network
    from ddlm_core.data import setup_dataloaders
    from ddlm_core.settings import TrainingConfig
    from ddlm_core.training import Trainer

    resume_from = settings.pop("resume_from", None)
    try:
        config = TrainingConfig(**settings)
        network = make_config(**network_settings(config) | vocabulary(config))
    except TypeError as error:  # of the constructors: the values are checked there
        raise UserError(f"unknown or missing key: {error}") from None
    if not has_bar():  # of downloads
        disable_progress_bars()
    torch.manual_seed(config.seed)
    data = setup_dataloaders(tokenizer=network.tokenizer, **text_settings(config))
    model = make_network(network)
    taken = ""
    if config.init_from is not None and resume_from is None:
        taken = warm_start(model, config.init_from)
    trainer = Trainer(model=model, train_loader=data.train, val_loader=data.val, config=config)
    resumed = None if resume_from is None else Path(resume_from)
    if resumed is not None:
        resumed = resumed / LATEST if resumed.is_dir() else resumed
        trainer.resume(resumed)
    before = None
    if trainer.accelerator.is_main_process:
        told = trainer.files.take_folder(trainer.state, resumed)
        before = introduce(trainer, data.summary, [taken, told])
    trainer.accelerator.wait_for_everyone()
    try:
        bound = trainer.train() if trainer.step < trainer.total_steps else before
    except FloatingPointError as error:  # the run diverged; the message has the advice
        raise UserError(f"{error}, and {way_to_go_on(trainer, resumed)}") from error
    except KeyboardInterrupt as stop:
        if stop.args:  # the step is done, and saved
            stop.args = (f"{stop}; {way_to_go_on(trainer, resumed)}",)
        raise
    if trainer.accelerator.is_main_process:
        bound = bound or trainer.evaluate()
        report("after", bound)
        compare_models(trainer, bound)
    trainer.accelerator.end_training()
    return bound


def text_settings(config: "TrainingConfig") -> dict[str, Any]:
    """The arguments of ``setup_dataloaders`` that a configuration holds."""
    from ddlm_core.data import setup_dataloaders

    names = signature(setup_dataloaders).parameters.keys() - {"tokenizer"}
    return {name: getattr(config, name) for name in names}


def network_settings(config: "TrainingConfig") -> dict[str, Any]:
    """The fields of the network that a configuration asks for: what ``model`` says goes first."""
    from ddlm_core.data import POCKET

    found = {"block_size": config.context_length, "padded": config.dataset_name == POCKET}
    found |= {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max} | {
        name: value for name, value in config.model.items() if value is not None
    }
    return {name: value for name, value in found.items() if value is not None}


def vocabulary(config: "TrainingConfig") -> dict[str, Any]:
    """The network's field ``vocab``, if the setting ``vocabulary`` asks for another than the usual one."""
    from ddlm_core.tokenizer import resolve_vocabulary

    if config.vocabulary == "ascii106":
        return {}
    if config.model.get("vocab") is not None:
        raise UserError("vocabulary and model.vocab both say what the characters are: name one")
    masked = config.model.get("graph") == "absorbing"  # its mask is a token, too
    found = resolve_vocabulary(
        config.vocabulary, lambda: count_characters(config), 253 if masked else 254
    )
    return {"vocab": found}


def count_characters(config: "TrainingConfig") -> Counter[str]:
    """How often each character occurs in the text to train on."""
    from ddlm_core.data import POCKET, pocket_stories
    from ddlm_core.support.sources import Reading, character_counts

    if config.dataset_name == POCKET:
        return character_counts(pocket_stories(1000, config.seed))
    how = Reading(
        "train",
        config.train_samples,
        config.text_column,
        config.dataset_config,
        config.encoding,
        config.separator,
    )
    return character_counts(config.dataset_name, how)


def compose(collect: Callable[[], None]) -> None:
    """Let Hydra read the configuration; what is wrong with it becomes one line."""
    with configuration_errors(), environment(HYDRA_FULL_ERROR="1"), TemporaryDirectory() as folder:
        if {"-m", "--multirun"} & {*sys.argv}:
            sys.argv.append(f"hydra.sweep.dir='{folder}'")  # it leaves a file there
        collect()


def separate(runs: list[dict[str, Any]]) -> None:
    """Give each of several runs a folder of its own, a number in that which they would share."""
    folders = [run["checkpoint_dir"] for run in runs]
    for number, run in enumerate(runs):
        if folders.count(run["checkpoint_dir"]) > 1:
            run["checkpoint_dir"] = str(Path(run["checkpoint_dir"], str(number)))


def train_all(runs: list[tuple[dict[str, Any], list[str]]]) -> None:
    """Train one run, or one after the other; one that fails does not keep the next from starting."""
    from omegaconf import OmegaConf

    if len(runs) == 1:
        print(OmegaConf.to_yaml(OmegaConf.create(runs[0][0])))
        train(runs[0][0])
        return
    separate([settings for settings, _ in runs])
    lines, failed = [], 0
    shared = set.intersection(*(set(overrides) for _, overrides in runs))
    for number, (settings, overrides) in enumerate(runs, 1):
        own = " ".join(override for override in overrides if override not in shared)
        what = f"run {number} of {len(runs)}, {own}, in {settings['checkpoint_dir']}"
        print(f"\n{what}")
        try:
            bound = train(settings)
            lines.append(
                f"{what}: {bound.bits_per_character:.3f} bits per character" if bound else what
            )
        except (UserError, OSError) as error:
            failed += 1
            lines.append(f"{what}: {' '.join(str(error).split())}")
    print("", *lines, sep="\n")
    if failed:
        raise UserError(f"{failed} of {len(runs)} runs failed: their lines above say why")


def main() -> None:
    """Entry point of the command."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from ddlm_core.blocks import BlockDiffusionConfig
    from ddlm_core.settings import every_key

    keys = every_key() | {"resume_from": None}
    register_defaults(keys, HELP)
    found: list[tuple[DictConfig, list[str]]] = []  # one, or several with --multirun

    @hydra.main(version_base=None, config_path=str(CONFIGS), config_name="training/default")
    def collect(cfg: DictConfig) -> None:
        overrides = OmegaConf.to_container(HydraConfig.get().overrides.task)  # as they were typed
        found.append((cfg, cast("list[str]", overrides)))

    # before and after the training itself, SIGTERM ends the command as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first one speaks
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")
    warnings.showwarning = lambda message, *_: print(f"ddlm-train: {message}", file=sys.stderr)
    try:
        with one_line_errors("ddlm-train"):
            network = [field.name for field in fields(BlockDiffusionConfig)]
            sys.argv[1:] = readable(sys.argv[1:], keys, network)
            compose(collect)
            with configuration_errors():
                runs = [(plain_values(cfg), overrides) for cfg, overrides in found]
            if runs:  # outside of Hydra, which would hide where an error comes from
                train_all(runs)
    except KeyboardInterrupt as stop:
        print(f"\nddlm-train: {stop if stop.args else 'stopped'}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
