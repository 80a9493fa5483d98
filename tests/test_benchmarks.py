"""The grid of Table I: what is trained, what is kept, and the table."""

import contextlib
import dataclasses
import json
import re
import shutil
import sys
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mln_keras.command import flags as command_line
from mln_keras import data
from mln_keras import layers
import mln_keras
from mln_keras.command import files as outputs
from mln_keras.data import noise, pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import differences
import figures
import grid
import jpeg
import keep_kernels
import step_time
import table1


@pytest.fixture
def arguments(tmp_path):
    return [
        "--dataset=digits", "--noises=uniform", "--ratios=0.2,2", "--seeds=1", "--jobs=2",
        f"--output_dir={tmp_path / 'runs'}", f"--results={tmp_path / 'all' / 'table.jsonl'}",
        "--", "--epochs=2", "--warmup_epochs=1", "--unlabeled_size=900",
    ]  # fmt: skip


def test_a_grid_goes_on_after_a_failure_and_repeats_nothing(arguments, tmp_path, capsys):
    assert table1.main(arguments) == 1
    out, err = capsys.readouterr()
    assert "uniform-2.0-metalabelnet-seed1: exit status 2, see " in out
    assert err == "\nfailed: uniform-2.0-metalabelnet-seed1, uniform-2.0-cross_entropy-seed1\n"
    log = tmp_path / "runs" / "uniform-2.0-metalabelnet-seed1.log"
    assert "--noise_ratio: expected 0 to 1, received 2.0" in log.read_text()

    results = tmp_path / "all" / "table.jsonl"
    runs = grid.read(results)
    assert [run["method"] for run in runs] == ["metalabelnet", "cross_entropy"]
    for run in runs:
        file = tmp_path / "runs" / f"uniform-0.2-{run['method']}-seed1" / "result.json"
        kept = json.loads(file.read_text())
        assert run["test_accuracy"] == kept["test_accuracy"] and run["flags"]["epochs"] == 2
        assert len(run["history"]["test_accuracy"]) == 2
        last = run["history"]["test_accuracy"][-1]
        assert last == pytest.approx(run["last_test_accuracy"], abs=1e-4)
    assert str(tmp_path) not in results.read_text()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert table1.main(arguments) == 1
    capsys.readouterr()
    assert table1.main([*arguments, "--table_only"][-1:] + arguments[:-4]) == 0
    assert capsys.readouterr().out == results.with_suffix(".md").read_text()

    arguments[arguments.index("--ratios=0.2,2")] = "--ratios=0.2"
    assert table1.main(["--methods=metalabelnet", *arguments, "--learning_rate=0.1"]) == 1
    assert "uniform-0.2-metalabelnet-seed1: exit status 2" in capsys.readouterr().out
    assert grid.read(results) == runs
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before


def test_where_all_runs_fail_nothing_is_written(tmp_path, monkeypatch, capsys):
    """As with `--table_only` after the `--`, which is no flag of the runs."""
    monkeypatch.setattr(grid, "train", lambda runs, *_: list(runs))
    files = [f"--results={tmp_path / 'r.jsonl'}", f"--picture={tmp_path / 'p.png'}"]
    for figure in ("figure4", "figure5"):
        assert figures.main([figure, *files, "--", "--table_only"]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("\nfailed: ") and not list(tmp_path.iterdir())


def test_an_interrupted_grid_begins_no_other_run(tmp_path, monkeypatch):
    begun = []

    def train_one(directory, command, gpus):
        time.sleep(0.05)
        begun.append(directory.name)
        return True

    def interrupt(finished):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "_visible_gpus", lambda: [None])
    monkeypatch.setattr(grid, "_train_one", train_one)
    with pytest.raises(KeyboardInterrupt):
        grid.train(dict.fromkeys(map(str, range(40))), tmp_path, 1, interrupt)
    assert len(begun) < 40


def test_the_runs_of_a_grid_share_what_was_compiled(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "directory = pathlib.Path(sys.argv[-1].removeprefix('--output_dir='))\n"
        "directory.mkdir()\n"
        "(directory / 'flags').write_text(os.environ['TF_XLA_FLAGS'])\n"
    )
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    assert not grid.train({"a": [program], "b": [program]}, tmp_path / "runs", 1)
    monkeypatch.setenv("TF_XLA_FLAGS", "--given")
    assert not grid.train({"c": [program]}, tmp_path / "runs", 1)
    flags = [(tmp_path / "runs" / name / "flags").read_text() for name in "abc"]
    cache = f'--tf_xla_persistent_cache_directory="{tmp_path / "runs" / "xla_cache"}"'
    assert flags == [cache, cache, "--given"]


@pytest.mark.parametrize(("says", "gpus"), [
    ("GPU 0: NVIDIA H200 (UUID: GPU-1)\nGPU 1: NVIDIA H200 (UUID: GPU-2)", ["0", "1"]),
    ("GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)", ["0"]),
    ("Failed to initialize NVML: GPU access blocked by the operating system\n", [None]),
    ("NVIDIA-SMI has failed because it could not reach the driver.\n", [None]),
])  # fmt: skip
def test_gpus_are_counted(tmp_path, monkeypatch, says, gpus):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat << END\n{says}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert grid._visible_gpus() == gpus


def test_the_table_quotes_means_gains_and_the_paper():
    def run(method, seed, test, ratio=0.4, **more):
        return {
            "noise": "uniform", "noise_ratio": ratio, "method": method, "seed": seed,
            "warmup_test_accuracy": None, "test_accuracy": test, "last_test_accuracy": test - 0.01,
        } | more  # fmt: skip

    lines = table1.table([
        run("metalabelnet", 0, 0.80, warmup_test_accuracy=0.7),
        run("metalabelnet", 1, 0.82, warmup_test_accuracy=0.7),
        run("metalabelnet", 2, 0.99, warmup_test_accuracy=0.7),
        run("cross_entropy", 0, 0.75, last_test_accuracy=0.7),
        run("cross_entropy", 1, 0.76, last_test_accuracy=0.7),
        run("cross_entropy", 0, 0.5, ratio=0.35),
    ]).splitlines()  # fmt: skip
    assert lines[2:5] == [
        "| uniform, 35% | cross-entropy | 0 |  | 50.00 | 49.00 |  |",
        "| uniform, 40% | cross-entropy | 0, 1 |  | 75.50 ± 0.71 | 70.00 ± 0.00 | 76.31 ± 0.75 |",
        "| uniform, 40% | MetaLabelNet | 0, 1, 2 | 70.00 ± 0.00 | 87.00 ± 10.44 | 86.00 ± 10.44 "
        "| 79.03 ± 0.26 |",
    ]
    assert lines[-1] == "| uniform, 40% | 0, 1 | 5.50 ± 0.71 | 10.00 ± 1.41 | 2.72 |"
    assert "Gain" not in table1.table([run("metalabelnet", 0, 0.80), run("cross_entropy", 1, 0.75)])


def test_runs_of_the_first_seed_come_first_and_take_the_flags():
    runs = table1.runs_of(table1.parse(["--noise_probs=p.npy", "--", "--mixed_precision=true"]))
    assert len(runs) == 64 and list(runs)[0] == "uniform-0.2-metalabelnet-seed0"
    seeds = [f"--seed={seed}" for seed in range(4) for _ in range(16)]
    for flags, seed in zip(runs.values(), seeds, strict=True):
        assert seed in flags and flags[-1] == "--mixed_precision=true"
        assert ("--noise=uniform" in flags) != ("--noise_probs=p.npy" in flags)


def test_the_runs_of_other_results_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert table1.parse([]).output_dir == Path("runs/table1")
    assert table1.parse(["--results=results/float32.jsonl"]).output_dir == Path("runs/float32")
    for figure, file in (("figure3", "table1.jsonl"), ("figure4", "figure4.csv")):
        with pytest.raises(SystemExit, match=f"results/{file} is not there yet"):
            figures.main([figure, "--table_only"])


def test_what_is_quoted_is_rebuilt_from_the_results(tmp_path, capsys):
    root = Path(__file__).resolve().parents[1]
    text = (root / "REPRODUCE.md").read_text()
    jpeg.main(["--table_only", f"--results={root / 'results' / 'jpeg.csv'}"])
    assert capsys.readouterr().out in text
    for file, table in (
        ("table1", table1.table), ("float32", table1.table), ("differences", differences.table),
        ("differences-he_normal", differences.table), ("table1-no_vertical_flip", table1.table),
    ):  # fmt: skip
        results = grid.read(root / "results" / f"{file}.jsonl")
        assert table(results) in text, file
    heads = tuple(f"| {name} |" for name in figures.LABEL_HEADS)
    rows = differences.table(grid.read(root / "results" / "differences.jsonl")).splitlines(True)
    assert rows[0] + rows[1] + "".join(row for row in rows if row.startswith(heads)) in text
    changes = shutil.copy(root / "results" / "figure4.csv", tmp_path / "changes.csv")
    figures.main(["figure4", "--table_only", f"--picture={tmp_path / 'changes.png'}"])
    assert changes.read_bytes() == (root / "results" / "figure4.csv").read_bytes()
    pictures = {
        "figure3": "table1", "figure3-no_vertical_flip": "table1-no_vertical_flip",
        "section_v_c": "differences", **{name: name for name in figures.SWEEPS},
    }  # fmt: skip
    for picture, source in pictures.items():
        results, figure = root / "results" / f"{source}.jsonl", picture.split("-")[0]
        if figure in figures.SWEEPS:
            table = figures.table(figures.SWEEPS[figure], grid.read(results))
            assert table in text, figure
        paths = [f"--results={results}", f"--picture={tmp_path / 'picture.png'}", "--table_only"]
        assert figures.main([figure, *paths]) == 0
        rebuilt = (tmp_path / "picture.csv").read_text()
        assert rebuilt == (root / "results" / f"{picture}.csv").read_text(), picture
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_difference_makes_a_difference(monkeypatch):
    """Also the recipe, from all others; those that are flags are not tried, nor those of colour,
    which digits have none of."""

    class Trained(Exception):
        pass

    def run(settings, recipe, splits):
        model = mln_keras.build_model(settings, recipe)
        model.run_eagerly, model._sum_up = True, model._losses_and_hits
        model.fit(
            (splits.train_images[:64], splits.given_labels[:64]),
            meta_data=(splits.meta_images[:64], splits.meta_labels[:64]), batch_size=32, epochs=3,
            verbose=0, callbacks=[keras.callbacks.LearningRateScheduler(recipe.learning_rate_at)],
        )  # fmt: skip
        measured = model.evaluation(splits.test_images[:64], splits.test_labels[:64], 64)()
        raise Trained([str(measured), *(w.numpy().tobytes() for w in model.classifier.weights)])

    flags = ["--dataset=digits", "--noise=uniform", "--epochs=3", "--warmup_epochs=1",
             "--learning_rate=0.1", "--output_dir=nowhere"]  # fmt: skip
    found = {}
    for name, difference in differences.DIFFERENCES.items():
        if (difference and isinstance(difference, list)) or "colour" in name:
            continue
        with monkeypatch.context() as patch:
            recipe = dataclasses.replace(mln_keras.RECIPES["digits"], learning_rate_drops=(2,))
            patch.setattr(mln_keras, "RECIPES", {"digits": recipe})
            patch.setattr(mln_keras, "run", run)
            patch.setattr(outputs, "claim_directory", lambda _: contextlib.nullcontext())
            patch.setattr(data, "LOADERS", data.LOADERS.copy())
            for owner, of in ((mln_keras, "build_model"), (noise, "uniform"),
                              (layers, "kl_divergence"), (layers, "entropy"),
                              (pipeline, "batches"), (mln_keras.MetaLabelNet, "build_label_head")):
                patch.setattr(owner, of, getattr(owner, of))  # put back after each
            with pytest.raises(Trained) as trained:
                differences.main(["run", name, *flags])
        end = tuple(trained.value.args[0])
        assert end not in found, f"{name} is the same as {found.get(end)}"
        found[end] = name
    assert len(found) == 24


def test_the_table_of_differences_takes_gains_by_seed():
    results = [
        {"run": f"uniform-{name}-seed{seed}", "noise": "uniform", "seed": seed,
         "test_accuracy": accuracy}
        for name, seed, accuracy in [
            ("recipe", 0, 0.7), ("recipe", 1, 0.8), ("α_3", 0, 0.75), ("α_3", 1, 0.75)
        ]
    ]  # fmt: skip
    assert differences.table(results).splitlines() == [
        "| difference | uniform | gain |",
        "| --- | --- | --- |",
        "| recipe | 75.00 ± 7.07 |  |",
        "| α = 3 | 75.00 ± 0.00 | 0.00 ± 7.07 |",
    ]


def test_differences_are_run_by_name(capsys):
    runs = differences.runs_of(differences.parse(["--noise_probs=p.npy", "--seeds=3"]))
    assert len(runs) == 2 * len(differences.DIFFERENCES)
    first = runs["feature_dependent-recipe-seed3"]
    assert first[1:3] == ["run", "recipe"] and "--noise_probs=p.npy" in first
    assert runs["uniform-batches_of_125_that_leave_no_image_over-seed3"][-1] == "--batch_size=125"
    some = differences.parse(["--differences=α = 3,recipe"])
    assert len(differences.runs_of(some)) == 8
    with pytest.raises(SystemExit):
        differences.parse(["--differences=recipe,α = 4"])
    assert re.search("--differences: .*MLP head.*; received α = 4\n", capsys.readouterr().err)


def test_a_step_waits_for_its_input_as_long_as_reading_takes_longer(tmp_path, capsys):
    """Epochs that compile, and that begin to read, do not count."""
    arguments = step_time.parse(["--files=8", "--epochs=2", f"--json={tmp_path / 'f.json'}"])
    seconds = [90, 3, 5, 80, 8, 8] + [95, 10, 10, 85, 16, 16]
    clock = types.SimpleNamespace(seconds=seconds, peaks=[], kernels={})
    step_time.report(arguments, clock, epochs=6, of_a_phase=6, steps=2, counts=(1, 1))
    found = json.loads((tmp_path / "f.json").read_text())
    assert [found[f"cross-entropy{of}"]["median_ms"] for of in ("", ", from files")] == [2000, 4000]
    assert found["cross-entropy"]["first_s"] == 90 and found["phase 2"]["first_s"] == 95
    assert found["cross-entropy, input wait"] == 0.5
    assert found["phase 2, input wait"] == pytest.approx(0.375)
    assert found["ratio"] == 2.5 and found["flags"]["json"] is None
    assert "phase 2 waits for its input: 37.5% of a step\n" in capsys.readouterr().out


def test_a_held_batch_comes_until_files_are_read():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    stream = step_time.held_then_read(images, np.arange(6), 2, steps=3, epochs=2)
    held, read = np.split(np.stack([labels for _, labels in stream.take(12)]), 2)
    assert (held == held[0]).all()
    assert [sorted(epoch.ravel()) for epoch in np.split(read, 2)] == 2 * [[0, 1, 2, 3, 4, 5]]


def test_how_far_an_encoding_moves_pixels():
    photographs = jpeg.shrunk_photographs(1)
    assert photographs.shape == (10, 32, 32, 3) and photographs.dtype == np.uint8
    assert photographs.std() > 40 and (jpeg.shrunk_photographs(1) == photographs).all()
    flat = np.full((1, 32, 32, 3), 252, np.uint8)  # a whole number of each quality's steps
    assert jpeg.distance(flat, flat - 3) == jpeg.distance(flat - 3, flat) == 3
    first, *further = jpeg.measure(flat, photographs)
    assert first[1] == "" and first[2] == first[3]
    assert all(row[1] == "0.0" for row in further)
    assert all(float(first[2]) < float(row[3]) for row in further)


def test_figures_vary_one_flag_over_the_papers_values():
    probs = "--noise_probs=p.npy"
    names = {"figure5": 20, "figure6": 12, "figure7": 24, "section_v_b": 8}
    for figure, count in names.items():
        runs = figures.runs_of(figures.SWEEPS[figure], figures.parse([figure, probs, "--", "-x"]))
        assert len(runs) == count
        for name, (program, *flags) in runs.items():
            assert program == grid.PROGRAM and flags[-1] == "-x"
            assert ("feature_dependent" in name) == (probs in flags)
            assert ("--batch_size=100" in flags) == ("meta_size-100-" in name)


def test_a_sweep_is_drawn_from_its_results(tmp_path):
    def run(value, seed, best, last):
        return {
            "noise": "uniform", "noise_ratio": 0.6, "seed": seed, "warmup_test_accuracy": 0.5,
            "test_accuracy": best, "last_test_accuracy": last,
            "flags": {"meta_size": value, "warmup_epochs": value},
            "history": {"test_accuracy": [0.1, best, last]},
        }  # fmt: skip

    grid.write(
        tmp_path / "r.jsonl", [run(44, 0, 0.7, 0.6), run(44, 1, 0.8, 0.7), run(20, 0, 0.6, 0.6)]
    )
    picture = tmp_path / "p.png"
    arguments = [f"--results={tmp_path / 'r.jsonl'}", f"--picture={picture}", "--table_only"]
    assert figures.main(["figure5", *arguments]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.with_suffix(".csv").read_text().splitlines() == [
        "noise,ratio,of,meta_size,mean",
        "uniform,0.6,warm-up end,20,50.00",
        "uniform,0.6,warm-up end,44,50.00",
        "uniform,0.6,best by meta,20,60.00",
        "uniform,0.6,best by meta,44,75.00",
        "uniform,0.6,last epoch,20,60.00",
        "uniform,0.6,last epoch,44,65.00",
    ]
    picture.unlink()
    assert figures.main(["figure6", *arguments]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.with_suffix(".csv").read_text().splitlines() == [
        "noise,ratio,warmup_epochs,epoch,mean",
        "uniform,0.6,20,1,10.00", "uniform,0.6,20,2,60.00", "uniform,0.6,20,3,60.00",
        "uniform,0.6,44,1,10.00", "uniform,0.6,44,2,75.00", "uniform,0.6,44,3,65.00",
    ]  # fmt: skip


def test_label_heads_are_drawn_in_phase_2_from_the_seeds_that_all_have(tmp_path):
    def run(difference, seed, *accuracies):
        return {
            "run": f"uniform-{differences.in_a_path(difference)}-seed{seed}", "seed": seed,
            "noise": "uniform", "noise_ratio": 0.4, "warmup_epochs": 1,
            "history": {"test_accuracy": accuracies},
        }  # fmt: skip

    runs = [
        run("recipe", 0, 0.1, 0.7, 0.8), run("recipe", 1, 0.1, 0.1, 0.1),
        run("180 epochs", 0, 0.1, 0.2, 0.3), run("MLP head with batch norm", 0, 0.1, 0.5, 0.6),
    ]  # fmt: skip
    figures.section_v_c(runs, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "noise,ratio,head,epoch,mean",
        "uniform,0.4,single layer,2,70.00", "uniform,0.4,single layer,3,80.00",
        'uniform,0.4,"MLP, batch norm",2,50.00',
        'uniform,0.4,"MLP, batch norm",3,60.00',
    ]  # fmt: skip


def test_figure_4_measures_the_change_of_the_soft_labels(tmp_path, monkeypatch):
    """Also where a run was interrupted between its two epochs of phase 2."""
    kept = []
    for epochs in (2, 3):
        for module, name in ((mln_keras, "run"), (outputs, "RunRecorder")):
            monkeypatch.setattr(module, name, getattr(module, name))
        directory = tmp_path / str(epochs)
        flags = ["--dataset=digits", "--warmup_epochs=1", f"--epochs={epochs}",
                 "--unlabeled_size=900", f"--output_dir={directory}"]  # fmt: skip
        assert figures.main(["run_figure4", *flags]) == 0
        monkeypatch.undo()
        with np.load(directory / "soft_labels.npz") as file:
            kept.append(file["soft_labels"])
    assert not (tmp_path / "2" / figures.CHANGES).exists()
    change = np.abs(kept[1] - kept[0])
    epoch, mean, variance = (tmp_path / "3" / figures.CHANGES).read_text().split(",")
    assert epoch == "3" and change.mean() > 0.001
    assert float(mean) == pytest.approx(change.mean(), rel=1e-4)
    assert float(variance) == pytest.approx(change.var(), rel=1e-4)

    monkeypatch.setattr(outputs, "CHECKPOINT_SECONDS", 0)
    flags = [*flags[:-1], f"--output_dir={tmp_path / 'interrupted'}"]
    with monkeypatch.context() as patch:
        patch.setattr(mln_keras, "run", mln_keras.run)
        patch.setattr(outputs, "RunRecorder", InterruptedInEpoch3)
        assert figures.main(["run_figure4", *flags]) == 130
    monkeypatch.setattr(mln_keras, "run", mln_keras.run)
    monkeypatch.setattr(outputs, "RunRecorder", outputs.RunRecorder)
    assert figures.main(["run_figure4", *flags, "--resume"]) == 0
    assert (tmp_path / "interrupted" / figures.CHANGES).read_text() == (
        tmp_path / "3" / figures.CHANGES
    ).read_text()


class InterruptedInEpoch3(outputs.RunRecorder):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_runs_are_spread_over_the_gpus(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "directory = pathlib.Path(sys.argv[-1].removeprefix('--output_dir='))\n"
        "directory.mkdir()\n"
        "(directory / 'gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert not grid.train({"a": [program], "b": [program]}, tmp_path / "runs", 2)
    assert {(tmp_path / "runs" / name / "gpu").read_text() for name in "ab"} == {"3", "5"}


def test_a_run_counts_when_it_has_ended_well(tmp_path):
    program, seen = tmp_path / "program.py", []
    program.write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    runs = {name: [program, status] for name, status in (("a", "0"), ("b", "1"), ("c", "0"))}
    failed = grid.train(runs, tmp_path / "runs", 1, lambda finished: seen.append(set(finished)))
    assert failed == ["b"] and sorted(seen[0]) in (["a"], ["c"]) and seen[1:] == [{"a", "c"}]


def test_results_hold_no_paths(tmp_path):
    (tmp_path / "a").mkdir()
    paths = {"data_dir": "/home/me", "noise_probs": "/home/me/p.npy", "output_dir": "/home/me/a"}
    (tmp_path / "a" / "result.json").write_text(json.dumps({"flags": paths | {"seed": 3}}))
    (tmp_path / "a" / "history.csv").write_text(",".join(grid.HISTORY) + "\n")
    (found,) = grid.collect(["a", "unfinished"], tmp_path)
    assert found["flags"] == dict.fromkeys(paths) | {"seed": 3}


@pytest.mark.parametrize("parse", [table1.parse, differences.parse])
def test_a_noise_that_does_not_exist_is_refused(parse, capsys):
    assert parse(["--noises=uniform,human"]).noises == ["uniform", "human"]
    with pytest.raises(SystemExit):
        parse(["--noises=unifrom"])
    assert "--noises: expected some of none, uniform, " in capsys.readouterr().err


def test_figure_4_is_drawn_from_the_runs_that_did_not_fail(tmp_path, monkeypatch):
    """The rows of an epoch that came twice, as after a kill, count once."""

    def train(runs, directory, jobs):
        uniform, failed = runs
        (directory / uniform).mkdir(parents=True)
        (directory / uniform / figures.CHANGES).write_text("46,9,9\n46,0.5,0.25\n47,0.25,0.125\n")
        return [failed]

    monkeypatch.setattr(grid, "train", train)
    picture = tmp_path / "p.png"
    assert figures.main(["figure4", f"--output_dir={tmp_path}", f"--picture={picture}"]) == 1
    rows = "run,epoch,mean,variance\n" + "".join(
        f"uniform-0.4-seed0,{row}\n" for row in ("46,0.500000,0.250000", "47,0.250000,0.125000")
    )
    assert "".join(picture.with_suffix(".csv").open()) == rows
    picture.unlink()
    assert figures.main(["figure4", f"--picture={picture}", "--table_only"]) == 0
    assert "".join(picture.with_suffix(".csv").open()) == rows
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_figure_4_measures_each_epoch_against_the_one_before(tmp_path, monkeypatch):
    kept = iter(np.array([[[0.0]], [[0.5]], [[0.75]], [[9.0]]]))  # the last of them by `run`
    monkeypatch.setattr(mln_keras.MetaLabelNet, "soft_labels", lambda *_: next(kept))
    for module, name in ((mln_keras, "run"), (outputs, "RunRecorder")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(outputs, "write_soft_labels", lambda *_: None)
    flags = ["--dataset=digits", "--warmup_epochs=1", "--epochs=4", "--unlabeled_size=1000",
             f"--output_dir={tmp_path}"]  # fmt: skip
    assert figures.main(["run_figure4", *flags]) == 0
    rows = (tmp_path / figures.CHANGES).read_text().splitlines()
    assert rows == ["3,0.5,0.0", "4,0.25,0.0"]


def digits_model():
    settings, recipe = mln_keras.parse_settings(["", "--dataset=digits"], mln_keras.RECIPES, "")
    return mln_keras.build_model(settings, recipe)


def test_measuring_averaged_weights_leaves_the_weights(monkeypatch):
    monkeypatch.setattr(mln_keras, "build_model", mln_keras.build_model)
    differences.average_weights()
    model = digits_model()
    images, labels = np.zeros((64, 8, 8, 1), np.uint8), np.zeros(64, np.int32)
    model.fit((images, labels), epochs=1, verbose=0, batch_size=16)
    before = [weight.numpy() for weight in model.classifier.weights]
    measured, _ = model.evaluation(images, labels, 64)()
    assert measured != model.evaluate(images, labels, verbose=0, return_dict=True)["loss"]
    for weight, value in zip(model.classifier.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_images_that_are_encoded_on_shifted_blocks_stay_where_they_are():
    images = jpeg.shrunk_photographs(1)
    shifted = differences.re_encode_shifted(100, images)
    assert shifted.shape == images.shape and shifted.dtype == np.uint8
    assert jpeg.distance(shifted, images) < 1.5 * jpeg.distance(
        differences.re_encode(100, images), images
    )


def test_colour_averaged_over_blocks_leaves_gray_and_brightness():
    images = jpeg.shrunk_photographs(1)
    blurred = differences.blur_colour(images)
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(np.mean((blurred - 1.0 * images) @ weights), 0, atol=0.5)
    gray = np.repeat(images[..., :1], 3, axis=-1)
    np.testing.assert_allclose(differences.blur_colour(gray), gray, atol=1)
    assert 1 < jpeg.distance(blurred, images) < 30


def test_where_initial_kernels_differ_biases_start_from_0(monkeypatch):
    monkeypatch.setattr(mln_keras, "build_model", mln_keras.build_model)
    differences.DIFFERENCES["Keras' initial weights"]()
    model = digits_model()
    assert not model.classifier.layers[-1].bias.numpy().any()


def test_drawn_noise_flips_the_share_of_the_ratio(monkeypatch):
    monkeypatch.setattr(noise, "uniform", noise.uniform)
    differences.draw_uniform_noise()
    labels = np.arange(100_000) % 10
    noisy = noise.uniform(labels, 0.4, 10, 0)
    assert (noisy != labels).mean() == pytest.approx(0.4, abs=0.01)
    shares = np.bincount((noisy - labels) % 10) / len(labels)
    np.testing.assert_allclose(shares[1:], 0.4 / 9, atol=0.005)


def test_losses_with_1e_10_in_their_logarithms_are_nearly_the_same(monkeypatch):
    logits, soft = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    expected = layers.kl_divergence(logits, soft), layers.entropy(logits)
    for name in ("kl_divergence", "entropy"):
        monkeypatch.setattr(layers, name, getattr(layers, name))
    differences.add_1e_10()
    found = layers.kl_divergence(logits, soft), layers.entropy(logits)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_log_of_a_run_that_goes_on_is_kept(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("print('a line')\n")
    for _ in range(2):
        assert not grid.train({"a": [program]}, tmp_path, 1)
    assert (tmp_path / "a.log").read_text() == "a line\n" * 2


def test_kernels_of_this_machine_are_added_to_the_repositorys(tmp_path, monkeypatch):
    folder = tmp_path / "mln_keras_kernels" / f"tensorflow-{tf.__version__}"
    folder.mkdir(parents=True)
    (folder / "tmp").mkdir()  # XLA's own
    for name in ("b", "c"):
        (folder / f"{name}.textproto").write_text(f"here {name}")
    there = {"a.textproto": "there a", "b.textproto": "there b"}
    kernels = tmp_path / "kernels.json"
    kernels.write_text(json.dumps({folder.name: there, "tensorflow-1": {"a": "b"}}))
    monkeypatch.setattr(command_line, "KERNELS", kernels)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    keep_kernels.main()
    both = there | {"b.textproto": "here b", "c.textproto": "here c"}
    assert json.loads(kernels.read_text()) == {folder.name: both, "tensorflow-1": {"a": "b"}}
