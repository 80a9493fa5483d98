"""What the long lists of Clothing1M and WebVision cost: from start-up to the first batch.

    python benchmarks/long_lists.py

Makes the lists with made-up names, in which the image files do not exist: a JPEG file of 500×375
pixels is decoded in the place of each. WebVision's list has 2.4 million lines; once all of them are
of the 50 classes that are used, once the classes are drawn from all 1000. A new process reads the
list, draws the splits, tries some files and makes one batch, as the command line does. It prints
the seconds since that process was started, of the clock and of the processor, and the most memory
that it had.
"""

import argparse
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

KINDS = {"clothing1m": 14, "webvision": 50, "webvision of all classes": 1000}


def make_clothing1m(root, count):
    rng = random.Random(0)

    def keys(number):
        for i in range(number):
            name = f"{rng.randrange(10**9)},{rng.randrange(10**9)}_{i}.jpg"
            yield f"images/{i % 10}/{i % 100:02d}/{name}"

    def write(name, lines):
        (root / name).write_text("".join(f"{line}\n" for line in lines))

    (root / "images").mkdir()
    noisy, val, test = list(keys(count)), list(keys(14_313)), list(keys(10_526))
    write("noisy_train_key_list.txt", noisy)
    write("clean_val_key_list.txt", val)
    write("clean_test_key_list.txt", test)
    write("noisy_label_kv.txt", (f"{key} {rng.randrange(14)}" for key in noisy))
    write("clean_label_kv.txt", (f"{key} {rng.randrange(14)}" for key in val + test))


def make_webvision(root, count, num_classes):
    rng = random.Random(0)
    for name in ("google", "val_images", "info"):
        (root / name).mkdir()
    with open(root / "info" / "train_filelist_google.txt", "w") as file:
        for i in range(count):
            name = f"google/q{i % 9000:04d}/{rng.randrange(16**16):016x}.jpg"
            file.write(f"{name} {rng.randrange(num_classes)}\n")
    lines = (f"val{i:06d}.jpg {i % 1000}\n" for i in range(50_000))
    (root / "info" / "val_filelist.txt").write_text("".join(lines))


def first_batch(data_set, root, since):
    """In a process of its own: prints a row of the table."""
    from mln_keras.command import flags, run
    from mln_keras.data import image_decoding, inputs
    from mln_keras.training.phases import Phase

    decode, real = image_decoding.decode, str(root / "class_1" / "000001.jpg")
    image_decoding.decode = lambda path, *sizes: decode(real, *sizes)
    given = ["", f"--dataset={data_set}", f"--data_dir={root}", "--weights=none"]
    settings, recipe = flags.settings_of(flags.read_flags(given))
    splits = run.load_splits(settings, recipe)
    run.check_files(settings, splits)
    expected = inputs.Expected(splits.train_images.shape[1:], len(splits.class_names))
    batching = inputs.Batching(recipe.batch_size, settings["seed"])
    train = splits.train_images, splits.given_labels
    data = inputs.TrainingData(train, None, None, expected, batching)
    next(iter(data.batches(Phase("warm-up"), range(recipe.epochs))))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"| {len(splits.given_labels):,} | {time.time() - since:.1f} | "
          f"{used.ru_utime + used.ru_stime:.1f} | {used.ru_maxrss / 2**20:.2f} |")  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the lists' lengths")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        data_set, root, since = arguments.child
        return first_batch(data_set, pathlib.Path(root), float(since))
    import input_pipeline

    print("| list | training images | seconds | of the processor | memory, GiB |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name, num_classes in KINDS.items():
        with tempfile.TemporaryDirectory() as directory:
            root, data_set = pathlib.Path(directory), name.split()[0]
            input_pipeline.make_photographs(root, 2)
            if data_set == "clothing1m":
                make_clothing1m(root, int(1_000_000 * arguments.share))
            else:
                make_webvision(root, int(2_400_000 * arguments.share), num_classes)
            print(f"| {name} ", end="", flush=True)
            child = [sys.executable, __file__, "--child", data_set, root, str(time.time())]
            subprocess.run(child, check=True)


if __name__ == "__main__":
    main()
