"""The grid of Table I: what is trained, what is kept, and the table."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import figures
import grid
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
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before
    capsys.readouterr()
    assert table1.main([*arguments, "--table_only"][-1:] + arguments[:-4]) == 0
    assert capsys.readouterr().out == results.with_suffix(".md").read_text()


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
        run("cross_entropy", 0, 0.75),
        run("cross_entropy", 1, 0.76),
        run("cross_entropy", 0, 0.5, ratio=0.35),
    ]).splitlines()  # fmt: skip
    assert lines[2:5] == [
        "| uniform, 35% | cross-entropy | 0 |  | 50.00 | 49.00 |  |",
        "| uniform, 40% | cross-entropy | 0, 1 |  | 75.50 ± 0.71 | 74.50 ± 0.71 | 76.31 ± 0.75 |",
        "| uniform, 40% | MetaLabelNet | 0, 1, 2 | 70.00 ± 0.00 | 87.00 ± 10.44 | 86.00 ± 10.44 "
        "| 79.03 ± 0.26 |",
    ]
    assert lines[-1] == "| uniform, 40% | 0, 1 | 5.50 ± 0.71 | 2.72 |"


def test_runs_of_the_first_seed_come_first_and_take_the_flags():
    runs = table1.runs_of(table1.parse(["--noise_probs=p.npy", "--", "--mixed_precision=true"]))
    assert len(runs) == 64 and list(runs)[0] == "uniform-0.2-metalabelnet-seed0"
    assert [flags["seed"] for flags in runs.values()] == [s for s in range(4) for _ in range(16)]
    probs = {(flags["noise"], flags.get("noise_probs")) for flags in runs.values()}
    assert probs == {("uniform", None), ("feature_dependent", "p.npy")}
    assert all(flags["mixed_precision"] == "true" for flags in runs.values())


def test_what_is_quoted_is_rebuilt_from_the_results(tmp_path):
    root = Path(__file__).resolve().parents[1]
    runs = grid.read(root / "results" / "table1.jsonl")
    assert table1.table(runs) in (root / "REPRODUCE.md").read_text()
    figures.figure3(runs, tmp_path / "figure3.png")
    rebuilt = (tmp_path / "figure3.csv").read_text()
    assert rebuilt == (root / "results" / "figure3.csv").read_text()
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")
