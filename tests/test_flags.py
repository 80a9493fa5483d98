"""Flags: what they default to, what they reach, and the one line that a bad one gets."""

import dataclasses
import hashlib
import io
import os
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import requests
from runs import RUN, SHORT, main, model_of, settings_and_recipe, splits_of

from mln_keras import MetaLabelNet
from mln_keras.command import output_dir
from mln_keras.command.recipes import RECIPES
from mln_keras.data import digits, teacher
from mln_keras.data.loaders import LOADERS
from mln_keras.layers import RandomFlipCrop
from mln_keras.methods import METHODS, CrossEntropy

FLAGS = [
    "dataset", "data_dir", "noise", "noise_ratio", "noise_labels", "noise_probs", "meta_size",
    "backbone", "weights", "image_size", "resize", "check_files", "unlabeled_size",
    "corrections",
    "method", "epochs", "warmup_epochs", "batch_size", "learning_rate", "meta_learning_rate",
    "inner_learning_rate", "as_run", "clean_weight", "fine_tune_epochs", "vertical_flip", "seed",
    "output_dir", "resume", "gpus", "mixed_precision", "jit_compile", "steps_per_execution",
]  # fmt: skip


def kernel_shapes(model):
    return [layer.kernel.shape for layer in model.classifier.layers if hasattr(layer, "kernel")]


# ---- what a flag is, and what it defaults to ----------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_and_each_recipes_value(capsys, flag):
    assert main(flag) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in FLAGS:
        assert re.search(rf"^ +--(\[no\])?{name}: \S", out, re.MULTILINE), name
    _, *sections = re.split(r"^  --", out, flags=re.MULTILINE)
    texts = {t.split(":")[0].removeprefix("[no]"): " ".join(t.split()) for t in sections}
    recipes = RECIPES.values()
    replaced = {n for n in FLAGS if any(getattr(r, n, None) is not None for r in recipes)}
    assert len(replaced) == 15
    for name in replaced:
        _, shown = texts[name].split(" Default: ")
        values = dict(part.split(" (") for part in shown.split(").")[0].split("); "))
        found = {d: value for value, names in values.items() for d in names.split(", ")}
        of_recipes = {d: getattr(r, name) for d, r in RECIPES.items()}
        assert found == {d: str(value) for d, value in of_recipes.items() if value is not None}


def test_help_needs_no_greek_letters(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main("--help") == 0
    assert rb"\u03b2, of the label head." in written.getvalue()


def test_the_settings_are_the_flags():
    assert list(settings_and_recipe()[0]) == FLAGS


def test_every_data_set_has_a_recipe():
    assert list(LOADERS) == list(RECIPES)


def test_the_recipe_of_cifar10_is_the_papers():
    settings, recipe = settings_and_recipe("--dataset", "cifar10")
    expected = {"noise": "uniform", "epochs": 120, "warmup_epochs": 44, "batch_size": 128}
    expected |= {"meta_size": 5000, "learning_rate": 1e-2, "meta_learning_rate": 1e-2}
    expected |= {"inner_learning_rate": 1.0, "unlabeled_size": 0, "method": "metalabelnet"}
    assert {name: settings[name] for name in expected} == expected
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 40, 41, 80, 81, 119)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])
    changed = settings_and_recipe("--dataset", "cifar10", "--learning_rate", 0.1)[1]
    assert changed.learning_rate_at(41) == pytest.approx(0.01)


def test_without_noise_the_ratio_is_0():
    settings, _ = settings_and_recipe(*SHORT, "--noise", "none")
    assert settings["noise_ratio"] == 0
    assert settings["output_dir"] == str(Path("runs", "digits-none-0.0-metalabelnet-seed0"))


@pytest.mark.parametrize("flags", [(), ("--output_dir=",)])
def test_the_demonstration_has_a_default_directory(flags):
    settings, _ = settings_and_recipe("--seed", 3, *flags)
    assert settings["output_dir"] == str(Path("runs", "digits-class_dependent-0.4-seed3"))


def test_cross_entropy_may_have_larger_batches_than_the_meta_set():
    flags = ("--dataset", "digits", "--meta_size", 20, "--method", "cross_entropy")
    assert settings_and_recipe(*flags, "--batch_size", 21)[1].batch_size == 21


# ---- what they reach ----------------------------------------------------------------------------


def test_flags_reach_the_model():
    flags = (
        "--dataset", "digits", "--epochs", "7", "--warmup_epochs", "5", "--seed", "3",
        "--learning_rate", "0.5", "--meta_learning_rate", "0.25", "--inner_learning_rate", "2",
        "--jit_compile", "--steps_per_execution", "9",
    )  # fmt: skip
    model = model_of(*flags, "--mixed_precision")
    assert type(model) is MetaLabelNet
    assert (model.warmup_epochs, model.seed, model.inner_learning_rate) == (5, 3, 2.0)
    assert (float(model.optimizer.learning_rate), float(model.optimizer.momentum)) == (0.5, 0.9)
    assert float(model.meta_optimizer.learning_rate) == 0.25
    assert model.jit_compile is True and model.steps_per_execution == 9
    assert model.classifier.layers[-1].compute_dtype == "bfloat16"
    of_all = ("--dataset", "digits", "--seed", "3", "--learning_rate", "0.5")
    model = model_of(*of_all, "--method", "cross_entropy")
    assert type(model) is CrossEntropy and model.seed == 3
    assert float(model.optimizer.learning_rate) == 0.5 and model.meta_optimizer is None
    assert model.classifier.layers[-1].compute_dtype == "float32"


def test_the_model_of_cifar10_is_the_papers():
    model = model_of("--dataset", "cifar10", image_shape=(32, 32, 3))
    assert model.image_shape == (32, 32, 3) and kernel_shapes(model) == [
        (3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128), (3, 3, 128, 196),
        (3, 3, 196, 196), (4 * 4 * 196, 256), (256, 10),
    ]  # fmt: skip
    expected = {"padding": 4, "horizontal_flip": True, "vertical_flip": True}
    assert isinstance(model.augmentation, RandomFlipCrop)
    assert {name: getattr(model.augmentation, name) for name in expected} == expected
    flags = ("--dataset", "cifar10", "--novertical_flip")
    changed = model_of(*flags, image_shape=(32, 32, 3)).augmentation
    assert {n: getattr(changed, n) for n in expected} == expected | {"vertical_flip": False}
    expected = {
        "warmup_epochs": 44, "feature_extractor": None, "inner_learning_rate": 1.0,
        "average_over_classes": True, "entropy_weight": 1.0, "weight_decay": 1e-4,
        "label_head_init": "random", "meta_batch_norm": True, "shuffle_meta": False, "seed": 0,
        "class_names": None, "given_label_weight": 0.0,
    }  # fmt: skip
    assert {name: getattr(model, name) for name in model.config_names} == expected

    for optimizer, expected in (
        (model.optimizer, keras.optimizers.SGD(0.01, momentum=0.9, nesterov=False)),
        (model.meta_optimizer, keras.optimizers.Adam(0.01, 0.9, 0.999, epsilon=1e-8)),
    ):
        assert type(optimizer) is type(expected)
        assert optimizer.get_config() == expected.get_config() | {"name": optimizer.name}


def test_the_model_of_digits():
    model = model_of("--dataset", "digits")
    assert kernel_shapes(model) == [(3, 3, 1, 32), (3, 3, 32, 32), (4 * 4 * 32, 64), (64, 10)]
    expected = {"padding": 1, "horizontal_flip": False, "vertical_flip": False}
    assert {name: getattr(model.augmentation, name) for name in expected} == expected


def test_the_seed_reaches_splits_and_noise():
    first, same, other = (splits_of(*RUN, "--seed", seed) for seed in (1, 1, 2))
    for name in ("given_labels", "meta_images", "test_images"):
        np.testing.assert_array_equal(getattr(first, name), getattr(same, name))
        assert (getattr(first, name) != getattr(other, name)).any()
    labeled = (first.given_labels >= 0) & (other.given_labels >= 0)
    wrong = [(s.given_labels != s.clean_labels)[labeled] for s in (first, other)]
    assert (wrong[0] != wrong[1]).any()


def test_the_data_directory_reaches_the_images_and_the_human_labels(monkeypatch):
    source, found = digits.load(), []
    human = {0.4: lambda *given: found.append(given) or source.train_labels}
    source = dataclasses.replace(source, human_labels=human)
    monkeypatch.setitem(LOADERS, "cifar10", lambda *given: found.append(given) or source)
    splits_of("--dataset", "cifar10", "--noise", "human", "--data_dir", "there", "--meta_size", 300)
    assert found == [("there",), ("there",)]


# The flags that name files, with what each of them needs beside it.
FILE_FLAGS = {
    "noise_probs": ("--noise=feature_dependent",), "noise_labels": (), "weights": (),
    "corrections": (),
}  # fmt: skip


def test_a_path_that_begins_with_a_tilde_is_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings, _ = settings_and_recipe("--output_dir=~/out", "--data_dir=~/data")
    assert settings["output_dir"] == str(tmp_path / "out")
    assert settings["data_dir"] == str(tmp_path / "data")
    (tmp_path / "a.npy").touch()
    for name, more in FILE_FLAGS.items():
        found = settings_and_recipe(f"--{name}=~/a.npy", *more)[0][name]
        (file,) = found if name == "corrections" else (found,)
        assert file["file"] == str(tmp_path / "a.npy")


@pytest.mark.parametrize("name", FILE_FLAGS)
def test_a_file_is_known_by_its_content(tmp_path, name):
    """All four have one form in the files of a run; of other content it is another run."""
    path, found = tmp_path / "a.npy", []
    for content in ("first", "other"):
        path.write_text(content)
        settings, _ = settings_and_recipe(f"--{name}={path}", *FILE_FLAGS[name])
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        file = {"file": str(path), "sha256": sha256}
        assert settings[name] == ([file] if name == "corrections" else file)
        found.append(output_dir.identity(settings))
    assert found[0] != found[1]


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_the_words_for_weights_stay_words(weights):
    flags = ("--dataset", "cifar10", "--backbone", "ResNet50", "--weights", weights)
    assert settings_and_recipe(*flags)[0]["weights"] == weights


def test_weights_of_a_file_and_noise_probs_are_used(tmp_path):
    recipe = settings_and_recipe(*SHORT)[1]
    wanted = recipe.classifier(10, (8, 8, 1))
    wanted.save_weights(tmp_path / "a.weights.h5")
    flags = (*SHORT, "--weights", tmp_path / "a.weights.h5")
    found = model_of(*flags).classifier
    for weight, expected in zip(found.weights, wanted.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected.numpy())
    assert settings_and_recipe(*flags)[1].network().startswith("digits_cnn-")

    right = digits.load().train_labels
    np.save(tmp_path / "p.npy", np.eye(10)[(right + 1) % 10])
    splits = splits_of(
        *SHORT, "--noise=feature_dependent", "--noise_ratio=1", "--noise_probs", tmp_path / "p.npy"
    )
    np.testing.assert_array_equal(splits.given_labels, (right + 1) % 10)


# ---- bad flags ----------------------------------------------------------------------------------

RATES = ("learning_rate", "meta_learning_rate", "inner_learning_rate")
SIZES = ("epochs", "batch_size", "meta_size", "steps_per_execution")
NOT_BELOW_0 = ("warmup_epochs", "unlabeled_size")
NUMBER, INTEGER = "could not convert string to float", "invalid literal for int()"
BOTH = ", ".join(METHODS)
# What each bad line of flags is answered with; of these flags the message begins with the last.
REFUSED = {
    "--dataset mnist": f"expected one of {', '.join(RECIPES)}, received 'mnist'",
    "--noise salt": "expected one of none, uniform, class_dependent, feature_dependent, human, "
    "own, file, received 'salt'",
    "--noise own": "digits has right labels; expected none, uniform, class_dependent, "
    "feature_dependent, human",
    "--noise file": "for labels of a file give --noise_labels only",
    "--noise_labels l.npy --noise uniform": "expected none with --noise_labels, which says all "
    "labels",
    "--noise_labels l.npy --noise_ratio 0.3": "expected none with --noise_labels, which says all "
    "labels",
    "--dataset folders --noise_ratio 0.3": "expected none with --noise own, as nobody knows it",
    "--dataset folders --image_size 9 --resize 8": "expected at least 9, received 8",
    "--image_size 9": "is for data sets of image files",
    "--dataset webvision --data_dir=": "expected the folder of WebVision 1.0, received none",
    "--dataset table --data_dir=": "expected the CSV file of your images, received none",
    "--method magic": f"expected one of {BOTH}, received 'magic'",
    "--method=": f"expected one of {BOTH}, received ''",
    "--dataset digits --method=": f"expected one of {BOTH}, received ''",
    "--noise none --noise_ratio 0.2": "expected 0 with --noise none, received 0.2",
    "--noise human": "digits has no human labels",
    "--noise uniform --noise_probs p.npy": "is for --noise feature_dependent, received with "
    "--noise uniform",
    "--meta_size 301": "expected 1 to 300 for digits, received 301",
    "--unlabeled_size 1197": "expected 0 to 1196 for digits, received 1197",
    "--unlabeled_size 1134 --batch_size 64": "expected 1 to 63 for the labeled samples, "
    "received 64",
    "--warmup_epochs 25": "expected fewer than --epochs=25, received 25, so phase 2 would never "
    "begin",
    "--epochs 8 --warmup_epochs 8": "expected fewer than --epochs=8, received 8, so phase 2 would "
    "never begin",
    "--method metalabelnet_clean --fine_tune_epochs 5 --epochs 8 --warmup_epochs 8": "expected "
    "fewer than --epochs=8, received 8, so phase 2 would never begin",
    "--method forward --warmup_epochs 0": "expected at least 1, received 0",
    "--method gold_loss_correction --warmup_epochs 0": "expected at least 1, received 0",
    "--method cross_entropy --epochs 0": "expected at least 1, received 0",
    "--batch_size 301": "expected at most --meta_size=300, received 301",
} | {
    f"--{name} {value}": f"expected {allowed}, received {value}"
    for names, values, allowed in (
        (["noise_ratio"], ("-0.1", "1.5", "nan"), "0 to 1"),
        (["seed"], ("-1", 2**31), f"0 to {2**31 - 1} for TensorFlow"),
        (SIZES, ("0", "-1"), "at least 1"),
        (NOT_BELOW_0, ("-1",), "at least 0"),
        (RATES, ("0.0", "-0.1", "nan", "inf"), "a finite number above 0"),
    )
    for name in names
    for value in values
}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--method meta_only", "--meta_size: needed by meta_only, whose epochs depend on it"),
        ("--method co_teaching", "--method: co_teaching needs the share of wrong labels"),
        ("--method metalabelnet_clean --fine_tune_epochs=-5", "--fine_tune_epochs: expected at le"),
    ],
)
def test_what_a_method_needs_of_a_data_set_whose_labels_are_wrong(refused, flags, line):
    assert refused("--dataset", "folders", *flags.split()).startswith(f"mln_keras.py: {line}")


@pytest.mark.parametrize("flags", REFUSED)
def test_a_bad_flag_gets_one_line_that_begins_with_it(refused, flags):
    name = re.findall(r"--\w+", flags)[-1]
    assert refused(*flags.split()) == f"mln_keras.py: {name}: {REFUSED[flags]}\n"


@pytest.mark.parametrize(
    ("flag", "words"),
    [(f"--{name}={value}", words)
     for names, value, words in ((("noise_ratio", *RATES), "half", NUMBER),
                                 (("seed", *SIZES, *NOT_BELOW_0), "2.5", INTEGER))
     for name in names],
)  # fmt: skip
def test_what_is_no_number_gets_one_line_that_begins_with_the_flag(refused, flag, words):
    line = refused(flag)
    assert line.startswith(f"mln_keras.py: {flag}: {words}") and line.endswith("; see --help\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--epoch 3", "Unknown command line flag 'epoch'. Did you mean: epochs ?"),
     ("--resume true", "expected flags only, received 'true'"),
     ("--epochs", "Missing value for flag --epochs")],
)  # fmt: skip
def test_what_is_no_flag_gets_one_line(refused, flags, message):
    assert refused(*flags.split()) == f"mln_keras.py: {message}; see --help\n"


def write_npy(array, **options):
    return lambda path: np.save(path, array, **options)


GOOD = np.full((1197, 10), 0.1)


def write_npy_without_bracket(path):
    np.save(path, GOOD)
    path.write_bytes(path.read_bytes().replace(b"), }", b"   }"))


BAD_PROBS = {
    "missing": (lambda path: None, " cannot be read: No such file"),
    "no .npy": (lambda path: path.write_text("0.1,0.9\n"), " is not a whole .npy"),
    "pickled": (write_npy(GOOD.astype(object), allow_pickle=True), " is not a whole .npy"),
    "cut short": (
        lambda path: (np.save(path, GOOD), os.truncate(path, 900)), " is not a whole .npy"
    ),
    "damaged header": (write_npy_without_bracket, " is not a whole .npy"),
    "other shape": (write_npy(GOOD[:1000]), ": expected shape (1197, 10), received (1000, 10)"),
    "integers": (write_npy(np.eye(10, dtype=int)[np.zeros(1197, int)]), ": expected floats, "),
    "nan": (write_npy(np.where(np.arange(10) == 3, np.nan, GOOD)), ": expected finite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD_PROBS)
def test_bad_noise_probs_get_one_line_that_names_flag_and_file(refused, tmp_path, damage):
    write, message = BAD_PROBS[damage]
    path = tmp_path / "probs.npy"
    write(path)
    line = refused("--noise", "feature_dependent", "--noise_probs", path)
    assert line.startswith(f"mln_keras.py: --noise_probs: {path}{message}")


@pytest.mark.parametrize(
    "damage", [pytest.param("missing", marks=pytest.mark.slow), "empty", "cut short", "a file"]
)
def test_a_bad_data_dir_gets_one_line_that_names_it(refused, tmp_path, monkeypatch, damage):
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
    assert line.startswith(f"mln_keras.py: --data_dir: {data_dir}: ") and "; to mend it, " in line


@pytest.mark.parametrize("flags", ["--method=co_teaching", "--method=forward --warmup_epochs=0"])
def test_as_run_asks_for_no_more_than_it_takes(flags):
    """Neither the share of wrong labels nor a warm-up."""
    settings, recipe = settings_and_recipe("--dataset=clothing1m", "--as_run", *flags.split())
    assert settings["as_run"] is True is recipe.as_run
    assert METHODS[settings["method"]].from_recipe(recipe)[0]["as_run"] is True


def test_no_teacher_is_trained_before_the_flags_are_checked(refused, monkeypatch):
    def train(*_, **__):
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr(teacher, "teacher_probabilities", train)
    noise = ("--noise", "feature_dependent")
    assert "--meta_size" in refused(*noise, "--meta_size", 301)
    assert "--unlabeled_size" in refused(*noise, "--unlabeled_size", 1197)
