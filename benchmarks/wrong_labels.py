"""How well rankings find wrong labels: precision in the first 50, 100 and 1,000, and AUROC.

    python benchmarks/wrong_labels.py --noise_probs cifar10_student_probs.npy
    python benchmarks/wrong_labels.py --noises human --ratios 0.4 0.09
    python benchmarks/wrong_labels.py --table_only

A ranking puts the least likely given label first. Probabilities are those of a method's best and
last epoch for its own training images, the label head's soft labels, and, as cleanlab asks for
them, of cross-entropy for images that it was not trained on (out of fold). cleanlab is an extra:
`pip install ".[cleanlab]"`. Flags after `--` go to every run.
"""

import contextlib
import dataclasses
import pathlib
import sys

import grid
import keras
import numpy as np

from mln_keras.command import files, run
from mln_keras.command.flags import read_flags, settings_of

METHODS = ("metalabelnet", "metalabelnet_clean", "fine_tune", "cross_entropy")
OUT_OF_FOLD = "cross_entropy-out_of_fold"
FOLDS = 4
FOLD_EPOCHS = 50  # cross-entropy's best epoch comes soon after the first drop of λ, at 41
FIRST = (50, 100, 1000)
PROBABILITIES = "probabilities.npz"  # in a run's folder
BATCH = 1000


def quality(scores, is_wrong):
    """How well a ranking, the lowest score first, puts wrong labels before right ones.

    Args:
        scores: float (N,).
        is_wrong: bool (N,), neither all True nor all False.

    Returns:
        dict: `auroc`, and for each n of `FIRST` that is at most N `precision_n`, in 0..1.
    """
    from sklearn.metrics import roc_auc_score

    order = np.argsort(scores, kind="stable")
    of_first = {
        f"precision_{n}": float(is_wrong[order[:n]].mean()) for n in FIRST if n <= len(order)
    }
    return {"auroc": float(roc_auc_score(is_wrong, -scores))} | of_first


def rankings(path):
    """dict, name of a ranking -> its `quality`, of a run's `PROBABILITIES`."""
    if not path.exists():
        sys.exit(f"{path} is not there: that run was stopped at its very end; delete its folder")
    with np.load(path) as kept:
        given, right = kept["given"], kept["right"]
        found = {}
        for name in sorted(set(kept.files) - {"given", "right"}):
            probabilities = kept[name].astype(np.float64)
            of_given = probabilities[np.arange(len(given)), given]
            found[name] = quality(of_given, given != right)
            if name == "out of fold":
                found |= _cleanlab(given, probabilities, given != right)
    return found


def _cleanlab(given, probabilities, is_wrong):
    from cleanlab.rank import get_label_quality_scores

    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    return {
        f"cleanlab, {method.replace('_', ' ')}": quality(
            get_label_quality_scores(given, probabilities, method=method), is_wrong
        )
        for method in ("self_confidence", "normalized_margin")
    }


class KeepLast(keras.callbacks.Callback):
    """`probabilities` are those of the last epoch for the images."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def on_train_end(self, logs=None):
        self.probabilities = self.model.predict(self.images, batch_size=BATCH, verbose=0)


def prepared(argv):
    """What the command line does before training: settings, recipe, splits (None where the run is
    there already), strategy, and what it claims."""
    claims = contextlib.ExitStack()
    settings, recipe = settings_of(read_flags(argv))
    _, (finished,), splits, strategy = run.prepare(settings, recipe, claims)
    return settings, recipe, None if finished else splits, strategy, claims


def keep(directory, splits, **probabilities):
    arrays = {name.replace("_", " "): p.astype(np.float32) for name, p in probabilities.items()}
    with files.atomic_write(pathlib.Path(directory) / PROBABILITIES) as temporary:
        np.savez_compressed(
            temporary, given=splits.given_labels, right=splits.clean_labels, **arrays
        )


def run_and_keep(argv):
    """The command line, and the probabilities of its best and last epoch beside its files."""
    settings, recipe, splits, strategy, claims = prepared(argv)
    with claims:
        if splits is None:
            return
        directory, last = pathlib.Path(settings["output_dir"]), KeepLast(splits.train_images)
        run.run(settings, recipe, splits, [last], strategy)
        best = keras.models.load_model(directory / "model.keras")
        found = {
            "best_epoch": best.predict(splits.train_images, batch_size=BATCH, verbose=0),
            "last_epoch": last.probabilities,
        }
        if (directory / "soft_labels.npz").exists():
            found["label_head"] = np.load(directory / "soft_labels.npz")["soft_labels"]
        keep(directory, splits, **found)


def out_of_fold(argv):
    """Cross-entropy once without each fold of the training images, early stopped by the meta set;
    keeps its probabilities for the fold."""
    settings, recipe, splits, strategy, claims = prepared(argv)
    with claims:
        if splits is None:
            return
        directory = pathlib.Path(settings["output_dir"])
        fold_of = np.random.default_rng(settings["seed"]).permutation(len(splits.given_labels))
        fold_of %= FOLDS
        probabilities = np.empty((len(fold_of), len(splits.class_names)))
        for fold in range(FOLDS):
            own = directory.with_name(f"{directory.name}.fold{fold}")  # a run in its own right
            own.mkdir(exist_ok=True)
            rest = without(splits, fold_of == fold)
            run.run(settings | {"output_dir": str(own)}, recipe, rest, strategy=strategy)
            model = keras.models.load_model(own / "model.keras")
            probabilities[fold_of == fold] = model.predict(
                splits.train_images[fold_of == fold], batch_size=BATCH, verbose=0
            )
        keep(directory, splits, out_of_fold=probabilities)
        for name in ("history.csv", "result.json"):  # of the last fold; the last one ends the run
            (own / name).rename(directory / name)


def without(splits, fold):
    return dataclasses.replace(
        splits,
        train_images=splits.train_images[~fold],
        given_labels=splits.given_labels[~fold],
        clean_labels=splits.clean_labels[~fold],
        rows=splits.rows[~fold],
    )


def table(results):
    """Markdown, in percent: a row a noise, method and ranking; the mean where seeds are several."""
    header = ("noise", "method", "ranking", "seeds", "AUROC", *(f"first {n:,}" for n in FIRST))
    rows, groups = [header, ["---"] * len(header)], {}
    for one in sorted(results, key=lambda one: (one["noise"], one["noise_ratio"])):
        for name, found in one["rankings"].items():
            cell = (one["noise"], one["noise_ratio"], one["run"].split("-seed")[0], name)
            groups.setdefault(cell, []).append((one["seed"], one["method"], found))
    for (noise, ratio, _, name), runs in groups.items():
        values = (
            grid.quote([found.get(of, np.nan) for _, _, found in runs])
            for of in ("auroc", *(f"precision_{n}" for n in FIRST))
        )
        seeds = ", ".join(str(seed) for seed in sorted(seed for seed, _, _ in runs))
        rows.append((f"{noise}, {ratio:.0%}", runs[0][1], name, seeds, *values))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv):
    """Returns the exit status: 1 where a run failed."""
    programs = {"run_and_keep": run_and_keep, "out_of_fold": out_of_fold}
    if argv[:1] and argv[0] in programs:
        return programs[argv[0]](argv)
    parser = grid.parser(__doc__)
    parser.set_defaults(
        results=pathlib.Path("results/wrong_labels.jsonl"), noises=grid.NOISES, ratios=(0.4,)
    )
    arguments = grid.parse(parser, argv)
    trained = {method: [f"--method={method}"] for method in METHODS}
    folds = {OUT_OF_FOLD: ["--method=cross_entropy", f"--epochs={FOLD_EPOCHS}"]}
    runs = grid.runs_of(arguments, trained, (__file__, "run_and_keep"))
    runs |= grid.runs_of(arguments, folds, (__file__, "out_of_fold"))
    return grid.main(
        arguments, runs, table,
        lambda directory: {"rankings": rankings(directory / PROBABILITIES)},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
