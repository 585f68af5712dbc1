"""How fast does text become token ids? The figures of chapter 1.

Compares three ways on a long text: the tokenizer's table look-up in blocks, the same look-up of the
whole text at once, and a dictionary asked once per character. Speeds are in millions of characters
per second, the best of several runs; one character is one byte once it is stored.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from ddlm_core.tokenizer import UNK_ID, VOCAB, CharacterLevelTokenizer, look_up

SENTENCES = (
    "The old boat slept by the pier, and nobody woke it.\n"
    "“Is it still raining?” asked Ida. “It has been 4 days…”\n"
    "Her brother – the tall one – only shrugged, and went on peeling potatoes.\n"
)


def random_text(length: int, seed: int = 0) -> str:
    """Text of ``length`` characters, each drawn evenly from all that the vocabulary knows."""
    known = np.array([ord(character) for character in VOCAB[2:]], dtype="<u4")
    return np.random.default_rng(seed).choice(known, length).tobytes().decode("utf-32-le")


def english_like_text(length: int) -> str:
    """Made-up sentences, repeated up to ``length`` characters."""
    return (SENTENCES * (length // len(SENTENCES) + 1))[:length]


def dictionary_loop(text: str) -> np.ndarray:
    """What the look-up replaces: one question to a dictionary per character."""
    position = {token: i for i, token in enumerate(VOCAB)}
    return np.array([position.get(character, UNK_ID) for character in text], dtype=np.uint8)


def speed(encode: Callable[[str], np.ndarray], text: str, repeat: int) -> float:
    """Millions of characters per second, best of ``repeat`` runs."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        encode(text)
        seconds.append(time.perf_counter() - start)
    return len(text) / min(seconds) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 million characters, one run")
    parser.add_argument(
        "--characters", type=int, metavar="N", help="length of a text (default 50 million)"
    )
    parser.add_argument("--repeat", type=int, metavar="N", help="runs of each way (default 3)")
    arguments = parser.parse_args()
    length = arguments.characters or (2_000_000 if arguments.quick else 50_000_000)
    repeat = arguments.repeat or (1 if arguments.quick else 3)
    if length < 1 or repeat < 1:
        parser.error("--characters and --repeat must be at least 1")

    tokenizer = CharacterLevelTokenizer()
    part = min(length, 5_000_000)  # the loop is slow: a part of the text gives the same speed
    texts = {"random": random_text(length), "English-like": english_like_text(length)}

    print(f"millions of characters per second, texts of {length:,} characters, best of {repeat}")
    print(f"{'text':<14}{'in blocks':>12}{'whole text':>12}{'dictionary':>12}{'blocks/dict.':>14}")
    for name, text in texts.items():
        assert np.array_equal(tokenizer.encode_numpy(text[:part]), dictionary_loop(text[:part]))
        blocks = speed(tokenizer.encode_numpy, text, repeat)
        whole = speed(lambda text: look_up(text, tokenizer.table), text, repeat)
        loop = speed(dictionary_loop, text[:part], repeat)
        print(f"{name:<14}{blocks:>12.1f}{whole:>12.1f}{loop:>12.1f}{blocks / loop:>13.0f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
