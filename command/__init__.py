"""The command line: flags and recipes, one run from flags to files, and those files."""
