"""What ``ddlm-train`` says of a run: of its text before the first step, of its models after the last."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddlm_core.support.checkpoints import LATEST
from ddlm_core.support.progress import ExpectedTime
from ddlm_core.support.runs import BEST, FINAL

if TYPE_CHECKING:
    from ddlm_core.bound import Bound
    from ddlm_core.training import Trainer

WORSE = 1.01  # a bound that has risen by more than this is overfitting, and not chance


def introduce(trainer: "Trainer", summary: Any, notes: list[str]) -> "Bound":
    """Say what is going to be trained on what, and how good it is now."""
    for line in [
        *text_lines(summary, trainer.config.vocabulary == "auto"),
        *run_lines(trainer),
        *filter(None, notes),
    ]:
        print(line)
    start, bound = time.perf_counter(), trainer.evaluate()
    report("before" if trainer.step == 0 else f"at step {trainer.step:,}", bound)
    plan = (trainer.step, trainer.total_steps, trainer.config.eval_every_steps)
    expected = ExpectedTime(*plan, time.perf_counter() - start)
    if trainer.config.progress:
        trainer.callbacks = [*trainer.callbacks, expected]
    return bound


def text_lines(summary: Any, auto: bool) -> list[str]:
    """How much text there is, and how much of it the network cannot read, ``auto``: as no more fits."""
    numbers = {"file": summary.files, "document": summary.documents}
    numbers |= {"character": summary.characters}
    found = [f"{n:,} {what}{'s' * (n != 1)}" for what, n in numbers.items() if n or what != "file"]
    where = f" in the column {' and '.join(summary.columns)}" if summary.columns else ""
    lines = [f"text: {', '.join(found)}{where}"]
    if summary.unknown:
        most = " ".join(f"{c!r} {n:,}" for c, n in summary.most_frequent_unknown)
        share = summary.unknown / max(1, summary.characters)
        way = "to read them, vocabulary=auto"
        if auto:
            way = "vocabulary=auto takes the most frequent characters, and no more fit"
        lines.append(
            f"{share:.2%} of it, {summary.unknown:,} characters, cannot be read by this vocabulary, above "
            f"all {most}: they become <UNK>; {way}"
        )
    if summary.ends_found:
        lines.append(f"ends of stories found inside of texts: {summary.ends_found:,}")
    lines.append(f"windows: {summary.windows:,} to train on; held out: {summary.held_out:.1%}")
    return lines


def run_lines(trainer: "Trainer") -> list[str]:
    """How long the run is, on what machine, and what a resumed run does in another way."""
    engine, parameters = trainer.accelerator, sum(p.numel() for p in trainer.model.parameters())
    epoch = len(trainer.train_loader) // trainer.micro_batches
    steps, wanted = trainer.total_steps, trainer.config.max_steps or 0
    lines = [
        f"{parameters:,} parameters, {steps:,} steps: {steps / epoch:.1f} epochs of {epoch:,} steps",
        f"on {engine.device}, precision {trainer.precision}, processes {engine.num_processes}",
    ]
    if steps < wanted:
        lines.append(f"max_steps={wanted:,} will not be reached: raise num_epochs")
    if trainer.files.changed:
        lines.append(f"other than in the checkpoint: {'; '.join(trainer.files.changed)}")
    if trainer.step == steps:
        lines.append("this run is finished: to train more, raise max_steps or num_epochs")
    return lines


def report(when: str, bound: "Bound") -> None:
    """Say how good the averaged weights are."""
    print(
        f"{when}: {bound.bits_per_character:.3f} bits per character "
        f"({bound.nats_per_window:.1f} nats per window)",
        flush=True,
    )


def compare_models(trainer: "Trainer", bound: "Bound") -> None:
    """Say which of the folders holds which weights, how good they are, and which one to take."""
    files, ratio = trainer.files, bound.nats_per_window / trainer.state.best
    bits = {BEST: bound.bits_per_character / ratio, FINAL: bound.bits_per_character}
    advice = {BEST: "the lowest on the text held out", FINAL: "the last"}
    if ratio > WORSE:
        advice[BEST] += ": take this one"
        advice[FINAL] += "; it has begun to learn its text by heart (more text, or fewer steps)"
    for name, value in bits.items():
        if (step := files.step_of(name)) is not None:
            print(
                f"{files.folder / name}: step {step:,}, {value:.3f} bits per character, {advice[name]}"
            )


def way_to_go_on(trainer: "Trainer", resumed: Path | None) -> str:
    """What to do after a stop."""
    latest = trainer.files.folder / LATEST
    saved = latest if latest.exists() else resumed
    return f"go on with resume_from={saved}" if saved else "start anew: nothing is saved yet"
