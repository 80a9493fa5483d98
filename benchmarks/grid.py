"""Many runs of the command line, several at a time, each in a process and a folder of its own.

A finished run is not repeated, an interrupted one goes on, and one that fails leaves its log and
lets the others go on. Results are JSON, a line a run: a run replaces its own line and leaves the
others, so that the runs of one file can be made on several machines.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tensorflow as tf

from mln_keras.command import files
from mln_keras.command.checkpoints import CHANGE
from mln_keras.command.recipes import RECIPES
from mln_keras.command.versions import VERSION
from mln_keras.data import corruption

PROGRAM = pathlib.Path(__file__).resolve().parents[1] / "mln_keras.py"
NOISES = ("uniform", "feature_dependent")  # of the paper's CIFAR-10 results
RATIOS = (0.2, 0.4, 0.6, 0.8)
TESTED = {"best by meta": "test_accuracy", "last epoch": "last_test_accuracy"}  # name in a result
COLUMNS = ("accuracy", "meta_accuracy", "test_accuracy", *CHANGE)  # of history.csv


def parser(description):
    """An argument parser with the flags of all grids; None stands for the paper's values."""
    made = argparse.ArgumentParser(
        description=description.split("\n")[0], usage="%(prog)s [flags] [-- flags for every run]"
    )
    add = made.add_argument
    add("--results", type=pathlib.Path, help="JSON lines; default: results/NAME.jsonl")
    add("--dataset", default="cifar10")
    add("--noises", nargs="+", choices=corruption.MADE, help="default: the paper's")
    add("--ratios", nargs="+", type=float, help="default: the paper's")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--noise_probs", help="the teacher's probabilities, for feature-dependent noise")
    add("--jobs", type=int, default=4, help="runs at a time on each GPU, or on the CPU")
    add("--table_only", action="store_true", help="show what --results holds; train nothing")
    return made


def parse(parser, argv):
    """The arguments; `flags` is what comes after `--`, a list."""
    end = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:end])
    arguments.flags = argv[end + 1 :]
    return arguments


def runs_of(arguments, varied, program=(PROGRAM,)):
    """All runs of a grid in the order of running, those of the first seed first.

    Args:
        arguments: as `parse` returns them, without None.
        varied: dict, a part of a run's name -> the flags that it stands for, a list.
        program: the program's path, and arguments before the flags.

    Returns:
        dict, name of a run -> its program and flags, a list.
    """
    runs = {}
    for seed, noise, ratio, name in itertools.product(
        arguments.seeds, arguments.noises, arguments.ratios, varied
    ):
        flags = [f"--dataset={arguments.dataset}", f"--noise={noise}", f"--noise_ratio={ratio}"]
        if noise == "feature_dependent" and arguments.noise_probs:
            flags.append(f"--noise_probs={arguments.noise_probs}")
        flags += [f"--seed={seed}", *varied[name], *arguments.flags]
        runs[f"{noise}-{ratio}-{name}-seed{seed}"] = [*program, *flags]
    return runs


def flags_of_meta_size(size, dataset):
    """The flags for so many clean images, a list: no batch, of noisy ones neither, is larger."""
    batch_size = min(size, RECIPES[dataset].batch_size)
    return [f"--meta_size={size}", f"--batch_size={batch_size}"]


def main(arguments, runs, table, more=lambda directory: {}):
    """Trains the runs, keeps their results, prints the table of all that the file holds.

    Args:
        arguments: as `parse` returns them.
        runs: as `runs_of` returns them.
        table: function from results to Markdown.
        more: function from a finished run's folder to further entries of its result, a dict.

    Returns:
        The exit status: 1 where a run failed.
    """
    failed, path = [], arguments.results
    if not arguments.table_only:
        held = {result["run"]: result for result in read(path)} if path.exists() else {}
        made_by = {(one["dataset"], one["versions"]["mln_keras"]) for one in held.values()}
        if made_by - {(arguments.dataset, VERSION)}:
            sys.exit(
                f"--results: {path} holds runs of another data set or version, {sorted(made_by)}; "
                f"these are of {(arguments.dataset, VERSION)}: name another file"
            )
        directory = pathlib.Path("runs") / path.stem

        def keep(name):
            held[name] = collect(name, directory) | more(directory / name)
            write(path, [held[name] for name in sorted(held)])
            path.with_suffix(".md").write_text(table(list(held.values())))

        failed = train(runs, directory, arguments.jobs, keep)
    if arguments.table_only or path.exists():
        print(f"\n{table(read(path))}", end="")
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def train(runs, directory, jobs, on_end=lambda name: None):
    """Trains all runs, spread over the visible GPUs.

    Args:
        runs: as `runs_of` returns them.
        directory: pathlib.Path; a run's files go to the folder of its name in there, what it
            prints to NAME.log, and what XLA compiled to xla_cache, unless TF_XLA_FLAGS are set.
        jobs: runs at a time on each GPU, or on the CPU where there is no GPU.
        on_end: called with the name of each run that has ended well.

    Returns:
        Names of the runs that failed, a list.
    """
    directory.mkdir(parents=True, exist_ok=True)
    gpus, failed = queue.Queue(), []
    for gpu in _visible_gpus() * jobs:
        gpus.put(gpu)
    with concurrent.futures.ThreadPoolExecutor(gpus.qsize()) as pool:
        ends = {pool.submit(_train_one, directory / n, runs[n], gpus): n for n in runs}
        try:
            for end in concurrent.futures.as_completed(ends):
                if end.result():
                    on_end(ends[end])
                else:
                    failed.append(ends[end])
        finally:
            pool.shutdown(cancel_futures=True)  # where Ctrl-C ends it, no other run begins
    return sorted(failed, key=list(runs).index)


def _train_one(directory, command, gpus):
    log = directory.with_name(f"{directory.name}.log")
    cache = f'--tf_xla_persistent_cache_directory="{directory.parent / "xla_cache"}"'
    environment = {"TF_XLA_FLAGS": cache} | os.environ | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    gpu = gpus.get()
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
    """The GPUs as CUDA_VISIBLE_DEVICES takes them, a list of strings; [None] without a GPU."""
    if listed := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return listed.split(",")
    return [str(i) for i in range(len(tf.config.list_physical_devices("GPU")))] or [None]


def collect(name, directory):
    """A finished run's result, a dict: its result.json without folders; `run`, its name; `history`,
    those of `COLUMNS` that it has, by epoch, lists with None for what is not there yet."""
    result = json.loads((directory / name / "result.json").read_text())
    flags = result["flags"]
    flags |= dict.fromkeys(("data_dir", "output_dir"))
    named = (flags.get(of) for of in ("weights", "noise_probs", "noise_labels"))
    for file in (*named, *(flags.get("corrections") or ())):
        if isinstance(file, dict):
            file["file"] = None
    unreadable = result.get("unreadable_files", {})
    unreadable |= {of: list(map(os.path.basename, paths)) for of, paths in unreadable.items()}
    rows = files.read_csv(directory / name / "history.csv")
    result["history"] = {
        of: [float(f"{float(row[of]):.4g}") if row[of] else None for row in rows]
        for of in COLUMNS if of in rows[0]
    }  # fmt: skip
    return {"run": name} | result


def write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(result) + "\n" for result in results))


def read(path):
    """The results in a file, a list of dicts; ends the program, with a line, without the file."""
    if not path.exists():
        sys.exit(f"{path} is not there yet: it is made from runs, without --table_only")
    return [json.loads(line) for line in path.read_text().splitlines()]


def group(results, flag):
    """dict, sorted: (noise, ratio, value of the flag) -> their runs' results by seed, a list."""
    groups = {}
    for result in sorted(results, key=lambda result: result["seed"]):
        cell = (result["noise"], result["noise_ratio"], result["flags"][flag])
        groups.setdefault(cell, []).append(result)
    return dict(sorted(groups.items()))


def table(results, flag):
    """Markdown: test accuracies, a row a noise, ratio and value of the flag."""
    header = ("noise", flag, "seeds", *TESTED)
    rows = [header, ["---"] * len(header)]
    for (noise, ratio, value), runs in group(results, flag).items():
        seeds = ", ".join(str(run["seed"]) for run in runs)
        accuracies = (quote([run[of] for run in runs]) for of in TESTED.values())
        rows.append((f"{noise}, {ratio:.0%}", str(value), seeds, *accuracies))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def quote(values):
    """Mean, and where there are several values their standard deviation, of shares in percent."""
    values = [100 * value for value in values]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
