"""The paper's figures on CIFAR-10: their runs, and each as a PNG with a CSV beside it.

    python benchmarks/figures.py figure3
    python benchmarks/figures.py figure5 --noise_probs cifar10_student_probs.npy [--table_only]

Figure 3 is drawn from the runs of benchmarks/table1.py, that of Section V-C from those of
benchmarks/differences.py. Figure 4 measures the soft labels after each epoch of phase 2. The others
vary one flag. Their runs are trained and kept as
benchmarks/table1.py does it, and drawn from results/NAME.jsonl; --table_only trains nothing. Flags
after `--` are passed on to every run.
"""

import csv
import dataclasses
import itertools
import pathlib
import statistics
import sys

import grid
import matplotlib.figure
import numpy as np
from differences import in_a_path
from table1 import METHODS

from mln_keras.command import files as outputs

ACCURACIES = {  # name in a result -> what it is called, and drawn with
    "warmup_test_accuracy": ("warm-up end", "--"),
    "test_accuracy": ("best by meta", "o-"),
    "last_test_accuracy": ("last epoch", "x:"),
}
CHANGES = "soft_label_change.csv"
LABEL_HEADS = {  # name of a difference -> label head
    "recipe": "single layer",
    "MLP head": "MLP",
    "MLP head with batch norm": "MLP, batch norm",
    "MLP head with batch norm and dropout": "MLP, batch norm, dropout",
}


def figure3(runs, path):
    """Test accuracy by epoch at noise ratios 40 % and 60 %: mean over the seeds, and range."""
    settings = sorted({(run["noise"], run["noise_ratio"]) for run in runs})
    settings = [(noise, ratio) for noise, ratio in settings if ratio in (0.4, 0.6)]
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(settings), 3.8), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    rows = []
    for axes, (noise, ratio) in zip(panels, settings):
        for method, name in METHODS.items():
            color = outputs.COLORS[method]
            same = [
                run for run in runs
                if (run["noise"], run["noise_ratio"], run["method"]) == (noise, ratio, method)
            ]  # fmt: skip
            if not same:
                continue
            seeds = ", ".join(str(run["seed"]) for run in same)
            mean, low, high = (by_epoch(same, of) for of in (statistics.mean, min, max))
            epochs = range(1, len(mean) + 1)
            axes.plot(epochs, mean, color=color, label=name)
            axes.fill_between(epochs, low, high, color=color, alpha=0.25, linewidth=0)
            for row in zip(epochs, mean, low, high, strict=True):
                rows.append((noise, ratio, method, seeds, row[0], *(f"{v:.2f}" for v in row[1:])))
            if same[0]["warmup_epochs"]:
                axes.axvline(same[0]["warmup_epochs"] + 0.5, color="0.5", linestyle=":")
        axes.set(xlabel="epoch", title=title(noise, ratio))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    panels[0].legend(loc="lower right")
    header = ("noise", "ratio", "method", "seeds", "epoch", "mean", "lowest", "highest")
    save(figure, path, header, rows)


def by_epoch(runs, of):
    """Test accuracies in percent, a list: `of` those of the runs at each epoch."""
    accuracies = (run["history"]["test_accuracy"] for run in runs)
    return [100 * of(values) for values in zip(*accuracies, strict=True)]


def title(noise, ratio):
    return f"{noise.replace('_', '-')} noise, {ratio:.0%}"


def run_figure4(argv):
    """The command line, which also writes soft_label_change.csv to the run's directory."""
    import mln_keras

    run, recorder = mln_keras.run, outputs.RunRecorder

    def run_and_measure(settings, recipe, splits):
        class Measuring(recorder):
            before = None

            def on_train_begin(self, logs=None):
                if self.model.phase == 2:  # a run that goes on
                    self.before = self.model.soft_labels(splits.train_images)

            def on_epoch_end(self, epoch, logs=None):
                super().on_epoch_end(epoch, logs)
                if self.rows[-1]["phase"] == 2:
                    now = self.model.soft_labels(splits.train_images)
                    if self.before is not None:
                        change = np.abs(now - self.before)
                        with open(pathlib.Path(self.directory) / CHANGES, "a", newline="") as file:
                            csv.writer(file).writerow((epoch + 1, change.mean(), change.var()))
                    self.before = now

        outputs.RunRecorder = Measuring
        return run(settings, recipe, splits)

    mln_keras.run = run_and_measure
    return mln_keras.main(["mln_keras.py", *argv])


def figure4_runs(arguments):
    return {
        f"{noise}-{ratio}-seed{seed}": grid.command(
            arguments, [__file__, "run_figure4"], noise, ratio, seed
        )
        for seed, noise, ratio in itertools.product(
            arguments.seeds, grid.NOISES, arguments.ratios or (0.4,)
        )
    }


def figure4(arguments):
    """Mean absolute change of the soft labels from epoch to epoch, and its variance."""
    path, failed = arguments.picture.with_suffix(".csv"), []
    header = ("run", "epoch", "mean", "variance")
    if arguments.table_only:
        rows = grid.read_csv(path)
    else:
        runs = figure4_runs(arguments)
        failed = grid.train(runs, arguments.output_dir, arguments.jobs)
        rows = []
        for name in runs:
            if name not in failed:
                with open(arguments.output_dir / name / CHANGES, newline="") as file:
                    by_epoch = {row[0]: row for row in csv.reader(file)}  # the last, where repeated
                rows += [(name, epoch, f"{float(m):.6f}", f"{float(v):.6f}")
                         for epoch, m, v in by_epoch.values()]  # fmt: skip
        if not rows:
            return grid.exit_status(failed)
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row[0] for row in rows):
        epochs, mean, variance = np.array([row[1:] for row in rows if row[0] == name], float).T
        noise, ratio, seed = name.split("-")
        label = f"{title(noise, float(ratio))}, {seed.replace('seed', 'seed ')}"
        line = axes.plot(epochs, mean, label=label)[0]
        axes.fill_between(epochs, mean - variance, mean + variance, color=line.get_color(),
                          alpha=0.25, linewidth=0)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="mean |change| of the soft labels ± variance")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, arguments.picture, header, rows)
    return grid.exit_status(failed)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A figure of the accuracy by the value of one flag."""

    flag: str
    label: str
    values: tuple
    noises: tuple = ("feature_dependent",)
    ratios: tuple = (0.2, 0.4, 0.6, 0.8)
    by_epoch: bool = False


SWEEPS = {
    "figure5": Sweep("meta_size", "meta samples", (100, 500, 1000, 2000, 5000)),
    "figure6": Sweep(
        "warmup_epochs", "epochs of warm-up", (20, 30, 40, 44, 60, 80),
        grid.NOISES, (0.6,), by_epoch=True,
    ),
    "figure7": Sweep(
        "unlabeled_size", "unlabeled samples", (0, 9000, 18000, 27000, 36000, 45000)
    ),
    "section_v_b": Sweep(
        "meta_learning_rate", "β", (1e-1, 1e-2, 1e-3, 1e-4),
        grid.NOISES, (0.4,),
    ),
}  # fmt: skip


def runs_of(sweep, arguments):
    """Name, and program with flags, of every run in the order of running."""
    runs = {}
    for seed, noise, ratio, value in itertools.product(
        arguments.seeds, sweep.noises, arguments.ratios or sweep.ratios, sweep.values
    ):
        flags = [f"--{sweep.flag}={value}"]
        if sweep.flag == "meta_size" and value < 128:
            flags.append(f"--batch_size={value}")  # of the noisy samples too
        runs[f"{noise}-{ratio}-{sweep.flag}-{value}-seed{seed}"] = grid.command(
            arguments, [grid.PROGRAM], noise, ratio, seed, more=flags
        )
    return runs


def cells_of(sweep, results):
    """(noise, ratio, value) -> runs."""
    cells = {}
    for result in results:
        cell = (result["noise"], result["noise_ratio"], result["flags"][sweep.flag])
        cells.setdefault(cell, []).append(result)
    return dict(sorted(cells.items()))


def table(sweep, results):
    """Markdown: a row a noise, ratio and value."""
    lines = [
        f"| noise | {sweep.label} | seeds | {' | '.join(of for of, _ in ACCURACIES.values())} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (noise, ratio, value), runs in cells_of(sweep, results).items():
        seeds = ", ".join(str(run["seed"]) for run in runs)
        columns = (grid.quote([run[name] for run in runs]) for name in ACCURACIES)
        lines.append(f"| {noise}, {ratio:.0%} | {value} | {seeds} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def draw_sweep(sweep, results, path):
    """Test accuracies by the value of the flag: means over the seeds."""
    cells = cells_of(sweep, results)
    figure = matplotlib.figure.Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    values = sorted({cell[2] for cell in cells})
    lines = sorted({cell[:2] for cell in cells})
    rows = []
    for number, (noise, ratio) in enumerate(lines):
        axes.plot([], [], color=f"C{number}", label=title(noise, ratio))
        for name, (of, style) in ACCURACIES.items():
            here = [value for value in values if (noise, ratio, value) in cells]
            means = [
                100 * statistics.mean(run[name] for run in cells[noise, ratio, value])
                for value in here
            ]
            axes.plot([values.index(value) for value in here], means, style, color=f"C{number}",
                      linewidth=0.8 if style == "--" else None)  # fmt: skip
            rows += [(noise, ratio, of, v, f"{m:.2f}") for v, m in zip(here, means, strict=True)]
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set(xlabel=sweep.label, ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    for of, style in ACCURACIES.values():
        axes.plot([], [], style, color="0.3", label=of)
    figure.legend(loc="outside right center", fontsize="small")
    save(figure, path, ("noise", "ratio", "of", sweep.flag, "mean"), rows)


def section_v_c(runs, path):
    """Test accuracy by epoch of phase 2 with each label head: means over the seeds all have."""
    heads = {in_a_path(difference): head for difference, head in LABEL_HEADS.items()}
    by_seed = {}
    for run in runs:
        head = heads.get(run["run"].split("-")[1])
        if head:
            by_seed.setdefault((run["noise"], run["noise_ratio"], head), {})[run["seed"]] = run
    seeds = set.intersection(*map(set, by_seed.values()))
    cells = {cell: [same[seed] for seed in sorted(seeds)] for cell, same in by_seed.items()}
    first = 1 + min(run["warmup_epochs"] for same in cells.values() for run in same)
    draw_by_epoch(cells, "label head", "head", path, first)


def draw_by_epoch(cells, label, column, path, first=1):
    """Test accuracy from the epoch `first` on, a curve a value: means over the seeds."""
    panels = sorted({cell[:2] for cell in cells})
    figure = matplotlib.figure.Figure(figsize=(2 + 5 * len(panels), 4), layout="constrained")
    panels = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0]))
    rows = []
    for (noise, ratio, value), runs in cells.items():
        means = by_epoch(runs, statistics.mean)[first - 1 :]
        panels[noise, ratio].plot(range(first, first + len(means)), means, label=value)
        rows += [(noise, ratio, value, n, f"{m:.2f}") for n, m in enumerate(means, first)]
    for panel, axes in panels.items():
        axes.set(xlabel="epoch", title=title(*panel))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test accuracy (%)")
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, title=label, loc="outside right center")
    save(figure, path, ("noise", "ratio", column, "epoch", "mean"), rows)


def save(figure, path, header, rows):
    with outputs.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    grid.write_csv(path.with_suffix(".csv"), header, rows)


OF_OTHER_RESULTS = {"figure3": ("table1", figure3), "section_v_c": ("differences", section_v_c)}


def parse(argv):
    def define(add):
        add("figure", choices=sorted(["figure4", *OF_OTHER_RESULTS, *SWEEPS]))
        add("--ratios", type=grid.numbers(float), help="default: the paper's")
        add("--picture", type=pathlib.Path, help="default: results/NAME.png")

    arguments = grid.parse(__doc__, argv, define, seeds=[0])
    arguments.picture = arguments.picture or pathlib.Path("results") / f"{arguments.figure}.png"
    source, _ = OF_OTHER_RESULTS.get(arguments.figure, (arguments.figure, None))
    return grid.name_files(arguments, source)


def main(argv):
    """Returns the exit status: 1 where a run failed."""
    if argv[:1] == ["run_figure4"]:
        return run_figure4(argv[1:])
    arguments = parse(argv)
    if arguments.figure == "figure4":
        return figure4(arguments)
    if arguments.figure in OF_OTHER_RESULTS:
        _, draw = OF_OTHER_RESULTS[arguments.figure]
        draw(grid.read(arguments.results), arguments.picture)
        return 0
    sweep = SWEEPS[arguments.figure]
    status = grid.main(
        arguments, runs_of(sweep, arguments), lambda results: table(sweep, results)
    )
    if arguments.results.exists():
        results = grid.read(arguments.results)
        if sweep.by_epoch:
            draw_by_epoch(cells_of(sweep, results), sweep.label, sweep.flag, arguments.picture)
        else:
            draw_sweep(sweep, results, arguments.picture)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
