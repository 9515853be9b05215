"""The study of routing over trips (source 000, prediction 4): its probe and its claims.

Shapes: N seeds, C configurations, W Walsh functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from prismatic.errors import require
from prismatic.stats import (
    holm,
    rank_correlation,
    simultaneous_level,
    t_interval,
    walsh_shares,
    walsh_test,
)
from prismatic.stats.verdicts import ALPHA, INCONCLUSIVE, NO_VERDICT, judge_greater

from .claims import Finding, unjudged, values
from .unrolled import (
    cost_of_mean_routing,
    noisy_script,
    oscillation,
    scripted_routing,
    unroll_model,
    wavy_script,
)

FEWEST = 30  # configurations for a correlation
CHANCE = 1 / 3  # of each of three shares, in any order of trips


class Trips(pl.Callback):
    """Measures, when a run is validated, whether its routing oscillates over many trips.

    `oscillation/share`, `frequency` and `amplitude` are of the clean view's weight over `trips`
    trips, for `rows` held-out sequences and each router; `trip_{t}` is the first router's mean
    weight. `mean_routing` is what the loss gains when routing is replaced by its mean over the
    model's own trips. `control/ar1` and `control/sinusoid` are the shares for routers that follow a
    script: noise with a memory, and the same with a wave.
    """

    def __init__(self, rows: int = 8, trips: int = 64, surrogates: int = 999) -> None:
        require(rows >= 1, "rows", rows, "give a whole number >= 1")
        self.rows, self.trips, self.surrogates = rows, trips, surrogates

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        model, probe = pl_module.model, pl_module.probe
        views = model.routers[0].num_experts
        require(views > 1, "router.num_experts", views, "routing over trips needs 2 or more views")
        rng = np.random.default_rng(trainer.datamodule.seed)  # type: ignore[attr-defined]
        rows = torch.linspace(0, len(probe.tokens_BT) - 1, self.rows).long()
        tokens_BT = probe.tokens_BT[rows].to(pl_module.device)
        weight_RKBE = unroll_model(model, tokens_BT, self.trips)
        over_trips = weight_RKBE[:, 0, :, 0].mean(1)
        whole = [part.to(pl_module.device) for part in probe[:2]]
        pl_module.log_dict(
            {f"oscillation/trip_{t}": float(w) for t, w in enumerate(over_trips, 1)}
            | {"oscillation/mean_routing": cost_of_mean_routing(model, *whole)}
            | self.tested("oscillation", weight_RKBE, rng)
            | self.scripted("ar1", noisy_script, rng)
            | self.scripted("sinusoid", wavy_script, rng)
        )

    def tested(
        self, name: str, weight_RKBE: np.ndarray, rng: np.random.Generator
    ) -> dict[str, float]:
        found = oscillation(weight_RKBE, rng, self.surrogates)
        return {f"{name}/{key}": value for key, value in found._asdict().items()}

    def scripted(self, name: str, script: Any, rng: np.random.Generator) -> dict[str, float]:
        routing = scripted_routing(script(self.trips, 2 * self.rows, rng))
        return self.tested(f"oscillation/control/{name}", routing, rng)


@dataclass(frozen=True)
class Recurring:
    """A step, a bump or an alternation over four trips recurs, in each of some arms.

    The effect is the function's share of the variance over `passes` (those of one router) less 1/3,
    which it has in any order of the trips. A step is also what a relaxation looks like. One family:
    all arms and functions.
    """

    says: str
    of: Sequence[str]
    passes: Sequence[int]
    smallest_effect: float
    source: str = ""
    unit: str = "share of the variance over trips, less 1/3"

    def arms(self) -> set[str]:
        return set(self.of)

    def within(self, arms: set[str]) -> "Recurring | None":
        kept = [arm for arm in self.of if arm in arms]
        return replace(self, of=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        effects, p = {}, []
        for arm in self.of:
            names = [f"routing/pass_{t}/expert_0_weight" for t in self.passes]
            series_N4 = np.stack([values(table, arm, name) for name in names], -1)
            tested = walsh_test(series_N4, rng)
            for (name, alone), share_N in zip(
                tested.p.items(), walsh_shares(series_N4).T, strict=True
            ):
                effects[f"{arm}: {name}"] = share_N - CHANCE
                p.append(min(1.0, 2 * alone))  # the test is one-sided
        level = simultaneous_level(len(effects))
        adjusted = dict(zip(effects, holm(p), strict=True))
        return {
            name: self.found(effect_N, float(adjusted[name]), level, len(effects))
            for name, effect_N in effects.items()
        }

    def found(self, effect_N: np.ndarray, p: float, level: float, family: int) -> Finding:
        mean, interval, size = float(effect_N.mean()), t_interval(effect_N, level), effect_N.size
        verdict = str(judge_greater(mean, interval, p, self.smallest_effect))
        if family * 2 * CHANCE**size >= ALPHA:  # even if all runs agree
            verdict = NO_VERDICT
        ends = (float(interval.low), float(interval.high))
        return Finding(verdict, mean, ends, level, p, size, self.smallest_effect)


def points(
    table: pd.DataFrame, blocks: Mapping[str, Sequence[str]], measure: str, outcome: str
) -> pd.DataFrame:
    """The measure and the outcome of each configuration that has both, by arm, and its block."""
    sound = table[table["diverged"] == 0]
    block = {arm: name for name, arms in blocks.items() for arm in arms}
    measured = {
        arm: float(values(sound, arm, measure).mean())
        for arm in block
        if (sound["arm"] == arm).any()
    }
    reached = {arm: float(values(table, arm, outcome).mean()) for arm in measured}
    frame = pd.DataFrame({measure: measured, outcome: reached})
    return frame.assign(block=frame.index.map(block))


@dataclass(frozen=True)
class Together:
    """Two measures rise together over configurations, each the mean over its seeds.

    The effect is their rank correlation within `blocks`, lists of arms by name, times `sign`: what
    a block has in common (a learning rate that sets both) counts for nothing. A configuration whose
    runs all diverged has no routing to measure and is left out; of others those runs that did not
    diverge are measured. Fewer than 30 configurations are not judged.
    """

    says: str
    blocks: Mapping[str, Sequence[str]]
    measure: str
    outcome: str
    smallest_effect: float
    sign: float = 1.0
    source: str = ""
    unit: str = "rank correlation"

    def arms(self) -> set[str]:
        return {arm for arms in self.blocks.values() for arm in arms}

    def within(self, arms: set[str]) -> "Together | None":
        kept = {name: [arm for arm in of if arm in arms] for name, of in self.blocks.items()}
        kept = {name: of for name, of in kept.items() if of}
        return replace(self, blocks=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        found_C = points(table, self.blocks, self.measure, self.outcome)
        size = len(self.arms())
        lost = size - len(found_C)
        note = f"{lost} of {size} configurations diverged with every seed" if lost else ""
        if len(found_C) < FEWEST:
            fewer = f"{len(found_C)} configurations, of which {FEWEST} are needed"
            return {"all configurations": unjudged(NO_VERDICT, f"{fewer}; {note}".rstrip("; "))}
        x_C, y_C = found_C[self.measure].to_numpy(), self.sign * found_C[self.outcome].to_numpy()
        found = rank_correlation(x_C, y_C, rng, block_N=found_C["block"].to_numpy())
        verdict = str(judge_greater(found.rho, found.interval, found.p, self.smallest_effect))
        note = f"blocks mixed: {rank_correlation(x_C, y_C, rng).rho:.2f}; {note}"
        if np.ptp(x_C) == 0 or np.ptp(y_C) == 0:
            verdict, note = INCONCLUSIVE, f"one of them is the same everywhere; {note}"
        low, high = map(float, found.interval)
        return {
            "all configurations": Finding(
                verdict, found.rho, (low, high), 1 - ALPHA, found.p, len(found_C),
                self.smallest_effect, note.rstrip("; "),
            )
        }  # fmt: skip
