"""What the build needs beside pyproject.toml: where files go in a wheel, and the dependencies."""

import pathlib

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

FOLDERS = ("command", "data", "layers", "methods", "training")


class OneName(BuildHookInterface):
    """A wheel holds the one package `mln_keras`: mln_keras.py with the folders beneath it.

    `pip install -e` copies none of them, for a copy would not follow the clone: it puts the clone
    on the path, where mln_keras.py finds its folders by itself.
    """

    def initialize(self, version, build_data):
        if version == "standard":
            build_data["force_include"] |= {
                "mln_keras.py": "mln_keras/__init__.py",
                "command/__main__.py": "mln_keras/__main__.py",
                **{folder: f"mln_keras/{folder}" for folder in FOLDERS},
            }


class Requirements(MetadataHookInterface):
    """The dependencies are the lines of requirements.txt."""

    def update(self, metadata):
        lines = pathlib.Path(self.root, "requirements.txt").read_text().splitlines()
        requirements = [line.partition("#")[0].strip() for line in lines]
        metadata["dependencies"] = [requirement for requirement in requirements if requirement]
