"""Where the time of a whole command goes: from its start to the last file written.

    python benchmarks/full_run.py [--json FILE] [-- --dataset cifar10 --noise uniform ...]

Runs `python mln_keras.py` with the flags after `--` (default: digits) in a new process and a
directory that is removed afterwards. Start: importing, loading the data and compiling up to the
end of the first program of steps. An epoch: training, then the recorder, which measures meta and
test set and writes checkpoint and history.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


def run(started, json_file, flags):
    import mln_keras
    import outputs

    epochs = []

    class TimedRecorder(outputs.RunRecorder):
        def on_epoch_begin(self, epoch, logs=None):
            epochs.append({"begin": time.time(), "epoch": epoch + 1})

        def on_train_batch_end(self, batch, logs=None):
            epochs[-1].setdefault("first", time.time())

        def on_epoch_end(self, epoch, logs=None):
            epochs[-1]["trained"] = time.time()
            super().on_epoch_end(epoch, logs)
            phase = self.rows[-1]["phase"]
            epochs[-1] |= {"end": time.time(), "phase": phase, "flags": self.flags}

    outputs.RunRecorder = TimedRecorder
    status = mln_keras.main(["mln_keras.py", *flags])
    if status:
        return status
    report(started, epochs, time.time(), json_file)
    return 0


def report(started, epochs, ended, json_file):
    """Prints the table, and writes it as JSON."""
    import outputs

    parts = {
        "training": ("begin", "trained"),
        "recorder": ("trained", "end"),
    }
    flags = epochs[-1]["flags"]
    figures = {
        "flags": {n: flags[n] for n in flags if n not in outputs.NOT_PART_OF_A_RUN},
        "versions": outputs.versions(),
        "total": ended - started,
        "to the first steps": epochs[0]["first"] - started,
        "after the last epoch": ended - epochs[-1]["end"],
    }
    print(f"\n{'seconds':<28}{'first':>8}{'median of the others':>24}{'range':>18}{'share':>8}")
    for phase in (1, 2):
        first, *others = [e for e in epochs if e["phase"] == phase] or [None]
        if not others:
            continue
        whole = statistics.median(e["end"] - e["begin"] for e in others)
        for name, (since, until) in parts.items():
            values = [e[until] - e[since] for e in others]
            median, low, high = statistics.median(values), min(values), max(values)
            key = f"{'warm-up' if phase == 1 else 'phase 2'}, {name}"
            figures[key] = {"first": first[until] - first[since], "median": median}
            figures[key] |= {"min": low, "max": high, "share": median / whole}
            print(f"{key:<28}{first[until] - first[since]:>8.2f}{median:>24.3f}"
                  f"{f'{low:.3f} to {high:.3f}':>18}{median / whole:>8.1%}")
    for name in ("to the first steps", "after the last epoch", "total"):
        print(f"{name:<28}{figures[name]:>8.2f}")
    print(f"{len(epochs)} epochs; {figures['versions']}")
    if json_file:
        outputs.write_json(json_file, figures)


def main(argv):
    if argv[:1] == ["run"]:
        return run(float(argv[1]), argv[2], argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", default="", help="file to write the figures to")
    parser.add_argument("flags", nargs="*", help="after --: flags of mln_keras.py")
    arguments = parser.parse_args(argv)
    flags = arguments.flags or ["--dataset=digits"]
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "run", str(time.time()), arguments.json, *flags]
        return subprocess.call([*command, f"--output_dir={directory}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
