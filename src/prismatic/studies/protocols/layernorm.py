"""What happens without normalisation? (source 000, prediction 5)

Probe, claims and figures: when logits explode, and losses at each group's best learning rate.

Shapes: N seeds, L layers, A rates.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest

from prismatic.errors import one_of, require
from prismatic.models import Transformer
from prismatic.report.record import NothingToDrawError
from prismatic.report.style import ACCENT, MUTED, legend, panels, title, view_style
from prismatic.stats import (
    INCONCLUSIVE,
    NO_VERDICT,
    REFUTED,
    SUPPORTED,
    Finding,
    Interval,
    simultaneous_level,
)

from ..claims import Claim, PairedClaim, sound_runs, values
from ..figures import StudyFigure
from ..tracing import sharpness, trace

NAME = "layernorm"
HALF = 0.5
EVERY = "every one of them"
LIMITS = {20.0: ":", 88.7: "--"}  # from where exp counts for nothing, from where it overflows


# The probe.


def largest_logits(model: Transformer, tokens_BT: torch.Tensor) -> list[float]:
    """The largest magnitude of an attention logit in each layer, in double precision: L numbers."""
    seen = trace(deepcopy(model).double().eval(), tokens_BT)
    return [sharpness(*shown).largest for shown in zip(seen.logits_L, seen.probs_L, strict=True)]


class LargestLogits(pl.Callback):
    """Measures `layernorm/{state}/layer_{l}/largest`, the largest magnitude of an attention logit,
    before training (init) and after it (trained), on `rows` held-out sequences.
    """

    def __init__(self, rows: int = 8) -> None:
        require(rows >= 1, "rows", rows, "give a whole number >= 1")
        self.rows = rows
        self.measured: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.measured = self.look(pl_module, "init")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.log_dict(self.measured | self.look(pl_module, "trained"))

    def look(self, pl_module: Any, state: str) -> dict[str, float]:
        probe_BT = pl_module.probe.tokens_BT
        rows = torch.linspace(0, len(probe_BT) - 1, self.rows).long()
        largest_L = largest_logits(pl_module.model, probe_BT[rows].to(pl_module.device))
        return {f"{NAME}/{state}/layer_{k}/largest": one for k, one in enumerate(largest_L, 1)}


# When logits explode.


def largest_of(sound: pd.DataFrame, arm: str, state: str) -> np.ndarray:
    """The largest logit by seed and layer: (N, L)."""
    names, layer = [], 1
    while (name := f"{NAME}/{state}/layer_{layer}/largest") in sound:
        names.append(name)
        layer += 1
    require(bool(names), "measure", f"{NAME}/{state}/layer_1/largest", "no run has it")
    return np.stack([values(sound, arm, name) for name in names], -1)


def first_above(largest_NL: np.ndarray, threshold: float) -> np.ndarray:
    """The first layer whose logit passes the threshold, by seed; infinite if none does: (N,)."""
    above_NL = largest_NL > threshold
    return np.where(above_NL.any(1), above_NL.argmax(1) + 1.0, math.inf)


@dataclass(frozen=True, kw_only=True)
class Explodes(Claim):
    """Some logit has passed a threshold by layer `by`, in most seeds: a finding per arm.

    `of` maps effects to arms. The estimate is the share of seeds less 1/2, its interval that of
    Clopper and Pearson, simultaneous over arms and thresholds; supported if it is above 0, refuted
    if below. A run that diverged may count either way: the interval reaches from one to the other.
    """

    EFFECTS = "of"

    of: Mapping[str, str]
    state: str
    thresholds: Sequence[float] = tuple(LIMITS)
    by: int = 4
    unit: str = "share of seeds less 1/2"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("state", self.state, ("init", "trained"))

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        level = simultaneous_level(len(self.of) * len(self.thresholds))
        return {
            f"{name}: {threshold:g}": self.found(table[table["arm"] == arm], arm, threshold, level)
            for name, arm in self.of.items()
            for threshold in self.thresholds
        }

    def found(self, runs: pd.DataFrame, arm: str, threshold: float, level: float) -> Finding:
        sound, size = runs[runs["diverged"] == 0], len(runs)
        lost, first_N = size - len(sound), np.zeros(0)
        if len(sound):
            first_N = first_above(largest_of(sound, arm, self.state), threshold)
        passed = int((first_N <= self.by).sum())
        low = float(binomtest(passed, size).proportion_ci(level).low)
        high = float(binomtest(passed + lost, size).proportion_ci(level).high)
        verdict = SUPPORTED if low > HALF else REFUTED if high < HALF else INCONCLUSIVE
        if binomtest(size, size).proportion_ci(level).low <= HALF:  # even if all seeds agree
            verdict = NO_VERDICT
        layers = np.sort(first_N[np.isfinite(first_N)]).astype(int).tolist()
        parts = [
            f"first layers {layers}" if layers else "",
            f"never in {len(first_N) - len(layers)} seeds" if len(layers) < len(first_N) else "",
            f"{lost} seeds diverged" if lost else "",
        ]
        interval = Interval(low - HALF, high - HALF)
        note = "; ".join(filter(None, parts))
        return Finding(verdict, passed / size - HALF, interval, level, None, size, None, note)


# Losses at the best rate.


@dataclass(frozen=True, kw_only=True)
class AtBestRate(PairedClaim):
    """Effects on a measure between groups of arms, each at its own best learning rate.

    The arms of a group are "{group}, rate {rate}". The rate of a group at a seed is the one whose
    mean over the *other* seeds is least: a rate that was lucky with a seed is not chosen for that,
    so no group gains from having been searched. What is above `worst` counts as that: a run that
    blew up and stayed finite is no worse than one that diverged. `contrasts` maps effects to the
    weights of groups, oriented so that the claim says > 0; an effect that a better rate beyond an
    end of the grid could take back, since one was chosen there, is inconclusive. With `every`, a
    further finding says whether the claim holds for all effects: supported if each is, refuted if
    one is.
    """

    EFFECTS = "contrasts"

    contrasts: Mapping[str, Mapping[str, float]]
    rates: Sequence[str]
    measure: str = "loss/val"
    worst: float | None = None
    every: bool = False
    unit: str = "nats per byte"

    def measure_names(self) -> set[str]:
        return {self.measure}

    def arms(self) -> set[str]:
        return {f"{group}, rate {rate}" for group in super().arms() for rate in self.rates}

    def within(self, arms: set[str]) -> Self | None:
        """With the rates that all groups have; a group with none of them is left out."""
        rates = [r for r in self.rates if any(a.endswith(f", rate {r}") for a in arms)]
        kept = {
            name: weights
            for name, weights in self.contrasts.items()
            if all(f"{group}, rate {rate}" in arms for group in weights for rate in rates)
        }
        return replace(self, contrasts=kept, rates=rates) if kept and rates else None

    def tuned(self, table: pd.DataFrame, group: str) -> tuple[np.ndarray, np.ndarray]:
        """The measure at each seed's rate, which the other seeds chose, and which it is: (N,)."""
        by_rate = [values(table, f"{group}, rate {rate}", self.measure) for rate in self.rates]
        loss_AN = np.stack(by_rate)
        if self.worst is not None:
            loss_AN = loss_AN.clip(max=self.worst)
        others_AN = loss_AN.sum(1, keepdims=True) - loss_AN
        chosen_N = others_AN.argmin(0)
        return loss_AN[chosen_N, np.arange(loss_AN.shape[1])], chosen_N

    def effect(self, table: pd.DataFrame, name: str) -> np.ndarray:
        weights = self.contrasts[name]
        return np.sum([w * self.tuned(table, group)[0] for group, w in weights.items()], axis=0)

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        found = super().judge(table, rng)
        return found | ({EVERY: weakest(found)} if self.every else {})

    def checked(self, table: pd.DataFrame, name: str, found: Finding) -> Finding:
        """Inconclusive where a rate beyond the grid could take it back; the note says the rates."""
        sign = {SUPPORTED: 1, REFUTED: -1}.get(found.verdict, 0)
        ends = {0, len(self.rates) - 1} if len(self.rates) > 1 else set()
        verdict, parts = found.verdict, []
        for group, weight in self.contrasts[name].items():
            chosen = set(self.tuned(table, group)[1].tolist())
            rates = " or ".join(self.rates[k] for k in sorted(chosen))
            parts.append(f"{group}: {rates}{' (end of the grid)' if chosen & ends else ''}")
            if sign * weight > 0 and chosen & ends:
                verdict = INCONCLUSIVE
        return replace(found, verdict=verdict, note="best rates: " + "; ".join(parts))


def weakest(found: Mapping[str, Finding]) -> Finding:
    """Whether a claim holds for all effects of a family; the numbers are those of the smallest."""
    name = min(found, key=lambda name: found[name].estimate)
    verdicts = {one.verdict for one in found.values()}
    verdict = SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE
    for decisive in (REFUTED, NO_VERDICT):
        verdict = decisive if decisive in verdicts else verdict
    return replace(found[name], verdict=verdict, note=f"the smallest effect: {name}")


# Figures.


@dataclass(frozen=True, kw_only=True)
class LogitsOverLayers(StudyFigure):
    """The largest attention logit by layer: a panel per name, a line per arm, before and after."""

    panels: Mapping[str, Mapping[str, str]]  # arms by the name of the line, by panel

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        lines: dict[str, dict[str, np.ndarray]] = {}
        for panel, arms in self.panels.items():
            sound = sound_runs(table, list(arms.values()))
            for name, arm in arms.items():
                if arm in sound:
                    for state, when in (("init", "before training"), ("trained", "after")):
                        logit_NL = largest_of(sound[arm], arm, state)
                        lines.setdefault(panel, {})[f"{name}, {when}"] = logit_NL
        if not lines:
            raise NothingToDrawError("no arm of this figure has a run that did not diverge")
        title(figure, "Largest attention logit by layer")
        names = list(dict.fromkeys(name for of_panel in lines.values() for name in of_panel))
        grid = panels(figure, len(lines))
        for axes, (panel, of_panel) in zip(grid, lines.items(), strict=True):
            for name, logit_NL in of_panel.items():
                layer_L = np.arange(1, logit_NL.shape[1] + 1)
                look = view_style(names.index(name)) | {"markersize": 3.5}
                axes.plot(layer_L, np.median(logit_NL, 0), label=name, **look)
            for limit, line in LIMITS.items():
                axes.axhline(limit, color=ACCENT, linestyle=line, linewidth=1.1, label=f"{limit:g}")
            axes.axvspan(2.5, 4.5, color="#EDEDED", zorder=0)
            axes.set(title=panel, yscale="log", xlabel="layer")
            axes.label_outer()
        figure.supylabel("magnitude (nats), median over seeds", fontsize=10.5)
        legend(figure, grid[0])


@dataclass(frozen=True, kw_only=True)
class LossOverRate(StudyFigure):
    """The validation loss over the learning rate: a panel per name, a line per group of arms.

    A loss above `worst` is drawn as that.
    """

    panels: Mapping[str, Mapping[str, str]]  # groups by the name of the line, by panel
    rates: Sequence[str]
    worst: float
    measure: str = "loss/val"

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        by_arm = table[self.measure].clip(upper=self.worst).groupby(table["arm"])
        mean, spread = by_arm.mean(), by_arm.std(ddof=0)
        lines: dict[str, dict[str, np.ndarray]] = {}
        for panel, groups in self.panels.items():
            for name, group in groups.items():
                arms = {rate: f"{group}, rate {rate}" for rate in self.rates}
                points = [(float(r), mean[a], spread[a]) for r, a in arms.items() if a in mean]
                if points:
                    lines.setdefault(panel, {})[name] = np.array(points)
        if not lines:
            raise NothingToDrawError("no arm of this figure was run")
        title(figure, "Validation loss over the learning rate")
        names = list(dict.fromkeys(name for of_panel in lines.values() for name in of_panel))
        grid = panels(figure, len(lines))
        for axes, (panel, of_panel) in zip(grid, lines.items(), strict=True):
            for name, point_A3 in of_panel.items():
                rate_A, mean_A, spread_A = point_A3.T
                look = view_style(names.index(name)) | {"markersize": 4}
                axes.errorbar(rate_A, mean_A, yerr=spread_A, capsize=2, label=name, **look)
            axes.axhline(self.worst, color=MUTED, linestyle=":", linewidth=1)
            axes.set(title=panel, xscale="log", xlabel="learning rate")
            axes.set_xticks([float(rate) for rate in self.rates], self.rates, rotation=90)
            axes.xaxis.minorticks_off()
            axes.label_outer()
        figure.supylabel("nats per byte, mean and deviation", fontsize=10.5)
        legend(figure, grid[0])
