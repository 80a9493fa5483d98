"""Many runs of the command line: several at a time, each in a process and directory of its own.

A run that is finished is not repeated (the command line sees that itself, and refuses a directory
with a run of other flags), one that was interrupted goes on, and one that fails leaves its log and
lets the others go on.
"""

import argparse
import concurrent.futures
import csv
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mln_keras.command import files as outputs

HISTORY = (
    "loss", "accuracy", "meta_loss", "soft_label_entropy", "soft_label_agreement", "meta_accuracy",
    "test_accuracy",
)  # fmt: skip
NOISES = ("uniform", "feature_dependent")  # of the paper's CIFAR-10 results
PROGRAM = pathlib.Path(__file__).resolve().parents[1] / "mln_keras.py"


def command(arguments, program, noise, ratio, seed, method="metalabelnet", more=()):
    """Program and flags of one run, a list.

    Args:
        arguments: as `parse` returns them; their own flags come last.
        program: list, the program's path first.
        noise, ratio, seed, method: flags of mln_keras.py.
        more: further flags, a list.
    """
    flags = [f"--dataset={arguments.dataset}", f"--noise={noise}", f"--noise_ratio={ratio}",
             f"--method={method}", f"--seed={seed}"]  # fmt: skip
    if noise == "feature_dependent" and arguments.noise_probs:
        flags.append(f"--noise_probs={arguments.noise_probs}")
    return [*program, *flags, *more, *arguments.flags]


def train(runs, directory, jobs, on_end=lambda finished: None):
    """Trains all runs, spread over the visible GPUs, in the order given.

    Args:
        runs: dict, name of a run -> list of its program and flags.
        directory: pathlib.Path; a run's files go to the folder of its name in there, what it
            prints to NAME.log, and what XLA compiled to xla_cache, unless TF_XLA_FLAGS are set.
        jobs: runs at a time on each GPU, or on the CPU where there is no GPU.
        on_end: called whenever a run has ended well, with the set of names that did so far.

    Returns:
        Names of the runs that failed, a list.
    """
    directory.mkdir(parents=True, exist_ok=True)
    gpus = queue.Queue()
    for gpu in _visible_gpus() * jobs:
        gpus.put(gpu)
    with concurrent.futures.ThreadPoolExecutor(gpus.qsize()) as pool:
        ends = {pool.submit(_train_one, directory / n, runs[n], gpus): n for n in runs}
        finished = set()
        try:
            for end in concurrent.futures.as_completed(ends):
                if end.result():
                    finished.add(ends[end])
                    on_end(finished)
        finally:
            pool.shutdown(cancel_futures=True)  # where Ctrl-C ends it, no other run begins
    return [name for name in runs if name not in finished]


def _train_one(directory, command, gpus):
    log = directory.parent / f"{directory.name}.log"
    gpu = gpus.get()
    cache = f'--tf_xla_persistent_cache_directory="{directory.parent / "xla_cache"}"'
    environment = {"TF_XLA_FLAGS": cache} | os.environ | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        with open(log, "a") as file:
            status = subprocess.call(
                [sys.executable, *command, "--resume", f"--output_dir={directory}"],
                stdout=file, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
    finally:
        gpus.put(gpu)
    end = "finished" if status == 0 else f"exit status {status}, see {log}"
    print(f"{directory.name}: {end}\n", end="", flush=True)  # whole, as other threads print too
    return status == 0


def _visible_gpus():
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return listed.split(",") if listed else [None]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    except OSError:
        return [None]
    count = sum(line.startswith("GPU ") for line in found.splitlines())
    return [str(i) for i in range(count)] or [None]


def collect(runs, directory):
    """The finished ones of the runs, each its result.json with the accuracies by epoch.

    Args:
        runs, directory: as `train`.

    Returns:
        list of dicts; `run` is the name, paths are left out, and `history` holds lists, a value an
        epoch, of the columns of history.csv named in `HISTORY`, None where a phase has none.
    """
    found = []
    for name in runs:
        path = directory / name
        if (path / "result.json").exists():
            result = json.loads((path / "result.json").read_text())
            result["flags"] |= dict.fromkeys(("data_dir", "noise_probs", "output_dir"))
            with open(path / "history.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            result["history"] = {
                name: [round(float(row[name]), 4) if row[name] else None for row in rows]
                for name in HISTORY
            }
            found.append({"run": name} | result)
    return found


def quote(values):
    """Mean, and where there are several values their standard deviation, of shares in percent."""
    values = [100 * value for value in values if value is not None]
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def write(path, results):
    """Writes results as JSON, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with outputs.atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(result) + "\n" for result in results))


def read(path):
    return [json.loads(line) for line in lines_of(path)]


def write_csv(path, header, rows):
    with outputs.atomic_write(path) as temporary:
        with open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def read_csv(path):
    """The rows below the header, each a list of strings."""
    return list(csv.reader(lines_of(path)))[1:]


def lines_of(path):
    """Lines of a file that runs have made; ends the program, with a line, where there is none."""
    if not path.exists():
        sys.exit(f"{path} is not there yet: it is made from runs, without --table_only")
    return path.read_text().splitlines()


def numbers(kind):
    """For argparse: a list with commas in between."""
    return lambda text: [kind(part) for part in text.split(",")]


def names(allowed):
    """For argparse: a list of some of these, with commas in between."""

    def parse(text):
        found = text.split(",")
        unknown = [name for name in found if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(allowed)}; received {', '.join(unknown)}"
            )
        return found

    return parse


def parse(description, argv, define, seeds):
    """Parses the flags that all grids have; `define(add_argument)` adds those of this one."""
    parser = argparse.ArgumentParser(
        description=description.split("\n")[0], usage="%(prog)s [flags] [-- flags for every run]"
    )
    add = parser.add_argument
    define(add)
    add("--output_dir", type=pathlib.Path, help="default: runs/ and the name of --results")
    add("--results", type=pathlib.Path, help="default: results/NAME.jsonl")
    add("--dataset", default="cifar10")
    add("--seeds", type=numbers(int), default=seeds)
    add("--noise_probs", help="the teacher's probabilities, for feature-dependent noise")
    add("--jobs", type=int, default=4, help="runs at a time on each GPU, or on the CPU")
    add("--table_only", action="store_true", help="print the table of --results; train nothing")
    end = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:end])
    arguments.flags = argv[end + 1 :]
    return arguments


def name_files(arguments, name):
    """Fills in the paths that were not given."""
    arguments.results = arguments.results or pathlib.Path("results") / f"{name}.jsonl"
    arguments.output_dir = arguments.output_dir or pathlib.Path("runs") / arguments.results.stem
    return arguments


def main(arguments, runs, table):
    """Trains what is not finished, keeps the results, prints their table.

    Args:
        arguments: with output_dir, results (pathlib.Path), jobs and table_only.
        runs: as `train`.
        table: function from results to Markdown.

    Returns:
        The exit status: 1 where a run failed.
    """
    if arguments.table_only:
        print(table(read(arguments.results)), end="")
        return 0

    def keep(finished):
        results = collect([name for name in runs if name in finished], arguments.output_dir)
        write(arguments.results, results)
        arguments.results.with_suffix(".md").write_text(table(results))

    failed = train(runs, arguments.output_dir, arguments.jobs, keep)
    if len(failed) < len(runs):  # else what was there stays
        print(f"\n{table(read(arguments.results))}", end="")
    return exit_status(failed)


def exit_status(failed):
    """1 where runs failed, whose names are then printed, else 0."""
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
