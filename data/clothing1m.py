"""Clothing1M (Section IV-A.2): a million photos of clothes, labeled by the text around them."""

from mln_keras.data import lists
from mln_keras.data.source import Source

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket",
    "Down Coat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip


def load(data_dir, size, resize):
    """Returns Clothing1M as a `Source`: noisy training images, clean meta and test images.

    The 14,313 images of clean_val are held out for the meta set, the 10,526 of clean_test are the
    test set. The 47,570 clean training images are not used (Section IV-A.2).

    Args:
        data_dir: folder with `noisy_train_key_list.txt`, `clean_val_key_list.txt` and
            `clean_test_key_list.txt`, whose lines are names such as `images/0/00/1,2.jpg`; with
            `noisy_label_kv.txt` and `clean_label_kv.txt`, whose lines are a name and a class, 0 to
            13; and with the folder `images`.
        size, resize: as `ImageFiles`.

    Raises:
        ArgumentError: naming `data_dir`, the file and the line; see `lists`.

    Reference: Xiao et al., Learning from Massive Noisy Labeled Data for Image Classification, 2015.
    """
    root = lists.folder(data_dir, "Clothing1M", "images")

    def split(name, kind):
        labels, keys = root / f"{kind}_label_kv.txt", root / f"{name}_key_list.txt"
        known = lists.collected(labels, lists.pairs(labels, *lists.integers(len(CLASS_NAMES))))
        found = lists.collected(keys, lists.looked_up(keys, known, labels.name))
        return lists.images(root, found, size, resize)

    train, held_out = split("noisy_train", "noisy"), split("clean_val", "clean")
    return Source(
        name="clothing1m",
        train_images=train[0],
        train_labels=train[1],
        held_out_images=held_out[0],
        held_out_labels=held_out[1],
        test=split("clean_test", "clean"),
        class_names=CLASS_NAMES,
        has_right_labels=False,
    )
