"""The command line: the files of a run, its continuation after a kill, what bad input gets."""

import contextlib
import csv
import ctypes
import dataclasses
import errno
import json
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import h5py
import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf

from mln_keras.command import flags as command_line
import mln_keras.data.teacher
from mln_keras import layers
import mln_keras
from mln_keras.command import files as outputs

PROGRAM = Path(mln_keras.__file__)
EPOCHS, WARMUP_EPOCHS, UNLABELED = 6, 3, 200
RUN = (
    "--dataset", "digits", "--unlabeled_size", str(UNLABELED),
    "--epochs", str(EPOCHS), "--warmup_epochs", str(WARMUP_EPOCHS),
)  # fmt: skip
SHORT = ("--dataset", "digits", "--epochs", "2", "--warmup_epochs", "1")
FLAGS = [
    "dataset", "data_dir", "noise", "noise_ratio", "noise_probs", "meta_size", "unlabeled_size",
    "method", "epochs", "warmup_epochs", "batch_size", "learning_rate", "meta_learning_rate",
    "inner_learning_rate", "vertical_flip", "seed", "output_dir", "resume", "mixed_precision",
    "jit_compile", "steps_per_execution",
]  # fmt: skip
RESULT_KEYS = [
    "dataset", "noise", "noise_ratio", "noise_ratio_actual", "method", "seed", "epochs",
    "warmup_epochs", "warmup_test_accuracy", "best_epoch", "meta_accuracy", "test_accuracy",
    "last_test_accuracy", "seconds", "flags", "versions",
]  # fmt: skip
FILES = {
    "result.json", "history.csv", "curves.png", "soft_labels.npz", "checkpoint", "model.keras",
    "saved_model",
}  # fmt: skip


def main(*flags):
    return mln_keras.main([str(PROGRAM), *map(str, flags)])


def read_result(directory):
    return json.loads((directory / "result.json").read_text())


def read_history(directory):
    with open(directory / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def parse_settings(*flags):
    return mln_keras.parse_settings(["", *map(str, flags)], mln_keras.RECIPES, "")


def splits_of(*flags):
    return mln_keras.load_splits(*parse_settings(*flags))


def names(directory):
    return {path.name for path in directory.iterdir()}


def tree(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def stamps(directory):
    """What tells whether a file was written or made anew, of every file; None for a folder."""
    found = {path: path.stat() for path in directory.rglob("*")}
    return {p: None if p.is_dir() else (s.st_mtime_ns, s.st_ino) for p, s in found.items()}


@pytest.fixture(autouse=True)
def fresh_keras():
    """In place of conftest's: the program sets the seed itself, and most tests here train nothing.

    It asks for determinism for the whole process, with which Keras leaves XLA out.
    """
    from tensorflow.python.framework.config import disable_op_determinism

    yield
    disable_op_determinism()
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module", autouse=True)
def keras_as_it_was():
    yield
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """One run of the program, as from a shell without a terminal, to its default directory."""
    multiprocessing.forkserver.ensure_running()  # it imports TensorFlow in the meantime
    cwd = tmp_path_factory.mktemp("unbroken")
    done = subprocess.run(
        [sys.executable, PROGRAM, *RUN], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    directory = cwd / "runs" / "digits-class_dependent-0.4-metalabelnet-seed0"
    return types.SimpleNamespace(directory=directory, stdout=done.stdout, stderr=done.stderr)


# ---- the files of a run -------------------------------------------------------------------------


def test_the_cudnn_that_rounds_is_named_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert "cudnn" not in outputs.versions()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    details = {"device_name": "GPU of a kind"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    library = types.SimpleNamespace(cudnnGetVersion=lambda: 91002)
    monkeypatch.setattr(ctypes, "CDLL", {"libcudnn.so.9": library}.__getitem__)
    assert outputs.versions()["cudnn"] == "9.10.2"
    assert outputs.versions()["device"] == "GPU of a kind"

    def is_absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", is_absent)
    assert "cudnn" not in outputs.versions()


def test_a_run_leaves_just_these_files_in_its_default_directory(unbroken):
    assert names(unbroken.directory) == FILES
    best = read_result(unbroken.directory)["best_epoch"]
    assert names(unbroken.directory / "checkpoint") == {
        f"epoch-{EPOCHS:04d}",
        f"best-{best:04d}.weights.h5",
    }


def test_history_has_a_row_an_epoch(unbroken):
    rows = read_history(unbroken.directory)
    assert [row["epoch"] for row in rows] == [str(n + 1) for n in range(EPOCHS)]
    assert [row["phase"] for row in rows] == ["1"] * 3 + ["2"] * 3
    only_phase_2 = {"meta_loss", "soft_label_entropy", "soft_label_agreement"}
    for row in rows:
        empty = {name for name, value in row.items() if value == ""}
        assert empty == (only_phase_2 if row["phase"] == "1" else set())
        for name, value in row.items():
            assert name in empty or np.isfinite(float(value))
            assert "accuracy" not in name or 0 <= float(value) <= 1
    assert float(rows[-1]["meta_set_loss"]) < float(rows[0]["meta_set_loss"])


def test_result_agrees_with_the_history(unbroken):
    result, rows = read_result(unbroken.directory), read_history(unbroken.directory)
    assert sorted(result) == sorted(RESULT_KEYS)
    meta = [float(row["meta_accuracy"]) for row in rows]
    test = [float(row["test_accuracy"]) for row in rows]
    best = meta.index(max(meta))
    assert result["best_epoch"] == best + 1
    assert result["meta_accuracy"] == meta[best] and result["test_accuracy"] == test[best]
    assert result["warmup_test_accuracy"] == test[WARMUP_EPOCHS - 1]
    assert result["last_test_accuracy"] == test[-1]
    given = {"dataset": "digits", "noise": "class_dependent", "noise_ratio": 0.4, "seed": 0}
    given |= {"method": "metalabelnet", "epochs": EPOCHS, "warmup_epochs": WARMUP_EPOCHS}
    assert {name: result[name] for name in given} == given
    assert result["noise_ratio_actual"] == splits_of(*RUN).noise_ratio != 0
    assert result["seconds"] > 0.1
    assert list(result["flags"]) == FLAGS and result["flags"]["unlabeled_size"] == UNLABELED
    assert result["versions"]["mln_keras"] == outputs.VERSION
    assert result["versions"]["tensorflow"] == tf.__version__
    assert result["versions"]["keras"] == keras.__version__


def test_the_models_are_those_of_the_best_epoch(unbroken):
    result, splits = read_result(unbroken.directory), splits_of(*RUN)
    model = keras.models.load_model(unbroken.directory / "model.keras")
    for kind in ("test", "meta"):
        images, labels = getattr(splits, f"{kind}_images"), getattr(splits, f"{kind}_labels")
        scores = model.evaluate(images, labels, batch_size=1000, verbose=0, return_dict=True)
        assert scores["accuracy"] == result[f"{kind}_accuracy"]
    serve = tf.saved_model.load(unbroken.directory / "saved_model").signatures["serving_default"]
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


def test_soft_labels_of_every_training_sample(unbroken):
    saved, splits = np.load(unbroken.directory / "soft_labels.npz"), splits_of(*RUN)
    assert sorted(saved) == ["given_labels", "index", "soft_labels"]
    np.testing.assert_array_equal(saved["index"], np.arange(1197))
    np.testing.assert_array_equal(saved["given_labels"], splits.given_labels)
    assert saved["given_labels"].dtype == np.int32 and (saved["given_labels"] == -1).sum() == 200
    soft_labels = saved["soft_labels"]
    assert soft_labels.shape == (1197, 10) and soft_labels.dtype == np.float32
    assert soft_labels.min() >= 0 and np.ptp(soft_labels) > 0.1
    np.testing.assert_allclose(soft_labels.sum(1), 1, atol=1e-5)


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)[..., :3]
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    assert min(pixels.shape[:2]) > 400 and colours > 50 and pixels.std() > 0.05


def test_curves_are_a_picture(unbroken):
    assert_is_a_picture(unbroken.directory / "curves.png")


def test_without_a_terminal_it_prints_a_line_an_epoch_and_the_table(unbroken):
    first, *epochs, blank, header, row = unbroken.stdout.splitlines()
    relative = unbroken.directory.relative_to(unbroken.directory.parents[1])
    device = read_result(unbroken.directory)["versions"]["device"]
    assert first == f"metalabelnet on {device}: {relative}, from epoch 1 to {EPOCHS}"
    assert blank == ""
    for line, expected in zip(epochs, read_history(unbroken.directory), strict=True):
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
    result = read_result(unbroken.directory)
    warmup, best, last = (
        f"{100 * result[name]:.2f}"
        for name in ("warmup_test_accuracy", "test_accuracy", "last_test_accuracy")
    )
    assert row.split() == (
        f"metalabelnet {warmup} {best} (epoch {result['best_epoch']}) {last} (epoch {EPOCHS})"
    ).split()


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


def test_a_run_is_a_function_of_its_seed(unbroken, tmp_path):
    """This process has computed other things before; `unbroken` had a process of its own."""
    assert main(*RUN, "--output_dir", tmp_path / "same") == 0
    history = (tmp_path / "same" / "history.csv").read_bytes()
    assert history == (unbroken.directory / "history.csv").read_bytes()
    short = ("--epochs", 1, "--method", "cross_entropy", "--output_dir", tmp_path / "other")
    assert main(*RUN[:4], *short, "--seed", 1) == 0
    first, other = (read_history(tmp_path / name)[0] for name in ("same", "other"))
    assert all(first[name] != other[name] for name in ("loss", "meta_set_loss", "test_loss"))


def test_the_demonstration_runs_both_methods_side_by_side(tmp_path, capsys, monkeypatch):
    recipe = dataclasses.replace(mln_keras.RECIPES["digits"], learning_rate_drops=(2,))
    monkeypatch.setitem(mln_keras.RECIPES, "digits", recipe)
    flags = ("--epochs", 3, "--warmup_epochs", 1, "--output_dir", tmp_path)
    assert main(*flags) == 0
    out = capsys.readouterr().out
    assert names(tmp_path) == {"metalabelnet", "cross_entropy", "curves.png"}
    assert_is_a_picture(tmp_path / "curves.png")
    assert names(tmp_path / "metalabelnet") == FILES
    assert names(tmp_path / "cross_entropy") == FILES - {"soft_labels.npz"}
    results = [read_result(tmp_path / method) for method in ("metalabelnet", "cross_entropy")]
    assert [r["method"] for r in results] == ["metalabelnet", "cross_entropy"]
    assert sorted(results[1]) == sorted(RESULT_KEYS)
    assert results[1]["warmup_test_accuracy"] is None and results[1]["warmup_epochs"] is None
    assert [row["phase"] for row in read_history(tmp_path / "cross_entropy")] == ["1"] * 3
    assert all(row["meta_loss"] == "" for row in read_history(tmp_path / "cross_entropy"))
    for method in ("metalabelnet", "cross_entropy"):
        rates = [float(row["learning_rate"]) for row in read_history(tmp_path / method)]
        assert rates == pytest.approx([0.01, 0.01, 0.001])
    starts = [line.split()[0] for line in out.splitlines() if ", from epoch 1 to 3" in line]
    assert starts == ["metalabelnet", "cross_entropy"]
    lines = re.findall(r"^epoch +(\d)  (|warm-up  |phase 2  )loss", out, re.MULTILINE)
    phases = ["warm-up  ", "phase 2  ", "phase 2  ", "", "", ""]
    assert lines == list(zip("123123", phases, strict=True))
    # Until the switch both are the same training.
    first, second = (read_history(tmp_path / r["method"])[0] for r in results)
    assert first == second
    header, *rows = out[out.index("test accuracy, %") :].splitlines()[:3]
    for row, result in zip(rows, results, strict=True):
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


def test_flags_reach_the_model():
    settings, recipe = parse_settings(
        "--dataset", "digits", "--epochs", "7", "--warmup_epochs", "5", "--seed", "3",
        "--learning_rate", "0.5", "--meta_learning_rate", "0.25", "--inner_learning_rate", "2",
        "--mixed_precision", "--jit_compile", "--steps_per_execution", "9",
    )  # fmt: skip
    model = mln_keras.build_model(settings, recipe)
    assert (model.warmup_epochs, model.seed, model.inner_learning_rate) == (5, 3, 2.0)
    assert (float(model.optimizer.learning_rate), float(model.optimizer.momentum)) == (0.5, 0.9)
    assert float(model.meta_optimizer.learning_rate) == 0.25
    assert model.jit_compile is True and model.steps_per_execution == 9
    assert model.classifier.layers[-1].compute_dtype == "bfloat16"
    settings["method"], settings["mixed_precision"] = "cross_entropy", False
    model = mln_keras.build_model(settings, recipe)
    assert model.warmup_epochs == 7 and model.classifier.layers[-1].compute_dtype == "float32"


def test_the_recipe_of_cifar10_is_the_papers():
    settings, recipe = parse_settings("--dataset", "cifar10")
    expected = {"noise": "uniform", "epochs": 120, "warmup_epochs": 44, "batch_size": 128}
    expected |= {"meta_size": 5000, "learning_rate": 1e-2, "meta_learning_rate": 1e-2}
    expected |= {"inner_learning_rate": 1.0, "unlabeled_size": 0, "method": "metalabelnet"}
    assert {name: settings[name] for name in expected} == expected
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 40, 41, 80, 81, 119)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    changed = parse_settings("--dataset", "cifar10", "--learning_rate", 0.1)[1]
    assert changed.learning_rate_at(41) == pytest.approx(0.01)


def test_the_model_of_cifar10_is_the_papers():
    model = mln_keras.build_model(*parse_settings("--dataset", "cifar10"))
    shapes = [layer.kernel.shape for layer in model.classifier.layers if hasattr(layer, "kernel")]
    assert model.image_shape == (32, 32, 3) and shapes == [
        (3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128), (3, 3, 128, 196),
        (3, 3, 196, 196), (4 * 4 * 196, 256), (256, 10),
    ]  # fmt: skip
    expected = {"padding": 4, "horizontal_flip": True, "vertical_flip": True}
    assert isinstance(model.augmentation, layers.RandomFlipCrop)
    assert {name: getattr(model.augmentation, name) for name in expected} == expected
    changed = mln_keras.build_model(
        *parse_settings("--dataset", "cifar10", "--novertical_flip")
    ).augmentation
    assert {n: getattr(changed, n) for n in expected} == expected | {"vertical_flip": False}
    expected = {
        "warmup_epochs": 44, "feature_extractor": None, "inner_learning_rate": 1.0,
        "average_over_classes": True, "entropy_weight": 1.0, "weight_decay": 1e-4,
        "label_head_init": "random", "meta_batch_norm": True, "shuffle_meta": False, "seed": 0,
    }  # fmt: skip
    assert {name: getattr(model, name) for name in model.config_names} == expected

    for optimizer, expected in (
        (model.optimizer, keras.optimizers.SGD(0.01, momentum=0.9, nesterov=False)),
        (model.meta_optimizer, keras.optimizers.Adam(0.01, 0.9, 0.999, epsilon=1e-8)),
    ):
        assert type(optimizer) is type(expected)
        assert optimizer.get_config() == expected.get_config() | {"name": optimizer.name}


def test_cross_entropy_may_have_larger_batches_than_the_meta_set():
    flags = ("--dataset", "digits", "--meta_size", 20, "--method", "cross_entropy")
    assert parse_settings(*flags, "--batch_size", 21)[1].batch_size == 21


@pytest.mark.parametrize(
    ("gpus", "flags", "expected"),
    [([], [], True), ([], ["--jit_compile"], False), (["GPU"], ["--nojit_compile"], False)],
)
def test_kernels_are_deterministic_on_a_cpu_without_xla(
    unbroken, tmp_path, monkeypatch, gpus, flags, expected
):
    from tensorflow.python.framework.config import is_op_determinism_enabled

    found = []

    def run(*_):
        found.append(is_op_determinism_enabled())
        return read_result(unbroken.directory)

    monkeypatch.setattr(mln_keras, "run", run)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert main(*SHORT, *flags, "--output_dir", tmp_path / "run") == 0
    assert found == [expected]


@pytest.mark.parametrize("given", ["", "--xla_gpu_autotune_level=2"])
def test_xla_flags_that_were_given_come_last(unbroken, tmp_path, monkeypatch, given):
    found = []

    def run(*_):
        found.append(os.environ["XLA_FLAGS"])
        return read_result(unbroken.directory)

    monkeypatch.setattr(mln_keras, "run", run)
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "a home"))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"])
    for number, jit_compile in enumerate(["--nojit_compile", "--jit_compile", "--jit_compile"]):
        assert main(*SHORT, jit_compile, "--output_dir", tmp_path / str(number)) == 0
    kept = tmp_path / "a home" / "mln_keras_kernels" / f"tensorflow-{tf.__version__}"
    with_ours = (
        "--xla_gpu_graph_min_graph_size=1 "
        f'--xla_gpu_experimental_autotuner_cache_dir="{kept}" '
        f'--xla_gpu_per_fusion_autotune_cache_dir="{kept}" {given}'
    )
    assert found == [given, with_ours, with_ours] and kept.is_dir()


def test_kernels_are_not_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "a file"))
    monkeypatch.setenv("XLA_FLAGS", "")
    mln_keras.configure_xla()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_gpu_graph_min_graph_size=1"]


@pytest.mark.parametrize("before", [None, {}, {"kept": "older"}])
@pytest.mark.parametrize("gpus", [[], ["GPU"]])
def test_a_new_folder_of_kernels_begins_with_those_of_the_repository(
    tmp_path, monkeypatch, before, gpus
):
    folder = tmp_path / "mln_keras_kernels" / f"tensorflow-{tf.__version__}"
    if before is not None:
        folder.mkdir(parents=True)
        for name, text in before.items():
            (folder / name).write_text(text)
    shipped = {"kept": "newer", "more": "text"}
    (tmp_path / "kernels.json").write_text(json.dumps({folder.name: shipped, "other": {"no": ""}}))
    monkeypatch.setattr(command_line, "KERNELS", tmp_path / "kernels.json")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")
    mln_keras.configure_xla()
    if before is None and not gpus:
        assert not folder.parent.exists() and "cache_dir" not in os.environ["XLA_FLAGS"]
    else:
        expected = shipped if before is None else before
        assert {path.name: path.read_text() for path in folder.iterdir()} == expected
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_kernels_of_the_repository_are_for_the_version_that_its_requirements_allow():
    shipped = json.loads(command_line.KERNELS.read_text())
    allowed = Path(mln_keras.__file__).with_name("requirements.txt").read_text()
    assert any(f"{n.replace('-', '==').rpartition('.')[0]}.*" in allowed for n in shipped)
    for kernels in shipped.values():
        assert kernels and all(name.endswith(".textproto") for name in kernels)


def test_without_noise_the_ratio_is_0():
    settings, _ = parse_settings(*SHORT, "--noise", "none")
    assert settings["noise_ratio"] == 0
    assert settings["output_dir"] == str(Path("runs", "digits-none-0.0-metalabelnet-seed0"))


@pytest.mark.parametrize("flags", [(), ("--output_dir=",)])
def test_the_demonstration_has_a_default_directory(flags):
    settings, _ = parse_settings("--seed", 3, *flags)
    assert settings["output_dir"] == str(Path("runs", "digits-class_dependent-0.4-seed3"))


def test_a_class_without_a_meta_sample_is_warned_of_once(tmp_path, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assert main(*SHORT, "--meta_size", 12, "--batch_size", 12, "--unlabeled_size", 1100,
                    "--output_dir", tmp_path) == 0  # fmt: skip
    assert capsys.readouterr().err.count("no sample of") == 1
    assert not [w for w in caught if "no sample" in str(w.message)]


# ---- continued after Ctrl-C ---------------------------------------------------------------------


class EpochsOf:
    """In place of a model: epochs with made-up meta accuracies, whose weights are their number."""

    phase, phase_2_metrics = tf.constant(1), ()

    def __init__(self, directory, meta_accuracies, state=None, more_epochs=0):
        self.variables = [tf.Variable(0)]
        self.optimizer = self.meta_optimizer = types.SimpleNamespace(variables=[])
        meta = iter(meta_accuracies)
        held_out = {"meta": lambda: (1.0, next(meta)), "test": lambda: (1.0, 0.5)}
        recorder = outputs.RunRecorder(directory, {"method": "cross_entropy"}, held_out, state)
        recorder.set_model(self)
        recorder.set_params({
            "epochs": len(recorder.rows) + len(meta_accuracies) + more_epochs
        })
        for epoch in range(len(recorder.rows), len(recorder.rows) + len(meta_accuracies)):
            self.variables[0].assign(epoch + 1)
            logs = dict.fromkeys(("learning_rate", "loss", "accuracy"), 1.0)
            recorder.on_epoch_end(epoch, logs)

    def save_weights(self, path):
        path.write_text(str(int(self.variables[0])))


def test_the_best_epoch_survives_that_training_goes_on_later(tmp_path):
    before = []
    for meta_accuracies, last, best in (
        ([0.5, 0.9, 0.6], 3, 2),
        ([0.7, 0.9], 5, 2),  # a tie is no better
        ([0.1], 6, 2),
        ([0.95, 0.2], 8, 7),
    ):
        state, _ = outputs.load_checkpoint(tmp_path)
        EpochsOf(tmp_path, meta_accuracies, state)
        before += meta_accuracies
        state, path = outputs.load_checkpoint(tmp_path)
        assert (state["epoch"], state["best_epoch"], path.read_text()) == (last, best, str(last))
        assert outputs.best_weights(tmp_path, best).read_text() == str(best)
        assert names(tmp_path / "checkpoint") == {path.parent.name, f"best-{best:04d}.weights.h5"}
        assert [row["meta_accuracy"] for row in state["rows"]] == before
        assert [row["epoch"] for row in state["rows"]] == [*range(1, last + 1)]
        assert outputs.summarize(state["rows"], None)["best_epoch"] == best


@pytest.mark.parametrize("seconds, saved, best", [(0, 4, 3), (1000, 1, 1)])
def test_between_two_checkpoints_are_seconds(tmp_path, monkeypatch, seconds, saved, best):
    monkeypatch.setattr(outputs, "CHECKPOINT_SECONDS", seconds)
    EpochsOf(tmp_path, [0.4, 0.5, 0.6, 0.3], more_epochs=1)
    state, _ = outputs.load_checkpoint(tmp_path)
    assert (state["epoch"], state["best_epoch"], len(state["rows"])) == (saved, best, saved)
    assert (tmp_path / "checkpoint" / f"best-{best:04d}.weights.h5").read_text() == str(best)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + 4


def test_a_best_epoch_between_two_checkpoints_is_saved_whole(tmp_path):
    """With its optimizers, while the training that goes on keeps its own."""
    settings, recipe = parse_settings(*SHORT)
    splits, model = splits_of(*SHORT), mln_keras.build_model(settings, recipe)
    for epoch in (0, 1):
        model.fit(
            splits.train_images[:128], splits.given_labels[:128], epochs=epoch + 1,
            meta_data=(splits.meta_images, splits.meta_labels) if epoch else None,
            initial_epoch=epoch, batch_size=64, verbose=0,
        )  # fmt: skip
        model.save_weights(tmp_path / f"{epoch + 1}.weights.h5")
        if epoch == 0:
            best = outputs.values(model)
    outputs.save_checkpoint(tmp_path, model, {"epoch": 2, "best_epoch": 1}, best)
    model.save_weights(tmp_path / "after.weights.h5")
    _, path = outputs.load_checkpoint(tmp_path)
    assert_same_weights(outputs.best_weights(tmp_path, 1), tmp_path / "1.weights.h5")
    assert_same_weights(path, tmp_path / "2.weights.h5")
    assert_same_weights(tmp_path / "after.weights.h5", tmp_path / "2.weights.h5")


def test_the_seconds_before_a_kill_count(tmp_path):
    EpochsOf(tmp_path, [0.5])
    state, _ = outputs.load_checkpoint(tmp_path)
    assert state["seconds"] > 0
    EpochsOf(tmp_path, [0.5], state | {"seconds": 1000.0})
    state, _ = outputs.load_checkpoint(tmp_path)
    assert 1000 < state["seconds"] < 2000


def test_ctrl_c_before_training_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mln_keras, "load_splits", interrupt)
    assert main("--dataset", "digits", "--output_dir", tmp_path) == 130
    assert capsys.readouterr().err.strip().count("\n") == 0 and tree(tmp_path) == []


def test_only_one_process_trains_in_a_directory(refused, tmp_path):
    with outputs.claim_directory(tmp_path / "out"):
        assert "another process is training in " in refused("--dataset", "digits")
    with outputs.claim_directory(tmp_path / "out"):
        pass


def test_a_run_that_is_made_while_data_are_loaded_is_seen(tmp_path, capsys, monkeypatch):
    load, found = mln_keras.load_splits, []

    def load_slowly(settings, recipe):
        monkeypatch.setattr(mln_keras, "load_splits", load)
        found.append(main(*flags, "--seed", "0"))
        return load(settings, recipe)

    flags = ("--dataset", "digits", "--method", "cross_entropy", "--epochs", "1",
             "--output_dir", tmp_path / "out")  # fmt: skip
    monkeypatch.setattr(mln_keras, "load_splits", load_slowly)
    assert (main(*flags, "--seed", "7"), found) == (2, [0])
    assert "holds another run (--seed was 0, now 7)" in capsys.readouterr().err
    assert read_result(tmp_path / "out")["seed"] == 0


def test_a_file_is_not_taken_for_a_flag(refused):
    line = refused("--noise", "feature_dependent", "--noise_probs", "seed/p.npy")
    assert line.startswith("mln_keras.py: seed/p.npy cannot be read")


def test_ctrl_c_is_one_line_and_resume_finishes_the_run(tmp_path, capsys, monkeypatch):
    """The last epoch, after the interruption, is the worst: the best one lies before it."""
    rates = (1e-2, 1e-2, 10.0)
    monkeypatch.setattr(mln_keras.Recipe, "learning_rate_at", lambda _, epoch: rates[epoch])
    flags = ("--dataset", "digits", "--epochs", 3, "--method", "cross_entropy")
    flags += ("--output_dir", tmp_path)

    def interrupt(recorder, batch, logs=None):
        if (len(recorder.rows), batch) == (2, 5):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs.RunRecorder, "on_train_batch_end", interrupt)
        patch.setattr(outputs, "CHECKPOINT_SECONDS", 0)
        try:
            status = main(*flags)
        except KeyboardInterrupt:  # which would end pytest
            pytest.fail("the interruption came through")
    assert status == 130
    err = capsys.readouterr().err
    assert re.fullmatch(r"\n?mln_keras.py: interrupted; .*--resume.*\n", err)
    assert names(tmp_path) == {"checkpoint", "history.csv"}
    before = read_history(tmp_path)
    assert len(before) == 2 and main(*flags) == 2

    capsys.readouterr()
    assert main(*flags, "--resume") == 0
    assert f"{tmp_path}, from epoch 3 to 3\n" in capsys.readouterr().out
    rows, result = read_history(tmp_path), read_result(tmp_path)
    assert rows[:2] == before and len(rows) == 3
    meta = [float(row["meta_accuracy"]) for row in rows]
    assert meta[2] < max(meta) == result["meta_accuracy"] and result["best_epoch"] < 3
    model, splits = keras.models.load_model(tmp_path / "model.keras"), splits_of(*flags)
    scores = model.evaluate(
        splits.test_images, splits.test_labels, batch_size=1000, verbose=0, return_dict=True
    )
    assert scores["accuracy"] == result["test_accuracy"] != result["last_test_accuracy"]


def test_the_seed_reaches_splits_and_noise():
    first, same, other = (
        mln_keras.load_splits(*parse_settings(*RUN, "--seed", seed)) for seed in (1, 1, 2)
    )
    for name in ("given_labels", "meta_images", "test_images"):
        np.testing.assert_array_equal(getattr(first, name), getattr(same, name))
        assert (getattr(first, name) != getattr(other, name)).any()
    labeled = (first.given_labels >= 0) & (other.given_labels >= 0)
    wrong = [(s.given_labels != s.clean_labels)[labeled] for s in (first, other)]
    assert (wrong[0] != wrong[1]).any()


def test_the_data_directory_reaches_the_human_labels(monkeypatch):
    source, found = dataclasses.replace(data.digits.load(), name="cifar10"), []
    monkeypatch.setattr(data, "LOADERS", {"cifar10": lambda data_dir: source})
    monkeypatch.setattr(
        data.cifar10, "human_labels", lambda *a: found.append(a) or source.train_labels
    )
    flags = ("--dataset", "cifar10", "--noise", "human", "--data_dir", "there", "--meta_size", 300)
    mln_keras.load_splits(*parse_settings(*flags))
    assert found == [("there", "worse_label")]


def test_the_recipe_of_digits():
    settings, recipe = parse_settings("--dataset", "digits")
    model = mln_keras.build_model(settings, recipe)
    shapes = [layer.kernel.shape for layer in model.classifier.layers if hasattr(layer, "kernel")]
    assert shapes == [(3, 3, 1, 32), (3, 3, 32, 32), (4 * 4 * 32, 64), (64, 10)]
    expected = {"padding": 1, "horizontal_flip": False, "vertical_flip": False}
    assert {name: getattr(model.augmentation, name) for name in expected} == expected


@pytest.mark.parametrize("method", ["metalabelnet", "cross_entropy"])
def test_a_run_trains_on_given_labels_and_chooses_by_the_meta_set(tmp_path, monkeypatch, method):
    class Fitted(Exception):
        pass

    def fit(model, x, *, meta_data, batch_size, callbacks, **_):
        raise Fitted(x, meta_data, batch_size, callbacks[-1].held_out)

    monkeypatch.setattr(mln_keras.MetaLabelNet, "fit", fit)
    monkeypatch.setattr(mln_keras.MetaLabelNet, "evaluation", lambda model, *data: data)
    settings, recipe = parse_settings(
        *RUN, "--method", method, "--batch_size", 48, "--output_dir", tmp_path
    )
    splits = mln_keras.load_splits(settings, recipe)
    with pytest.raises(Fitted) as fitted:
        mln_keras.run(settings, recipe, splits)
    (images, labels), meta, batch_size, held_out = fitted.value.args
    assert images is splits.train_images and labels is splits.given_labels
    assert (labels == -1).sum() == UNLABELED and splits.noise_ratio > 0.3
    assert meta == ((splits.meta_images, splits.meta_labels) if method == "metalabelnet" else None)
    assert held_out == {
        "meta": (splits.meta_images, splits.meta_labels, 1000),
        "test": (splits.test_images, splits.test_labels, 1000),
    }
    assert batch_size == 48


def test_soft_labels_are_computed_before_the_best_epoch_is_loaded(tmp_path, monkeypatch):
    calls = []
    for owner, name in ((mln_keras.MetaLabelNet, "fit"), (mln_keras.MetaLabelNet, "soft_labels"),
                        (mln_keras.MetaLabelNet, "load_weights"), (outputs, "write_soft_labels"),
                        (outputs, "write_results")):  # fmt: skip
        monkeypatch.setattr(owner, name, lambda *_, name=name, **__: calls.append(name))
    monkeypatch.setattr(outputs, "best_weights", lambda *_: None)
    settings, recipe = parse_settings(*SHORT, "--output_dir", tmp_path)
    mln_keras.run(settings, recipe, mln_keras.load_splits(settings, recipe))
    assert calls == ["fit", "soft_labels", "write_soft_labels", "write_results"]


def test_the_columns_of_the_history_are_those_of_keras(tmp_path):
    directory = tmp_path
    model = EpochsOf.__new__(EpochsOf)
    model.variables = [tf.Variable(0)]
    model.optimizer = model.meta_optimizer = types.SimpleNamespace(variables=[])
    model.phase, model.phase_2_metrics = tf.constant(2), ("meta_loss",)
    held_out = {"meta": lambda: (0.6, 0.7), "test": lambda: (1.0, 0.5)}
    recorder = outputs.RunRecorder(directory, {"method": "metalabelnet"}, held_out)
    recorder.set_model(model)
    recorder.set_params({"epochs": 1})
    logs = {"learning_rate": 0.1, "loss": 0.2, "accuracy": 0.3, "meta_loss": 0.4}
    recorder.on_epoch_end(0, logs)
    assert recorder.rows == [
        {"epoch": 1, "phase": 2, "learning_rate": 0.1, "loss": 0.2, "accuracy": 0.3,
         "meta_loss": 0.4, "meta_set_loss": 0.6, "meta_accuracy": 0.7, "test_loss": 1.0,
         "test_accuracy": 0.5}
    ]  # fmt: skip


def test_an_older_best_epoch_is_not_written_over_a_newer_one(tmp_path, monkeypatch):
    """Epoch 2 is kept in memory, 3 and 4 are better and have a checkpoint, and so has 5."""
    clock = iter([0, 1, 2, 100, 200, 300])
    monkeypatch.setattr(outputs.time, "monotonic", lambda: next(clock))
    EpochsOf(tmp_path, [0.4, 0.5, 0.6, 0.7, 0.3])
    state, _ = outputs.load_checkpoint(tmp_path)
    assert (state["epoch"], state["best_epoch"]) == (5, 4)
    assert outputs.best_weights(tmp_path, 4).read_text() == "4"


def test_the_curves_are_those_of_the_history(tmp_path, monkeypatch):
    import matplotlib.axes

    rows = [{"epoch": i + 1, "test_accuracy": t, "meta_accuracy": m}
            for i, (t, m) in enumerate([(0.5, 0.6), (0.7, 0.9), (0.8, 0.85)])]
    outputs.write_history(tmp_path, rows)
    result = outputs.summarize(rows, 1) | {
        "method": "metalabelnet", "warmup_epochs": 1, "dataset": "digits", "noise": "uniform",
        "noise_ratio": 0.4, "seed": 0,
    }
    drawn, switch = {}, []
    plot, axvline = matplotlib.axes.Axes.plot, matplotlib.axes.Axes.axvline
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot",
        lambda axes, x, y, *more, label, **options: drawn.update({label: (x, y)})
        or plot(axes, x, y, *more, label=label, **options),
    )
    monkeypatch.setattr(
        matplotlib.axes.Axes, "axvline",
        lambda axes, x, **options: switch.append(x) or axvline(axes, x, **options),
    )
    outputs.plot_curves(tmp_path / "curves.png", [(tmp_path, result)])
    assert drawn == {
        "metalabelnet, test set": ([1, 2, 3], [50, 70, 80]),
        "metalabelnet, meta set": ([1, 2, 3], [60, 90, 85]),
        "metalabelnet, best epoch by meta set: 70.0 %": (2, 70),
    }
    assert switch == [1.5]


def test_of_several_best_epochs_between_two_checkpoints_the_newest_best_is_saved(tmp_path):
    EpochsOf(tmp_path, [0.1, 0.5, 0.9, 0.6])
    assert outputs.load_checkpoint(tmp_path)[0]["best_epoch"] == 3
    assert outputs.best_weights(tmp_path, 3).read_text() == "3"


def test_a_run_goes_on_with_its_data_elsewhere(unbroken):
    flags = read_result(unbroken.directory)["flags"]
    moved = flags | {"data_dir": "elsewhere", "output_dir": "x", "resume": True}
    assert outputs.find_run(unbroken.directory, moved, True)["seed"] == 0


# ---- continued after SIGKILL --------------------------------------------------------------------

# Each run gets a process of its own, forked from one that has imported TensorFlow and done nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tensorflow", "keras", "sklearn.datasets", "matplotlib.figure"])


def kill_in(owner, name, when, do=lambda original, *arguments: None):
    """Arranges a SIGKILL in the calls of a function for which `when` holds, after `do`."""
    original = getattr(owner, name)

    def function(*arguments, **keywords):
        if when(*arguments):
            do(original, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, function)


def at_step(epoch, step):
    def when(recorder, batch):
        return (len(recorder.rows) + 1, batch + 1) == (epoch, step)

    kill_in(outputs.RunRecorder, "on_train_batch_end", when)


def at_weights(epoch, **options):
    def when(model, path):
        return f"{epoch:04d}" in str(path)

    kill_in(mln_keras.MetaLabelNet, "save_weights", when, **options)


def at_renaming(name, **options):
    kill_in(os, "replace", lambda _, target: Path(target).name == name, **options)


def complete(original, *arguments):
    original(*arguments)


def write_half(save_weights, model, path):
    save_weights(model, path)
    os.truncate(path, path.stat().st_size // 2)


# While the first checkpoint is written.
FIRST_KILLS = {
    "half way through the first weights": (0, lambda: at_weights(1, do=write_half)),
    "after the first best weights are written": (
        0,
        lambda: at_renaming("best-0001.weights.h5", do=complete),
    ),
    "before the first checkpoint is in place": (0, lambda: at_renaming("epoch-0001")),
}
# What is killed, in the order in which it happens, and the epochs that the checkpoint then holds.
KILLS = {
    "in warm-up": (0, lambda: at_step(1, 5)),
    "before the weights are written": (1, lambda: at_weights(2)),
    "after the best weights are written": (
        1,
        lambda: at_renaming("best-0002.weights.h5", do=complete),
    ),
    "half way through the weights": (2, lambda: at_weights(3, do=write_half)),
    "on the switch": (
        3,
        lambda: kill_in(mln_keras.MetaLabelNet, "begin_phase_2", lambda model: True),
    ),
    "in phase 2": (3, lambda: at_step(4, 5)),
    "between writing and renaming": (3, lambda: at_renaming("epoch-0004")),
    "before the history is written and older checkpoints are removed": (
        6,
        lambda: at_renaming("epoch-0006", do=complete),
    ),
    "before the last file is in place": (6, lambda: at_renaming("saved_model")),
    "before the result is in place": (6, lambda: at_renaming("result.json")),
}


def in_a_process(flags, kill=None):
    """Runs the command line in a new process; returns its exit status, -9 for SIGKILL."""
    process = PROCESSES.Process(target=_child, args=([str(f) for f in flags], kill))
    process.start()
    process.join()
    return process.exitcode


def _child(flags, kill):
    outputs.CHECKPOINT_SECONDS = 0
    if kill:
        (KILLS | FIRST_KILLS)[kill][1]()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        sys.exit(main(*flags))


def weights(path):
    """Every array of an .h5 file by its name."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]})
            if isinstance(item, h5py.Dataset)
            else None
        )
    return arrays


def assert_same_weights(path, other):
    found, expected = weights(path), weights(other)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_killed_at_every_moment_it_ends_as_the_unbroken_run(unbroken, tmp_path):
    directory = tmp_path / "run"
    flags = (*RUN, "--output_dir", directory, "--resume")
    expected_rows = read_history(unbroken.directory)
    for kill, (epochs_done, _) in KILLS.items():
        assert in_a_process(flags, kill) == -signal.SIGKILL, f"never came: {kill}"
        assert not (directory / "result.json").exists(), kill
        state, path = outputs.load_checkpoint(directory)
        assert (state["epoch"] if state else 0) == epochs_done, kill
        if state:
            weights(path)
            weights(outputs.best_weights(directory, state["best_epoch"]))
            rows = [{n: "" if v is None else str(v) for n, v in r.items()} for r in state["rows"]]
            assert rows == expected_rows[:epochs_done], kill
    seconds = state["seconds"]
    assert in_a_process(flags) == 0

    assert tree(directory) == tree(unbroken.directory)  # nothing half written stays
    for name in ("history.csv", "curves.png"):
        assert (directory / name).read_bytes() == (unbroken.directory / name).read_bytes(), name
    last = Path("checkpoint", f"epoch-{EPOCHS:04d}", "model.weights.h5")
    found = weights(directory / last)
    for part in ("classifier/", "label_head/", "optimizer/vars/2", "meta_optimizer/vars/2"):
        assert any(name.startswith(part) for name in found)
    assert_same_weights(directory / last, unbroken.directory / last)
    result, expected = read_result(directory), read_result(unbroken.directory)
    best = Path("checkpoint", f"best-{expected['best_epoch']:04d}.weights.h5")
    assert_same_weights(directory / best, unbroken.directory / best)
    soft_labels, expected_soft_labels = (
        np.load(path / "soft_labels.npz")["soft_labels"] for path in (directory, unbroken.directory)
    )
    np.testing.assert_array_equal(soft_labels, expected_soft_labels)
    test_images = splits_of(*RUN).test_images
    predictions, expected_predictions = (
        keras.models.load_model(path / "model.keras").predict(test_images, verbose=0)
        for path in (directory, unbroken.directory)
    )
    np.testing.assert_array_equal(predictions, expected_predictions)
    for name in set(RESULT_KEYS) - {"flags", "seconds"}:
        assert result[name] == expected[name], name
    assert result["seconds"] == seconds  # no epoch was left to do


def test_killed_at_its_first_checkpoint_it_can_begin_again_without_resume(tmp_path):
    flags = ("--dataset", "digits", "--epochs", 1, "--method", "cross_entropy")
    flags += ("--output_dir", tmp_path)
    for kill in FIRST_KILLS:
        assert in_a_process(flags, kill) == -signal.SIGKILL, f"never came: {kill}"
        assert names(tmp_path) == {"checkpoint"} and names(tmp_path / "checkpoint"), kill
    assert main(*flags) == 0
    assert names(tmp_path) == FILES - {"soft_labels.npz"}
    assert names(tmp_path / "checkpoint") == {"epoch-0001", "best-0001.weights.h5"}


def test_killed_at_its_end_cross_entropy_only_writes_what_is_missing(tmp_path):
    flags = (*SHORT, "--method", "cross_entropy", "--resume", "--output_dir", tmp_path)
    assert in_a_process(flags, "before the result is in place") == -signal.SIGKILL
    before = stamps(tmp_path / "checkpoint")
    assert in_a_process(flags) == 0
    assert stamps(tmp_path / "checkpoint") == before
    assert names(tmp_path) == FILES - {"soft_labels.npz"}
    assert len(read_history(tmp_path)) == 2 == read_result(tmp_path)["epochs"]


def test_a_finished_run_is_shown_again(unbroken, tmp_path, capsys, monkeypatch):
    """With --resume too, which is no part of what a run is, and where its data are gone."""
    monkeypatch.setattr(mln_keras, "load_splits", None)
    directory = tmp_path / "run"
    shutil.copytree(unbroken.directory, directory)
    before = stamps(directory)
    for more in ([], ["--resume"]):
        assert main(*RUN, "--output_dir", directory, *more) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[-2:] == unbroken.stdout.splitlines()[-2:] and err == ""
        assert str(directory) in out.splitlines()[0] and "epoch   1" not in out
    assert stamps(directory) == before


# ---- bad input ----------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Calls the program with flags that it has to refuse; returns its one line on stderr."""

    def nothing_is_trained(*_):
        raise AssertionError("training began")

    monkeypatch.setattr(keras.Model, "fit", nothing_is_trained)

    def call(*flags, output_dir=tmp_path / "out"):
        found = stamps(tmp_path)
        assert main("--output_dir", output_dir, *flags) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("mln_keras.py: ")
        assert err.count("\n") == 1 and err.endswith("\n") and "  " not in err
        assert stamps(tmp_path) == found  # nothing made, nothing changed
        return err

    return call


NUMBER, INTEGER = "could not convert", "invalid literal for int"
REFUSED = [
    (["--epoch", "3"], "'epoch'", "epochs", "--help"),
    (["--resume", "true"], "'true'"),
    (["--epochs"], "--epochs", "issing value"),
    (["--dataset", "mnist"], "--dataset", "digits, cifar10", "'mnist'"),
    (["--noise", "salt"], "--noise", "uniform, class_dependent", "'salt'"),
    (["--method", "magic"], "--method", "metalabelnet, cross_entropy", "'magic'"),
    (["--method="], "--method", "metalabelnet, cross_entropy", "''"),
    (["--dataset", "digits", "--method="], "--method", "metalabelnet, cross_entropy", "''"),
    (["--noise_ratio", "-0.1"], "--noise_ratio", "0 to 1", "-0.1"),
    (["--noise_ratio", "1.5"], "--noise_ratio", "0 to 1", "1.5"),
    (["--noise_ratio", "nan"], "--noise_ratio", "0 to 1", "nan"),
    (["--noise_ratio", "half"], "--noise_ratio", NUMBER, "half"),
    (["--noise", "none", "--noise_ratio", "0.2"], "--noise_ratio", "none", "0.2"),
    (["--noise", "human"], "--noise: ", "human", "cifar10 only", "digits"),
    (["--noise", "uniform", "--noise_probs", "p.npy"], "--noise_probs", "feature_dependent"),
    (["--meta_size", "0"], "--meta_size", "at least 1", "0"),
    (["--meta_size", "301"], "mln_keras.py: --meta_size: ", "1 to 300", "301"),
    (["--meta_size", "-1"], "--meta_size", "at least 1", "-1"),
    (["--unlabeled_size", "1197"], "mln_keras.py: --unlabeled_size: ", "0 to 1196", "1197"),
    (["--unlabeled_size", "-1"], "--unlabeled_size", "at least 0", "-1"),
    (["--unlabeled_size", "1134"], "mln_keras.py: --batch_size: ", "1 to 63", "64"),
    (["--warmup_epochs", "25"], "--warmup_epochs", "--epochs=25", "25"),
    (["--epochs", "8"], "--warmup_epochs", "--epochs=8", "8"),
    (["--warmup_epochs", "-1"], "--warmup_epochs", "at least 0", "-1"),
    (["--epochs", "0"], "--epochs", "at least 1", "0"),
    (["--epochs", "2.5"], "--epochs", INTEGER, "2.5"),
    (["--epochs", "0", "--method", "cross_entropy"], "--epochs", "at least 1", "0"),
    (["--batch_size", "0"], "--batch_size", "at least 1", "0"),
    (["--batch_size", "301"], "--batch_size", "--meta_size=300", "301"),
    (["--seed", "-1"], "--seed", "-1"),
    (["--seed", str(2**31)], "--seed", str(2**31 - 1), str(2**31)),
    (["--seed", "first"], "--seed", INTEGER, "first"),
    (["--steps_per_execution", "0"], "--steps_per_execution", "at least 1", "0"),
    *(
        ([f"--{name}", value], f"--{name}", "above 0", value)
        for name in ("learning_rate", "meta_learning_rate", "inner_learning_rate")
        for value in ("0.0", "-0.1", "nan", "inf")
    ),
    *(
        ([f"--{name}", "fast"], f"--{name}", NUMBER, "fast")
        for name in ("learning_rate", "meta_learning_rate", "inner_learning_rate")
    ),
    *(
        ([f"--{name}", "many"], f"--{name}", INTEGER, "many")
        for name in (
            "epochs", "warmup_epochs", "batch_size", "meta_size", "unlabeled_size",
            "steps_per_execution",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "parts"), [pytest.param(f, parts, id=" ".join(f)) for f, *parts in REFUSED]
)
def test_bad_flags_get_one_line(refused, flags, parts):
    line = refused(*flags)
    assert all(part in line for part in parts), line


def write_npy(array, **options):
    return lambda path: np.save(path, array, **options)


GOOD = np.full((1197, 10), 0.1)
BAD_PROBS = {
    "missing": (lambda path: None, "No such file"),
    "no .npy": (lambda path: path.write_text("0.1,0.9\n"), "not a whole .npy"),
    "pickled": (write_npy(GOOD.astype(object), allow_pickle=True), "not a whole .npy"),
    "cut short": (lambda path: (np.save(path, GOOD), os.truncate(path, 900)), "not a whole .npy"),
    "other shape": (write_npy(GOOD[:1000]), "expected shape (1197, 10), received (1000, 10)"),
    "integers": (write_npy(np.eye(10, dtype=int)[np.zeros(1197, int)]), "received int64"),
    "nan": (write_npy(np.where(np.arange(10) == 3, np.nan, GOOD)), "finite"),
}


@pytest.mark.parametrize("damage", BAD_PROBS)
def test_bad_noise_probs_get_one_line_that_names_the_file(refused, tmp_path, damage):
    write, message = BAD_PROBS[damage]
    path = tmp_path / "probs.npy"
    write(path)
    line = refused("--noise", "feature_dependent", "--noise_probs", path)
    assert str(path) in line and message in line


@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "a file"])
def test_a_bad_data_dir_gets_one_line_that_names_it(refused, tmp_path, monkeypatch, damage):
    import requests

    def no_network(url, **_):
        raise requests.ConnectionError(f"no route to {url}\nand a second line")

    monkeypatch.setattr(requests, "head", no_network)
    data_dir = tmp_path / "tfds"
    if damage == "empty":
        data_dir.mkdir()
    elif damage == "a file":
        data_dir.write_text("")
    elif damage == "cut short":
        (data_dir / "cifar10" / "3.0.2").mkdir(parents=True)
        (data_dir / "cifar10" / "3.0.2" / "dataset_info.json").write_text('{"name": "cifa')
    line = refused("--dataset", "cifar10", "--data_dir", data_dir)
    assert f"data_dir {data_dir}: " in line and "to mend it" in line


def test_an_output_dir_that_cannot_be_written_is_refused(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for output_dir in (file, file / "below", file / "far" / "below"):
        for flags in (SHORT, (), (*SHORT, "--resume")):
            line = refused(*flags, output_dir=output_dir)
            assert "--output_dir" in line and str(output_dir) in line
    assert file.read_text() == "kept"


@pytest.fixture(params=["finished", "unfinished"])
def held(request, unbroken, tmp_path):
    """A directory with the run of `unbroken`, finished or not."""
    directory = tmp_path / "held"
    shutil.copytree(unbroken.directory, directory)
    if request.param == "unfinished":
        for name in FILES - {"checkpoint", "history.csv"}:
            outputs._remove(directory / name)
    return directory


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize(
    "change",
    [["--seed", "1"], ["--noise_ratio", "0.2"], ["--epochs", "7"], ["--learning_rate", "0.02"],
     ["--method", "cross_entropy"], ["--unlabeled_size", "199"], ["--mixed_precision"]],
)  # fmt: skip
def test_another_runs_directory_is_refused(refused, held, change, resume):
    line = refused(*RUN, *change, *resume, output_dir=held)
    value = change[1] if len(change) > 1 else "True"
    assert "--output_dir" in line and str(held) in line
    assert re.search(rf"{change[0]} was \S+, now '?{value}'?", line), line


@pytest.mark.parametrize("held", ["unfinished"], indirect=True)
def test_an_unfinished_run_without_resume_is_refused(refused, held):
    line = refused(*RUN, output_dir=held)
    assert str(held) in line and "--resume" in line and "unfinished" in line


@pytest.mark.parametrize("held", ["unfinished", "finished"], indirect=True)
@pytest.mark.parametrize("version", ["0.0", None])
def test_a_run_of_another_version_is_refused(refused, held, version):
    state, result = next(held.glob("checkpoint/*/state.json")), held / "result.json"
    for path, name in ((state, "version"), (result, "mln_keras")):
        if path.exists():
            content = json.loads(path.read_text())
            del (where := content.get("versions", content))[name]
            where |= {name: version} if version else {}
            path.write_text(json.dumps(content))
    line = refused(*RUN, "--resume", output_dir=held)
    assert f"holds a run of version {version or '0.1'} of this program" in line
    assert f"this is version {outputs.VERSION};" in line and str(held) in line


FOREIGN = {
    "a photo": {"cat.jpg": "x"},
    "a result of something else": {"result.json": '{"accuracy": 1}'},
    "a result that is no JSON": {"result.json": "accuracy = 1"},
    "a history of something else": {"history.csv": "x"},
    "a checkpoint of something else": {"checkpoint/epoch-0007/weights": "x"},
    "a state of something else": {"checkpoint/epoch-0007/state.json": "[]"},
    "a checkpoint without weights": {"checkpoint/epoch-0007/state.json": '{"epoch": 7}'},
    "a picture": {"curves.png": "x"},
}


@pytest.mark.parametrize("flags", [(), SHORT, (*SHORT, "--resume")], ids=["both", "one", "resume"])
@pytest.mark.parametrize("content", FOREIGN)
def test_a_directory_of_something_else_is_refused(refused, tmp_path, content, flags):
    directory = tmp_path / "theirs"
    for name, text in FOREIGN[content].items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    line = refused(*flags, output_dir=directory)
    assert "--output_dir" in line and str(directory) in line


def test_no_teacher_is_trained_before_the_flags_are_checked(refused, held, monkeypatch):
    def teacher(*_, **__):
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr(data.teacher, "teacher_probabilities", teacher)
    noise = ("--noise", "feature_dependent")
    assert "--meta_size" in refused(*noise, "--meta_size", 301)
    assert "--unlabeled_size" in refused(*noise, "--unlabeled_size", 1197)
    assert "another run" in refused(*RUN, *noise, output_dir=held)


def test_a_class_without_a_meta_sample_is_a_warning(unbroken, tmp_path, capsys, monkeypatch):
    given = []

    def run(settings, recipe, splits):
        given.append(splits)
        return read_result(unbroken.directory)

    monkeypatch.setattr(mln_keras, "run", run)
    assert main(*RUN, "--meta_size", 12, "--batch_size", 12, "--output_dir", tmp_path) == 0
    missing = sorted(set(range(10)) - set(given[0].meta_labels.tolist()))
    assert capsys.readouterr().err == (
        "mln_keras.py: warning: the meta set holds no sample of: "
        f"{', '.join(map(str, missing))}\n"
    )
    assert missing and len(given[0].meta_labels) == 12


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_and_each_recipes_value(capsys, flag):
    assert main(flag) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in FLAGS:
        assert re.search(rf"^ +--(\[no\])?{name}: \S", out, re.MULTILINE), name
    _, *sections = re.split(r"^  --", out, flags=re.MULTILINE)
    texts = {t.split(":")[0].removeprefix("[no]"): " ".join(t.split()) for t in sections}
    replaced = {field.name for field in dataclasses.fields(mln_keras.Recipe)} & set(FLAGS)
    assert len(replaced) == 11
    for name in replaced:
        values = [f"{getattr(r, name)} ({d})" for d, r in mln_keras.RECIPES.items()]
        assert f" Default: {', '.join(values)}." in texts[name]


def test_a_disk_that_has_no_room_for_a_checkpoint_is_seen_before(tmp_path, capsys, monkeypatch):
    free = types.SimpleNamespace(free=2 * 10**5)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: free)
    assert main(*SHORT, "--output_dir", tmp_path / "run") == 1
    assert "(No space left on device)" in capsys.readouterr().err
    assert tree(tmp_path / "run") == ["checkpoint"]


@pytest.mark.parametrize("held", ["unfinished"], indirect=True)
@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, 1000)])
def test_a_run_without_its_best_weights_is_refused(refused, held, damage):
    damage(next(held.glob("checkpoint/best-*")))
    line = refused(*RUN, "--resume", output_dir=held)
    assert "holds no run of this program, or a damaged one" in line and str(held) in line


@pytest.mark.parametrize("held", ["unfinished"], indirect=True)
def test_a_run_that_cannot_be_written_is_not_continued(refused, held, monkeypatch):
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: Path(path) != held)
    line = refused(*RUN, "--resume", output_dir=held)
    assert f"--output_dir: cannot write to {held}, no permission" in line


def test_a_closed_pipe_is_no_full_disk(tmp_path, capsys, monkeypatch):
    def write(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(mln_keras, "run", write)
    with pytest.raises(BrokenPipeError):
        mln_keras.run_or_say_why_not({"output_dir": str(tmp_path)}, None, None)
    assert "cannot write to" not in capsys.readouterr().err


# ---- a loss that is no number -------------------------------------------------------------------


def test_a_loss_that_turns_nan_at_once_leaves_nothing(tmp_path, capsys):
    assert main(*SHORT, "--learning_rate", "1e30", "--output_dir", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"mln_keras.py: .*epoch 1, step \d+: the loss is (nan|inf).*\n", err)
    assert "no checkpoint" in err and str(tmp_path / "run") in err
    assert tree(tmp_path / "run") == []


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "Can't write data (a long story)")

    monkeypatch.setattr(outputs, "save_checkpoint", write)
    assert main(*SHORT, "--output_dir", tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"cannot write to {tmp_path / 'run'} (No space left" in err


def test_a_loss_that_turns_nan_later_keeps_the_last_good_checkpoint(tmp_path, capsys):
    flags = (*SHORT, "--meta_learning_rate", "1e38", "--output_dir", tmp_path)
    assert main(*flags) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"mln_keras.py: .*epoch 2, step \d+: the loss is (nan|inf).*\n", err)
    assert "the last good checkpoint" in err and str(tmp_path) in err
    assert names(tmp_path) == {"checkpoint", "history.csv"}
    state, path = outputs.load_checkpoint(tmp_path)
    assert state["epoch"] == 1 and len(read_history(tmp_path)) == 1
    assert all(np.isfinite(array).all() for array in weights(path).values())


def test_weights_that_only_the_last_step_of_an_epoch_spoils_are_not_kept(tmp_path, capsys):
    """The loss of that step is still that of the good weights before it."""
    flags = ("--batch_size", 300, "--unlabeled_size", 897, "--learning_rate", "1e38")
    assert main(*SHORT, *flags, "--output_dir", tmp_path) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"mln_keras.py: .*epoch 1, step 1, its last: the .*\n", err)
    assert outputs.load_checkpoint(tmp_path) == (None, None) and tree(tmp_path) == []


def test_the_step_that_spoils_weights_is_counted_in_steps_not_in_programs(tmp_path):
    model = EpochsOf.__new__(EpochsOf)
    model.loop_length = 6
    held_out = {"meta": lambda: (np.nan, 1.0), "test": lambda: (1.0, 1.0)}
    recorder = outputs.RunRecorder(tmp_path, {"method": "cross_entropy"}, held_out)
    recorder.set_model(model)
    recorder.set_params({"epochs": 1, "steps": 3})
    logs = dict.fromkeys(("learning_rate", "loss", "accuracy"), 1.0)
    with pytest.raises(FloatingPointError, match="epoch 1, step 18, its last: the meta_set_loss"):
        recorder.on_epoch_end(0, logs)
