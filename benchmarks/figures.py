"""The paper's figures on CIFAR-10, each a PNG and a CSV beside it, from results; trains nothing.

    python benchmarks/figures.py figure3 [--results results/table1.jsonl] [--directory results]
"""

import argparse
import csv
import pathlib
import statistics
import sys

import grid
import matplotlib.figure

import outputs

LINES = {  # method -> (name, colour)
    "metalabelnet": ("MetaLabelNet", "tab:blue"),
    "cross_entropy": ("cross-entropy", "tab:orange"),
}


def figure3(runs, path):
    """Test accuracy by epoch at noise ratios 40 % and 60 %: mean over the seeds, and range."""
    settings = sorted({(run["noise"], run["noise_ratio"]) for run in runs})
    settings = [(noise, ratio) for noise, ratio in settings if ratio in (0.4, 0.6)]
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(settings), 3.8), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    table = []
    for axes, (noise, ratio) in zip(panels, settings):
        for method, (name, color) in LINES.items():
            same = [
                run for run in runs
                if (run["noise"], run["noise_ratio"], run["method"]) == (noise, ratio, method)
            ]  # fmt: skip
            if not same:
                continue
            seeds = ", ".join(str(run["seed"]) for run in same)
            by_epoch = list(zip(*(run["history"]["test_accuracy"] for run in same), strict=True))
            mean, low, high = (
                [100 * of(values) for values in by_epoch] for of in (statistics.mean, min, max)
            )
            epochs = range(1, len(by_epoch) + 1)
            axes.plot(epochs, mean, color=color, label=name)
            axes.fill_between(epochs, low, high, color=color, alpha=0.25, linewidth=0)
            for row in zip(epochs, mean, low, high, strict=True):
                table.append((noise, ratio, method, seeds, row[0], *(f"{v:.2f}" for v in row[1:])))
            if same[0]["warmup_epochs"]:
                axes.axvline(same[0]["warmup_epochs"] + 0.5, color="0.5", linestyle=":")
        axes.set(xlabel="epoch", title=f"{noise.replace('_', '-')} noise, {ratio:.0%}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(loc="lower right")
    with outputs.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    with outputs.atomic_write(path.with_suffix(".csv")) as temporary:
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ("noise", "ratio", "method", "seeds", "epoch", "mean", "lowest", "highest")
            )
            writer.writerows(table)


FIGURES = {"figure3": (figure3, "table1.jsonl")}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--results", type=pathlib.Path, help="default: the figure's own")
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("results"))
    arguments = parser.parse_args(argv)
    draw, results = FIGURES[arguments.figure]
    runs = grid.read(arguments.results or pathlib.Path("results") / results)
    draw(runs, arguments.directory / f"{arguments.figure}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
