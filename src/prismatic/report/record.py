"""What a run's diagnostics leave for its pictures: arrays by name and step, one JSON line each.

Names end in their axes: L passes, E views, D domains, S sequences, P tensors, Q quantiles, K bins
or tiers, X and Y the two tokens of a mixed task. The first line, `{"about": {...}}`, names entries
of the axes (`domains`, `tensors`, `quantiles`, ...) and says what the run was; a later line with
`about` says what has changed of it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prismatic.files import append_line, write_text

FILE = "diagnostics.jsonl"
DIGITS = 6  # significant ones, which is what a picture needs

Steps = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """What was recorded, in the order of steps."""

    about: dict[str, Any] = field(default_factory=dict)
    lines: tuple[dict[str, Any], ...] = ()

    def series(self, name: str) -> tuple[Steps, Floats]:
        """Steps (S,) and values (S, ...) of what was recorded under a name; S may be 0."""
        found = [line for line in self.lines if name in line]
        steps = np.array([line["step"] for line in found], dtype=np.int64)
        return steps, np.array([line[name] for line in found], dtype=np.float64)

    def last(self, name: str) -> Floats | None:
        """The latest values under a name, or None."""
        _, values = self.series(name)
        return values[-1] if len(values) else None


def begin(path: Path, about: Mapping[str, Any]) -> None:
    """Start a record, in place of any other. Raises `DiskFullError`, as all that writes here."""
    write_text(path, json.dumps({"about": about}) + "\n")


def append(path: Path, step: int, values: Mapping[str, ArrayLike]) -> None:
    """Add arrays at a step. What is not finite is kept as null, and read as NaN."""
    rounded = {name: as_json(np.asarray(array)) for name, array in values.items()}
    append_line(path, json.dumps({"step": step, **rounded}))


def amend(path: Path, step: int, about: Mapping[str, Any]) -> None:
    """Say at a step what the run has become; `about["as_of"]` is then the step."""
    append_line(path, json.dumps({"step": step, "about": {**about, "as_of": step}}))


def rewind(path: Path, step: int) -> None:
    """Forget what is later than a step, from which a run goes on."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    write_text(path, "".join(line for line in whole if json.loads(line).get("step", 0) <= step))


def note(path: Path, step: int, name: str, message: str, remedy: str) -> None:
    """Add an alarm at a step."""
    alarm = {"name": name, "message": message, "remedy": remedy}
    append_line(path, json.dumps({"step": step, "alarm": alarm}))


def read(path: Path) -> Record:
    """A record. A last line that a killed process left half written is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    about: dict[str, Any] = {}
    for line in whole:
        about |= line.get("about", {})
    kept = [line for line in whole if "about" not in line]
    return Record(about, tuple(sorted(kept, key=lambda line: line["step"])))


def as_json(array: NDArray[Any]) -> Any:
    """Nested lists of rounded numbers."""
    if array.ndim:
        return [as_json(row) for row in array]
    value = float(array)
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


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
