"""How far two models' attention is apart over layers, D, as a table of runs has it.

Shapes: N seeds, L layers.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import linregress

from prismatic.errors import require
from prismatic.stats import t_interval

from .claims import values

NAME = "amplification"  # what the measures begin with
SATURATED = 0.1  # total variation between attention rows from which on D cannot grow freely
TINY = 1e-14  # less than that two rows of attention differ by rounding alone


def curve(table: pd.DataFrame, arm: str, state: str, site: str, size: float) -> np.ndarray:
    """Total variation by seed and layer, from the first layer whose attention the change can reach:
    (N, L). A change of values, outputs and MLP reaches that of the second layer.

    Raises `UnjudgeableError` for a run without these measures.
    """
    names: list[str] = []
    layer = 2 if site == "vo_mlp" else 1
    of_arm = table[table["arm"] == arm]
    while (name := f"{NAME}/{state}/{site}/{size:g}/layer_{layer}/tv") in table and (
        not names or of_arm[name].notna().any()
    ):
        names.append(name)
        layer += 1
    require(len(names) > 1, "layers measured", len(names), f"{NAME}/{state}/{site}/{size:g}/...")
    return np.stack([values(table, arm, name) for name in names], -1)


def diverged(table: pd.DataFrame, arms: Sequence[str]) -> str:
    """Why a regime has no state to measure, or nothing."""
    runs = table[table["arm"].isin(arms)]
    lost = int(runs["diverged"].sum())
    return f"{lost} of {len(runs)} runs diverged: there is no state to measure" if lost else ""


def bent(small_N2: np.ndarray, large_N2: np.ndarray, ratio: float, gate: float) -> str:
    """Why D is not proportional to the size of a change, or nothing.

    Both are D by seed in the first and the last layer that count, for a change and for one `ratio`
    times as large: the 90 % interval of the exponent must lie within 1 +- `gate` in both layers.
    """
    rise_N2 = np.log(large_N2.clip(min=TINY)) - np.log(small_N2.clip(min=TINY))
    exponent_2N = rise_N2.T / math.log(ratio)
    low_2, high_2 = t_interval(exponent_2N, 0.9)
    if (low_2 > 1 - gate).all() and (high_2 < 1 + gate).all():  # type: ignore[union-attr,operator]
        return ""
    first, last = exponent_2N.mean(1)
    return (
        f"gate: D is not proportional to the size of the change; it grows as its power "
        f"{first:.2f} in the first layer and {last:.2f} in the last that counts"
    )


def rises(curve_NL: np.ndarray, use_NL: np.ndarray) -> np.ndarray:
    """How much a straight line through ln D rises from the first layer to the last, by seed."""
    layer_L = np.arange(curve_NL.shape[1])
    slopes = [
        linregress(layer_L[use_L], np.log(curve_L[use_L])).slope
        for curve_L, use_L in zip(curve_NL, use_NL, strict=True)
    ]
    return np.array(slopes) * layer_L[-1]
