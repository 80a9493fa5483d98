"""Pictures of a run."""

import itertools
import pathlib

from mln_keras.command.files import atomic_write, read_csv
from mln_keras.data import corruption

SHEET = (5, 8)  # rows and columns of suspects.png


def plot_curves(path, runs):
    """curves.png: accuracy by epoch, the beginning of each phase marked, as Figure 3 of the paper.

    Args:
        path: of the PNG.
        runs: list of (directory, result), of which the directory holds history.csv and the result
            has the names of the `phases`; one run is drawn with its meta accuracy too.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, (directory, result) in enumerate(runs):
        rows = read_csv(pathlib.Path(directory) / "history.csv")
        epochs = [int(row["epoch"]) for row in rows]
        test, meta = (
            [100 * float(row[name]) for row in rows] for name in ("test_accuracy", "meta_accuracy")
        )
        name = result["method"].replace("_", "-")
        color = f"C{number}"
        axes.plot(epochs, test, color=color, label=f"{name}, test set")
        if len(runs) == 1:
            axes.plot(epochs, meta, color="0.6", linewidth=0.8, label=f"{name}, meta set")
        axes.plot(
            result["best_epoch"], 100 * result["test_accuracy"], "o", color=color,
            label=f"{name}, best epoch by meta set: {100 * result['test_accuracy']:.1f} %",
        )  # fmt: skip
        for before, row in itertools.pairwise(rows):
            if row["phase"] != before["phase"]:
                begins = int(row["epoch"]) - 0.5
                axes.axvline(begins, color="0.5", linestyle=":")
                axes.annotate(
                    result["phases"][int(row["phase"]) - 1], (begins, 0), (4, 6), rotation=90,
                    xycoords=("data", "axes fraction"), textcoords="offset points", color="0.4",
                )  # fmt: skip
    labels = corruption.in_words(result["noise"], result["noise_ratio"])
    title = f"{result['dataset']}, {labels}, seed {result['seed']}"
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_soft_label_change(path, rows):
    """soft_label_change.png: how much the soft labels move in an epoch, as Figure 4 of the paper.

    Args:
        path: of the PNG.
        rows: of history.csv, with `soft_label_change`, None or "" in phase 1.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    points = [(int(row["epoch"]), row["soft_label_change"]) for row in rows]
    points = [(epoch, float(change)) for epoch, change in points if change not in (None, "")]
    axes.plot(*zip(*points), marker=".")
    axes.set(xlabel="epoch", ylabel="mean absolute change", title="Soft labels, epoch to epoch")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_confusion(path, counts, class_names):
    """confusion.png: how many samples of each given label have which suggested label.

    Args:
        path: of the PNG.
        counts: (C, C), [given, suggested].
        class_names: C names.
    """
    import matplotlib.figure

    size = len(class_names)
    side = min(4 + 0.35 * size, 14)
    figure = matplotlib.figure.Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if size <= 20:
        for given, suggested in zip(*counts.nonzero()):
            axes.text(
                suggested, given, f"{counts[given, suggested]:.0f}", ha="center", va="center",
                fontsize="small", color="white" if shares[given, suggested] > 0.65 else "black",
            )  # fmt: skip
    if size <= 50:
        rotation = 90 if max(map(len, class_names)) > 3 else 0
        axes.set_xticks(range(size), class_names, rotation=rotation, parse_math=False)
        axes.set_yticks(range(size), class_names, parse_math=False)
    axes.set(xlabel="suggested label", ylabel="given label", title="Labeled training samples")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_suspects(path, suspects, thumbnails):
    """suspects.png: the most suspicious images, with given and suggested label.

    Args:
        path: of the PNG.
        suspects: as `data.suspects.find` returns them, at most as many as `SHEET` has places.
        thumbnails: uint8 (n, h, w, 1 or 3), their images.
    """
    import matplotlib.figure

    rows, columns = SHEET
    figure = matplotlib.figure.Figure(figsize=(1.35 * columns, 1.65 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns).ravel()
    for axes in all_axes:
        axes.axis("off")
    for axes, suspect, image in zip(all_axes, suspects, thumbnails):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        names = [f"{suspect[n]:.12}" for n in ("given", "suggested")]
        axes.set_title(" → ".join(names), fontsize="small", parse_math=False)
    figure.suptitle("Most suspicious labels: given → suggested", fontsize="medium")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
