"""Food-101N: 310,009 photos of dishes from the web, tested on the clean images of Food-101."""

from mln_keras.data import lists
from mln_keras.data.source import Source

HEADER = "class_name/key"


def load(data_dir, size, resize):
    """Returns Food-101N as a `Source`: noisy training images, clean meta and test images.

    Held out for the meta set are the images that people have verified to be of their class, in
    verified_train; those that are drawn are not trained on. The test set is Food-101's, 25,250
    images. The authors' program tests on the right ones of verified_val instead, and leaves them
    out of training; here verified_val is not read.

    Args:
        data_dir: folder with `meta/imagelist.tsv`, whose lines are a class and a name, such as
            `apple_pie/1.jpg`, below the header `class_name/key`; with `meta/verified_train.tsv`,
            whose lines are such a name, a tab and 1 (right) or 0, below the header
            `class_name/key`, a tab and `verification_label`; with `images/apple_pie/1.jpg` and so
            on; and with Food-101's archive unpacked in it: `food-101/meta/test.txt`, whose lines
            are such as `apple_pie/1011328`, and `food-101/images/apple_pie/1011328.jpg`.
        size, resize: as `ImageFiles`.

    Raises:
        ArgumentError: naming `data_dir`, the file and the line; see `lists`.

    Reference: Lee et al., CleanNet: Transfer Learning for Scalable Image Classifier Training with
    Label Noise, 2018; Bossard et al., Food-101, 2014.
    """
    root = lists.folder(data_dir, "Food-101N", "images", "food-101/images")
    listed, verified = root / "meta" / "imagelist.tsv", root / "meta" / "verified_train.tsv"
    tested = root / "food-101" / "meta" / "test.txt"
    names = sorted({line.split("/")[0] for _, line in lists.lines(listed, HEADER)})
    numbers = {name: number for number, name in enumerate(names)}

    def of_class(file, rows):
        """Rows with the class that their name begins with; only those marked 1."""
        for number, name, is_right in rows:
            label = numbers.get(name.split("/")[0])
            if label is None or name.count("/") != 1:
                raise lists.wrong(file, number, f"expected CLASS/NAME of a class in "
                                                f"{listed.name}, found {name}")  # fmt: skip
            if is_right:
                yield number, name, label

    def split(file, rows, where):
        return lists.images(where, lists.collected(file, of_class(file, rows)), size, resize)

    marks = {"0": False, "1": True}, "1 (of its class) or 0 (not)"
    train = split(listed, ((*row, True) for row in lists.lines(listed, HEADER)), root / "images")
    held_out = split(verified, lists.pairs(verified, *marks, HEADER), root / "images")
    test = ((number, f"{name}.jpg", True) for number, name in lists.lines(tested))
    return Source(
        name="food101n",
        train_images=train[0],
        train_labels=train[1],
        held_out_images=held_out[0],
        held_out_labels=held_out[1],
        test=split(tested, test, root / "food-101" / "images"),
        class_names=tuple(names),
        has_right_labels=False,
    )
