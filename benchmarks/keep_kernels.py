"""Adds the kernels that this machine keeps to kernels.json, which a new machine begins with.

    python benchmarks/keep_kernels.py

For after runs that had the GPU to themselves, and began with that folder empty (see
`command_line.configure_xla`), as XLA chooses by timing.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import command_line
import outputs


def main():
    folder = command_line.kernels_folder()
    shipped = json.loads(command_line.KERNELS.read_text())
    kept = {path.name: path.read_text() for path in folder.glob("*.textproto")}
    shipped[folder.name] = dict(sorted((shipped.get(folder.name, {}) | kept).items()))
    outputs.write_json(command_line.KERNELS, shipped)
    print(f"{command_line.KERNELS}: {len(shipped[folder.name])} kernels for {folder.name}")


if __name__ == "__main__":
    main()
