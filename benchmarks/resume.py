"""Does a run that is killed at random moments end with the same bits as one that is left alone?

A tiny network trains in a child process, which saves after every third step and gets SIGKILL after
a random time, again and again, until it has come to its end. (Linux and macOS.)
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch

from ddlm_core.data import setup_dataloaders
from ddlm_core.model import DiscreteDiffusionConfig, DiscreteDiffusionTransformer
from ddlm_core.settings import TrainingConfig
from ddlm_core.support.checkpoints import LATEST, PREVIOUS, read_checkpoint
from ddlm_core.training import Trainer


def train(folder: Path, steps: int) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    torch.manual_seed(0)
    train_loader, val_loader, *_ = setup_dataloaders(
        "pocket-stories", train_samples=40, val_samples=4, context_length=160, batch_size=4
    )
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8, "dropout": 0.1}
    model = DiscreteDiffusionTransformer(DiscreteDiffusionConfig(block_size=160, **sizes))
    intervals = {"eval_every_steps": 10, "save_every_steps": 3, "log_every_steps": 1}
    config = TrainingConfig(
        checkpoint_dir=str(folder),
        **{"num_epochs": 10**6, "max_steps": steps, "eval_windows": 4, "progress": False},
        **intervals,
    )
    trainer = Trainer(model, train_loader, val_loader, config)
    if (folder / LATEST).exists() or (folder / PREVIOUS).exists():
        trainer.resume(folder / LATEST)
    trainer.train()


def killed(folder: Path, steps: int, seconds: float) -> bool:
    """Train in a child process, and kill it after some seconds; False if it was done before."""
    child = os.fork()
    if child == 0:
        train(folder, steps)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="at least so many (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)  # threads do not survive a fork
    kills, runs, torn = 0, 0, set()
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        train(whole, 60)  # here, so that the children find everything imported
        start = time.monotonic()
        killed(Path(name) / "timed", 60, 1e9)
        seconds = time.monotonic() - start
        wanted = {k: v for k, v in read_checkpoint(whole / LATEST).items() if k != "run"}
        while kills < args.kills:
            folder, runs = Path(name) / str(runs), runs + 1
            while killed(folder, 60, random.uniform(0.0, 1.0) * seconds):
                kills += 1
                torn |= {part.stat().st_mtime_ns for part in folder.glob(f"{LATEST}.part")}
            found = {k: v for k, v in read_checkpoint(folder / LATEST).items() if k != "run"}
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    print(f"{runs} runs, {kills} kills, {len(torn)} of them in the middle of a save: the same bits")


if __name__ == "__main__":
    main()
