"""WebVision 1.0 (Section IV-A.3): what Google finds for 50 classes of ImageNet."""

from mln_keras.data import lists
from mln_keras.data.checks import ArgumentError
from mln_keras.data.source import Source

NUM_CLASSES, NUM_USED = 1000, 50


def load(data_dir, size, resize):
    """Returns the first 50 classes of WebVision 1.0's Google part as a `Source`.

    Of the 2,500 verified images, 1,500 are the test set and 1,000 held out for the meta set, drawn
    by the seed (Section IV-A.3). The classes are named by their synsets, as "n01440764 tench", or
    by their numbers where there are none.

    Args:
        data_dir: folder with `info/train_filelist_google.txt`, whose lines are a name such as
            `google/q0001/a.jpg` and a class, 0 to 999; with `info/val_filelist.txt`, whose lines
            are a name in the folder `val_images` and a class; with the folders `google` and
            `val_images`; and perhaps with `info/synsets.txt`, whose lines name the classes.
        size, resize: as `ImageFiles`.

    Raises:
        ArgumentError: naming `data_dir`, the file and the line; see `lists`.

    Reference: Li et al., WebVision Database: Visual Learning and Understanding from Web Data, 2017.
    """
    root = lists.folder(data_dir, "WebVision 1.0", "google", "val_images")

    def split(name, where):
        file = root / "info" / name
        rows = lists.pairs(file, *lists.integers(NUM_CLASSES, kept=NUM_USED))
        return lists.images(where, lists.collected(file, rows), size, resize)

    synsets, names = root / "info" / "synsets.txt", map(str, range(NUM_USED))
    if synsets.exists():
        names = [line.split(",")[0] for _, line in lists.lines(synsets)][:NUM_USED]
        if len(set(names)) < NUM_USED:
            text = f"{synsets}: expected a line for each class, each of another name"
            raise ArgumentError("data_dir", text)
    train = split("train_filelist_google.txt", root)
    held_out = split("val_filelist.txt", root / "val_images")
    return Source(
        name="webvision",
        train_images=train[0],
        train_labels=train[1],
        held_out_images=held_out[0],
        held_out_labels=held_out[1],
        test_size=len(held_out[1]) * 3 // 5,
        class_names=tuple(names),
        has_right_labels=False,
    )
