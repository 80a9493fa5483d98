"""Small data sets of real image files, in exactly the layouts of the large ones.

Each function writes one below a folder and returns what a loader has to find there: a dict of
split -> list of (path, label), in order. The lists of files have Windows line ends, empty lines and
lines that come twice; names have spaces and letters that are not ASCII.
"""

import csv
import itertools

import numpy as np
from PIL import Image

READABLE = ("jpeg", "cmyk", "gray", "rotated", "rgba", "palette", "sixteen_bits")
UNREADABLE = ("truncated", "empty", "text", "missing")
SIZE = 40, 28


def write_image(path, label, kind="jpeg", seed=0):
    """A picture whose colours depend on its class, in a file of one of these kinds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colors = np.random.default_rng(1000 + label).integers(40, 200, 3)
    pixels = (colors + rng.integers(-40, 40, (*SIZE[::-1], 3))).astype(np.uint8)
    image, options = Image.fromarray(pixels), {"format": "JPEG", "quality": 95}
    if kind in ("rgba", "palette"):
        image, options = image.convert({"rgba": "RGBA", "palette": "P"}[kind]), {"format": "PNG"}
    elif kind == "sixteen_bits":
        image, options = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {"format": "PNG"}
    elif kind in ("cmyk", "gray"):
        image = image.convert({"cmyk": "CMYK", "gray": "L"}[kind])
    elif kind == "rotated":
        options["exif"] = Image.Exif()
        options["exif"][0x112] = 6
    image.save(path, **options)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no picture, but a page that says that there is none\n")
    elif kind == "missing":
        path.unlink()


def write_list(path, lines):
    """With Windows line ends; the third line comes twice, and there is an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*lines[:3], lines[2], "", *lines[3:]] if len(lines) > 2 else lines
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())


def name_of(number):
    """Of a file without its ending; some with a space or letters that are not ASCII."""
    return {1: "two words", 2: "grüße_日本"}.get(number % 7, "image") + f"_{number},9"


def _write_all(root, samples, kinds):
    """Writes the files of (name, label) samples; the kinds take turns. Returns (path, label)."""
    for number, ((name, label), kind) in enumerate(zip(samples, itertools.cycle(kinds))):
        write_image(root / name, label, kind, seed=number)
    return [(str(root / name), label) for name, label in samples]


def clothing1m(root, kinds=READABLE):
    def samples(start, count):
        names = (f"images/{n % 10}/{n % 100:02d}/{name_of(n)}.jpg" for n in range(start, 999))
        return [(name, n * 5 % 14) for n, name in zip(range(count), names)]

    splits = {"noisy_train": samples(0, 56), "clean_train": samples(100, 5),
              "clean_val": samples(200, 28), "clean_test": samples(300, 20)}  # fmt: skip
    for name, found in splits.items():
        write_list(root / f"{name}_key_list.txt", [key for key, _ in found])
    clean = splits["clean_test"] + splits["clean_val"] + splits["clean_train"]
    noisy = [*splits["noisy_train"][::-1], ("images/0/00/in_no_list.jpg", 3)]
    for name, found in (("clean", clean), ("noisy", noisy)):
        write_list(root / f"{name}_label_kv.txt", [f"{key} {label}" for key, label in found])
    parts = ("noisy_train", "clean_val", "clean_test")
    train, meta, test = (_write_all(root, splits[part], kinds) for part in parts)
    return {"train": train, "meta": meta, "test": test}


def webvision(root, kinds=READABLE):
    train = [(f"google/q{n % 9:04d}/{name_of(n)}.jpg", n % 50) for n in range(100)]
    left_out = [(f"google/q0999/{name_of(n)}.jpg", 50 + 190 * n) for n in range(5)]
    mixed = [*train[:20], *left_out, *train[20:]]
    lines = [f"{name} {label}" for name, label in mixed]
    write_list(root / "info" / "train_filelist_google.txt", lines)
    held_out = [(f"val{n:06d}.jpg", n * 3 % 50) for n in range(50)]
    lines = [f"{name} {label}" for name, label in [*held_out, ("val999999.jpg", 999)]]
    write_list(root / "info" / "val_filelist.txt", lines)
    return {
        "train": _write_all(root, train, kinds),
        "held_out": _write_all(root / "val_images", held_out, kinds),
    }


def food101n(root, kinds=READABLE):
    classes = ("apple_pie", "crème_brûlée", "waffles")
    train = [(f"{classes[n % 3]}/{name_of(n)}.jpg", n % 3) for n in range(60)]
    verified = [(*sample, n % 4 > 0) for n, sample in enumerate(train[10:50])]
    test = [(f"{classes[n % 3]}/{1000 + n}", n % 3) for n in range(18)]
    write_list(root / "meta" / "imagelist.tsv", ["class_name/key", *(name for name, _ in train)])
    lines = [f"{name}\t{int(is_right)}" for name, _, is_right in verified]
    write_list(root / "meta" / "verified_train.tsv", ["class_name/key\tverification_label", *lines])
    write_list(root / "food-101" / "meta" / "test.txt", [name for name, _ in test])
    test = [(f"{name}.jpg", label) for name, label in test]
    written = _write_all(root / "images", train, kinds)
    return {
        "train": written,
        "meta": [written[10 + n] for n, sample in enumerate(verified) if sample[2]],
        "test": _write_all(root / "food-101" / "images", test, kinds),
    }


def folders(root, kinds=READABLE):
    found = {}
    for split, count in (("noisy", 30), ("meta", 12), ("test", 12)):
        samples = [(f"{('a b', 'c')[n % 2]}/{name_of(n)}.jpg", n % 2) for n in range(count)]
        written = _write_all(root / split, samples, kinds)
        found[split] = sorted(written, key=lambda sample: (sample[1], sample[0]))
    unlabeled = [(f"{name_of(n)}.JPG", 0) for n in range(6)]
    written = _write_all(root / "unlabeled", unlabeled, kinds)
    found["unlabeled"] = sorted((path, -1) for path, _ in written)
    train = found["noisy"] + found["unlabeled"]
    return {"train": train, "meta": found["meta"], "test": found["test"]}


def table(root, kinds=READABLE):
    """Its classes are 2, 10 and x, y, in this order; in the file they stand by their names."""
    classes = ("2", "10", "x, y")
    splits = ["noisy"] * 30 + ["meta"] * 12 + ["unlabeled"] * 6 + ["test"] * 12
    samples = [(f"pictures/{split} {name_of(n)}.jpg", n % 3) for n, split in enumerate(splits)]
    rows = [
        {"id": n, "label": "" if split == "unlabeled" else classes[label], "path": name,
         "split": split}
        for n, (split, (name, label)) in enumerate(zip(splits, samples, strict=True))
    ]  # fmt: skip
    rows[0]["path"] = str(root / samples[0][0])
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "images.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows[:5], rows[4], *rows[5:]])
    written = _write_all(root, samples, kinds)
    found = {name: [] for name in splits}
    for split, (path, label) in zip(splits, written, strict=True):
        found[split].append((path, -1 if split == "unlabeled" else label))
    return {"train": found["noisy"] + found["unlabeled"], "meta": found["meta"],
            "test": found["test"]}  # fmt: skip


LAYOUTS = {
    "clothing1m": clothing1m,
    "webvision": webvision,
    "food101n": food101n,
    "folders": folders,
    "table": table,
}


def data_dir(name, root):
    """What --data_dir names of a data set that was written below a folder."""
    return root / "images.csv" if name == "table" else root
