"""From what a job returns to what Optuna is told."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

REASON_LENGTH = 2000


@dataclass
class Outcome:
    """`values` aligned with the directions, or None and the reason of the failure.

    `constraints` are distances beyond the bounds, feasible at 0 and below; `metrics` are all
    finite numbers of a mapping. `lost` is true when the job's process died.
    """

    values: list[float] | None = None
    reason: str | None = None
    lost: bool = False
    constraints: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def evaluate(
    job: JobReturn, objectives: Sequence[str], constraints: Mapping[str, float], *, count: int
) -> Outcome:
    """Read a job's return: a number, `count` numbers, or a mapping with the objectives' names."""
    if job.status is not JobStatus.COMPLETED:
        error = job._return_value  # the property would print to stderr and raise
        return Outcome(reason=why(error), lost=getattr(error, "lost", False))
    value = job.return_value
    try:
        if not isinstance(value, Mapping):
            if constraints:
                raise ValueError(
                    f"constraints need a mapping of metrics, the job returned {value!r}"
                )
            return Outcome(_listed(value, count))
        values = [_number(value, name) for name in objectives or _sole_name(value, count)]
        beyond = {name: _number(value, name) - bound for name, bound in constraints.items()}
    except ValueError as error:
        return Outcome(reason=str(error), metrics=finite(value))
    return Outcome(values, constraints=beyond, metrics=finite(value))


def why(error: object) -> str:
    """The reason that an exception gives, as one text."""
    if isinstance(error, BaseException):
        return f"{type(error).__name__}: {error}"[:REASON_LENGTH]
    return "the job has no result"


def finite(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping; of anything else, nothing."""
    items = value.items() if isinstance(value, Mapping) else ()
    numbers = {str(k): float(v) for k, v in items if isinstance(v, Real)}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _listed(value: Any, count: int) -> list[float]:
    values = [value] if isinstance(value, Real) else value
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(
            f"the job returned {value!r}: return a number, a list, or a mapping of metrics"
        )
    if len(values) != count:
        raise ValueError(f"the job returned {len(values)} values for {count} objectives: {value!r}")
    return [_number({"the value": v}, "the value") for v in values]


def _sole_name(value: Mapping[str, Any], count: int) -> list[str]:
    if len(value) == count == 1:
        return list(value)
    raise ValueError(
        "the job returned a mapping: name the metrics to optimize in hydra.sweeper.objectives; "
        f"there are {', '.join(map(str, value))}"
    )


def _number(metrics: Mapping[str, Any], name: str) -> float:
    if name not in metrics:
        raise ValueError(f"the job returned no {name!r}; there are {', '.join(map(str, metrics))}")
    if not isinstance(metrics[name], Real):
        raise ValueError(f"{name} is {metrics[name]!r}, not a number")
    number = float(metrics[name])
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number
