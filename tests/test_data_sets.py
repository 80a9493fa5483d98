"""Data sets of image files: what their loaders find, what they refuse, and training on them."""

import dataclasses
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from layouts import LAYOUTS, READABLE, UNREADABLE, data_dir, write_image
from runs import FILES, OF_SOFT_LABELS, main, names, read_history, read_result, settings_and_recipe

from mln_keras.command import files, run
from mln_keras.command.files import read_csv
from mln_keras.data import label_files, lists
from mln_keras.data.checks import ArgumentError
from mln_keras.data.loaders import LOADERS
from mln_keras.data.source import make_splits

pytestmark = pytest.mark.filterwarnings("ignore:the meta set holds")

SIZES = {"size": (16, 16), "resize": (18, 18)}
CLASSES = {
    "clothing1m": 14, "webvision": 50, "food101n": 3, "folders": 2, "table": 3,
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Writes a data set by its name; returns its --data_dir and what is in it."""

    def write(name, **options):
        expected = LAYOUTS[name](tmp_path / name, **options)
        return data_dir(name, tmp_path / name), expected

    return write


def load(name, where):
    return LOADERS[name](where, **SIZES)


def samples(images, labels):
    assert labels.dtype == np.int32 and images.shape == (len(labels), 16, 16, 3)
    return list(zip(images.paths, labels.tolist(), strict=True))


# ---- what is found ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_loader_finds_every_image_once_in_order_with_its_label(name, written):
    where, expected = written(name)
    source = load(name, where)
    assert samples(source.train_images, source.train_labels) == expected["train"]
    held_out = expected.get("meta") or expected["held_out"]
    assert samples(source.held_out_images, source.held_out_labels) == held_out
    if "test" in expected:
        assert samples(*source.test) == expected["test"] and source.test_size == 0
    else:
        assert source.test is None and source.test_size == len(held_out) * 3 // 5
    assert source.name == name and source.num_classes == CLASSES[name]
    assert not source.has_right_labels and not source.flips and not source.human_labels
    for images in (source.train_images, source.held_out_images):
        assert images.size == (16, 16) and images.resize == (18, 18)
        assert images.find_damaged() == []


def test_names_of_classes(written):
    found = {name: load(name, written(name)[0]).class_names for name in LAYOUTS}
    assert found["clothing1m"][0] == "T-Shirt" and found["clothing1m"][13] == "Underwear"
    assert found["webvision"] == tuple(map(str, range(50)))
    assert found["food101n"] == ("apple_pie", "crème_brûlée", "waffles")
    assert found["folders"] == ("a b", "c")
    assert found["table"] == ("2", "10", "x, y")


def test_the_kinds_of_files_are_read_as_they_are_seen(tmp_path):
    """Each of the readable kinds shows the colours of its class, but for gray ones."""
    from mln_keras.data.image_files import ImageFiles

    for kind in READABLE:
        write_image(tmp_path / kind, 3, kind)
    found = np.asarray(ImageFiles([tmp_path / kind for kind in READABLE], (8, 8))).astype(int)
    means = dict(zip(READABLE, found.mean((1, 2)), strict=True))
    for kind in set(READABLE) - {"gray", "sixteen_bits"}:
        np.testing.assert_allclose(means[kind], means["jpeg"], atol=12)
    for kind in ("gray", "sixteen_bits"):
        assert np.ptp(means[kind]) < 1


def test_webvision_names_its_classes_where_their_names_are(written):
    where, _ = written("webvision", kinds=("jpeg",))
    lines = [f"n{i:08d} fish {i}, Piscis {i}" for i in range(1000)]
    (where / "info" / "synsets.txt").write_text("\n".join(lines))
    assert load("webvision", where).class_names[3] == "n00000003 fish 3"
    (where / "info" / "synsets.txt").write_text("\n".join(lines[:49]))
    with pytest.raises(ArgumentError, match="^data_dir: .*synsets.txt: expected a line for each"):
        load("webvision", where)


@pytest.mark.parametrize("name", ["clothing1m", "webvision", "food101n", "table"])
def test_files_that_are_missing_are_left_to_the_reader_of_images(name, written):
    where, expected = written(name, kinds=("jpeg",) * 6 + ("missing",))
    source = load(name, where)
    assert samples(source.train_images, source.train_labels) == expected["train"]
    missing = [path for path, _ in expected["train"][6::7]]
    if name == "table":
        missing = [path for path, _ in expected["train"] if not tf.io.gfile.exists(path)]
    assert source.train_images.find_damaged() == missing and len(missing) > 3


def test_folders_need_no_unlabeled_images(written, tmp_path):
    where, expected = written("folders")
    for path in (where / "unlabeled").iterdir():
        path.unlink()
    (where / "unlabeled").rmdir()
    source = load("folders", where)
    assert samples(source.train_images, source.train_labels) == expected["train"][:-6]


def test_names_that_are_not_utf_8_are_those_on_disk(tmp_path):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfcaf\xe9 1.jpg 1\nb\rc.jpg\t0\n")
    numbers, wanted = lists.integers(2)
    file = tmp_path / "list"
    found = lists.collected(file, lists.pairs(file, numbers, wanted))
    images, labels = lists.images(tmp_path, found, (4, 4), None)
    assert images.names().numpy().tolist() == [
        bytes(tmp_path) + b"/caf\xe9 1.jpg", bytes(tmp_path) + b"/b\rc.jpg"
    ]  # fmt: skip
    assert labels.tolist() == [1, 0]


def test_such_names_are_written_and_read_again(tmp_path):
    name = os.fsdecode(b"caf\xe9 1.jpg")
    files.write_csv(tmp_path / "l.csv", [{"file": name, "given": "grüße"}])
    content = (tmp_path / "l.csv").read_bytes()
    assert content == b"file,given\r\ncaf\xe9 1.jpg,gr\xc3\xbc\xc3\x9fe\r\n"
    assert read_csv(tmp_path / "l.csv") == [{"file": name, "given": "grüße"}]


# ---- splits -------------------------------------------------------------------------------------


def splits_of(source, seed=0, meta_size=None, unlabeled_size=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_splits(source, meta_size=meta_size, unlabeled_size=unlabeled_size, seed=seed)


def test_without_a_meta_size_all_clean_images_are_meta(written):
    where, expected = written("clothing1m")
    splits = splits_of(load("clothing1m", where))
    assert sorted(samples(splits.meta_images, splits.meta_labels)) == sorted(expected["meta"])
    assert samples(splits.test_images, splits.test_labels) == expected["test"]
    assert samples(splits.train_images, splits.given_labels) == expected["train"]
    assert splits.clean_labels is None and splits.noise_ratio is None
    assert splits.sizes() == {"train": 56, "labeled": 56, "meta": 28, "test": 20}


def test_the_seed_draws_meta_and_test_images_of_webvision(written):
    where, expected = written("webvision")
    source = load("webvision", where)
    parts = [splits_of(source, seed) for seed in (0, 1)]
    for splits in parts:
        meta, test = (set(images.paths) for images in (splits.meta_images, splits.test_images))
        assert len(meta) == 20 and len(test) == 30 and not meta & test
        found = samples(splits.meta_images, splits.meta_labels)
        assert set(found) < set(expected["held_out"])
    assert set(parts[0].test_images.paths) != set(parts[1].test_images.paths)


def test_what_is_drawn_for_the_meta_set_is_not_trained_on(written):
    """Food-101N's verified images are in its list of training images, too."""
    where, expected = written("food101n")
    source = load("food101n", where)
    with pytest.warns(UserWarning, match="^12 images of the meta or test set are training images"):
        splits = make_splits(source, meta_size=12, unlabeled_size=0, seed=0)
    meta = samples(splits.meta_images, splits.meta_labels)
    assert len(meta) == 12 and set(meta) <= set(expected["meta"])
    train = samples(splits.train_images, splits.given_labels)
    assert train == [sample for sample in expected["train"] if sample not in meta]
    given = np.arange(60)
    np.testing.assert_array_equal(splits.with_labels(given).given_labels, given[splits.rows])
    assert splits.train_images.paths[7] == expected["train"][splits.rows[7]][0]


def test_labels_are_taken_from_labeled_images_only(written):
    where, _ = written("folders")
    source = load("folders", where)
    splits = splits_of(source, unlabeled_size=20)
    assert splits.sizes() == {"train": 36, "labeled": 10, "meta": 12, "test": 12}
    kept = splits.given_labels >= 0
    np.testing.assert_array_equal(splits.given_labels[kept], source.train_labels[kept])
    with pytest.raises(ArgumentError, match="^unlabeled_size: expected 0 to 29 for folders, rec"):
        splits_of(source, unlabeled_size=30)


# ---- what is refused ----------------------------------------------------------------------------


def change_line(number, old, new):
    """Replaces in a line, from 1, of a list with the line ends of `layouts`."""

    def change(path):
        lines = path.read_text("utf-8-sig").split("\n")
        assert old in lines[number - 1], lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new)
        path.write_text("\n".join(lines), newline="")

    return change


def remove(path):
    path.unlink()


def no_text(path):
    path.write_bytes(b"\r\n\r\n")


# Data set, file, how it is spoiled, what is said behind the name of the file.
REFUSED = [
    ("clothing1m", "noisy_label_kv.txt", change_line(3, " ", " 14#"),
     ", line 3: expected the name of an image and its class, 0 to 13, found '"),
    ("clothing1m", "noisy_label_kv.txt", change_line(4, ".jpg ", ".jpg 1"),
     ", line 4: "),
    ("clothing1m", "noisy_train_key_list.txt", change_line(6, ".jpg", ".png"),
     ", line 6: expected an image with a label in noisy_label_kv.txt, found images/"),
    ("clothing1m", "clean_test_key_list.txt", no_text, ": expected images, found none"),
    ("clothing1m", "clean_val_key_list.txt", remove, " cannot be read: No such file or directory"),
    ("webvision", "info/train_filelist_google.txt", change_line(6, " 3", " 1000"),
     ", line 6: expected the name of an image and its class, 0 to 999, found 'google/"),
    ("webvision", "info/train_filelist_google.txt", change_line(4, " 2", " 5"),
     ", line 4: google/q0002/grüße_日本_2,9.jpg has another label in an earlier line"),
    ("webvision", "info/val_filelist.txt", change_line(2, " 3", ""),
     ", line 2: expected the name of an image and its class, 0 to 999, found 'val000001.jpg'"),
    ("webvision", "info/val_filelist.txt", change_line(2, " 3", " -1"), ", line 2: "),
    ("food101n", "meta/imagelist.tsv", change_line(1, "class_name/key", "apple_pie/7.jpg"),
     ", line 1: expected the header 'class_name/key', found 'apple_pie/7.jpg'"),
    ("food101n", "meta/imagelist.tsv", change_line(7, "/", " "),
     ", line 7: expected CLASS/NAME of a class in imagelist.tsv, found "),
    ("food101n", "meta/verified_train.tsv", change_line(6, "\t1", "\t2"),
     ", line 6: expected the name of an image and 1 (of its class) or 0 (not), found '"),
    ("food101n", "meta/verified_train.tsv", change_line(7, "/", "s/"),
     ", line 7: expected CLASS/NAME of a class in imagelist.tsv, found "),
    ("food101n", "food-101/meta/test.txt", change_line(2, "/", "s/"),
     ", line 2: expected CLASS/NAME of a class in imagelist.tsv, found "),
    ("table", "images.csv", change_line(1, "split", "part"),
     ", line 1: expected the columns path, label, split, found id, label, path, part"),
    ("table", "images.csv", change_line(3, "noisy", "train"),
     ", line 3: expected a split of noisy, meta, unlabeled, test, found 'train'"),
    ("table", "images.csv", change_line(3, "10", ""), ", line 3: expected a label, found none"),
    ("table", "images.csv", change_line(37, ",10,", ",11,"),
     ", line 37: expected a label of noisy images, '2', '10', 'x, y'; found '11'"),
    ("table", "images.csv", change_line(7, "10", "2"),
     ", line 7: "),
    ("table", "images.csv", remove, " cannot be read: No such file or directory"),
    ("table", "images.csv", no_text,
     ", line 1: expected the columns path, label, split, found "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "spoil", "message"), REFUSED)
def test_what_is_wrong_with_a_list_gets_one_line(name, file, spoil, message, written):
    where, _ = written(name, kinds=("jpeg",))
    path = where if name == "table" else where / file
    spoil(path)
    with pytest.raises(ArgumentError) as error:
        load(name, where)
    assert error.value.name == "data_dir" and "\n" not in error.value.text
    assert error.value.text.startswith(f"{path}{message}"), error.value.text


@pytest.mark.parametrize(
    ("name", "folder"),
    [("clothing1m", "images"), ("webvision", "val_images"), ("food101n", "food-101/images"),
     ("folders", "meta"), ("folders", "test")],
)  # fmt: skip
def test_a_folder_that_is_missing_is_named(name, folder, written):
    where, _ = written(name, kinds=("jpeg",))
    (where / folder).rename(where / "elsewhere")
    with pytest.raises(ArgumentError) as error:
        load(name, where)
    assert re.fullmatch(rf"data_dir: .*/{name} has no {folder}; expected the folder of .*, "
                        rf"with .*{folder}.* in it", str(error.value))  # fmt: skip


def test_a_folder_of_images_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="no-such is no folder; expected the folder of your "
                                            "images, with noisy, meta, test in it$"):  # fmt: skip
        load("folders", tmp_path / "no-such")


@pytest.mark.parametrize("split", ["meta", "test"])
def test_a_class_that_noisy_images_do_not_have_is_refused(split, written):
    where, _ = written("folders", kinds=("jpeg",))
    (where / split / "c").rename(where / split / "d")
    message = f"^data_dir: .*/{split}: expected folders .*'c'; found 'd' too"
    with pytest.raises(ArgumentError, match=message):
        load("folders", where)


# ---- labels of a file ---------------------------------------------------------------------------


@pytest.fixture
def labels_of(tmp_path, monkeypatch):
    """Reads a file of labels for the digits."""
    monkeypatch.chdir(tmp_path)
    source = LOADERS["digits"]()
    return lambda name: label_files.read(name, source)


WANTED = (np.arange(1197) * 3) % 10


def write_csv(name, header, rows):
    lines = [header] * (header is not None) + [",".join(map(str, row)) for row in rows]
    Path(name).write_bytes("".join(f"{line}\r\n" for line in lines).encode("utf-8-sig"))


def test_labels_are_read_from_each_kind_of_file(labels_of):
    np.save("l.npy", WANTED.astype(np.uint8))
    np.savez("one.npz", any=WANTED)
    np.savez("two.npz", noisy_label=WANTED, other=WANTED[:5])
    write_csv("bare.csv", None, zip(WANTED))
    write_csv("one.csv", "label", zip(WANTED))
    write_csv("two.csv", "id, noisy", enumerate(WANTED))
    for name in ("l.npy", "one.npz", "two.npz:noisy_label", "bare.csv", "one.csv", "two.csv:noisy"):
        found = labels_of(name)
        np.testing.assert_array_equal(found, WANTED)
        assert found.dtype == np.int32


def test_names_of_classes_that_are_other_numbers_are_not_taken_for_them(tmp_path):
    source = LOADERS["digits"]()
    source = dataclasses.replace(source, class_names=tuple(str(i + 1) for i in range(10)))
    for labels, found in ((WANTED + 1, WANTED), (np.maximum(WANTED, 1), None), (WANTED, WANTED)):
        write_csv(tmp_path / "l.csv", "label", zip(labels))
        if found is None:  # 1 to 9
            with pytest.raises(ArgumentError, match="are numbers of classes and names of classes"):
                label_files.read(str(tmp_path / "l.csv"), source)
        else:
            np.testing.assert_array_equal(label_files.read(str(tmp_path / "l.csv"), source), found)


def test_a_csv_file_may_have_the_names_of_classes_and_no_label(tmp_path):
    source = LOADERS["digits"]()
    source = dataclasses.replace(source, class_names=tuple(f"class {i}" for i in range(10)))
    names = [f"class {label}" for label in WANTED[:-1]]
    write_csv(tmp_path / "l.csv", "label", [*zip(names), (-1,)])
    found = label_files.read(str(tmp_path / "l.csv"), source)
    np.testing.assert_array_equal(found, [*WANTED[:-1], -1])


def test_the_rows_of_a_file_with_the_right_labels_too_have_to_be_those_of_the_data(labels_of):
    right = LOADERS["digits"]().train_labels
    np.savez("n.npz", clean_label=right, noisy_label=WANTED)
    np.testing.assert_array_equal(labels_of("n.npz:noisy_label"), WANTED)
    np.savez("n.npz", clean_label=np.roll(right, 1), noisy_label=WANTED)
    with pytest.raises(ArgumentError, match="^noise_labels: n.npz: its clean_label is not that of"):
        labels_of("n.npz:noisy_label")


def damaged_npy():
    """The content of a `.npy` file whose header ends within a bracket."""
    stream = io.BytesIO()
    np.save(stream, WANTED)
    return stream.getvalue().replace(b",), }", b",   }")


def write_npy_named_npz(path):
    with open(path, "wb") as file:
        np.save(file, WANTED)


def write_damaged_member(path):
    """Its compressed bytes are others, as after a fault of the disk."""
    np.savez_compressed(path, a=WANTED)
    content = bytearray(Path(path).read_bytes())
    content[100:200] = bytes(100)
    Path(path).write_bytes(content)


BAD_LABELS = {
    "l.npy": [
        (lambda: None, " cannot be read: No such file or directory"),
        (lambda: np.save("l.npy", WANTED[1:]), ": expected integer labels of shape (1197,), one"),
        (lambda: np.save("l.npy", WANTED + 0.5), ": expected integer labels of shape (1197,), one"),
        (lambda: np.save("l.npy", WANTED + 1), ": expected labels in [0, 10) or -1 (no label), "),
        (lambda: Path("l.npy").write_text("1, 2"), ": "),
        (lambda: np.save("l.npy", WANTED.astype(object)), ": not a whole .npy file of "
                                                          "numbers: Object arrays cannot be"),
        (lambda: Path("l.npy").write_bytes(damaged_npy()), ": not a whole .npy file of numbers: "),
    ],
    "l.npz": [
        (lambda: np.savez("l.npz", a=WANTED, b=WANTED), ": expected FILE:KEY with one of the keys "
                                                        "a, b"),
        (lambda: Path("l.npz").write_text("no archive"), ": not a whole .npz file of numbers: "),
        (lambda: Path("l.npz").touch(), ": not a whole .npz file of numbers: File is not a zip"),
        (lambda: write_npy_named_npz("l.npz"), ": not a whole .npz file of numbers: File is not"),
        (lambda: write_damaged_member("l.npz"), ": not a whole .npz file of numbers: Error -3"),
    ],
    "l.npz:c": [
        (lambda: np.savez("l.npz", a=WANTED, b=WANTED), ": expected one of the keys a, b, received "
                                                        "'c'"),
    ],
    "l.csv": [
        (lambda: write_csv("l.csv", "label", zip([*WANTED[:-1], "11"])),
         ": row 1198: expected a class, 0 to 9 or its name, found '11'"),
        (lambda: write_csv("l.csv", "label", zip(WANTED[:-2])), ": "),
        (lambda: write_csv("l.csv", "a,b", zip(WANTED, WANTED)), ": expected FILE:KEY with one of "
                                                                 "the keys a, b"),
    ],
    "l.pt": [(lambda: Path("l.pt").write_text(""), ": expected one of .npy, .npz, .csv, received")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "write", "message"), [(n, *case) for n, cases in BAD_LABELS.items() for case in cases]
)
def test_bad_labels_get_one_line(labels_of, name, write, message):
    write()
    with pytest.raises(ArgumentError) as error:
        labels_of(name)
    assert error.value.name == "noise_labels" and "\n" not in error.value.text
    assert error.value.text.startswith(name.split(":")[0] + message), error.value.text


def test_labels_of_a_file_are_trained_on_and_measured(tmp_path):
    np.save(tmp_path / "l.npy", WANTED)
    flags = ("--dataset", "digits", "--noise_labels", tmp_path / "l.npy")
    settings, recipe = settings_and_recipe(*flags)
    assert (settings["noise"], settings["noise_ratio"]) == ("file", None)
    assert settings["noise_labels"].keys() == {"file", "sha256"}
    assert settings["output_dir"] == str(Path("runs", "digits-file-metalabelnet-seed0"))
    splits = run.load_splits(settings, recipe)
    np.testing.assert_array_equal(splits.given_labels, WANTED)
    right = LOADERS["digits"]().train_labels
    assert splits.noise_ratio == np.mean(WANTED != right)


# ---- the command line ---------------------------------------------------------------------------

TINY = ("--backbone", "digits_cnn", "--image_size", 16, "--batch_size", 8, "--epochs", 2,
        "--warmup_epochs", 1)  # fmt: skip


def train(name, where, out, *flags):
    """One epoch of warm-up and one of phase 2."""
    assert main("--dataset", name, "--data_dir", where, "--output_dir", out, *TINY, *flags) == 0
    return read_result(out), read_history(out)


def assert_is_a_whole_run(out, expected, num_classes):
    assert names(out) == FILES
    paths = {path for path, _ in expected["train"]}
    suspects = read_csv(out / "suspects.csv")
    assert {row["file"] for row in suspects} <= paths and suspects[0]["file"]
    soft_labels = np.load(out / "soft_labels.npz")["soft_labels"]
    np.testing.assert_allclose(soft_labels.sum(1), 1, rtol=1e-4)
    assert soft_labels.shape[1] == num_classes
    served = tf.saved_model.load(out / "saved_model")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    probabilities = served.serve(images)["probabilities"].numpy()
    assert probabilities.shape == (3, num_classes)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_folders_by_command(written, tmp_path, capsys):
    where, expected = written("folders")
    out = tmp_path / "out"
    result, history = train("folders", where, out)
    assert_is_a_whole_run(out, expected, 2)
    assert result["samples"] == {"train": 36, "labeled": 30, "meta": 12, "test": 12}
    assert result["noise"] == "own" and result["noise_ratio"] is None
    assert result["noise_ratio_actual"] is None and 0 <= result["noise_ratio_estimated"] <= 1
    assert [row["phase"] for row in history] == ["1", "2"]
    assert len(read_csv(out / "suspects.csv")) == 30  # those that have a label
    assert "top" not in " ".join([*result, *history[0]])
    capsys.readouterr()
    train("folders", where, out)
    assert "holds this run, finished" in capsys.readouterr().out
    other, _ = written("table")
    assert main("--dataset", "folders", "--data_dir", other.parent, "--output_dir", out, *TINY) == 2
    assert f"--data_dir was '{where}', now '{other.parent}'" in capsys.readouterr().err


def test_images_too_small_for_a_network_leave_no_folder(written, refused):
    where, _ = written("folders")
    flags = (*TINY, "--backbone", "cnn8", "--image_size", 7)
    line = refused("--dataset", "folders", "--data_dir", where, *flags)
    assert line.startswith("mln_keras.py: --backbone: expected images of at least 8×8 pixels")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_of_damaged_files_is_refused_before_training(name, written, refused):
    kinds = (*UNREADABLE, *["jpeg"] * 9) if name != "folders" else (*UNREADABLE[:3], "jpeg")
    where, _ = written(name, kinds=kinds)
    sizes = ("--meta_size", 16) if name == "food101n" else ()
    line = refused("--dataset", name, "--data_dir", where, *TINY, *sizes)
    assert re.search(r"\d+ of \d+ image files cannot be read, more than 1%: '.*\.jpg' \(", line)
    assert "no picture that TensorFlow decodes" in line
    assert name == "folders" or "no such file or directory" in line


@pytest.mark.slow
def test_a_damaged_file_is_passed_over_and_named(written, tmp_path, capsys):
    where, expected = written("webvision")
    damaged = expected["train"][7][0]
    Path(damaged).write_text("no picture")
    result, _ = train("webvision", where, tmp_path / "out")
    assert result["unreadable_files"] == {"train": [damaged], "meta": [], "test": []}
    assert "\nImage files that cannot be read: 1; see unreadable_files" in capsys.readouterr().out
    paths = [row["file"] for row in read_csv(tmp_path / "out" / "suspects.csv")]
    assert len(paths) == 99 and damaged not in paths


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clothing1m", "webvision", "food101n", "table"])
def test_every_data_set_by_command(name, written, tmp_path):
    where, expected = written(name)
    sizes = ("--meta_size", 16) if name == "food101n" else ()
    result, history = train(name, where, tmp_path / "out", *sizes)
    assert_is_a_whole_run(tmp_path / "out", expected, CLASSES[name])
    if name == "webvision":
        for row in history:
            assert float(row["test_accuracy"]) <= float(row["test_top5_accuracy"]) <= 1
        last = float(history[-1]["test_top5_accuracy"])
        assert result["last_test_top5_accuracy"] == pytest.approx(last)
        assert {"test_top5_accuracy", "warmup_test_top5_accuracy"} <= set(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("method", ["cross_entropy", "mslg"])
def test_other_methods_by_command(name, method, written, tmp_path):
    """MSLG keeps a soft label for each sample."""
    where, _ = written(name)
    sizes = ("--meta_size", 16) if name == "food101n" else ()
    flags = TINY[:-2] if method == "cross_entropy" else TINY
    out = tmp_path / "out"
    assert main("--dataset", name, "--data_dir", where, "--output_dir", out, *flags, *sizes,
                "--method", method) == 0  # fmt: skip
    assert names(out) == FILES - (OF_SOFT_LABELS if method == "cross_entropy" else set())


def test_unlabeled_and_meta_sizes_of_tables_iv_and_v(written, capsys):
    where, _ = written("clothing1m", kinds=("jpeg",))
    flags = ("--dataset", "clothing1m", "--data_dir", where, *TINY)
    splits = run.load_splits(*settings_and_recipe(*flags, "--meta_size", 9, "--unlabeled_size", 40))
    assert splits.sizes() == {"train": 56, "labeled": 16, "meta": 9, "test": 20}
    with pytest.raises(ArgumentError, match="^meta_size: expected 1 to 28 for clothing1m, rec"):
        run.load_splits(*settings_and_recipe(*flags, "--meta_size", 29))


@pytest.mark.parametrize(
    ("name", "backbone", "size", "resize", "epochs", "batch_size"),
    [("clothing1m", "ResNet50", 224, 256, (10, 1), 32),
     ("webvision", "InceptionResNetV2", 299, 320, (30, 14), 16),
     ("food101n", "ResNet50", 224, 256, (20, 6), 32)],
)  # fmt: skip
def test_recipes(name, backbone, size, resize, epochs, batch_size):
    settings, recipe = settings_and_recipe("--dataset", name)
    assert (recipe.backbone, recipe.image_size, recipe.resize) == (backbone, size, resize)
    assert (recipe.epochs, recipe.warmup_epochs) == epochs and recipe.batch_size == batch_size
    assert recipe.weights == ("none" if name == "webvision" else "imagenet")
    assert recipe.meta_learning_rate == 1e-3 and recipe.inner_learning_rate == 1
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 4, 5, 9, 10, 11, 12)]
    expected = {
        "clothing1m": [1e-3, 1e-3, *[1e-4] * 5],
        "webvision": [*[1e-2] * 6, 1e-3],
        "food101n": [1e-3, 1e-3, 1e-4, 1e-4, *[1e-5] * 3],
    }[name]
    assert rates == pytest.approx(expected)
    flips = recipe.build_augmentation(vertical_flip=recipe.vertical_flip)
    assert (flips.padding, flips.horizontal_flip, flips.vertical_flip) == (0, True, False)
    smaller, recipe = settings_and_recipe("--dataset", name, "--image_size", 112)
    assert smaller["resize"] == recipe.resize == {256: 128, 320: 120}[resize]
    assert settings["output_dir"] == str(Path("runs", f"{name}-own-metalabelnet-seed0"))
