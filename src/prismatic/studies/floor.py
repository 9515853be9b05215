"""The study `floor`: what one layer of attention without an MLP says of a function of two tokens.

Losses here are exact (`prismatic.studies.together`), so a run below a floor is a counterexample
and needs no statistics.

Shapes: N seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd

from prismatic.errors import require
from prismatic.stats import VERDICTS

from .claims import Finding, values

SUPPORTED, REFUTED, INCONCLUSIVE, _ = VERDICTS
PASSED_BY = "floor/passed_by"  # nats that a run's exact loss is below its table's additive floor


@dataclass(frozen=True)
class Floor:
    """That no run of these arms has less loss than the additive floor of its table.

    One run that is below by more than `tolerance` refutes the claim for its arm. Runs above it
    prove nothing: they support the claim only where `proof` says why it must hold.
    """

    says: str
    regimes: Sequence[str]
    source: str = ""
    unit: str = "nats above the floor"
    proof: str = ""
    tolerance: float = 1e-7  # nats: a floor is known to 1e-9, and a loss to float64's rounding

    def __post_init__(self) -> None:
        require(bool(self.regimes), "regimes", list(self.regimes), "name at least one arm")
        require(self.tolerance > 0, "tolerance", self.tolerance, "give a number > 0")

    def arms(self) -> set[str]:
        return set(self.regimes)

    def within(self, arms: set[str]) -> "Floor | None":
        """The claim for a tier with these arms alone; None where none of its own is left."""
        kept = [arm for arm in self.regimes if arm in arms]
        return replace(self, regimes=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        """A finding per arm: the least distance above the floor, and the range over seeds."""
        return {
            arm: self.finding(-values(table, arm, PASSED_BY).to_numpy()) for arm in self.regimes
        }

    def finding(self, above_N: np.ndarray) -> Finding:
        least, most = float(above_N.min()), float(above_N.max())
        below = int((above_N < -self.tolerance).sum())
        unrefuted = SUPPORTED if self.proof else INCONCLUSIVE
        note = f"{below} of {len(above_N)} exact losses are below; the interval is their range"
        return Finding(
            REFUTED if below else unrefuted, least, (least, most), 1.0, None, len(above_N), None,
            f"{note}; {self.proof}" if self.proof and not below else note,
        )  # fmt: skip


def entries(run: pd.Series, name: str) -> np.ndarray:
    """A table over pairs of tokens that a run logged as numbers: `name`/x_2/y_3 for (2, 3).

    NaN where there is none.
    """
    own = {
        tuple(int(part.split("_")[1]) for part in str(key).split("/")[-2:]): value
        for key, value in run.items()
        if str(key).startswith(f"{name}/x_") and np.isfinite(cast(float, value))
    }
    sizes = np.max(list(own), axis=0) + 1 if own else (0, 0)
    table_XY = np.full(sizes, np.nan)
    for pair, value in own.items():
        table_XY[pair] = value
    return table_XY
