"""Time of `import ddlm_core` beside `import torch`: medians over several fresh processes."""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="processes for each (default: 7)")
    parser.add_argument("--quick", action="store_true", help="two processes for each")
    args = parser.parse_args()
    runs = 2 if args.quick else args.runs
    ratios, times = [], {"import torch": [], "import torch, ddlm_core": []}
    for _ in range(runs):
        pair = [seconds(statement) for statement in times]
        for column, value in zip(times.values(), pair):
            column.append(value)
        ratios.append(pair[1] / pair[0])
    print("| statement | median seconds |\n|---|---|")
    for statement, column in times.items():
        print(f"| `{statement}` | {statistics.median(column):.2f} |")
    print(f"| ratio, pair by pair | {statistics.median(ratios):.3f} |")


if __name__ == "__main__":
    main()
