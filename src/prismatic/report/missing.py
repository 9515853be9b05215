"""What a record lacks, as a reason that a reader can use."""

import numpy as np
from numpy.typing import NDArray

from .record import Record

Steps = NDArray[np.int64]
Floats = NDArray[np.float64]


class NothingToDrawError(ValueError):
    """A run has nothing of what a picture shows; the message says why."""


def require_series(record: Record, name: str, why_absent: str) -> tuple[Steps, Floats]:
    """Steps (S,) and values (S, ...) under a name, at least one of them finite."""
    steps, values = record.series(name)
    if not len(steps):
        raise NothingToDrawError(f"{why_absent} ({name} was not recorded.)")
    if not np.isfinite(values).any():
        raise NothingToDrawError(f"Every value of {name} is NaN or infinite: nothing to draw.")
    return steps, values


def require_last(record: Record, name: str, why_absent: str) -> Floats:
    """The latest values under a name that are not all NaN."""
    _, values = require_series(record, name, why_absent)
    finite = np.isfinite(values).reshape(len(values), -1).any(1)
    return values[finite][-1]


def require_views(record: Record) -> int:
    """The number of views, of which there must be several."""
    views = int(record.about.get("views", 1))
    if views < 2:
        raise NothingToDrawError("The run has one view: there is nothing to route or to compare.")
    return views
