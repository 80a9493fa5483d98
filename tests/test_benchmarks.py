"""The benchmarks: what a grid trains and keeps, the tables, the figures, what is timed."""

import contextlib
import json
import sys
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import runs

from mln_keras.command.versions import VERSION
from mln_keras.data.source import Splits
from mln_keras.methods import METHODS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import figures
import grid
import input_pipeline
import pictures
import scaling
import step_time
import table1
import wrong_labels

NO_PAPER_ROW = {"fine_tune", "meta_only", "gold_loss_correction", "metalabelnet_clean"}
FAKE = """
import json, os, pathlib, sys
accuracy, directory = sys.argv[1], pathlib.Path(sys.argv[-1].removeprefix("--output_dir="))
print("a line")
if accuracy == "fail":
    sys.exit(3)
directory.mkdir(exist_ok=True)
(directory / "environment.json").write_text(json.dumps(dict(os.environ)))
(directory / "result.json").write_text(json.dumps(result | {"test_accuracy": float(accuracy)}))
(directory / "history.csv").write_text("accuracy,meta_accuracy,test_accuracy\\n0.1,0.2,0.12345\\n")
"""


def result(name="a", test=0.7, **more):
    """What a run of MetaLabelNet leaves, one epoch of warm-up and two of phase 2."""
    found = {
        "run": name, "dataset": "cifar10", "noise": "uniform", "noise_ratio": 0.4, "seed": 0,
        "method": "metalabelnet", "meta_size": 5000, "warmup_epochs": 1,
        "warmup_test_accuracy": 0.5, "test_accuracy": test, "last_test_accuracy": test - 0.1,
        "versions": {"mln_keras": VERSION}, "history": {"test_accuracy": [0.5, test, test - 0.1]},
    } | more  # fmt: skip
    return found | {"flags": {**found, "output_dir": "/home/me", **found.get("flags", {})}}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A program that leaves a run's files at once; the test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    program = tmp_path / "program.py"
    left = {of: value for of, value in result().items() if of not in ("run", "history")}
    program.write_text(f"result = {left!r}\n{FAKE}")
    return lambda **runs: {name: [program, str(accuracy)] for name, accuracy in runs.items()}


def arguments_of(*argv):
    return grid.parse(grid.parser("A grid."), ["--results=results/r.jsonl", "--jobs=1", *argv])


def environment(name):
    return json.loads(Path("runs", "r", name, "environment.json").read_text())


def names(results):
    return "".join(one["run"] for one in results) + "\n"


# ---- the grid -----------------------------------------------------------------------------------


def test_a_run_replaces_its_own_line_and_leaves_the_others(fake, capsys):
    """Those of b, d and e were made on another machine: here they have no folder."""
    arguments = arguments_of()
    path = arguments.results
    grid.write(path, [result(name, 0.1) for name in "abde"])
    runs = fake(c=0.3, a=0.2, d="fail")
    assert grid.main(arguments, runs, names) == 1
    found = {one["run"]: one["test_accuracy"] for one in grid.read(path)}
    assert found == {"a": 0.2, "b": 0.1, "c": 0.3, "d": 0.1, "e": 0.1}
    assert list(found) == sorted(found)
    out, err = capsys.readouterr()
    assert "d: exit status 3, see runs/r/d.log\n" in out and out.endswith("\nabcde\n")
    assert err == "\nfailed: d\n"
    assert sorted(path.with_suffix(".md").read_text()) == sorted("abcde\n")


def test_a_file_is_of_one_data_set_and_version(fake):
    for other in ({"dataset": "digits"}, {"versions": {"mln_keras": "0.1"}}):
        arguments = arguments_of()
        grid.write(arguments.results, [result("b", **other)])
        with pytest.raises(SystemExit, match=r"--results: results/r.jsonl holds runs of another"):
            grid.main(arguments, fake(a=0.2), names)
        assert names(grid.read(arguments.results)) == "b\n" and not Path("runs").exists()


def test_without_results_there_is_no_table(fake, capsys):
    assert grid.main(arguments_of(), fake(a="fail"), names) == 1
    assert capsys.readouterr() == ("a: exit status 3, see runs/r/a.log\n", "\nfailed: a\n")
    assert not Path("results").exists()
    with pytest.raises(SystemExit, match=r"results/r.jsonl is not there yet"):
        grid.main(arguments_of("--table_only"), fake(a=0.2), names)


def test_a_log_goes_on_and_the_runs_share_what_was_compiled(fake, monkeypatch):
    for _ in range(2):
        assert not grid.train(fake(a=1, b=1), Path("runs/r"), 1)
    assert Path("runs/r/a.log").read_text() == "a line\n" * 2
    monkeypatch.setenv("TF_XLA_FLAGS", "--given")
    assert not grid.train(fake(c=1), Path("runs/r"), 1)
    flags = [environment(name)["TF_XLA_FLAGS"] for name in "abc"]
    cache = '--tf_xla_persistent_cache_directory="runs/r/xla_cache"'
    assert flags == [cache, cache, "--given"]


def test_runs_are_spread_over_the_gpus(fake, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert not grid.train(fake(a=1, b=1), Path("runs/r"), 2)
    assert {environment(name)["CUDA_VISIBLE_DEVICES"] for name in "ab"} == {"3", "5"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    found = {"GPU": ["first", "second"]}
    monkeypatch.setattr(grid.tf.config, "list_physical_devices", lambda kind: found[kind])
    assert grid._visible_gpus() == ["0", "1"]
    found["GPU"] = []
    assert grid._visible_gpus() == [None]


def test_an_interrupted_grid_begins_no_other_run(tmp_path, monkeypatch):
    begun = []

    def train_one(directory, command, gpus):
        time.sleep(0.05)
        begun.append(directory.name)
        return True

    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "_visible_gpus", lambda: [None])
    monkeypatch.setattr(grid, "_train_one", train_one)
    with pytest.raises(KeyboardInterrupt):
        grid.train(dict.fromkeys(map(str, range(40))), tmp_path, 1, interrupt)
    assert len(begun) < 40


def test_results_hold_accuracies_by_epoch_and_no_paths(fake, tmp_path):
    grid.train(fake(a=0.2), Path("runs"), 1)
    found = grid.collect("a", Path("runs"))
    assert found["history"] == {
        "accuracy": [0.1], "meta_accuracy": [0.2], "test_accuracy": [0.1235]
    }  # fmt: skip
    assert "/home/me" not in json.dumps(found) and found["flags"]["seed"] == 0


def test_results_name_files_by_their_content(fake):
    def at(name):
        return {"file": f"/home/me/{name}", "sha256": name}

    grid.train(fake(a=0.2), Path("runs"), 1)
    path = Path("runs", "a", "result.json")
    left = json.loads(path.read_text()) | {"unreadable_files": {"train": ["/home/me/x/a.jpg"]}}
    left["flags"] |= {name: at(name) for name in ("weights", "noise_labels", "noise_probs")}
    left["flags"]["corrections"] = [at("first"), at("next")]
    path.write_text(json.dumps(left))
    found = grid.collect("a", Path("runs"))
    assert "/home/me" not in json.dumps(found)
    assert found["unreadable_files"] == {"train": ["a.jpg"]}
    for name in ("weights", "noise_labels", "noise_probs"):
        assert found["flags"][name] == {"file": None, "sha256": name}
    assert [file["sha256"] for file in found["flags"]["corrections"]] == ["first", "next"]
    for weights in ("imagenet", "none"):
        left["flags"]["weights"] = weights
        path.write_text(json.dumps(left))
        assert grid.collect("a", Path("runs"))["flags"]["weights"] == weights


# ---- Table I ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_grid_repeats_no_run_and_goes_on_after_one_that_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset=digits", "--noises=uniform", "--ratios=0.2", "--seeds=1", "--jobs=2"]
    of_runs = ["--", "--epochs=2", "--warmup_epochs=1", "--unlabeled_size=900"]
    both = ["--methods", "metalabelnet", "mslg"]
    assert table1.main([*flags, *both, *of_runs]) == 0
    runs = grid.read(Path("results/table1.jsonl"))
    assert sorted(run["method"] for run in runs) == ["metalabelnet", "mslg"]
    for run in runs:
        kept = json.loads(Path("runs/table1", run["run"], "result.json").read_text())
        assert run["test_accuracy"] == kept["test_accuracy"] and run["flags"]["epochs"] == 2
        last = run["history"]["test_accuracy"][1]
        assert last == pytest.approx(run["last_test_accuracy"], abs=1e-4)
    assert str(tmp_path) not in json.dumps(runs)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    capsys.readouterr()
    other = [*flags, "--methods=mslg", *of_runs, "--learning_rate=0.1"]
    assert table1.main(other) == 1
    assert capsys.readouterr().err.endswith("failed: uniform-0.2-mslg-seed1\n")
    log = Path("runs/table1/uniform-0.2-mslg-seed1.log").read_text()
    assert "--learning_rate was 0.01, now 0.1" in log
    assert table1.main([*flags, *both, *of_runs]) == 0
    assert grid.read(Path("results/table1.jsonl")) == runs
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before
    out = capsys.readouterr().out
    assert table1.main(["--table_only"]) == 0
    table = capsys.readouterr().out
    assert out.endswith(table) and table == "\n" + Path("results/table1.md").read_text()


def test_the_table_quotes_means_and_the_paper(monkeypatch):
    methods = ("metalabelnet", "cross_entropy", "mslg", "fine_tune")
    monkeypatch.setattr(table1, "METHODS", dict.fromkeys(methods))
    ours = [result(str(seed), test, seed=seed) for seed, test in ((10, 0.8), (2, 0.82))]
    others = [
        result("c", 0.5, noise_ratio=0.35),
        result("d", 0.3, method="fine_tune", noise_ratio=0.8),
        result("e", 0.3, noise="human"),
    ]
    assert table1.table(ours + others).splitlines() == [
        "human noise",
        "",
        "| method |  | 40% |",
        "| --- | --- | --- |",
        "| metalabelnet | best by meta | 30.00 (1) |",
        "| metalabelnet | last epoch | 20.00 (1) |",
        "",
        "uniform noise",
        "",
        "| method |  | 20% | 35% | 40% | 60% | 80% |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| metalabelnet | best by meta |  | 50.00 (1) | 81.00 ± 1.41 (2) |  |  |",
        "| metalabelnet | last epoch |  | 40.00 (1) | 71.00 ± 1.41 (2) |  |  |",
        "| metalabelnet | paper | 83.35 ± 0.17 |  | 79.03 ± 0.26 | 70.60 ± 0.86 | 50.02 ± 0.44 |",
        "| cross_entropy | paper | 82.55 ± 0.80 |  | 76.31 ± 0.75 | 65.94 ± 0.44 | 38.19 ± 0.81 |",
        "| mslg | paper | 83.03 ± 0.44 |  | 78.28 ± 1.03 | 71.30 ± 1.54 | 52.43 ± 1.26 |",
        "| fine_tune | best by meta |  |  |  |  | 30.00 (1) |",
        "| fine_tune | last epoch |  |  |  |  | 20.00 (1) |",
    ]
    assert "paper" not in table1.table([result(dataset="digits")])


def test_the_paper_has_a_number_for_each_method_noise_and_ratio():
    uniform, feature_dependent = (table1.PAPER[noise] for noise in grid.NOISES)
    assert set(uniform) == set(feature_dependent) >= set(METHODS) - NO_PAPER_ROW
    assert {len(row.split()) for row in [*uniform.values(), *feature_dependent.values()]} == {4}


def test_runs_of_the_first_seed_come_first_and_take_the_flags(monkeypatch):
    found = {}
    monkeypatch.setattr(grid, "main", lambda arguments, runs, table: found.update(runs))
    table1.main(["--noise_probs=p.npy", "--", "--mixed_precision=true"])
    assert len(found) == 64 and list(found)[0] == "uniform-0.2-metalabelnet-seed0"
    seeds = [f"--seed={seed}" for seed in range(4) for _ in range(16)]
    for (name, flags), seed in zip(found.items(), seeds, strict=True):
        assert flags[0] == grid.PROGRAM and flags[-1] == "--mixed_precision=true"
        assert seed in flags and f"--method={name.split('-')[2]}" in flags
        assert ("--noise=uniform" in flags) != ("--noise_probs=p.npy" in flags)


def test_table_1_by_the_number_of_clean_images(monkeypatch):
    found = {}
    monkeypatch.setattr(grid, "main", lambda arguments, runs, table: found.update(runs))
    table1.main(["--methods", "fine_tune", "--meta_sizes", "500", "100", "--seeds", "0",
                 "--noises", "uniform", "--ratios", "0.4"])  # fmt: skip
    assert {name: flags[-2:] for name, flags in found.items()} == {
        "uniform-0.4-fine_tune-meta_size-500-seed0": ["--meta_size=500", "--batch_size=128"],
        "uniform-0.4-fine_tune-meta_size-100-seed0": ["--meta_size=100", "--batch_size=100"],
    }
    lines = table1.table([result("a", meta_size=500), result("b", meta_size=5000)]).splitlines()
    sizes = [i for i, line in enumerate(lines) if "images" in line]
    assert [lines[i] for i in sizes] == [
        "uniform noise, 5,000 clean images", "uniform noise, 500 clean images",
    ]  # fmt: skip
    own = [lines[i:j] for i, j in zip(sizes, (sizes[1], None), strict=True)]
    assert ["paper" in "".join(of_size) for of_size in own] == [True, False]


def test_a_noise_that_does_not_exist_is_refused(capsys):
    assert table1.parse(["--noises", "uniform", "human"]).noises == ["uniform", "human"]
    for name in ("unifrom", "own", "file"):  # the last two have no ratio, which a grid always gives
        with pytest.raises(SystemExit):
            table1.parse(["--noises", name])
        assert f"--noises: invalid choice: '{name}'" in capsys.readouterr().err


# ---- the figures --------------------------------------------------------------------------------


def draw(figure, results, tmp_path):
    """The rows of a figure's CSV, below the header; it is drawn from these results."""
    source = figures.FIGURES[figure].source or figure
    path = tmp_path / f"{source}.jsonl"
    grid.write(path, results)
    assert figures.main([figure, "--table_only", f"--results={path}"]) == 0
    assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    return (tmp_path / f"{figure}.csv").read_text().splitlines()[1:]


def test_figures_vary_one_flag_over_the_papers_values(monkeypatch):
    found = {}
    monkeypatch.setattr(grid, "main", lambda arguments, runs, table: found.update(runs))
    for figure, count in {"figure4": 4, "figure5": 20, "figure6": 12, "figure7": 24}.items():
        found.clear()
        figures.main([figure, "--results=no.jsonl", "--noise_probs=p.npy", "--", "-x"])
        assert len(found) == count
        for name, (program, *flags) in found.items():
            assert flags[-1] == "-x"
            assert program == grid.PROGRAM
            assert ("feature_dependent" in name) == ("--noise_probs=p.npy" in flags)
            assert ("--batch_size=100" in flags) == ("meta_size-100-" in name)
    found.clear()
    figures.main(["figure6", "--results=no.jsonl", "--values", "3", "4", "--ratios", "0.2"])
    assert list(found)[1] == "uniform-0.2-warmup_epochs-4-seed0"
    assert "--warmup_epochs=4" in found["uniform-0.2-warmup_epochs-4-seed0"]


def test_figure_3_is_of_two_methods_and_two_ratios(tmp_path):
    rows = draw("figure3", [
        result("a", 0.7), result("b", 0.8, seed=1), result("c", noise_ratio=0.2),
        result("d", 0.6, method="cross_entropy", warmup_epochs=None), result("e", method="pencil"),
    ], tmp_path)  # fmt: skip
    panel = '"uniform noise, 40%"'
    assert rows == [
        f"{panel},cross_entropy,1,50,50,50", f"{panel},cross_entropy,2,60,60,60",
        f"{panel},cross_entropy,3,50,50,50", f"{panel},metalabelnet,1,50,50,50",
        f"{panel},metalabelnet,2,75,70,80", f"{panel},metalabelnet,3,65,60,70",
    ]  # fmt: skip


def test_a_figure_has_the_accuracies_by_the_value_of_its_flag(tmp_path):
    rows = draw("figure5", [
        result("a", 0.7, meta_size=5000), result("b", 0.8, meta_size=5000, seed=1),
        result("c", 0.6, meta_size=500), result("d", 0.4, meta_size=500, noise_ratio=0.6),
    ], tmp_path)  # fmt: skip
    assert rows[:3] == [
        'warm-up end,"uniform noise, 40%",500,50,50,50',
        'warm-up end,"uniform noise, 40%",5000,50,50,50',
        'warm-up end,"uniform noise, 60%",500,50,50,50',
    ]
    assert rows[3:5] == [
        'best by meta,"uniform noise, 40%",500,60,60,60',
        'best by meta,"uniform noise, 40%",5000,75,70,80',
    ]
    assert rows[-1] == 'last epoch,"uniform noise, 60%",500,30,30,30' and len(rows) == 9


def test_figure_4_has_a_line_a_run_and_its_variance_around_it(tmp_path):
    history = {"soft_label_change": [None, 0.5], "soft_label_change_variance": [None, 0.25]}
    rows = draw("figure4", [result("a", history=history, seed=3)], tmp_path)
    assert rows == ['"uniform noise, 40%","metalabelnet, seed 3",2,0.5,0.25,0.75']


@pytest.mark.slow
@pytest.mark.parametrize("method", ["metalabelnet", "mslg"])
def test_a_run_of_figure_4_ends_with_its_last_change(fake, tmp_path, method):
    def train(epochs):
        directory = tmp_path / f"{method}{epochs}"
        assert runs.main("--warmup_epochs=1", f"--epochs={epochs}", f"--method={method}",
                         f"--output_dir={directory}") == 0  # fmt: skip
        with np.load(directory / "soft_labels.npz") as file:
            return file["soft_labels"]

    change = np.abs(train(4) - train(3))
    history = grid.collect(f"{method}4", tmp_path)["history"]
    assert history["soft_label_change"][0] is None and change.mean() > 0.001
    assert history["soft_label_change"][-1] == pytest.approx(change.mean(), rel=1e-3)
    assert history["soft_label_change_variance"][-1] == pytest.approx(change.var(), rel=1e-3)


# ---- wrong labels --------------------------------------------------------------------------------


def test_a_ranking_is_as_good_as_its_wrong_labels_come_first(monkeypatch):
    monkeypatch.setattr(wrong_labels, "FIRST", (1, 2, 4, 100))
    is_wrong = np.array([False, True, True, False, False])
    found = wrong_labels.quality(np.array([0.4, 0.1, 0.5, 0.2, 0.9]), is_wrong)
    assert found == {"auroc": pytest.approx(4 / 6), "precision_1": 1, "precision_2": 0.5,
                     "precision_4": 0.5}  # fmt: skip


def test_rankings_are_of_the_given_labels_probability(tmp_path):
    path = tmp_path / wrong_labels.PROBABILITIES
    given, right = np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0])
    good, bad = np.float16([[0.9, 0.1], [0.1, 0.9]] * 2), np.float16([[0.3, 0.7], [0.7, 0.3]] * 2)
    good[2:] = good[3:1:-1]
    bad[2:] = bad[3:1:-1]
    np.savez(path, given=given, right=right, **{"best epoch": good, "out of fold": bad})
    found = wrong_labels.rankings(path)
    assert found["best epoch"]["auroc"] == 1 and found["out of fold"]["auroc"] == 0
    assert found["cleanlab, self confidence"]["auroc"] == 0
    rows = wrong_labels.table([result("a-seed3", seed=3, rankings=found)]).splitlines()
    assert rows[2].startswith("| uniform, 40% | metalabelnet | best epoch | 3 | 100.00 | ")


@pytest.mark.slow
def test_wrong_labels_out_of_fold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wrong_labels, "METHODS", ("cross_entropy",))
    monkeypatch.setattr(wrong_labels, "FOLD_EPOCHS", 6)
    assert wrong_labels.main([
        "--dataset=digits", "--noises=class_dependent", "--ratios=0.4", "--jobs=1",
        "--", "--learning_rate=0.02",
    ]) == 0  # fmt: skip
    whole, folds = grid.read(Path("results/wrong_labels.jsonl"))
    if whole["run"].split("-")[-2] != "cross_entropy":
        whole, folds = folds, whole
    assert set(whole["rankings"]) == {"best epoch", "last epoch"}
    assert folds["rankings"]["out of fold"]["auroc"] > 0.7
    directory = Path("runs/wrong_labels", folds["run"])
    with np.load(directory / wrong_labels.PROBABILITIES) as kept:
        np.testing.assert_allclose(kept["out of fold"].sum(1, dtype="float64"), 1, atol=5e-3)
    assert len(list(directory.parent.glob("*.fold*"))) == wrong_labels.FOLDS


def test_a_run_of_folds_that_is_killed_is_not_finished(tmp_path, monkeypatch):
    """Wherever that is: result.json, by which a finished run is known, comes after history.csv."""
    directory, moved = tmp_path / "out", []
    splits = types.SimpleNamespace(
        given_labels=np.arange(8) % 2, class_names=("a", "b"), train_images=np.zeros((8, 1))
    )

    def train(settings, *_, **__):
        for name in ("history.csv", "result.json"):
            Path(settings["output_dir"], name).touch()

    def rename(path, target):
        moved.append(target.name)
        raise KeyboardInterrupt

    model = types.SimpleNamespace(predict=lambda images, **_: np.full((len(images), 2), 0.5))
    settings = {"output_dir": str(directory), "seed": 0}
    prepared = (settings, None, splits, None, contextlib.nullcontext())
    monkeypatch.setattr(wrong_labels, "prepared", lambda argv: prepared)
    monkeypatch.setattr(wrong_labels, "without", lambda splits, fold: splits)
    monkeypatch.setattr(wrong_labels, "keep", lambda *_, **__: None)
    monkeypatch.setattr(wrong_labels.run, "run", train)
    monkeypatch.setattr(wrong_labels.keras.models, "load_model", lambda path: model)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        wrong_labels.out_of_fold([])
    assert moved == ["history.csv"]


def test_a_fold_is_left_out_of_training_alone():
    n = np.arange(6)
    whole = Splits(n, n, n, *[None] * 4, ("a", "b"), n)
    rest = wrong_labels.without(whole, n % 3 == 0)
    for of in (rest.train_images, rest.given_labels, rest.clean_labels, rest.rows):
        assert of.tolist() == [1, 2, 4, 5]


# ---- speed --------------------------------------------------------------------------------------


def test_a_step_waits_for_its_input_as_long_as_reading_takes_longer(capsys):
    """Epochs that compile, that begin to read, or that are profiled do not count."""
    arguments = step_time.parse(["--files=8", "--epochs=2", "--profile", "--json=f.json"])
    seconds = [90, 3, 5, 80, 8, 8, 70] + [95, 10, 10, 85, 16, 16, 75]
    clock = types.SimpleNamespace(seconds=seconds, peaks=[], profiled=[6, 13])
    clock.kernels = {epoch: {"small": (2, 1e6), "large": (4, 3e6)} for epoch in clock.profiled}
    found = step_time.report(arguments, clock, steps=2, counts=(1, 1))
    assert [found[f"cross-entropy{of}"]["median"] for of in ("", ", from files")] == [2000, 4000]
    assert found["cross-entropy"]["first_s"] == 90 and found["phase 2"]["first_s"] == 95
    assert found["cross-entropy, input wait"] == 0.5
    assert found["phase 2, input wait"] == pytest.approx(0.375)
    assert found["ratio"] == 2.5 and found["flags"]["json"] is None
    assert "phase 2 waits for its input: 37.5% of a step\n" in capsys.readouterr().out
    largest = [("large", 2, 1500), ("small", 1, 500)]
    assert found["phase 2, profile"] == {"busy_ms": 2, "kernels": 3, "largest": largest}


def test_pictures_are_timed_at_the_papers_settings():
    arguments = pictures.parse(["--steps=4", "--mixed_precision", "--epochs=2"])
    given = [step_time.parse(pictures.flags_of(s, arguments)) for s in arguments.settings]
    assert [(g.network, g.side, g.batch_size, g.files) for g in given] == [
        ("ResNet50", 224, 32, 128), ("ResNet50", 224, 128, 512), ("InceptionResNetV2", 299, 16, 64)
    ]  # fmt: skip
    assert all(g.mixed_precision and g.jit_compile and g.epochs == 2 for g in given)
    figures = {
        "cross-entropy, from files": {"median": 50, "peak_gb": 2},
        "phase 2, from files": {"median": 200, "peak_gb": 3},
        "cross-entropy, input wait": 0.5, "phase 2, input wait": 0.125,
    }  # fmt: skip
    row = pictures.row_of("ResNet50:224:32", figures)
    assert row.split() == ["ResNet50:224:32", "640", "50.0%", "2.0", "160", "12.5%", "3.0", "4.00"]


def test_a_held_batch_comes_until_files_are_read():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    stream = step_time.held_then_read(images, np.arange(6), 2, steps=3, epochs=2)
    held, read = np.split(np.stack([labels for _, labels in stream.take(12)]), 2)
    assert (held == held[0]).all()
    assert [sorted(epoch.ravel()) for epoch in np.split(read, 2)] == 2 * [[0, 1, 2, 3, 4, 5]]


def test_a_row_of_several_gpus_is_compared_with_one(tmp_path, capsys, monkeypatch):
    def run_row(argv, row):
        network, size, _, gpus = row
        if gpus == 8:
            return None
        speed = {1: 100, 2: 150}[gpus] * size
        return {"network": network, "size": size, "gpus": gpus,
                "images_a_second": {"cross-entropy": 2 * speed, "phase 2": speed}}  # fmt: skip

    monkeypatch.setattr(scaling, "run_row", run_row)
    path = tmp_path / "scaling.jsonl"
    assert scaling.main(["--gpus", "1", "2", "8", "--networks", "cnn8", f"--results={path}"]) == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["size"] for row in rows] == [128] * 2 + [512] * 2
    assert [row["over_one"]["phase 2"] for row in rows] == [1, 1.5] * 2
    out, err = capsys.readouterr()
    assert "   512     2" in out and "76,800   1.50" in out and err.count("failed") == 2


@pytest.mark.slow
def test_images_a_second_are_counted():
    flags = ["--epochs", "1", "--no-jit_compile", "--mixed_precision"]
    found = scaling.measure(scaling.parse(flags), "cnn8", size=2, steps=1, gpus=1)
    assert {len(seconds) for seconds in found["seconds"].values()} == {1}
    assert all(speed > 0 for speed in found["images_a_second"].values())
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


@pytest.mark.slow
def test_several_replicas_agree_with_one(tmp_path, capsys):
    path = tmp_path / "agreement.jsonl"
    flags = ["--gpus", "1", "2", "--virtual", "--agreement", "--no-jit_compile"]
    assert scaling.main([*flags, f"--results={path}"]) == 0
    (row,) = map(json.loads, path.read_text().splitlines())
    assert row["gpus"] == 2 and all(0 < d < 1e-3 for d in row["differences"].values())
    assert "2 GPUs differ from one: θ by " in capsys.readouterr().out


@pytest.mark.slow
def test_steps_and_images_are_timed(tmp_path):
    path = tmp_path / "figures.json"
    step_time.main(["--files=20", "--batch_size=10", "--epochs=1", "--no-jit_compile",
                    "--steps_per_execution=1", f"--json={path}"])  # fmt: skip
    found = json.loads(path.read_text())
    for name in ("cross-entropy", "cross-entropy, from files", "phase 2", "phase 2, from files"):
        assert 0 < found[name]["min"] <= found[name]["median"] and found[name]["first_s"] > 0
    input_pipeline.main(["--images=64", "--epochs=1", "--numbers", "256", f"--json={path}"])
    found = json.loads(path.read_text())
    assert found["ImageFiles, shuffled and cropped"]["median"] > 0
    assert found["256 files"]["batch_ms"] > 0
