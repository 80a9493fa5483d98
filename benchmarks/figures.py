"""The paper's figures: their runs, and each as a PNG with a CSV beside it.

    python benchmarks/figures.py figure3
    python benchmarks/figures.py figure5 --noise_probs cifar10_student_probs.npy

Figure 3 is drawn from the results of table1.py. Figure 4 shows how far the soft labels of
MetaLabelNet and of MSLG move in an epoch. Figures 5, 6 and 7 vary one flag of MetaLabelNet. Picture
and CSV lie beside --results. Flags after `--` go to every run.
"""

import dataclasses
import functools
import itertools
import pathlib
import statistics
import sys
from collections.abc import Callable

import grid
import matplotlib.figure
import table1

from mln_keras.command import files
from mln_keras.command.checkpoints import CHANGE


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a picture and the band around it; the lists have a number a point."""

    panel: str
    name: str
    x: list
    mean: list
    low: list
    high: list
    switch: int = 0  # the epoch at whose end phase 2 begins


def over_runs(panel, name, x, points, switch=0):
    """The line of a mean over runs, and a band from the lowest to the highest of them, in percent.
    Of each point `points` has a list, the runs' shares."""
    of_all = ([100 * of(point) for point in points] for of in (statistics.mean, min, max))
    return Line(panel, name, list(x), *of_all, switch)


def title(noise, ratio):
    return f"{noise.replace('_', '-')} noise, {ratio:.0%}"


def by_epoch(flag, results):
    """Lines: test accuracy by epoch, a panel a noise and ratio, a line a value of the flag."""
    lines = []
    for (*panel, value), runs in grid.group(results, flag).items():
        points = list(zip(*(one["history"]["test_accuracy"] for one in runs), strict=True))
        epochs, switch = range(1, 1 + len(points)), runs[0]["warmup_epochs"] or 0
        name = value if flag == "method" else f"{flag}: {value}"
        lines.append(over_runs(title(*panel), name, epochs, points, switch))
    return lines


def figure3(results):
    """Lines: `by_epoch` of the paper's two methods at its two ratios."""
    methods = table1.DEFAULT_METHODS
    return by_epoch("method", [
        one for one in results if one["method"] in methods and one["noise_ratio"] in (0.4, 0.6)
    ])  # fmt: skip


def by_value(flag, results):
    """Lines: accuracy by the value of the flag, a panel a kind of accuracy, a line a noise and
    ratio."""
    groups, lines = grid.group(results, flag), []
    for panel, of in {"warm-up end": "warmup_test_accuracy", **grid.TESTED}.items():
        for noise in dict.fromkeys(cell[:2] for cell in groups):
            same = {cell[2]: runs for cell, runs in groups.items() if cell[:2] == noise}
            points = [[one[of] for one in runs] for runs in same.values()]
            lines.append(over_runs(panel, title(*noise), same, points))
    return lines


def figure4(results):
    """Lines: how far soft labels move in an epoch, a run's each; the band is the variance."""
    lines = []
    for one in results:
        means, variances = (one["history"][of] for of in CHANGE)
        points = [
            (epoch, mean, mean - variance, mean + variance)
            for epoch, mean, variance in zip(itertools.count(1), means, variances)
            if mean is not None
        ]
        panel = title(one["noise"], one["noise_ratio"])
        name = f"{one['method']}, seed {one['seed']}"
        lines.append(Line(panel, name, *zip(*points, strict=True)))
    return lines


def draw(path, lines, xlabel, ylabel):
    """Writes the picture, a PNG, and its numbers, a CSV, a row a point of a line."""
    panels = list(dict.fromkeys(line.panel for line in lines))
    names = list(dict.fromkeys(line.name for line in lines))
    size = (max(6, 4 * len(panels)), 4.2)
    figure, labels = matplotlib.figure.Figure(figsize=size, layout="constrained"), {}
    every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for line in lines:
        axes = every[panels.index(line.panel)]
        axes.set(xlabel=xlabel, title=line.panel)
        color = f"C{names.index(line.name)}"
        mark = "o-" if len(line.x) < 10 else "-"
        (labels[line.name],) = axes.plot(line.x, line.mean, mark, color=color, markersize=4)
        axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.25, linewidth=0)
        if line.switch:
            axes.axvline(line.switch + 0.5, color=color, linestyle=":", linewidth=1)
    for axes in every:
        axes.grid(alpha=0.3)
    every[0].set_ylabel(ylabel)
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=2 * len(panels))
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    rows = [
        {"panel": line.panel, "line": line.name, xlabel: f"{x:g}"}
        | {of: f"{value:.5g}" for of, value in zip(("mean", "low", "high"), values)}
        for line in lines
        for x, *values in zip(line.x, line.mean, line.low, line.high, strict=True)
    ]
    files.write_csv(path.with_suffix(".csv"), rows)


@dataclasses.dataclass(frozen=True)
class Figure:
    """How a figure is drawn, and which runs it takes; of MetaLabelNet, unless methods vary."""

    lines: Callable  # of results, returns a list of `Line`
    xlabel: str
    flag: str = "method"  # the one that is varied
    values: tuple = ("metalabelnet",)
    noises: tuple = ("feature_dependent",)
    ratios: tuple = grid.RATIOS
    ylabel: str = "test accuracy (%)"
    source: str | None = None  # whose results these are, where they are another script's


def sweep(lines, flag, values, xlabel, **more):
    return Figure(functools.partial(lines, flag), xlabel, flag, values, **more)


FIGURES = {
    "figure3": Figure(figure3, "epoch", source="table1"),
    "figure4": Figure(figure4, "epoch", values=("metalabelnet", "mslg"), noises=grid.NOISES,
                      ratios=(0.4,), ylabel="mean |change| of the soft labels ± variance"),
    "figure5": sweep(by_value, "meta_size", (100, 500, 1000, 2000, 5000), "meta samples"),
    "figure6": sweep(by_epoch, "warmup_epochs", (20, 30, 40, 44, 60, 80), "epoch",
                     noises=grid.NOISES, ratios=(0.6,)),
    "figure7": sweep(by_value, "unlabeled_size", (0, 9000, 18000, 27000, 36000, 45000),
                     "unlabeled samples"),
}  # fmt: skip


def runs_of(figure, arguments):
    arguments.noises = arguments.noises or figure.noises
    arguments.ratios = arguments.ratios or figure.ratios
    varied = {}
    for value in arguments.values or figure.values:
        is_size = figure.flag == "meta_size"
        varied[f"{figure.flag}-{value}"] = (
            grid.flags_of_meta_size(value, arguments.dataset) if is_size
            else [f"--{figure.flag}={value}"]
        )  # fmt: skip
    return grid.runs_of(arguments, varied)


def main(argv):
    """Returns the exit status: 1 where a run failed."""
    parser, status = grid.parser(__doc__), 0
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--values", nargs="+", type=int, help="of the flag; default: the paper's")
    arguments = grid.parse(parser, argv)
    name, figure = arguments.figure, FIGURES[arguments.figure]
    path = arguments.results or pathlib.Path(f"results/{figure.source or name}.jsonl")
    arguments.results = path
    if figure.source is None:
        runs = runs_of(figure, arguments)
        status = grid.main(arguments, runs, lambda results: grid.table(results, figure.flag))
    if figure.source or path.exists():
        lines = figure.lines(grid.read(path))
        draw(path.with_name(f"{name}.png"), lines, figure.xlabel, figure.ylabel)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
