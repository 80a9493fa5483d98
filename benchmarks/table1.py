"""Table I of the paper: the runs of its methods, and the table beside the paper's numbers.

    python benchmarks/table1.py --noise_probs cifar10_student_probs.npy
    python benchmarks/table1.py --table_only
    python benchmarks/table1.py --methods metalabelnet fine_tune --ratios 0.4 \
        --meta_sizes 1000 500 100 --results results/meta_sizes.jsonl

Runs of the first seed come first, so that the table can be read early. Flags after `--` go to every
run.
"""

import pathlib
import sys

import grid

from mln_keras.methods import METHODS

DEFAULT_METHODS = ("metalabelnet", "cross_entropy")
PAPERS_DATA = {("cifar10", 5000)}  # data set and number of clean images
PAPER = {  # on CIFAR-10: mean and standard deviation of 4 runs, at each of grid.RATIOS
    "uniform": {
        "cross_entropy": "82.55±0.80 76.31±0.75 65.94±0.44 38.19±0.81",
        "symmetric_cross_entropy": "81.36±2.27 78.94±2.22 72.20±2.24 51.47±1.58",
        "generalized_cross_entropy": "84.98±0.30 81.65±0.30 74.59±0.46 42.53±0.24",
        "bootstrap": "82.76±0.36 76.66±0.72 66.33±0.30 38.35±1.83",
        "forward": "83.24±0.37 79.69±0.49 71.41±0.80 31.53±2.75",
        "joint_optimization": "83.64±0.50 78.69±0.62 68.83±0.22 39.59±0.77",
        "pencil": "83.86±0.47 79.01±0.62 71.53±0.39 46.07±0.75",
        "co_teaching": "85.82±0.22 80.11±0.41 70.02±0.50 39.83±2.62",
        "mlnt": "83.32±0.45 77.59±0.85 67.44±0.45 38.83±1.76",
        "meta_weight_net": "83.59±0.54 80.22±0.16 71.22±0.81 45.81±1.78",
        "mslg": "83.03±0.44 78.28±1.03 71.30±1.54 52.43±1.26",
        "metalabelnet": "83.35±0.17 79.03±0.26 70.60±0.86 50.02±0.44",
    },
    "feature_dependent": {
        "cross_entropy": "81.75±0.39 71.86±0.69 69.78±0.71 23.18±0.55",
        "symmetric_cross_entropy": "74.45±2.97 63.71±0.58 fail fail",
        "generalized_cross_entropy": "81.43±0.45 72.35±0.51 66.60±0.43 fail",
        "bootstrap": "81.59±0.61 72.18±0.86 69.50±0.29 23.05±0.64",
        "forward": "77.17±0.86 69.46±0.68 36.98±0.73 fail",
        "joint_optimization": "81.83±0.51 74.06±0.57 71.74±0.63 44.81±0.93",
        "pencil": "81.82±0.41 75.18±0.50 69.10±0.24 fail",
        "co_teaching": "81.07±0.25 72.73±0.61 68.08±0.42 18.77±0.07",
        "mlnt": "82.07±0.76 73.90±0.34 69.16±1.13 22.85±0.45",
        "meta_weight_net": "81.36±0.54 72.52±0.51 67.59±0.43 22.10±0.69",
        "mslg": "82.22±0.57 77.62±0.98 73.08±1.58 57.30±7.40",
        "metalabelnet": "83.00±0.41 80.42±0.51 78.42±0.36 76.57±0.33",
    },
}


def table(results):
    """Markdown: a table for each noise, and number of clean images where that varies."""
    groups = {}
    for result in sorted(results, key=lambda one: (-one["flags"]["meta_size"], one["noise"])):
        groups.setdefault((result["flags"]["meta_size"], result["noise"]), []).append(result)
    varies = len({size for size, _ in groups}) > 1
    return "\n".join(
        f"{noise} noise{f', {size:,} clean images' * varies}\n\n{_of_noise(noise, of_noise)}"
        for (size, noise), of_noise in groups.items()
    )


def _of_noise(noise, results):
    """A column a ratio; of each method what was run, then the paper's, for its data."""
    data = {(one["dataset"], one["flags"]["meta_size"]) for one in results}
    papers = PAPER.get(noise, {}) if data == PAPERS_DATA else {}
    groups = grid.group(results, "method")
    ratios = sorted({ratio for _, ratio, _ in groups} | set(grid.RATIOS if papers else ()))
    rows = [("method", "", *(f"{ratio:.0%}" for ratio in ratios)), ["---"] * (2 + len(ratios))]
    for method in METHODS:
        runs = [groups.get((noise, ratio, method), []) for ratio in ratios]
        for name, of in grid.TESTED.items() if any(runs) else ():
            rows.append((method, name, *(_cell(each, of) for each in runs)))
        if method in papers:
            of_ratio = dict(zip(grid.RATIOS, papers[method].split()))
            numbers = (of_ratio.get(ratio, "").replace("±", " ± ") for ratio in ratios)
            rows.append((method, "paper", *numbers))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(runs, of):
    return f"{grid.quote([one[of] for one in runs])} ({len(runs)})" if runs else ""


def parse(argv):
    parser = grid.parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS)
    parser.add_argument("--meta_sizes", nargs="+", type=int, help="default: the data set's")
    parser.set_defaults(
        results=pathlib.Path("results/table1.jsonl"),
        noises=grid.NOISES, ratios=grid.RATIOS, seeds=[0, 1, 2, 3],
    )  # fmt: skip
    return grid.parse(parser, argv)


def main(argv):
    """Returns the exit status: 1 where a run failed."""
    arguments = parse(argv)
    varied = {method: [f"--method={method}"] for method in arguments.methods}
    if arguments.meta_sizes:
        varied = {
            f"{method}-meta_size-{size}": flags + grid.flags_of_meta_size(size, arguments.dataset)
            for size in arguments.meta_sizes
            for method, flags in varied.items()
        }
    return grid.main(arguments, grid.runs_of(arguments, varied), table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
