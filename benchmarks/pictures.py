"""Images a second of the paper's large networks out of JPEG files, cross-entropy beside phase 2.

    python benchmarks/pictures.py --mixed_precision
    python benchmarks/pictures.py --settings ResNet50:224:32 --json results/pictures.json

A setting is NETWORK:SIDE:BATCH and one run of step_time.py, in a process of its own, so that the
peak of a GPU's memory is its own too. Waiting is the share of a step that is not there where the
same batch is in memory. The last column is how many times as long a step of phase 2 takes as one of
cross-entropy, both from files.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import step_time

from mln_keras.command import files

SETTINGS = ("ResNet50:224:32", "ResNet50:224:128", "InceptionResNetV2:299:16")  # Section IV-B


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    switch = {"action": argparse.BooleanOptionalAction}
    add = parser.add_argument
    add("--settings", nargs="+", default=list(SETTINGS), help="NETWORK:SIDE:BATCH, one or more")
    add("--steps", type=int, default=50, help="steps an epoch")
    add("--epochs", type=int, default=3, help="counted epochs of each phase and kind of input")
    add("--steps_per_execution", type=int, default=10, help="steps a call, at most")
    add("--mixed_precision", default=False, help="compute in bfloat16", **switch)
    add("--jit_compile", default=True, help="compile the step with XLA", **switch)
    add("--json", help="file to write the figures to")
    return parser.parse_args(argv)


def flags_of(setting, arguments):
    """The flags of step_time.py."""
    network, side, batch_size = setting.split(":")
    switches = [
        f"--{'' if getattr(arguments, name) else 'no-'}{name}"
        for name in ("mixed_precision", "jit_compile")
    ]
    return [
        "--network", network, "--side", side, "--batch_size", batch_size,
        "--files", str(arguments.steps * int(batch_size)), "--epochs", str(arguments.epochs),
        "--steps_per_execution", str(arguments.steps_per_execution), *switches,
    ]  # fmt: skip


def measure(setting, arguments):
    """What step_time.py writes of a setting, a dict; None where it fails, and it has said why."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "figures.json")
        command = [sys.executable, step_time.__file__, *flags_of(setting, arguments)]
        done = subprocess.run([*command, "--json", path], stdout=sys.stderr)
        return json.loads(pathlib.Path(path).read_text()) if done.returncode == 0 else None


def row_of(setting, figures):
    """A line of the table."""
    batch_size = int(setting.split(":")[2])
    cells = [f"{setting:<28}"]
    for phase in step_time.PASSES:
        one = figures[f"{phase}, from files"]
        cells.append(f"{1e3 * batch_size / one['median']:>9.0f}")
        cells.append(f"{figures[f'{phase}, input wait']:>9.1%}")
        cells.append(f"{one['peak_gb'] or float('nan'):>9.1f}")
    times = [figures[f"{phase}, from files"]["median"] for phase in step_time.PASSES]
    return "".join([*cells, f"{times[1] / times[0]:>9.2f}"])


def main(argv):
    arguments = parse(argv)
    found, rows = {}, []
    for setting in arguments.settings:
        found[setting] = measure(setting, arguments)
        rows.append(
            f"{setting:<28} failed" if found[setting] is None else row_of(setting, found[setting])
        )
        if arguments.json:
            files.write_json(arguments.json, found)
    print(f"{'':<28}" + "".join(f"{phase:>27}" for phase in step_time.PASSES))
    print(f"{'':<28}" + 2 * f"{'images/s':>9}{'waiting':>9}{'peak, GB':>9}" + f"{'ratio':>9}")
    print("\n".join(rows))
    print(next((f["versions"] for f in found.values() if f), ""))


if __name__ == "__main__":
    main(sys.argv[1:])
