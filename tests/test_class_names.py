"""Class names travel with the model, so that who serves it needs no other file."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mln_keras import MetaLabelNet
from mln_keras.layers import digits_cnn
from mln_keras.methods import CrossEntropy

NAMES = ("T-shirt", "pull over", "żółty", "4")


def compiled(cls=CrossEntropy, **options):
    model = cls(digits_cnn(4), class_names=NAMES, **options)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    return model


@pytest.mark.parametrize(
    ("cls", "options"), [(CrossEntropy, {}), (MetaLabelNet, {"warmup_epochs": 1})]
)
def test_a_saved_model_has_them(cls, options, tmp_path):
    model = compiled(cls, **options)
    assert model.class_names == list(NAMES)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").class_names == list(NAMES)


SERVE = """if True:
    import json, sys
    import numpy as np, tensorflow as tf
    served = tf.saved_model.load(sys.argv[1])
    assert "mln_keras" not in sys.modules
    names = open(served.class_names.asset_path.numpy(), encoding="utf-8").read().splitlines()
    signature = served.signatures["serving_default"]
    inputs = {n: (s.shape.as_list(), s.dtype.name)
              for n, s in signature.structured_input_signature[1].items()}
    images = tf.constant(np.load(sys.argv[2]))
    found = [call(images=images)["probabilities"].numpy().tolist()
             for call in (signature, served.serve)]
    print(json.dumps([names, inputs, list(signature.structured_outputs), found]))
"""


def test_plain_tensorflow_finds_them_in_the_saved_model_wherever_it_lies(images, tmp_path):
    model, (x, _) = compiled(), images(3)
    model.export(tmp_path / "exported")
    (tmp_path / "exported").rename(tmp_path / "moved")
    np.save(tmp_path / "images.npy", x)
    printed = subprocess.run(
        [sys.executable, "-c", SERVE, tmp_path / "moved", tmp_path / "images.npy"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    names, inputs, outputs, found = json.loads(printed.splitlines()[-1])
    assert names == list(NAMES)
    assert inputs == {"images": [[None, 8, 8, 1], "uint8"]} and outputs == ["probabilities"]
    for probabilities in found:
        np.testing.assert_allclose(probabilities, model.predict(x, verbose=0), rtol=1e-5)
    assert (tmp_path / "moved" / "assets" / "class_names.txt").is_file()


def test_a_model_without_names_exports_as_before(tmp_path):
    CrossEntropy(digits_cnn(4)).export(tmp_path / "exported")
    assert not hasattr(tf.saved_model.load(tmp_path / "exported"), "class_names")


@pytest.mark.parametrize(
    "names",
    [("a", "b", "c"), ("a", "b", "c", "c"), ("a", "b", "c", "d\ne"), ("a", "", "b", "c"), "abcd"],
)
def test_names_that_are_no_names_are_refused(names):
    with pytest.raises(ValueError, match="^class_names: expected 4 different names of one line"):
        CrossEntropy(digits_cnn(4), class_names=names)


def test_a_run_has_them_in_all_its_files(finished_run):
    directory, expected = finished_run.directory, [str(i) for i in range(10)]
    assert json.loads((directory / "result.json").read_text())["class_names"] == expected
    assert keras.models.load_model(directory / "model.keras").class_names == expected
    text = (directory / "saved_model" / "assets" / "class_names.txt").read_text()
    assert text.split() == expected
