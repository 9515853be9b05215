"""From overrides to a search space: what varies becomes distributions, the rest stays fixed.

The grammar is Hydra's, with the meaning that upstream's Optuna sweeper gives it:

    lr=interval(0.01, 1)              floats, both ends included
    lr=tag(log, interval(1e-4, 1))    on a logarithmic scale
    width=int(interval(8, 64))        whole numbers; also tag(int, ...), tag(log, int(...))
    views=range(2, 4)                 2, 3 and 4: unlike in Hydra's grids, the end is included
    dropout=range(0, 0.5, 0.1)        floats in steps
    views=shuffle(range(2, 4))        a choice of what Hydra's grids have, here 2 and 3
    focal=choice(none, radial)        one of these; also none,radial and glob(*)

For `sampler=grid` the values are those of Hydra's own grids: a range is without its end. They are
tried in the order in which they stand, whatever `shuffle` says: a grid that goes on knows its runs.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

FORMS = (
    "interval(0.1, 1), tag(log, interval(1e-3, 1)), int(interval(1, 8)), range(2, 4), "
    "choice(a, b), or a single value"
)
TAGS = {"log", "int"}


@dataclass(frozen=True)
class Space:
    """`params`: what is searched, by the override's key; `fixed`: overrides of every job."""

    params: dict[str, BaseDistribution]
    fixed: list[str]

    @classmethod
    def parse(
        cls,
        params: Mapping[str, Any],
        arguments: Sequence[str],
        *,
        loader: ConfigLoader,
        grid: bool = False,
    ) -> "Space":
        """Read `params` of the configuration, then the command line, which wins."""
        lines = [f"{key}={_written(key, value)}" for key, value in params.items()]
        parser = OverridesParser.create(config_loader=loader)
        chosen: dict[str, Override] = {}
        for line in [*lines, *arguments]:
            override = _parsed(parser, line)
            name = override.get_key_element().lstrip("+~")
            chosen.pop(name, None)
            chosen[name] = override
        varied = {o.get_key_element(): o for o in chosen.values() if o.is_sweep_override()}
        if not varied:
            raise ValueError(
                "nothing to search: no parameter varies. Give hydra.sweeper.params, or an "
                f"override such as optim.lr=interval(0.1, 1); forms: {FORMS}"
            )
        fixed = [str(o.input_line) for o in chosen.values() if not o.is_sweep_override()]
        return cls({key: distribution(o, grid) for key, o in varied.items()}, fixed)

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of the job that tries `params`."""
        return [*self.fixed, *(f"{key}={_text(params[key])}" for key in self.params)]

    def examples(self) -> list[list[str]]:
        """A few jobs which together hold every choice, to be composed before anything runs."""
        columns = {
            key: d.choices if isinstance(d, CategoricalDistribution) else (d.low,)  # type: ignore
            for key, d in self.params.items()
        }
        count = max(map(len, columns.values()))
        rows = [{key: c[i % len(c)] for key, c in columns.items()} for i in range(count)]
        return [self.overrides(row) for row in rows]

    @property
    def size(self) -> int | None:
        """How many points there are; None where a parameter varies without steps."""
        counts = [_count(distribution) for distribution in self.params.values()]
        return None if None in counts else math.prod(map(int, counts))  # type: ignore[arg-type]

    def points(self) -> Iterator[dict[str, Any]]:
        """Every combination of choices, the last one fastest, as in Hydra's own grids."""
        columns = [
            d.choices for d in self.params.values() if isinstance(d, CategoricalDistribution)
        ]
        return (dict(zip(self.params, point, strict=True)) for point in product(*columns))

    def described(self) -> dict[str, Any]:
        """The space as JSON knows it; equal for equal spaces."""
        return {key: json.loads(distribution_to_json(d)) for key, d in self.params.items()}

    def check(self, option: str, params: Mapping[str, Any]) -> None:
        """Raise ValueError unless the `params` of an option are of this space, or some of it."""
        for key, value in params.items():
            if key not in self.params:
                valid = ", ".join(self.params)
                raise ValueError(f"{option}: {key!r} is not searched; valid: {valid}")
            try:
                inside = self.params[key]._contains(self.params[key].to_internal_repr(value))
            except (ValueError, TypeError):
                inside = False
            if not inside:
                raise ValueError(f"{option}: {key}={value!r} is outside {self.params[key]}")


def _parsed(parser: OverridesParser, line: str) -> Override:
    try:
        return parser.parse_overrides([line])[0]
    except HydraException as error:
        raise ValueError(f"cannot read {line!r}: {error}\nvalid: {FORMS}") from error


def _written(key: str, value: Any) -> str:
    """What stands after `=` for a value of hydra.sweeper.params."""
    if value is None or isinstance(value, bool | int | float | str):
        return _text(value)
    raise ValueError(f"params: {key}={value!r}: write it as a text; valid: {FORMS}")


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)


def _count(d: BaseDistribution) -> int | None:
    if isinstance(d, CategoricalDistribution):
        return len(d.choices)
    if isinstance(d, IntDistribution | FloatDistribution) and d.step:
        return round((d.high - d.low) / d.step) + 1
    return None


def distribution(override: Override, grid: bool = False) -> BaseDistribution:
    """Optuna's distribution of a sweep override; ValueError for bounds and tags without sense."""
    value = override.value()
    try:
        unknown: set[str] = getattr(value, "tags", set()) - TAGS
        if unknown:
            raise ValueError(f"unknown tag {', '.join(sorted(unknown))}; valid: log, int")
        if isinstance(value, IntervalSweep):
            if grid:
                raise ValueError(
                    "sampler=grid needs values one by one: give choice(...) or "
                    "range(start, stop, step), or another hydra.sweeper.sampler, such as tpe"
                )
            return _interval(value)
        if isinstance(value, RangeSweep) and not (grid or value.shuffle or value.step < 0):
            return _range(value)
        if getattr(value, "tags", ()):
            raise ValueError("values that are listed take no tag")
        return CategoricalDistribution(_choices(override))
    except ValueError as error:
        raise ValueError(f"{override.input_line}: {error}") from None


def _choices(override: Override) -> list[Any]:
    """Numbers and null as they are, all else as the text of an override."""
    value = override.value()
    values: Any = override.sweep_iterator()
    if isinstance(value, ChoiceSweep):
        values = value.list
    elif isinstance(value, RangeSweep):
        values = value.range()
    plain = bool | int | float
    choices = [x if x is None or isinstance(x, plain) else Transformer.str(x) for x in values]
    if not choices:
        raise ValueError("no choice is left")
    for i, choice in enumerate(choices):
        if choice in choices[:i]:
            raise ValueError(f"{choice!r} is there twice (1 equals true): list each value once")
    return choices


def _interval(value: IntervalSweep) -> BaseDistribution:
    low, high = float(value.start or 0), float(value.end or 0)
    log = "log" in value.tags
    _check_bounds(low, high, log)
    cast = isinstance(value.start, int) and isinstance(value.end, int)  # by int(interval(...))
    if not cast and "int" not in value.tags:
        return FloatDistribution(low, high, log=log)
    if not (low.is_integer() and high.is_integer()):
        raise ValueError("the bounds of tag(int, ...) are whole numbers")
    return IntDistribution(int(low), int(high), log=log)


def _range(value: RangeSweep) -> BaseDistribution:
    low, high, step = (Decimal(str(x)) for x in (value.start, value.stop, value.step))
    log = "log" in value.tags
    _check_bounds(float(low), float(high), log)
    if step <= 0 or (log and step != 1):
        raise ValueError("the step is positive, and 1 with tag(log, ...)")
    high = low + (high - low) // step * step
    whole = all(isinstance(x, int) for x in (value.start, value.stop, value.step))
    if whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step))
    if log:
        raise ValueError("tag(log, range(...)) takes whole numbers; for floats use interval")
    return FloatDistribution(float(low), float(high), step=float(step))


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the bounds are finite numbers")
    if low > high:
        raise ValueError(f"the bounds are reversed: write the lower one ({high:g}) first")
    if log and low <= 0:
        raise ValueError(f"a logarithmic scale has no {low:g}: begin above 0")
