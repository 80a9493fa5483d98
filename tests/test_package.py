"""Installing: a wheel, `-e`, or the clone on PYTHONPATH; each gives the one name `mln_keras`."""

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mln_keras import MetaLabelNet
from mln_keras.command.versions import VERSION
from mln_keras.layers import RandomFlipCrop, digits_cnn

ROOT = Path(__file__).parents[1]
METADATA = f"mln_keras-{VERSION}.dist-info"
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")}

# Names that the files of this project have or had, and that a user's own files may have, too.
CLASHING = ("command.py", "data.py", "data/__init__.py", "layers.py", "methods.py", "outputs.py",
            "training.py")  # fmt: skip

TRAIN = """
import data, layers, outputs
import keras
import numpy as np

from mln_keras import MetaLabelNet
from mln_keras.layers import RandomFlipCrop

assert data.OWN and layers.OWN and outputs.OWN
x = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
y = np.arange(32) % 4
net = keras.Sequential([
    keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
    keras.layers.Dense(4),
])
model = MetaLabelNet(net, warmup_epochs=1, augmentation=RandomFlipCrop(padding=1))
model.compile(keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.01))
model.fit((x, y), meta_data=(x[:16], y[:16]), batch_size=16, epochs=2, verbose=0)
model.save("model.keras")
model.export("saved_model")
np.savez("expected.npz", x=x, probabilities=model.predict(x, verbose=0))
"""

LOAD = """
import keras
import numpy as np
import tensorflow as tf

import mln_keras
import data, layers, outputs

assert data.OWN and layers.OWN and outputs.OWN
expected = np.load("expected.npz")
model = keras.models.load_model("model.keras")
assert type(model) is mln_keras.MetaLabelNet
found = model.predict(expected["x"], verbose=0)
np.testing.assert_array_equal(found, expected["probabilities"])
served = tf.saved_model.load("saved_model")
found = served.serve(expected["x"])["probabilities"]
np.testing.assert_allclose(found, expected["probabilities"], atol=1e-5)
print(mln_keras.__file__)
"""


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True
    )


def new_environment(path, *install):
    """A virtual environment with this one's packages, in which pip has installed one thing more.

    Returns:
        The folder of its programs.
    """
    venv.create(path, with_pip=False)
    scripts = path / "bin"
    paths = {"base": str(path), "platbase": str(path)}
    own = sysconfig.get_path("purelib", "venv", paths)
    shared = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    Path(own, "this_environment.pth").write_text("\n".join(shared))
    pip("--python", scripts / "python", "install", "--ignore-installed", "--no-index", "--no-deps",
        "--no-build-isolation", *install)  # fmt: skip
    return scripts


def run(folder, *command, clone=None):
    """Runs a command in a folder, with a clone on PYTHONPATH or none; returns what it printed."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(clone)} if clone else {}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of_the_tree(target):
    target.mkdir()
    for path in ROOT.iterdir():
        if path.name in FOLDERS:
            shutil.copytree(path, target / path.name)
        elif path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The programs of an environment with the wheel in it."""
    return new_environment(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture
def folder(tmp_path):
    """A user's folder, whose files are called as files of this project are."""
    folder = tmp_path / "user"
    for name in CLASHING:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("OWN = True\n")
    (folder / "train.py").write_text(TRAIN)
    (folder / "load.py").write_text(LOAD)
    return folder


# ---- the wheel ----------------------------------------------------------------------------------


def test_a_wheel_holds_one_package_and_nothing_else(wheel):
    paths = [Path(name).parts for name in zipfile.ZipFile(wheel).namelist()]
    assert {parts[0] for parts in paths} == {"mln_keras", METADATA}
    inside = {parts[1] for parts in paths if parts[0] == "mln_keras"}
    assert inside == {"__init__.py", "__main__.py", *FOLDERS}
    expected = {path.relative_to(ROOT).parts for f in FOLDERS for path in (ROOT / f).rglob("*.py")}
    expected |= {("command", "review.html"), ("command", "review.js")}
    assert {parts[1:] for parts in paths if parts[0] == "mln_keras" and len(parts) > 2} == expected


def test_a_wheel_asks_for_what_requirements_txt_lists(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{METADATA}/METADATA"))
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed, asked = (
        {(canonicalize_name(r.name), r.specifier) for r in map(Requirement, requirements)}
        for requirements in (
            [line.split("#")[0] for line in lines if line.split("#")[0].strip()],
            [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line],
        )
    )
    assert asked == listed and len(asked) > 5


# ---- in use, beside files of the same names ------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_trains_saves_loads_and_exports_beside_a_users_files(scripts, folder):
    run(folder, scripts / "python", "train.py")
    printed = run(folder, scripts / "python", "load.py")
    assert Path(printed.strip()).is_relative_to(scripts.parent)


@pytest.mark.slow
def test_the_clone_on_pythonpath_does_too(folder):
    run(folder, sys.executable, "train.py", clone=ROOT)
    printed = run(folder, sys.executable, "load.py", clone=ROOT)
    assert Path(printed.strip()) == ROOT / "mln_keras.py"


@pytest.mark.slow
def test_the_command_by_its_name_and_by_the_module(scripts, folder):
    expected = run(folder, sys.executable, ROOT / "mln_keras.py", "--help")
    assert "--warmup_epochs" in expected
    assert run(folder, scripts / "mln-keras", "--help") == expected
    assert run(folder, scripts / "python", "-m", "mln_keras", "--help") == expected
    assert run(folder, sys.executable, "-m", "mln_keras", "--help", clone=ROOT) == expected


@pytest.mark.slow
def test_the_installed_command_trains(scripts, folder):
    flags = ("--method", "cross_entropy", "--epochs", "1", "--output_dir", "run")
    run(folder, scripts / "mln-keras", *flags)
    assert {"result.json", "model.keras", "saved_model"} <= set(os.listdir(folder / "run"))


@pytest.mark.slow
def test_an_editable_install_follows_the_clone(folder, tmp_path):
    clone = copy_of_the_tree(tmp_path / "clone")
    scripts = new_environment(tmp_path / "environment", "-e", clone)
    (clone / "data" / "added.py").write_text("TEXT = 'added'\n")
    versions = clone / "command" / "versions.py"
    versions.write_text(versions.read_text() + "\nVERSION = 'changed'\n")
    with open(clone / "mln_keras.py", "a") as file:
        file.write("\nTEXT = 'grown'\n")
    code = """if True:
        import data, layers, mln_keras
        from mln_keras.command.versions import VERSION
        from mln_keras.data.added import TEXT
        print(mln_keras.__file__, mln_keras.TEXT, TEXT, VERSION, data.OWN and layers.OWN)
    """
    printed = run(folder, scripts / "python", "-c", code)
    assert printed.split() == [str(clone / "mln_keras.py"), "grown", "added", "changed", "True"]
    assert "--warmup_epochs" in run(folder, scripts / "mln-keras", "--help")


# ---- what was saved before there was the one package ---------------------------------------------

MODULES_THEN = {
    "MetaLabelNet": None,
    "RandomFlipCrop": "layers.augmentation",
    "AlignedConv2D": "layers.convolution",
    "WindowMaxPooling2D": "layers.pooling",
}
ARGUMENTS_THEN = {
    "name", "trainable", "dtype", "classifier", "augmentation", "image_dtype", "warmup_epochs",
    "feature_extractor", "inner_learning_rate", "average_over_classes", "entropy_weight",
    "weight_decay", "label_head_init", "meta_batch_norm", "shuffle_meta", "seed",
}  # fmt: skip


def test_a_model_saved_when_layers_was_a_name_of_its_own_loads(images, tmp_path):
    model = MetaLabelNet(digits_cnn(4), warmup_epochs=1, augmentation=RandomFlipCrop(padding=1))
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.01))
    model.fit(images(32), batch_size=16, epochs=1, verbose=0)
    model.save(tmp_path / "now.keras")
    seen = set()

    def as_then(found):
        if found.get("class_name") in MODULES_THEN:
            name = found["class_name"]
            seen.add(name)
            found |= {"module": MODULES_THEN[name], "registered_name": f"mln_keras>{name}"}
        return found

    with (
        zipfile.ZipFile(tmp_path / "now.keras") as now,
        zipfile.ZipFile(tmp_path / "then.keras", "w") as then,
    ):
        for name in now.namelist():
            content = now.read(name)
            if name == "config.json":
                config = json.loads(content, object_hook=as_then)
                config["config"] = {n: config["config"][n] for n in ARGUMENTS_THEN}
                content = json.dumps(config)
            then.writestr(name, content)
    assert seen == set(MODULES_THEN)
    x, _ = images(8, seed=1)
    loaded = keras.models.load_model(tmp_path / "then.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), strict=True
    )
