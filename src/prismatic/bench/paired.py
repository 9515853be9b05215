"""Cases timed in turn, compared within each round."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prismatic.stats import t_interval


def compare(cases: Sequence[str], seconds_RC: np.ndarray) -> list[dict[str, Any]]:
    """Per case its mean seconds and, as shares of the first case's, what it adds: 95 % interval."""
    base = seconds_RC[:, 0].mean()
    rows = []
    for name, seconds_R in zip(cases, seconds_RC.T, strict=True):
        added_R = (seconds_R - seconds_RC[:, 0]) / base
        low, high = map(float, t_interval(added_R))
        added = float(added_R.mean())
        rows.append({
            "case": name, "seconds": float(seconds_R.mean()),
            "added": added, "low": low, "high": high,
        })  # fmt: skip
    return rows


def table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """The rows for reading."""
    lines = [title, f"{'case':14} {'seconds':>9} {'added':>8}  {'95 % interval':>18}"]
    for row in rows:
        spread = f"{row['low']:+.2%} to {row['high']:+.2%}"
        lines.append(f"{row['case']:14} {row['seconds']:9.4f} {row['added']:+8.2%}  {spread:>18}")
    return "\n".join(lines)
