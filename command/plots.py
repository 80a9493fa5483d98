"""Pictures of a run."""

import pathlib

from mln_keras.command.files import atomic_write, read_csv

COLORS = {"metalabelnet": "tab:blue", "cross_entropy": "tab:orange"}


def plot_curves(path, runs):
    """curves.png: accuracy by epoch, the switch to phase 2 marked, as Figure 3 of the paper.

    Args:
        path: of the PNG.
        runs: list of (directory, result), of which the directory holds history.csv; one run is
            drawn with its meta accuracy too.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for directory, result in runs:
        rows = read_csv(pathlib.Path(directory) / "history.csv")
        epochs = [int(row["epoch"]) for row in rows]
        test, meta = (
            [100 * float(row[name]) for row in rows] for name in ("test_accuracy", "meta_accuracy")
        )
        name = result["method"].replace("_", "-")
        color = COLORS.get(result["method"], "tab:green")
        axes.plot(epochs, test, color=color, label=f"{name}, test set")
        if len(runs) == 1:
            axes.plot(epochs, meta, color="0.6", linewidth=0.8, label=f"{name}, meta set")
        axes.plot(
            result["best_epoch"], 100 * result["test_accuracy"], "o", color=color,
            label=f"{name}, best epoch by meta set: {100 * result['test_accuracy']:.1f} %",
        )  # fmt: skip
        if result["warmup_epochs"]:
            axes.axvline(result["warmup_epochs"] + 0.5, color="0.5", linestyle=":")
            axes.annotate(
                " phase 2", (result["warmup_epochs"] + 0.5, 0.02),
                xycoords=("data", "axes fraction"), color="0.4",
            )  # fmt: skip
    title = "{dataset}, {noise} noise, ratio {noise_ratio:g}, seed {seed}".format(**result)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
