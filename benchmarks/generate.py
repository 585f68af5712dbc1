"""How long do you wait for a story? Time to the first step, and seconds a story for several steps.

Prints a Markdown table: medians over several stories of the bundled model, one at a time on a CPU.
The last column counts the processor's time alone, which other programs do not disturb much.
"""

import argparse
import statistics
import time

import torch

from ddlm_core import DiffusionPipeline


def seconds(pipeline: DiffusionPipeline, num_steps: int, seed: int) -> tuple[float, float, float]:
    """Seconds to the first step, to the whole story, and the part of the processor in these."""
    start, work = time.perf_counter(), time.process_time()
    for step in pipeline.generate_streaming(num_steps=num_steps, seed=seed):
        if step.index == 1:
            first = time.perf_counter() - start
    return first, time.perf_counter() - start, time.process_time() - work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stories", type=int, default=5, help="for each number of steps")
    parser.add_argument("--quick", action="store_true", help="one story each: does it run?")
    args = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(device="cpu")
    seconds(pipeline, 2, 0)  # what is done once is done now
    print(
        f"{torch.get_num_threads()} thread(s), stories of {pipeline.config.block_size} characters"
    )
    print("| steps | seconds to the first step | seconds a story | of the processor |")
    print("|---|---|---|---|")
    for num_steps in (16, 32, 64, 128):
        times = [seconds(pipeline, num_steps, k) for k in range(1 if args.quick else args.stories)]
        first, whole, work = map(statistics.median, zip(*times))
        print(f"| {num_steps} | {first:.3f} | {whole:.2f} | {work:.2f} |", flush=True)


if __name__ == "__main__":
    main()
