"""CIFAR-100 and its human labels (CIFAR-100N), read through TensorFlow Datasets."""

from mln_keras.data import tfds

SUPERCLASSES = (
    ("beaver", "dolphin", "otter", "seal", "whale"),
    ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    ("orchid", "poppy", "rose", "sunflower", "tulip"),
    ("bottle", "bowl", "can", "cup", "plate"),
    ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    ("clock", "keyboard", "lamp", "telephone", "television"),
    ("bed", "chair", "couch", "table", "wardrobe"),
    ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    ("bear", "leopard", "lion", "tiger", "wolf"),
    ("bridge", "castle", "house", "road", "skyscraper"),
    ("cloud", "forest", "mountain", "plain", "sea"),
    ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    ("fox", "porcupine", "possum", "raccoon", "skunk"),
    ("crab", "lobster", "snail", "spider", "worm"),
    ("baby", "boy", "girl", "man", "woman"),
    ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
)
CLASS_NAMES = tuple(sorted(name for names in SUPERCLASSES for name in names))
# CIFAR-100N's labels (Wei et al., 2022) by the share of wrong ones that their authors give.
HUMAN_LABELS = {0.4: "noise_label"}


def load(data_dir=None):
    """Returns CIFAR-100 as a `Source`; the test images are held out, and half of them are test.

    The labels are the 100 fine ones. The customary flips are those of Patrini et al. (2017): each
    class turns into the next of its superclass, the last of the five into the first.

    Args:
        data_dir: as `tfds.load`, which says which sample row i is; the download has 161 MiB.

    Returns:
        `Source` with images uint8 (N, 32, 32, 3). A directory that was prepared with fewer images
        gives fewer.

    Raises:
        ValueError: as `tfds.load`.
    """
    flips = {
        name: following
        for names in SUPERCLASSES
        for name, following in zip(names, names[1:] + names[:1], strict=True)
    }
    return tfds.source("cifar100", data_dir, CLASS_NAMES, flips, HUMAN_LABELS)
