"""Writes the golden pipeline: `python -m pipelines.compile [FILE]`."""

import sys

from kfp import compiler

from pipelines.training import training

if __name__ == "__main__":
    compiler.Compiler().compile(training, sys.argv[1] if len(sys.argv) > 1 else "pipelines/compiled/training.yaml")
