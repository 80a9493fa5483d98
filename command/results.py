"""What a run leaves behind when it is done, and the table of several."""

import json
import pathlib

import numpy as np

from mln_keras.command import plots, review
from mln_keras.command.checkpoints import best_row, best_weights, remove_other_checkpoints
from mln_keras.command.files import atomic_write, write_csv, write_json
from mln_keras.command.output_dir import identity
from mln_keras.command.versions import versions
from mln_keras.data import batches, corruption, suspects
from mln_keras.data.image_files import ImageFiles


def write_soft_labels(directory, splits, soft_labels):
    """soft_labels.npz: `index`, `given_labels` (-1: none) and `soft_labels`, a row a sample.

    Soft labels of image files that could not be read are NaN.
    """
    given_labels, images = splits.given_labels, splits.train_images
    if isinstance(images, ImageFiles):
        soft_labels = np.where(images.is_readable()[:, None], soft_labels, np.float32(np.nan))
    with atomic_write(pathlib.Path(directory) / "soft_labels.npz") as temporary:
        np.savez_compressed(
            temporary,
            index=np.arange(len(given_labels)),
            given_labels=given_labels,
            soft_labels=soft_labels,
        )


def summarize(rows, warmup_epochs, chosen_from=1):
    """The accuracies that a run is quoted by.

    Args:
        rows: of history.csv.
        warmup_epochs: where phase 2 began; None for a run without phase 2.
        chosen_from: the phase from which on the best epoch is looked for.

    Returns:
        dict: `warmup_test_accuracy` (None without phase 2), `best_epoch` (counted from 1, the
        first with the highest meta accuracy), `meta_accuracy` and `test_accuracy` of that epoch,
        `last_test_accuracy`; and the same three of each other test accuracy in the rows, as
        `test_top5_accuracy`. Accuracies in 0..1.
    """
    best = best_row(rows, chosen_from)
    found = {"best_epoch": best["epoch"], "meta_accuracy": best["meta_accuracy"]}
    for name in best:
        if name.startswith("test_") and name.endswith("accuracy"):
            found |= {
                f"warmup_{name}": rows[warmup_epochs - 1][name] if warmup_epochs else None,
                name: best[name],
                f"last_{name}": rows[-1][name],
            }
    return found


def table(results):
    """Test accuracies in percent, a row a run."""
    lines = [f"{'test accuracy, %':<20}{'warm-up end':>13}{'best by meta':>22}{'last epoch':>18}"]
    for result in results:
        warmup = result["warmup_test_accuracy"]
        best = f"{100 * result['test_accuracy']:.2f} (epoch {result['best_epoch']})"
        last = f"{100 * result['last_test_accuracy']:.2f} (epoch {result['epochs']})"
        warmup = "" if warmup is None else f"{100 * warmup:.2f}"
        lines.append(f"{result['method']:<20}{warmup:>13}{best:>22}{last:>18}")
    return "\n".join(lines)


def write_suspects(directory, model, splits, flags):
    """What the model thinks of the given labels: suspects.csv, the review page and two pictures.

    Returns:
        The estimated share of wrong labels: how often another class than the given one is the most
        probable.
    """
    images, given, names = splits.train_images, splits.given_labels, splits.class_names
    batch_size = batches.for_inference(images)
    probabilities = model.predict(images, batch_size=batch_size, verbose=0)
    found = suspects.find(probabilities, given, names, getattr(images, "paths", None))
    labels = corruption.in_words(flags["noise"], flags["noise_ratio"])
    title = "Suspicious labels: {dataset}, {labels}, {method}, seed {seed}"
    run = json.dumps(identity(flags), sort_keys=True)
    review.write(directory, found, images, names, title.format(labels=labels, **flags), run)
    joint = suspects.counted_joint(probabilities, given)
    plots.plot_confusion(directory / "confusion.png", joint * len(found), names)
    worst = found[: plots.SHEET[0] * plots.SHEET[1]]
    thumbnails = review.thumbnails_of(images, worst["index"])
    plots.plot_suspects(directory / "suspects.png", worst, thumbnails)
    return suspects.share_of_wrong(joint)


def unreadable_files(splits):
    """Names of the image files that could not be read, a list, of each of train, meta and test."""
    return {
        name: list(dict.fromkeys(images.paths[~images.is_readable()]))
        for name in ("train", "meta", "test")
        if isinstance(images := getattr(splits, f"{name}_images"), ImageFiles)
    }


def write_results(directory, model, settings, rows, splits, flags, **more):
    """Writes what only a whole run has, result.json last; leaves the best epoch in the model.

    A run that was killed just after its last checkpoint has history.csv and older checkpoints as
    they were before: they too are brought up to date.

    Args:
        directory: the run's.
        model: the trained model.
        settings: dict with dataset, noise, noise_ratio, method, seed, epochs and warmup_epochs.
        rows: of history.csv.
        splits: what it was trained on.
        flags: dict of every flag's value.
        **more: further entries of result.json.

    Returns:
        dict, the content of result.json.
    """
    directory = pathlib.Path(directory)
    names = ("dataset", "noise", "noise_ratio", "method", "seed", "epochs", "warmup_epochs")
    result = {name: settings[name] for name in names}
    result["phases"] = [phase.name for phase in model.phases()]
    result |= summarize(rows, settings["warmup_epochs"], model.chosen_from)
    write_csv(directory / "history.csv", rows)
    remove_other_checkpoints(directory, rows[-1]["epoch"], result["best_epoch"])
    model.load_weights(best_weights(directory, result["best_epoch"]))
    with atomic_write(directory / "model.keras") as temporary:
        model.save(temporary)
    with atomic_write(directory / "saved_model") as temporary:
        model.export(temporary)
    plots.plot_curves(directory / "curves.png", [(directory, result)])
    if "soft_label_change" in rows[0]:
        plots.plot_soft_label_change(directory / "soft_label_change.png", rows)
    estimated = write_suspects(directory, model, splits, flags)
    result |= {
        "noise_ratio_actual": splits.noise_ratio,
        "noise_ratio_estimated": estimated,
        "samples": splits.sizes(),
        "class_names": list(splits.class_names),
        "unreadable_files": unreadable_files(splits),
        **more,
        "flags": flags,
        "versions": versions(),
    }
    write_json(directory / "result.json", result)
    return result
