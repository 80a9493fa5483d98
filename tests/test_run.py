"""A run of the command line: its files, what it prints, and how it ends when it fails."""

import ctypes
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import types
import warnings

import keras
import matplotlib.axes
import matplotlib.image
import matplotlib.mathtext
import numpy as np
import pytest
import tensorflow as tf
from runs import (
    EPOCHS,
    FILES,
    OF_SOFT_LABELS,
    RUN,
    SHORT,
    UNLABELED,
    WARMUP_EPOCHS,
    main,
    model_of,
    names,
    read_history,
    read_result,
    settings_and_recipe,
    splits_of,
    stamps,
    tree,
)
from tensorflow.python.framework.config import is_op_determinism_enabled

import mln_keras
from mln_keras.command import checkpoints, plots, results, run, versions
from mln_keras.command.checkpoints import CHANGE
from mln_keras.command.files import write_csv
from mln_keras.command.recipes import RECIPES
from mln_keras.command.xla import configure_xla
from mln_keras.data.checks import ArgumentError
from mln_keras.methods.forward import Forward, count_transitions_as_run
from mln_keras.training.model import NoisyLabelModel

RESULT_KEYS = [
    "dataset", "noise", "noise_ratio", "noise_ratio_actual", "noise_ratio_estimated", "method",
    "samples", "unreadable_files", "class_names", "batch_size", "replicas", "seed", "epochs",
    "warmup_epochs", "phases", "warmup_test_accuracy", "best_epoch",
    "meta_accuracy", "test_accuracy", "last_test_accuracy", "seconds", "flags", "versions",
]  # fmt: skip


# ---- its files ----------------------------------------------------------------------------------


def test_in_a_shell_it_computes_the_same_and_writes_to_its_default_directory(
    finished_run, tmp_path
):
    """Whatever Keras is set to. The other run had a process that may have computed other things."""
    settings = {"floatx": "float64", "epsilon": 0.1, "image_data_format": "channels_first",
                "backend": "torch"}  # fmt: skip
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    others = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "1",
              "KERAS_MAX_STEPS_PER_EPOCH": "2"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, mln_keras.__file__, *RUN], cwd=tmp_path, env=os.environ | others,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    relative = os.path.join("runs", "digits-class_dependent-0.4-metalabelnet-seed0")
    directory, expected = tmp_path / relative, finished_run.directory
    assert tree(directory) == tree(expected)
    history = (directory / "history.csv").read_bytes()
    assert history == (expected / "history.csv").read_bytes()

    def without_seconds(text):
        return re.sub(r" +[\d.]+ s$", "", text, flags=re.MULTILINE)

    expected = finished_run.stdout.replace(str(expected), relative)
    assert without_seconds(done.stdout) == without_seconds(expected)


def test_a_run_leaves_just_these_files(finished_run):
    assert names(finished_run.directory) == FILES
    best = read_result(finished_run.directory)["best_epoch"]
    assert names(finished_run.directory / "checkpoint") == {
        f"epoch-{EPOCHS:04d}",
        f"best-{best:04d}.weights.h5",
    }


def test_history_has_a_row_an_epoch(finished_run):
    rows = read_history(finished_run.directory)
    assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(EPOCHS)]
    assert [row["phase"] for row in rows] == ["1"] * 3 + ["2"] * 3
    only_phase_2 = {
        "meta_loss", "soft_label_entropy", "soft_label_agreement", *CHANGE,
    }  # fmt: skip
    for row in rows:
        empty = {name for name, value in row.items() if value == ""}
        assert empty == (only_phase_2 if row["phase"] == "1" else set())
        for name, value in row.items():
            assert name in empty or np.isfinite(float(value))
            assert "accuracy" not in name or 0 <= float(value) <= 1
    assert float(rows[-1]["meta_set_loss"]) < float(rows[0]["meta_set_loss"])


def test_another_seed_is_another_run(finished_run, tmp_path):
    flags = ("--dataset", "digits", "--unlabeled_size", UNLABELED, "--epochs", 1, "--seed", 1)
    assert main(*flags, "--method", "cross_entropy", "--output_dir", tmp_path) == 0
    first, other = (read_history(path)[0] for path in (finished_run.directory, tmp_path))
    assert all(first[name] != other[name] for name in ("loss", "meta_set_loss", "test_loss"))


def test_result_agrees_with_the_history(finished_run):
    result, rows = read_result(finished_run.directory), read_history(finished_run.directory)
    assert sorted(result) == sorted(RESULT_KEYS)
    meta = [float(row["meta_accuracy"]) for row in rows]
    test = [float(row["test_accuracy"]) for row in rows]
    best = meta.index(max(meta[WARMUP_EPOCHS:]), WARMUP_EPOCHS)  # of phase 2
    assert result["best_epoch"] == best + 1
    assert result["meta_accuracy"] == meta[best] and result["test_accuracy"] == test[best]
    assert result["warmup_test_accuracy"] == test[WARMUP_EPOCHS - 1]
    assert result["last_test_accuracy"] == test[-1]
    given = {"dataset": "digits", "noise": "class_dependent", "noise_ratio": 0.4, "seed": 0}
    given |= {"method": "metalabelnet", "epochs": EPOCHS, "warmup_epochs": WARMUP_EPOCHS}
    assert {name: result[name] for name in given} == given
    assert result["noise_ratio_actual"] == splits_of(*RUN).noise_ratio != 0
    assert result["seconds"] > 0.1
    flags, _ = settings_and_recipe(*RUN, "--output_dir", finished_run.directory)
    assert result["flags"] == flags and flags["unlabeled_size"] == UNLABELED
    assert result["versions"]["mln_keras"] == versions.VERSION
    assert result["versions"]["tensorflow"] == tf.__version__
    assert result["versions"]["keras"] == keras.__version__


def test_the_cudnn_that_rounds_is_named_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert "cudnn" not in versions.versions()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    details = {"device_name": "GPU of a kind"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    library = types.SimpleNamespace(cudnnGetVersion=lambda: 91002)
    monkeypatch.setattr(ctypes, "CDLL", {"libcudnn.so.9": library}.__getitem__)
    assert versions.versions()["cudnn"] == "9.10.2"
    assert versions.versions()["device"] == "GPU of a kind"

    def is_absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", is_absent)
    assert "cudnn" not in versions.versions()


def test_the_models_are_those_of_the_best_epoch(finished_run):
    result, splits = read_result(finished_run.directory), splits_of(*RUN)
    model = keras.models.load_model(finished_run.directory / "model.keras")
    for kind in ("test", "meta"):
        images, labels = getattr(splits, f"{kind}_images"), getattr(splits, f"{kind}_labels")
        scores = model.evaluate(images, labels, batch_size=1000, verbose=0, return_dict=True)
        assert scores["accuracy"] == pytest.approx(result[f"{kind}_accuracy"], rel=1e-6)
    saved_model = tf.saved_model.load(finished_run.directory / "saved_model")
    serve = saved_model.signatures["serving_default"]
    assert serve.structured_input_signature[1] == {
        "images": tf.TensorSpec([None, 8, 8, 1], tf.uint8, name="images")
    }
    probabilities = serve(images=splits.test_images)["probabilities"].numpy()
    assert probabilities.shape == (300, 10) and probabilities.dtype == np.float32
    accuracy = np.mean(probabilities.argmax(1) == splits.test_labels)
    assert accuracy == pytest.approx(result["test_accuracy"], abs=1e-6)
    np.testing.assert_allclose(
        probabilities, model.predict(splits.test_images, verbose=0), atol=1e-5
    )


def test_soft_labels_of_every_training_sample(finished_run):
    saved, splits = np.load(finished_run.directory / "soft_labels.npz"), splits_of(*RUN)
    assert sorted(saved) == ["given_labels", "index", "soft_labels"]
    np.testing.assert_array_equal(saved["index"], np.arange(1197))
    np.testing.assert_array_equal(saved["given_labels"], splits.given_labels)
    assert saved["given_labels"].dtype == np.int32 and (saved["given_labels"] == -1).sum() == 200
    soft_labels = saved["soft_labels"]
    assert soft_labels.shape == (1197, 10) and soft_labels.dtype == np.float32
    assert soft_labels.min() >= 0 and np.ptp(soft_labels) > 0.1
    np.testing.assert_allclose(soft_labels.sum(1), 1, atol=1e-5)


@pytest.mark.slow
def test_soft_labels_are_the_last_epochs_and_the_model_the_best_ones(tmp_path, monkeypatch):
    accuracies = iter([0.9, 0.8, 0.1])  # on the meta set, as if warm-up had been better
    flags = (*SHORT, "--epochs", 3)
    measure = {0: lambda: (1.0, next(accuracies)), 1: lambda: (1.0, 0.5)}
    sets = iter([measure[0], measure[1]])
    monkeypatch.setattr(NoisyLabelModel, "evaluation", lambda *_: next(sets))
    assert main(*flags, "--output_dir", tmp_path) == 0
    assert read_result(tmp_path)["best_epoch"] == 2
    best = keras.models.load_model(tmp_path / "model.keras")
    assert best.phase == 2 and best.meta_optimizer.iterations == 1197 // 64
    model = model_of(*flags)
    model.load_weights(tmp_path / "checkpoint" / "epoch-0003" / "model.weights.h5")
    np.testing.assert_allclose(
        np.load(tmp_path / "soft_labels.npz")["soft_labels"],
        model.soft_labels(splits_of(*SHORT).train_images),
        atol=1e-6,
    )


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)[..., :3]
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    assert min(pixels.shape[:2]) > 400 and colours > 50 and pixels.std() > 0.05


def test_curves_are_a_picture(finished_run):
    assert_is_a_picture(finished_run.directory / "curves.png")


@pytest.mark.parametrize("name", ["a$_$b", "$5 -> $10"])
def test_class_names_are_no_mathematics(tmp_path, monkeypatch, name):
    def parse(*_, **__):
        raise AssertionError("taken for mathematics")

    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", parse)
    plots.plot_confusion(tmp_path / "confusion.png", np.eye(2), [name, "b"])
    suspects = np.array([(name, "b")], [("given", "O"), ("suggested", "O")])
    plots.plot_suspects(tmp_path / "suspects.png", suspects, np.zeros((1, 8, 8, 1), np.uint8))


def test_the_curves_are_those_of_the_history(tmp_path, monkeypatch):
    rows = [
        {"epoch": i + 1, "phase": p, "test_accuracy": t, "meta_accuracy": m}
        for i, (p, t, m) in enumerate([(1, 0.5, 0.6), (3, 0.7, 0.9), (4, 0.8, 0.85)])
    ]
    write_csv(tmp_path / "history.csv", rows)
    result = results.summarize(rows, 1) | {
        "method": "metalabelnet", "warmup_epochs": 1, "dataset": "digits", "noise": "uniform",
        "noise_ratio": 0.4, "seed": 0, "phases": ["warm-up", "not begun", "phase 2", "tuning"],
    }  # fmt: skip
    drawn, switches, texts = {}, [], []
    plot, axvline = matplotlib.axes.Axes.plot, matplotlib.axes.Axes.axvline
    annotate = matplotlib.axes.Axes.annotate

    def keep_plot(axes, x, y, *more, label, **options):
        drawn[label] = (x, y)
        return plot(axes, x, y, *more, label=label, **options)

    def keep_axvline(axes, x, **options):
        switches.append(x)
        return axvline(axes, x, **options)

    def keep_text(axes, text, place, *more, **options):
        texts.append((text, place[0]))
        return annotate(axes, text, place, *more, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", keep_plot)
    monkeypatch.setattr(matplotlib.axes.Axes, "axvline", keep_axvline)
    monkeypatch.setattr(matplotlib.axes.Axes, "annotate", keep_text)
    plots.plot_curves(tmp_path / "curves.png", [(tmp_path, result)])
    assert drawn == {
        "metalabelnet, test set": ([1, 2, 3], [50, 70, 80]),
        "metalabelnet, meta set": ([1, 2, 3], [60, 90, 85]),
        "metalabelnet, best epoch by meta set: 70.0 %": (2, 70),
    }
    assert switches == [1.5, 2.5]  # where the phase is another one, whatever warmup_epochs is
    assert texts == [("phase 2", 1.5), ("tuning", 2.5)]


# ---- what it trains on, and how -----------------------------------------------------------------


def test_forward_as_run_knows_the_true_labels():
    """Its one training begins with the T that the authors counted."""
    settings, recipe = settings_and_recipe(*RUN, "--method", "forward", "--as_run")
    splits = run.load_splits(settings, recipe)
    model = run.model_of(settings, recipe, splits)
    labeled = splits.given_labels >= 0
    assert 0 < labeled.sum() < len(labeled)
    expected = count_transitions_as_run(
        splits.clean_labels[labeled], splits.given_labels[labeled], 10
    )
    np.testing.assert_allclose(model.transition, expected, rtol=1e-6)
    assert len(model.phases()) == model.chosen_from == 1
    assert Forward.from_recipe(recipe, splits)[1] == EPOCHS

    unknown = dataclasses.replace(splits, clean_labels=None)
    with pytest.raises(ArgumentError, match="^as_run: of forward needs the true labels"):
        run.check_model(settings, recipe, unknown)


def test_co_teaching_knows_the_share_of_wrong_labels():
    """Of all classes, where --noise_ratio is of those that flip; and after labels have changed."""
    settings, recipe = settings_and_recipe(*SHORT[:2], "--method", "co_teaching")
    splits = run.load_splits(settings, recipe)
    right = splits.clean_labels
    half = np.where(np.arange(len(right)) % 2, splits.given_labels, right)
    mended = dataclasses.replace(splits, given_labels=half)
    for one in (splits, mended):
        model = run.model_of(settings, recipe, one)
        assert model.noise_rate == np.mean(one.given_labels != right) > 0
    assert splits.noise_ratio != recipe.noise_ratio != mended.noise_ratio

    unknown = dataclasses.replace(splits, clean_labels=None)
    with pytest.raises(ArgumentError, match="^method: co_teaching needs the share of wrong labels"):
        run.check_model(settings, recipe, unknown)


@pytest.mark.parametrize("method", ["metalabelnet", "cross_entropy"])
def test_a_run_trains_on_given_labels_and_chooses_by_the_meta_set(tmp_path, monkeypatch, method):
    class Fitted(Exception):
        pass

    def fit(model, x, *, meta_data, batch_size, callbacks, **_):
        raise Fitted(x, meta_data, batch_size, callbacks[-1].held_out)

    monkeypatch.setattr(NoisyLabelModel, "fit", fit)
    monkeypatch.setattr(NoisyLabelModel, "evaluation", lambda model, *data: data)
    of_method = RUN if method == "metalabelnet" else RUN[:6]  # without --warmup_epochs
    flags = (*of_method, "--method", method, "--batch_size", 48, "--output_dir", tmp_path)
    splits = splits_of(*flags)
    with pytest.raises(Fitted) as fitted:
        run.run(*settings_and_recipe(*flags), splits)
    (images, labels), meta, batch_size, held_out = fitted.value.args
    assert images is splits.train_images and labels is splits.given_labels
    assert (labels == -1).sum() == UNLABELED and splits.noise_ratio > 0.3
    assert meta == ((splits.meta_images, splits.meta_labels) if method == "metalabelnet" else None)
    assert held_out == {
        "meta": (splits.meta_images, splits.meta_labels, 1000),
        "test": (splits.test_images, splits.test_labels, 1000, None),
    }
    assert batch_size == 48


@pytest.mark.slow
def test_a_class_without_a_meta_sample_is_warned_of_once(tmp_path, capsys):
    flags = (*SHORT, "--meta_size", 12, "--batch_size", 12, "--unlabeled_size", 1100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assert main(*flags, "--output_dir", tmp_path) == 0
        err = capsys.readouterr().err
        missing = sorted(set(range(10)) - set(splits_of(*flags).meta_labels.tolist()))
    begin = "mln_keras.py: warning: the meta set holds no sample of class "
    assert missing and err.startswith(f"{begin}{', '.join(map(str, missing))}; fewer than 5")
    assert err.count("\n") == 1
    assert len([w for w in caught if "no sample" in str(w.message)]) == 1  # that of `splits_of`


@pytest.fixture
def seen_in_training(finished_run, monkeypatch, tmp_path):
    """Function of a function `look` and flags: what `look()` returns when training would begin."""

    def see(look, *flags):
        found = []
        result = read_result(finished_run.directory)
        monkeypatch.setattr(run, "run", lambda *_, **__: found.append(look()) or result)
        assert main(*SHORT, *flags, "--output_dir", tmp_path / "run") == 0
        return found[0]

    monkeypatch.setattr(run.devices, "strategy_of", lambda gpus: None)  # there need not be a GPU
    monkeypatch.setattr(run, "check_model", lambda *_: None)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "a home"))
    return see


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [([], [], True), ([], ["--jit_compile"], False), (["GPU"], ["--nojit_compile"], False)],
)
def test_kernels_are_deterministic_on_a_cpu_without_xla(
    seen_in_training, monkeypatch, gpus, flags, expected
):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    assert seen_in_training(is_op_determinism_enabled, *flags) == expected


@pytest.mark.parametrize("given", ["", "--xla_gpu_autotune_level=2"])
def test_xla_flags_that_were_given_come_last(seen_in_training, tmp_path, monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"])
    kept = tmp_path / "a home" / "mln_keras_kernels" / f"tensorflow-{tf.__version__}"
    with_ours = (
        "--xla_gpu_graph_min_graph_size=1 "
        f'--xla_gpu_experimental_autotuner_cache_dir="{kept}" '
        f'--xla_gpu_per_fusion_autotune_cache_dir="{kept}" {given}'
    )
    for flag, expected in [("--nojit_compile", given), *2 * [("--jit_compile", with_ours)]]:
        assert seen_in_training(lambda: os.environ["XLA_FLAGS"], flag) == expected
    assert kept.is_dir()


def test_kernels_are_not_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "a file"))
    monkeypatch.setenv("XLA_FLAGS", "")
    configure_xla()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_gpu_graph_min_graph_size=1"]


# ---- what it prints -----------------------------------------------------------------------------


def test_without_a_terminal_it_prints_a_line_an_epoch_and_the_table(finished_run):
    first, *epochs, blank, header, row = finished_run.stdout.splitlines()
    result = read_result(finished_run.directory)
    device = result["versions"]["device"]
    assert first == f"metalabelnet on {device}: {finished_run.directory}, from epoch 1 to {EPOCHS}"
    assert blank == ""
    for line, expected in zip(epochs, read_history(finished_run.directory), strict=True):
        found = re.fullmatch(
            r"epoch +(\d+)  (warm-up|phase 2)  loss ([\d.]+)(?:  meta loss ([\d.]+))?  "
            r"accuracy: given labels ([\d.]+), meta ([\d.]+), test ([\d.]+)  [\d.]+ s",
            line,
        )
        number, phase, loss, meta_loss, *accuracies = found.groups()
        assert number == expected["epoch"]
        assert phase == {"1": "warm-up", "2": "phase 2"}[expected["phase"]]
        assert loss == f"{float(expected['loss']):.4f}"
        has_meta_loss = expected["meta_loss"] != ""
        assert meta_loss == (f"{float(expected['meta_loss']):.4f}" if has_meta_loss else None)
        columns = ("accuracy", "meta_accuracy", "test_accuracy")
        assert accuracies == [f"{float(expected[name]):.4f}" for name in columns]
    assert header.split("  ")[0] == "test accuracy, %"
    warmup, best, last = (
        f"{100 * result[name]:.2f}"
        for name in ("warmup_test_accuracy", "test_accuracy", "last_test_accuracy")
    )
    assert (
        row.split()
        == (
            f"metalabelnet {warmup} {best} (epoch {result['best_epoch']}) {last} (epoch {EPOCHS})"
        ).split()
    )


def test_on_a_terminal_each_epochs_line_comes_below_keras_progress_bar(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(*SHORT, "--output_dir", tmp_path) == 0
    out = capsys.readouterr().out
    _, *epochs = re.split(r"^Epoch \d/2$", out, flags=re.MULTILINE)
    for epoch, line in zip(epochs, ("  1  warm-up  loss ", "  2  phase 2  loss "), strict=True):
        bar, _, rest = epoch.partition(f"\nepoch {line}")
        assert "18/18" in bar and " accuracy: " in bar
        assert rest and "18/18" not in rest and (" meta_loss: " in bar) == ("phase 2" in line)
    assert "best by meta" in out


def test_a_finished_run_is_shown_again(finished_run, tmp_path, capsys, monkeypatch):
    """With --resume too, which is no part of what a run is, and where its data are gone."""
    monkeypatch.setattr(run, "load_splits", None)
    directory = tmp_path / "run"
    shutil.copytree(finished_run.directory, directory)
    before = stamps(directory)
    for more in ([], ["--resume"]):
        assert main(*RUN, "--output_dir", directory, *more) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[-2:] == finished_run.stdout.splitlines()[-2:] and err == ""
        assert str(directory) in out.splitlines()[0] and "epoch   1" not in out
    assert stamps(directory) == before


@pytest.mark.slow
def test_the_demonstration_runs_both_methods_side_by_side(tmp_path, capsys, monkeypatch):
    recipe = dataclasses.replace(RECIPES["digits"], learning_rate_drops=(2,))
    monkeypatch.setitem(RECIPES, "digits", recipe)
    flags = ("--epochs", 3, "--warmup_epochs", 1, "--output_dir", tmp_path)
    assert main(*flags) == 0
    out = capsys.readouterr().out
    assert names(tmp_path) == {"metalabelnet", "cross_entropy", "curves.png"}
    assert_is_a_picture(tmp_path / "curves.png")
    assert names(tmp_path / "metalabelnet") == FILES
    assert names(tmp_path / "cross_entropy") == FILES - OF_SOFT_LABELS
    found = [read_result(tmp_path / method) for method in ("metalabelnet", "cross_entropy")]
    assert [r["method"] for r in found] == ["metalabelnet", "cross_entropy"]
    assert sorted(found[1]) == sorted(RESULT_KEYS)
    assert found[1]["warmup_test_accuracy"] is None and found[1]["warmup_epochs"] is None
    histories = [read_history(tmp_path / method) for method in ("metalabelnet", "cross_entropy")]
    assert [row["phase"] for row in histories[1]] == ["1"] * 3
    assert not any("meta_loss" in row for row in histories[1])
    for rows in histories:
        rates = [float(row["learning_rate"]) for row in rows]
        assert rates == pytest.approx([0.01, 0.01, 0.001])
    # Until the switch both are the same training.
    assert histories[1][0].items() <= histories[0][0].items()
    starts = [line.split()[0] for line in out.splitlines() if ", from epoch 1 to 3" in line]
    assert starts == ["metalabelnet", "cross_entropy"]
    lines = re.findall(r"^epoch +(\d)  (|warm-up  |phase 2  )loss", out, re.MULTILINE)
    phases = ["warm-up  ", "phase 2  ", "phase 2  ", "", "", ""]
    assert lines == list(zip("123123", phases, strict=True))
    header, *rows = out[out.index("test accuracy, %") :].splitlines()[:3]
    for row, result in zip(rows, found, strict=True):
        assert row.split()[0] == result["method"]
        assert f"{100 * result['test_accuracy']:.2f} (epoch {result['best_epoch']})" in row
    assert str(tmp_path / "curves.png") in out

    before = stamps(tmp_path)
    assert main(*flags) == 0
    again = capsys.readouterr()
    assert "\n".join([header, *rows]) in again.out and again.err == ""
    assert stamps(tmp_path) == before

    # As after a kill while the picture is written.
    (tmp_path / "curves.png").rename(tmp_path / ".writing-curves.png")
    os.truncate(tmp_path / ".writing-curves.png", 1000)
    assert main(*flags, "--resume") == 0
    assert_is_a_picture(tmp_path / "curves.png")
    assert names(tmp_path) == {"metalabelnet", "cross_entropy", "curves.png"}


# ---- a run that fails ---------------------------------------------------------------------------


def test_a_loss_that_turns_nan_at_once_leaves_nothing(tmp_path, capsys):
    assert main(*SHORT, "--learning_rate", "1e30", "--output_dir", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"mln_keras.py: .*epoch 1, step \d+: the loss is (nan|inf).*\n", err)
    assert "no checkpoint" in err and str(tmp_path / "run") in err
    assert tree(tmp_path / "run") == []


def test_a_loss_that_turns_nan_later_keeps_the_last_good_checkpoint(tmp_path, capsys):
    flags = (*SHORT, "--meta_learning_rate", "1e38", "--output_dir", tmp_path)
    assert main(*flags) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"mln_keras.py: .*epoch 2, step \d+: the loss is (nan|inf).*\n", err)
    assert "the last good checkpoint, of epoch 1" in err and str(tmp_path) in err
    assert names(tmp_path) == {"checkpoint", "history.csv"} and len(read_history(tmp_path)) == 1
    state, path = checkpoints.load_checkpoint(tmp_path)
    model = model_of(*flags)
    model.load_weights(path)
    assert state["epoch"] == 1
    assert all(np.isfinite(variable.numpy()).all() for variable in model.training_state())


@pytest.mark.slow
def test_weights_that_only_the_last_step_of_an_epoch_spoils_are_not_kept(tmp_path, capsys):
    """The loss of that step is still that of the good weights before it."""
    flags = ("--batch_size", 300, "--unlabeled_size", 897, "--learning_rate", "1e38")
    assert main(*SHORT, *flags, "--output_dir", tmp_path) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"mln_keras.py: .*epoch 1, step 1, its last: the .*\n", err)
    assert checkpoints.load_checkpoint(tmp_path) == (None, None) and tree(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "Can't write data (a long story)")

    monkeypatch.setattr(checkpoints, "save_checkpoint", write)
    assert main(*SHORT, "--output_dir", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"--output_dir: cannot write to {tmp_path / 'run'} (No space left" in err


def test_a_disk_that_has_no_room_for_a_checkpoint_is_seen_before(tmp_path, capsys, monkeypatch):
    free = types.SimpleNamespace(free=2 * 10**5)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: free)
    assert main(*SHORT, "--output_dir", tmp_path / "run") == 1
    assert "(No space left on device)" in capsys.readouterr().err
    assert tree(tmp_path / "run") == ["checkpoint"]


@pytest.mark.parametrize(
    ("line", "noise"),
    [(" on CPU: ", "none"), ("epoch   1  ", "none"), ("test accuracy, %", "none"),
     ("teacher: 10 epochs", "feature_dependent"), ("teacher: epoch 2", "feature_dependent")],
)  # fmt: skip
def test_standard_output_that_is_full_is_not_taken_for_the_directory(
    tmp_path, capsys, monkeypatch, line, noise
):
    class Full(io.StringIO):
        def write(self, text):
            if line in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    flags = ("--dataset", "digits", "--method", "cross_entropy", "--epochs", 1, "--noise", noise)
    assert main(*flags, "--output_dir", tmp_path / "run") == 1
    full = "cannot write to standard output (No space left on device)"
    assert capsys.readouterr().err == f"mln_keras.py: {full}\n"


@pytest.mark.parametrize(
    ("is_closed", "status", "message"),
    [(True, 141, ""),
     (False, 1, "mln_keras.py: cannot write to standard output (No space left on device)\n")],
)  # fmt: skip
def test_standard_output_that_takes_nothing_ends_the_program(
    capsys, monkeypatch, is_closed, status, message
):
    if is_closed:
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    with open(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main("--help") == status
        stdout.flush()  # as Python does at its end
    assert capsys.readouterr().err == message


def test_a_closed_pipe_is_no_full_disk(tmp_path, capsys, monkeypatch):
    def write(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(run, "run", write)
    with pytest.raises(BrokenPipeError):
        run.run_or_say_why_not({"output_dir": str(tmp_path)}, None, None, None)
    assert "cannot write to" not in capsys.readouterr().err


def test_too_little_memory_is_one_line(tmp_path, capsys, monkeypatch):
    def large(*_):
        return tf.reduce_sum(tf.random.uniform((2**45,)))

    monkeypatch.setattr(mln_keras.MetaLabelNet, "classification_loss", large)
    assert main(*SHORT, "--method", "metalabelnet", "--output_dir", tmp_path / "out") == 1
    line = capsys.readouterr().err.strip()
    assert "not enough memory: a smaller batch_size" in line and "\n" not in line


def test_ctrl_c_before_training_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_splits", interrupt)
    assert main("--dataset", "digits", "--output_dir", tmp_path) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0 and tree(tmp_path) == []
