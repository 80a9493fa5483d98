"""A Markdown table, and a picture, of finished runs side by side; trains nothing.

    python benchmarks/compare_runs.py results/cifar10-uniform-0.4/*-seed? --plot curves.png

A row a method: test accuracy in percent at the end of warm-up, at the epoch with the best meta
accuracy and at the last epoch, mean and standard deviation over the seeds. Flags in which the runs
differ otherwise are named. The picture shows the runs with the lowest seed.
"""

import argparse
import json
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import outputs

COLUMNS = {
    "warm-up end": "warmup_test_accuracy",
    "best by meta": "test_accuracy",
    "last epoch": "last_test_accuracy",
}
SHOWN_OR_NO_MATTER = (
    "noise", "noise_ratio", "method", "seed", "jit_compile", "steps_per_execution",
    *outputs.NOT_PART_OF_A_RUN,
)  # fmt: skip


def quote(values):
    """Mean, and where there are several values their standard deviation, of shares in percent."""
    values = [100 * value for value in values if value is not None]
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directories", nargs="+", type=pathlib.Path)
    parser.add_argument("--plot", help="PNG to write")
    arguments = parser.parse_args()
    for directory in arguments.directories:
        if not (directory / "result.json").exists():
            parser.error(f"{directory}: expected a finished run, found no result.json in it")
    runs = [(d, json.loads((d / "result.json").read_text())) for d in arguments.directories]
    named = [
        flag for flag in runs[0][1]["flags"]
        if flag not in SHOWN_OR_NO_MATTER and len({r["flags"].get(flag) for _, r in runs}) > 1
    ]  # fmt: skip
    print("| noise | method | seeds |", *(f"{name} |" for name in COLUMNS))
    print("| --- " * (3 + len(COLUMNS)) + "|")
    cells = {}
    for _, result in runs:
        differences = [f"{flag} {result['flags'].get(flag)}" for flag in named]
        method = ", ".join([result["method"], *differences])
        cell = (result["noise"], result["noise_ratio"], method)
        cells.setdefault(cell, []).append(result)
    for (noise, ratio, method), same in sorted(cells.items()):
        seeds = ", ".join(str(seed) for seed in sorted(r["seed"] for r in same))
        values = (f"{quote([r[key] for r in same])} |" for key in COLUMNS.values())
        print(f"| {noise}, {ratio:.0%} | {method} | {seeds} |", *values)
    if arguments.plot:
        lowest = min(r["seed"] for _, r in runs)
        outputs.plot_curves(arguments.plot, [run for run in runs if run[1]["seed"] == lowest])


if __name__ == "__main__":
    main()
