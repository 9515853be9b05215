"""Benchmarks: what routing costs, against a plain block in the same process and round."""

from .step import Sizes, case_names, run, table

__all__ = ["Sizes", "case_names", "run", "table"]
