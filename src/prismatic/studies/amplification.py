"""The study of small changes that may grow through layers (source 000, prediction 1).

Shapes: N seeds, L layers.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from prismatic.errors import require
from prismatic.models import Transformer
from prismatic.stats import (
    Interval,
    growth_scores,
    holm,
    sign_flip_p,
    simultaneous_level,
    t_interval,
)
from prismatic.stats.verdicts import (
    INCONCLUSIVE,
    NO_VERDICT,
    REFUTED,
    SUPPORTED,
    judge_greater,
    judged,
    too_few,
)

from .claims import Finding, Power, finding, paired_design, unjudged
from .growth import NAME, SATURATED, TINY, bent, curve, diverged, rises
from .propagation import SITES, apart, changed_weights, exponent, exponent_of, sharpness, trace

SIZES = (1e-6, 1e-4, 1e-2, 0.1)  # of changes, the smallest to compare with
CHAIN = 1.5  # the growth per step of the linear chain that is measured as a control
RIVALS = ("constant", "linear", "power")


class Amplification(pl.Callback):
    """Measures how a change of the first layer's weights travels, before training and after it.

    All in double precision, on `rows` held-out sequences. `amplification/{state}/{site}/{size}/
    layer_{l}/tv` is the total variation between attention rows with and without the change, and
    `.../hidden` the relative change of the hidden state; `amplification/{state}/layer_{l}/spread`,
    `largest` and `entropy` are of the unchanged model's attention; `amplification/{state}/exponent`
    is the Lyapunov exponent per layer. Controls: `nothing`, the largest of all differences that a
    change of size 0 makes, and `chain`, the exponent of a linear chain. A run of one step is there
    for its initial state: no other is measured.
    """

    def __init__(self, rows: int = 4, sizes: Sequence[float] = SIZES) -> None:
        require(rows >= 1, "rows", rows, "give a whole number >= 1")
        require(min(sizes) > 0, "sizes", sizes, "give numbers > 0")
        self.rows, self.sizes = rows, tuple(sizes)
        self.found: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.found = self.look(trainer, pl_module, "init")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trained = trainer.max_steps > 1
        pl_module.log_dict(
            self.found | (self.look(trainer, pl_module, "trained") if trained else {})
        )

    def look(self, trainer: pl.Trainer, pl_module: Any, state: str) -> dict[str, float]:
        """All measures of the model as it is."""
        probe_BT = pl_module.probe.tokens_BT
        rows = torch.linspace(0, len(probe_BT) - 1, self.rows).long()
        tokens_BT = probe_BT[rows].to(pl_module.device)
        seed = trainer.datamodule.seed  # type: ignore[attr-defined]
        return amplification(pl_module.model, tokens_BT, state, self.sizes, seed)


def amplification(
    model: Transformer, tokens_BT: torch.Tensor, state: str, sizes: Sequence[float], seed: int
) -> dict[str, float]:
    """What `Amplification` records of one state of a model, by name."""
    model = deepcopy(model).double().eval()
    clean = trace(model, tokens_BT)
    x_BTD = clean.hidden_L[0]
    chain = [lambda x: CHAIN * x] * (model.depth - 1)
    found = {
        f"{NAME}/{state}/exponent": exponent_of(model, x_BTD[:2], seed),
        f"{NAME}/{state}/chain": exponent(chain, x_BTD[:2], seed),
    }
    for layer, shown in enumerate(zip(clean.logits_L, clean.probs_L, strict=True), 1):
        for name, value in sharpness(*shown)._asdict().items():
            found[f"{NAME}/{state}/layer_{layer}/{name}"] = value

    def differences(site: str, size: float) -> tuple[list[float], list[float]]:
        return apart(clean, trace(model, tokens_BT, changed_weights(model, site, size, seed)))

    for site in SITES:
        for size in sizes:
            for name, value_L in zip(("tv", "hidden"), differences(site, size), strict=True):
                for layer, value in enumerate(value_L, 1):
                    found[f"{NAME}/{state}/{site}/{size:g}/layer_{layer}/{name}"] = value
    found[f"{NAME}/{state}/nothing"] = max(map(max, differences("all", 0.0)))
    return found


@dataclass(frozen=True)
class Amplified:
    """Attention differs more in the last layer than in the first: R = ln(D_L / D_1), per regime.

    D is the total variation between attention rows that a change of `size` at `site` makes in a
    `state`. One family: all regimes. Gate: from the smallest size on D must be proportional to the
    size, in the first and the last layer: the 90 % interval of its exponent must lie within
    1 +- `gate`. A regime that fails it is inconclusive.
    """

    says: str
    of: Sequence[str]
    state: str
    site: str = "all"
    size: float = 1e-4
    smallest_effect: float = math.log(2)
    gate: float = 0.1
    source: str = ""
    unit: str = "ln(D_L/D_1)"
    pilot_sd: float | None = None

    def arms(self) -> set[str]:
        return set(self.of)

    def within(self, arms: set[str]) -> "Amplified | None":
        kept = [arm for arm in self.of if arm in arms]
        return replace(self, of=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        lost = {arm: reason for arm in self.of if (reason := diverged(table, [arm]))}
        growth = self.effects(table)
        p = {arm: float(sign_flip_p(effect_N, rng)) for arm, effect_N in growth.items()}
        # What diverged stays in the family: its size was declared.
        adjusted = holm([*p.values(), *(1.0 for _ in lost)])
        found = {}
        for (arm, effect_N), holm_p in zip(growth.items(), adjusted, strict=False):
            one = finding(
                judged(effect_N, self.smallest_effect, "greater", p[arm], holm_p, len(self.of))
            )
            small_N2, large_N2 = (self.ends(table, arm, size) for size in (SIZES[0], self.size))
            reason = bent(small_N2, large_N2, self.size / SIZES[0], self.gate)
            if reason and one.verdict in (SUPPORTED, REFUTED):
                one = replace(one, verdict=INCONCLUSIVE, note=reason)
            found[arm] = one
        return found | {arm: unjudged(INCONCLUSIVE, reason) for arm, reason in lost.items()}

    def ends(self, table: pd.DataFrame, arm: str, size: float) -> np.ndarray:
        """D in the first and the last layer, by seed: (N, 2)."""
        return curve(table, arm, self.state, self.site, size)[:, [0, -1]]

    def effects(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """R by seed, of the regimes without a run that diverged."""
        sound = [arm for arm in self.of if not diverged(table, [arm])]
        ends = {arm: self.ends(table, arm, self.size).clip(min=TINY) for arm in sound}
        return {arm: np.log(ends_N2[:, 1] / ends_N2[:, 0]) for arm, ends_N2 in ends.items()}

    def power(self, num_seeds: int) -> Power:
        return paired_design(
            num_seeds, len(self.of), "greater", self.smallest_effect, self.unit, self.pilot_sd
        )


@dataclass(frozen=True)
class Exponential:
    """D grows exponentially over layers: better than constant, linear and by a power, per regime.

    A regime is a name and its arms (one per depth). In all of them D must grow, and the exponential
    must predict ln D of a seed, about its own level, from the other seeds better than every rival.
    Both are judged by `smallest_effect`: the rise of a straight line through ln D from the first
    layer to the last, and the mean squared error of ln D. Points count below saturation; with fewer
    than three in a seed there is no verdict, and none unless D is proportional to the size of the
    change (the gate of `Amplified`) in the first and the last layer that count. p is the largest of
    a regime's, adjusted over regimes; the estimate is the smallest.
    """

    says: str
    of: Mapping[str, Sequence[str]]
    state: str
    site: str = "all"
    size: float = 1e-4
    smallest_effect: float = 0.01
    gate: float = 0.1
    source: str = ""
    unit: str = "less squared error of ln D; of growth: rise of ln D"

    def arms(self) -> set[str]:
        return {arm for arms in self.of.values() for arm in arms}

    def within(self, arms: set[str]) -> "Exponential | None":
        kept = {name: needed for name, needed in self.of.items() if set(needed) <= arms}
        return replace(self, of=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        lost, leads = {}, {}
        for name, arms in self.of.items():
            reason = diverged(table, arms) or self.saturated(table, arms)
            if reason:
                lost[name] = unjudged(INCONCLUSIVE, reason)
            else:
                leads[name] = self.leads(table, arms)
        p = [
            max(float(sign_flip_p(lead_N, rng)) for lead_N in one.values())
            for one in leads.values()
        ]
        adjusted = holm([*p, *(1.0 for _ in lost)])
        found = {}
        for (name, one), holm_p in zip(leads.items(), adjusted, strict=False):
            found[name] = self.found(one, float(holm_p))
            reason = self.bent(table, self.of[name])
            if reason and found[name].verdict in (SUPPORTED, REFUTED):
                found[name] = replace(found[name], verdict=INCONCLUSIVE, note=reason)
        return found | lost

    def curves(self, table: pd.DataFrame, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """D by seed and layer, and which points count."""
        curve_NL = curve(table, arm, self.state, self.site, self.size)
        return curve_NL, (curve_NL < SATURATED) & (curve_NL > TINY)

    def saturated(self, table: pd.DataFrame, arms: Sequence[str]) -> str:
        fewest = min(int(self.curves(table, arm)[1].sum(1).min()) for arm in arms)
        return f"a seed has {fewest} layers below saturation: 3 are needed" if fewest < 3 else ""

    def bent(self, table: pd.DataFrame, arms: Sequence[str]) -> str:
        """Why the change is not small in an arm, or nothing."""
        reasons = []
        for arm in arms:
            large_NL, use_NL = self.curves(table, arm)
            small_NL = curve(table, arm, self.state, self.site, SIZES[0])
            ends_N2 = np.stack(
                [use_NL.argmax(1), use_NL.shape[1] - 1 - use_NL[:, ::-1].argmax(1)], 1
            )
            small_N2, large_N2 = (
                np.take_along_axis(one, ends_N2, 1) for one in (small_NL, large_NL)
            )
            reasons.append(bent(small_N2, large_N2, self.size / SIZES[0], self.gate))
        return next(filter(None, reasons), "")

    def leads(self, table: pd.DataFrame, arms: Sequence[str]) -> dict[str, np.ndarray]:
        """By seed, the rise in each arm and by how much the exponential beats each rival."""
        leads = {}
        for arm in arms:
            curve_NL, use_NL = self.curves(table, arm)
            curve_NL = curve_NL.clip(min=TINY)
            leads[f"growth, {arm}"] = rises(curve_NL, use_NL)
            score_N = growth_scores(curve_NL, use_NL)
            for rival in RIVALS:
                leads[f"{rival}, {arm}"] = score_N["exponential"] - score_N[rival]
        return leads

    def found(self, leads: Mapping[str, np.ndarray], p: float) -> Finding:
        level = simultaneous_level(len(self.of) * len(leads))
        intervals = {name: t_interval(lead_N, level) for name, lead_N in leads.items()}
        verdicts = {
            str(judge_greater(leads[name].mean(), interval, p, self.smallest_effect))
            for name, interval in intervals.items()
        }
        verdict = SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE
        verdict = REFUTED if REFUTED in verdicts else verdict
        closest = min(leads, key=lambda name: leads[name].mean())
        size = leads[closest].size
        if too_few(size, len(self.of)):
            verdict = NO_VERDICT
        ends: Interval = intervals[closest]
        return Finding(
            verdict, float(leads[closest].mean()), (float(ends.low), float(ends.high)), level, p,
            size, self.smallest_effect, f"weakest: {closest}",
        )  # fmt: skip
