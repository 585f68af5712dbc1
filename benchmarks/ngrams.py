"""What counting alone can do: n-grams of order 1 to 6, on the stories or on a text.

Characters are predicted from those before them in their window. Smoothed as in chapter 10: a
context seen m times with k different successors has the weight m / (m + k), the next shorter one
the rest (Witten-Bell), and below all lies the uniform distribution. A story begins with its window, so
a mark of the beginning is part of the context; the windows of a text begin anywhere. The figures
are exact for the windows, the 95 % intervals about their source. Some orders write stories, which
are judged.
"""

import argparse
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from by_the_clock import write_json
from sampling import fresh_windows, judge
from torch import Tensor

from ddlm_core import stories
from ddlm_core.data import POCKET, setup_dataloaders
from ddlm_core.evaluation import Estimate, bits_per_character, mean_of
from ddlm_core.settings import load_preset
from ddlm_core.tokenizer import PAD_ID, CharacterLevelTokenizer

OUTPUT = Path(__file__).parents[1] / "ddlm_core/results/ngrams.json"  # ships with the package
WRITERS = (2, 4, 6)  # orders that write stories


class NGrams:
    """How often each token followed each context of up to ``most`` - 1 tokens.

    ``start`` is what stands before every text, and is not predicted itself.
    """

    def __init__(
        self, texts: Iterable[bytes], most: int, vocab_size: int, start: bytes = b""
    ) -> None:
        self.most, self.vocab_size, self.start = most, vocab_size, start
        self.counts: list[dict[bytes, Counter[int]]] = [defaultdict(Counter) for _ in range(most)]
        for text in texts:
            for i, token, whole in self._places(text):
                for n in range(min(most, i + 1)):
                    self.counts[n][whole[i - n : i]][token] += 1
        self.totals = [{c: seen.total() for c, seen in table.items()} for table in self.counts]

    def _places(self, text: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Where each token stands behind the start, the token, and start and text as one."""
        whole, first = self.start + text, len(self.start)
        return ((i, token, whole) for i, token in enumerate(text, first))

    def nats(self, text: bytes) -> list[float]:
        """-log p of a text, for each order."""
        found = [0.0] * self.most
        for i, token, whole in self._places(text):
            p = 1 / self.vocab_size
            for n in range(self.most):
                if n <= i and (seen := self.counts[n].get(context := whole[i - n : i])):
                    m, k = self.totals[n][context], len(seen)
                    p = (seen[token] + k * p) / (m + k)
                found[n] -= math.log(p)
        return found

    def write(self, order: int, length: int, rng: random.Random) -> bytes:
        """A text: for each token the longest context decides, or leaves it to the next shorter."""
        whole = self.start
        for i in range(len(whole), len(whole) + length):
            token = rng.randrange(self.vocab_size)
            for n in reversed(range(min(order, i + 1))):
                if seen := self.counts[n].get(context := whole[i - n : i]):
                    m, k = self.totals[n][context], len(seen)
                    if rng.random() * (m + k) < m:
                        token = rng.choices(list(seen), list(seen.values()))[0]
                        break
            whole += bytes([token])
        return whole[len(self.start) :]


def texts_of(windows: Tensor) -> list[bytes]:
    return [bytes(row) for row in windows.tolist()]


def load(args: argparse.Namespace, tokenizer: CharacterLevelTokenizer) -> tuple[Tensor, Tensor]:
    """Windows (N, L) to count in, and held-out ones: those of `autoregressive.py`."""
    preset = load_preset("pocket" if args.data == POCKET else "cpu")
    length = preset.context_length
    if args.data == POCKET:
        told = stories.sample(args.stories, seed=0)
        windows = torch.stack([tokenizer.pad(story, length) for story in told])
        return windows, fresh_windows(args.windows, tokenizer, length)
    data = setup_dataloaders(
        args.data,
        val_dataset_name=args.val,
        val_samples=preset.val_samples,
        context_length=length,
        batch_size=preset.batch_size,
    )
    windows, held_out = torch.cat(list(data.train)), torch.cat(list(data.val))
    return windows[:200] if args.quick else windows, held_out[: args.windows]


def count(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of a source."""
    tokenizer, start = CharacterLevelTokenizer(), time.process_time()
    windows, held_out = load(args, tokenizer)
    size = len(tokenizer.vocab)
    begin = bytes([size]) if args.data == POCKET else b""  # no token of the vocabulary
    model = NGrams(texts_of(windows), args.most, size, begin)
    nats = torch.tensor([model.nats(text) for text in texts_of(held_out)]).double()  # (N, most)
    words = sum(len(text.split()) for text in tokenizer.decode_batch(held_out))
    characters = (held_out != PAD_ID).sum().item()
    found: dict[str, Any] = {
        "characters": (windows != PAD_ID).sum().item(),
        "windows": len(held_out),
        "characters_a_window": round(characters / len(held_out), 3),
        "words_a_window": round(words / len(held_out), 3),
        "rows": [],
    }
    for n in range(args.most):
        each = mean_of(nats[:, n])
        row = {"order": n + 1, "contexts": len(model.counts[n])}
        row["nats"] = [round(value, 3) for value in each]  # per window
        row["bits"] = [round(value, 4) for value in bits_per_character(each, held_out)]
        if args.data == POCKET and n + 1 in WRITERS:
            rng, length = random.Random(0), held_out.shape[1]
            tokens = [list(model.write(n + 1, length, rng)) for _ in range(args.samples)]
            row |= judge(torch.tensor(tokens), tokenizer)
        found["rows"].append(row)
        print(line(row), flush=True)
    return found | {"seconds": round(time.process_time() - start)}


def line(row: dict[str, Any]) -> str:
    """A row of the JSON file as one of the table."""
    nats, bits = Estimate(*row["nats"]), Estimate(*row["bits"])
    wrote = f"{row['flawless']} of {row['samples']}" if "flawless" in row else ""
    return f"| {row['order']} | {row['contexts']:,} | {nats:.1f} | {bits:.3f} | {wrote} |"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", default=POCKET, help="source (default: pocket-stories)")
    p.add_argument("--val", help="text to measure on (default: a part of the source)")
    p.add_argument("--most", type=int, default=6, help="highest order (default: 6)")
    p.add_argument("--stories", type=int, default=50_000, help="to count in (default: 50,000)")
    p.add_argument("--windows", type=int, default=512, help="held out (default: 512)")
    p.add_argument("--samples", type=int, default=200, help="stories to write (default: 200)")
    p.add_argument("--output", type=Path, help="JSON file (default: that of the package)")
    p.add_argument("--quick", action="store_true", help="a few stories: does it run?")
    return p


def main() -> None:
    args = parser().parse_args()
    if args.quick:
        args.stories, args.windows, args.samples = 200, 16, 4
    print("| order | contexts | nats per window | bits per character | flawless |")
    print("|---|---|---|---|---|")
    found, output = count(args), args.output or OUTPUT
    if args.quick and not args.output:
        return
    known = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    write_json(output, known | {POCKET if args.data == POCKET else "TinyStories": found})


if __name__ == "__main__":
    main()
