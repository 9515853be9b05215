"""What recording a run costs it: whole trainings with and without its parts, in rounds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .paired import compare, table
from .sweep import run


def training_seconds(typed: Sequence[str]) -> float:
    """What `python src/train.py` spends in training, from its first step to its last picture."""
    with TemporaryDirectory() as folder:
        return run([typed], 1, Path(folder))["training"]


def bench(
    cases: Mapping[str, Sequence[str]], rounds: int, overrides: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Train every case in every round; the machine should be idle."""
    seconds_RC = np.array([
        [training_seconds([*overrides, f"seed={k}", *typed]) for typed in cases.values()]
        for k in range(rounds)
    ])  # fmt: skip
    rows = compare(list(cases), seconds_RC)
    title = f"{' '.join(overrides)}, {rounds} rounds; per training, beside {rows[0]['case']}"
    return {"rounds": rounds, "overrides": list(overrides), "cases": rows}, table(title, rows)
