"""Is there a best share of perturbed weights, and is it the claimed one?

Shapes: S seeds, K shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prismatic.errors import one_of, require
from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import MUTED, plain, styled, title, view_style
from prismatic.stats import Optimum, Verdict, family_verdicts, optimum, t_interval
from prismatic.stats.verdicts import INCONCLUSIVE, NO_VERDICT, REFUTED, SUPPORTED

from .claims import Finding, finding, values

NOTHING = 1e-9  # stands for a share of 0, which has no logarithm: far below all others
RAW, EQUAL = "raw", "equal strength"


def percent(share: float) -> str:
    return f"{0 if share == NOTHING else 100 * share:g} %"


def losses(table: pd.DataFrame, arms: Sequence[str], measure: str) -> np.ndarray:
    """A measure of several arms, (S, K): seeds in one order."""
    return np.stack([values(table, arm, measure).to_numpy() for arm in arms], 1)


def is_monotone(curve_SK: np.ndarray, smallest_effect: float, rng: np.random.Generator) -> bool:
    """Whether the mean only rises or only falls, and its ends certainly differ."""
    step_K = np.diff(curve_SK.mean(0))
    if not ((step_K > 0).all() or (step_K < 0).all()):
        return False
    climb_S = np.sign(step_K[0]) * (curve_SK[:, -1] - curve_SK[:, 0])
    found = family_verdicts({"": climb_S}, smallest_effect=smallest_effect, rng=rng)
    return found[""].verdict == SUPPORTED


def is_flat(
    worse: Mapping[str, np.ndarray], smallest_effect: float, rng: np.random.Generator
) -> bool:
    """Whether no share certainly differs from the claimed one by as much as matters."""
    found = family_verdicts(worse, smallest_effect=smallest_effect, claim="no difference", rng=rng)
    return all(verdict.verdict == SUPPORTED for verdict in found.values())


@dataclass(frozen=True)
class BestShare:
    """The loss over shares of perturbed weights is least near a claimed one.

    `raw` and `equal` are the arms of `shares`, which rise from 0 (no perturbation), at one scale
    and at one strength. Supported: `too_few` and `too_many` are worse than the claimed share by
    `smallest_effect`, the interval of the best share contains it and spans less than `span`.
    Refuted: that interval excludes it, or the curve is monotone, or flat. An optimum that only the
    raw arms have is an effect of strength. The estimate is by how much the nearer end is worse.
    """

    says: str
    measure: str
    shares: Sequence[float]
    raw: Sequence[str]
    equal: Sequence[str]
    smallest_effect: float
    source: str = ""
    unit: str = ""
    claimed: float = 0.1
    too_few: float = 0.01
    too_many: float = 0.5
    span: float = 5.0

    def __post_init__(self) -> None:
        require(self.shares[0] == 0, "shares", list(self.shares), "begin with 0")
        for share in (self.claimed, self.too_few, self.too_many):
            one_of("share", percent(share), tuple(map(percent, self.shares)))
        for name, arms in ((RAW, self.raw), (EQUAL, self.equal)):
            require(len(arms) == len(self.shares), f"{name} arms", list(arms), "name one per share")

    def arms(self) -> set[str]:
        return {*self.raw, *self.equal}

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        found = {
            name: self.judge_curve(losses(table, arms, self.measure), rng)
            for name, arms in ((RAW, self.raw), (EQUAL, self.equal))
        }
        if found[RAW].verdict == SUPPORTED != found[EQUAL].verdict:
            note = f"{found[RAW].note}; not at equal strength, so an effect of strength"
            found[RAW] = replace(found[RAW], note=note)
        return found

    def judge_curve(self, curve_SK: np.ndarray, rng: np.random.Generator) -> Finding:
        """What one curve says."""
        at = self.shares.index
        worse = {
            percent(share): curve_SK[:, at(share)] - curve_SK[:, at(self.claimed)]
            for share in self.shares
            if share != self.claimed
        }
        sides = [percent(self.too_few), percent(self.too_many)]
        ends = family_verdicts(
            {side: worse[side] for side in sides}, smallest_effect=self.smallest_effect, rng=rng
        )
        best = optimum(curve_SK, [NOTHING, *self.shares[1:]])
        is_interior = all(end.verdict == SUPPORTED for end in ends.values())
        kind = self.shape(curve_SK, worse, rng)
        verdict = self.rule(is_interior, kind, best)
        if any(end.verdict == NO_VERDICT for end in ends.values()):
            verdict = NO_VERDICT
        return replace(self.nearer(ends), verdict=verdict, note=said(best, kind))

    def shape(
        self, curve_SK: np.ndarray, worse: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> str:
        if is_flat(worse, self.smallest_effect, rng):
            return "flat"
        return "monotone" if is_monotone(curve_SK, self.smallest_effect, rng) else ""

    def rule(self, is_interior: bool, kind: str, best: Optimum) -> str:
        """The three-way rule of this claim."""
        contains = best.low <= self.claimed <= best.high
        if kind or not contains:
            return REFUTED
        return SUPPORTED if is_interior and best.span < self.span else INCONCLUSIVE

    def nearer(self, ends: Mapping[str, Verdict]) -> Finding:
        """The end that is less worse than the claimed share, with the larger p of both."""
        nearer = min(ends.values(), key=lambda end: end.estimate)
        return replace(finding(nearer), p=max(end.holm_p for end in ends.values()))


def said(best: Optimum, kind: str) -> str:
    where = f"least at {percent(best.best)}, may be {percent(best.low)} to {percent(best.high)}"
    return f"{where}; the curve is {kind}" if kind else where


@dataclass(frozen=True)
class Curve:
    """A measure over shares less its value without perturbation, a panel per scale.

    `panels` maps headings to {"raw": arms, "equal strength": arms}, in the order of `shares`.
    """

    caption: str
    measure: str
    heading: str
    label: str
    shares: Sequence[float]
    panels: Mapping[str, Mapping[str, Sequence[str]]]
    smallest_effect: float | None = None

    def draw(self, table: pd.DataFrame, findings: Any) -> Figure:
        """The figure; panels whose arms were not run are left out."""
        run = set(table["arm"])
        known = {
            name: lines
            for name, lines in self.panels.items()
            if {arm for arms in lines.values() for arm in arms} <= run
        }
        return draw_curves(self, table, known)


@styled
def draw_curves(
    figure: Figure, curve: Curve, table: pd.DataFrame,
    known: Mapping[str, Mapping[str, Sequence[str]]],
) -> None:  # fmt: skip
    if not known:
        raise NothingToDrawError("no scale was run at all shares")
    figure.set_size_inches(3.2 + 3.8 * len(known), 4.0)
    title(figure, plain(curve.heading))
    grid = figure.subplots(1, len(known), sharey=True, squeeze=False).ravel()
    for axes, (name, lines) in zip(grid, known.items(), strict=True):
        for look, (kind, arms) in enumerate(lines.items(), start=1):
            draw_line(axes, losses(table, arms, curve.measure), kind, look)
        if curve.smallest_effect is not None:
            axes.axhspan(-curve.smallest_effect, curve.smallest_effect, color="#EDEDED", zorder=0)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xticks(range(len(curve.shares)), [f"{100 * share:g}" for share in curve.shares])
        axes.set_xlabel("share of weights perturbed, %")
        axes.set_title(plain(name))
    grid[0].set_ylabel(plain(curve.label))
    grid[0].legend()


def draw_line(axes: Axes, curve_SK: np.ndarray, kind: str, look: int) -> None:
    """Means with 95 % intervals, slightly apart from other lines."""
    excess_SK = curve_SK - curve_SK[:, :1]
    mean_K = excess_SK.mean(0)
    low_K, high_K = t_interval(excess_SK.T)
    reach_2K = [np.nan_to_num(mean_K - low_K), np.nan_to_num(high_K - mean_K)]
    place_K = np.arange(len(mean_K)) + 0.12 * (look - 1.5)
    axes.errorbar(
        place_K, mean_K, reach_2K, label=kind, capsize=3, markersize=5, **view_style(look)
    )
