"""Table I of the paper: every run of the grid, several at a time, and the table.

    python benchmarks/table1.py --noise_probs cifar10_student_probs.npy
    python benchmarks/table1.py --table_only

Each run is the command line's, in a directory under --output_dir; run again, this goes on where it
was. Whenever a run ends, --results (JSON, a line a run: its result.json and its accuracies by
epoch) and the Markdown table beside it are written anew. Runs of the first seed come first, so that
the table can be read early. Flags after `--` are passed on to every run.
"""

import itertools
import sys

import grid
from grid import quote

from mln_keras.data import corruption

METHODS = {"metalabelnet": "MetaLabelNet", "cross_entropy": "cross-entropy"}
RATIOS = (0.2, 0.4, 0.6, 0.8)
PAPER = {  # Table I, rows "Ours" and "Cross Entropy": mean and standard deviation of 4 runs
    ("uniform", "metalabelnet"): ("83.35 ± 0.17", "79.03 ± 0.26", "70.60 ± 0.86", "50.02 ± 0.44"),
    ("uniform", "cross_entropy"): ("82.55 ± 0.80", "76.31 ± 0.75", "65.94 ± 0.44", "38.19 ± 0.81"),
    ("feature_dependent", "metalabelnet"):
        ("83.00 ± 0.41", "80.42 ± 0.51", "78.42 ± 0.36", "76.57 ± 0.33"),
    ("feature_dependent", "cross_entropy"):
        ("81.75 ± 0.39", "71.86 ± 0.69", "69.78 ± 0.71", "23.18 ± 0.55"),
}  # fmt: skip


def in_the_paper(noise, ratio, method):
    return dict(zip(RATIOS, PAPER.get((noise, method), ()))).get(ratio, "")


def runs_of(arguments):
    """Name, and program with flags, of every run in the order of running."""
    return {
        f"{noise}-{ratio}-{method}-seed{seed}": grid.command(
            arguments, [grid.PROGRAM], noise, ratio, seed, method
        )
        for seed, noise, ratio, method in itertools.product(
            arguments.seeds, arguments.noises, arguments.ratios, arguments.methods
        )
    }


def table(results):
    """Markdown: a row a noise, ratio and method, then the gain over cross-entropy, if any."""
    lines = [
        "| noise | method | seeds | warm-up end | best by meta | last epoch | paper |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    cells = {}
    for result in results:
        cell = (result["noise"], result["noise_ratio"], result["method"])
        cells.setdefault(cell, {})[result["seed"]] = result
    for (noise, ratio, method), runs in sorted(cells.items()):
        accuracies = (
            quote([run[name] for run in runs.values()])
            for name in ("warmup_test_accuracy", "test_accuracy", "last_test_accuracy")
        )
        seeds = ", ".join(map(str, sorted(runs)))
        cell = (f"{noise}, {ratio:.0%}", METHODS[method], seeds, *accuracies)
        lines.append(f"| {' | '.join(cell)} | {in_the_paper(noise, ratio, method)} |")
    gains = [
        "",
        "Gain over cross-entropy, of the seeds that both methods have:",
        "",
        "| noise | seeds | best by meta | last epoch | paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    header = len(gains)
    for noise, ratio in sorted({cell[:2] for cell in cells}):
        ours, theirs = (cells.get((noise, ratio, method), {}) for method in METHODS)
        seeds = sorted(set(ours) & set(theirs))
        if seeds:
            gains_of = (
                quote([ours[seed][name] - theirs[seed][name] for seed in seeds])
                for name in ("test_accuracy", "last_test_accuracy")
            )
            paper = [in_the_paper(noise, ratio, method) for method in METHODS]
            if all(paper):
                ours_mean, theirs_mean = (float(cell.split(" ± ")[0]) for cell in paper)
                paper = [f"{ours_mean - theirs_mean:.2f}"]
            cell = (f"{noise}, {ratio:.0%}", ", ".join(map(str, seeds)), *gains_of, paper[0])
            gains.append(f"| {' | '.join(cell)} |")
    lines += gains if len(gains) > header else []
    return "\n".join(lines) + "\n"


def parse(argv):
    def define(add):
        add("--noises", type=grid.names(corruption.NAMES), default=list(grid.NOISES))
        add("--ratios", type=grid.numbers(float), default=list(RATIOS))
        add("--methods", type=grid.names(METHODS), default=list(METHODS))

    return grid.name_files(grid.parse(__doc__, argv, define, seeds=[0, 1, 2, 3]), "table1")


def main(argv):
    """Returns the exit status: 1 where a run failed."""
    arguments = parse(argv)
    return grid.main(arguments, runs_of(arguments), table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
