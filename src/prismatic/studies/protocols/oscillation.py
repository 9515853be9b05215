"""Do routing weights oscillate over the trips of a recurrent model? (source 000, prediction 4)

Probe, claims and figures.

Shapes: B sequences, T time, D model width, E views, R trips, K routers; N seeds, C configurations,
W Walsh functions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from prismatic.data import IGNORE
from prismatic.errors import require
from prismatic.models import Transformer
from prismatic.report.record import NothingToDrawError
from prismatic.report.style import COLOURS, MARKERS, MUTED, legend, panels, title
from prismatic.routers import PrismaticRouter, Router
from prismatic.stats import (
    ALPHA,
    INCONCLUSIVE,
    NO_VERDICT,
    RULES,
    Finding,
    Interval,
    ar1_series,
    holm,
    periodicity_test,
    rank_correlation,
    simultaneous_level,
    t_interval,
    walsh_shares,
    walsh_test,
)

from ..claims import Claim, UnjudgeableError, groups_within, sound_runs, values
from ..figures import StudyFigure
from ..scripted import Scripted, scripted

BURN_IN = 8  # trips that are dropped before a sequence is tested
STILL = 1e-6  # routing that deviates by less does not move: single precision rounds so
MEMORY, NOISE, WAVE = 0.7, 0.5, 1.0  # of scripted logits: AR(1) coefficient, deviation, amplitude
FEWEST = 30  # configurations for a correlation
CHANCE = 1 / 3  # of each of three shares, in any order of trips
Script = Callable[[int, int, np.random.Generator], np.ndarray]


# The probe: routing of a model that is unrolled to many trips, and of routers with a script.


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
        measured = oscillation(weight_RKBE, rng, self.surrogates)
        return {f"{name}/{key}": value for key, value in measured._asdict().items()}

    def scripted(self, name: str, script: Script, rng: np.random.Generator) -> dict[str, float]:
        routing = scripted_routing(script(self.trips, 2 * self.rows, rng))
        return self.tested(f"oscillation/control/{name}", routing, rng)


@torch.no_grad()
def unroll(routers: Sequence[Router], x_BTD: torch.Tensor, trips: int, *args: Any) -> np.ndarray:
    """Send hidden states through the routers so many times; routing averaged over positions.

    `args` are what the routed modules take beside the hidden state. Returns (R, K, B, E).
    """
    seen = []
    for _ in range(trips):
        for router in routers:
            x_BTD = router(x_BTD, *args)
            assert router.record is not None
            seen.append(router.record.probs.mean(1).expand(len(x_BTD), -1))
    return torch.stack(seen).unflatten(0, (trips, -1)).double().cpu().numpy()


def unroll_model(model: Transformer, tokens_BT: torch.Tensor, trips: int) -> np.ndarray:
    """`unroll` of a model's blocks, from its embedded tokens: (R, K, B, E)."""
    with torch.no_grad():
        x_BTD = model.positions.embed(model.embedding(tokens_BT))
    return unroll(model.routers, x_BTD, trips, model.positions)


class Oscillation(NamedTuple):
    """How many series have a period that AR(1) noise does not have, the median of their strongest
    frequencies (cycles per trip), and their mean standard deviation.
    """

    share: float
    frequency: float
    amplitude: float


def oscillation(
    weight_RKBE: np.ndarray, rng: np.random.Generator, surrogates: int = 999
) -> Oscillation:
    """Test the clean view's weight over trips, of each sequence in each router, for a period.

    The first trips are dropped. Routing that does not move has no period.
    """
    series_SR = weight_RKBE[..., 0].reshape(len(weight_RKBE), -1).T
    amplitude_S = series_SR[:, BURN_IN:].std(1)
    tests = [periodicity_test(series_R, rng, BURN_IN, surrogates) for series_R in series_SR]
    periodic_S = np.array([one.p <= ALPHA for one in tests]) & (amplitude_S > STILL)
    frequency = float(np.median([one.frequency for one in tests]))
    return Oscillation(float(periodic_S.mean()), frequency, float(amplitude_S.mean()))


def scripted_routing(logit_RKB: np.ndarray) -> np.ndarray:
    """What `unroll` sees of routers of two views whose gates follow a script: (R, K, B, 2)."""
    trips, num_routers, rows = logit_RKB.shape
    logit_RKB11 = torch.from_numpy(logit_RKB)[..., None, None]
    both_RKB12 = torch.cat([logit_RKB11, torch.zeros_like(logit_RKB11)], -1)
    routers = [
        PrismaticRouter(nn.Identity(), 1, 2, gate=Scripted(both_RKB12[:, k]))
        for k in range(num_routers)
    ]
    return unroll(routers, torch.zeros(rows, 1, 1, dtype=torch.float64), trips)


def noisy_script(trips: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Logits over trips of one router that are AR(1) noise and nothing else: (R, 1, B)."""
    noise_BR = ar1_series(MEMORY, (rows, trips), rng) * NOISE * np.sqrt(1 - MEMORY**2)
    return noise_BR.T[:, None]


def wavy_script(trips: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """The same with a sinusoid in each row, of some period from 2.5 to 10 trips: (R, 1, B)."""
    frequency_B, phase_B = rng.uniform(0.1, 0.4, rows), rng.uniform(0, 2 * np.pi, rows)
    angle_RB = 2 * np.pi * np.arange(trips)[:, None] * frequency_B + phase_B
    return noisy_script(trips, rows, rng) + WAVE * np.sin(angle_RB)[:, None]


@torch.no_grad()
def cost_of_mean_routing(
    model: Transformer, tokens_BT: torch.Tensor, targets_BT: torch.Tensor
) -> float:
    """What the loss gains, in nats per token, when every position's routing is replaced by its mean
    over the model's trips.
    """

    def loss() -> float:
        logits_BTV = model(tokens_BT).double()
        return float(F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORE))

    own, routers = loss(), model.routers
    gates = []
    for k, router in enumerate(routers):
        mean = torch.stack([one.probs for one in model.routing[k :: len(routers)]]).mean(0)
        gates.append(Scripted(repeat(mean.log() * router.temperature)))
    with scripted(routers, gates):
        return loss() - own


# The claims.


@dataclass(frozen=True, kw_only=True)
class Recurring(Claim):
    """A step, a bump or an alternation over four trips recurs, in each of some arms.

    The effect is the function's share of the variance over `passes` (those of one router) less 1/3,
    which it has in any order of the trips. A step is also what a relaxation looks like. One family:
    all arms and functions.
    """

    EFFECTS = "of"

    of: Sequence[str]
    passes: Sequence[int]
    smallest_effect: float
    unit: str = "share of the variance over trips, less 1/3"

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        effects, p = {}, []
        for arm in self.of:
            names = [f"routing/pass_{t}/expert_0_weight" for t in self.passes]
            series_N4 = np.stack([values(table, arm, name) for name in names], -1)
            one_sided = walsh_test(series_N4, rng).p
            for name, share_N in zip(one_sided, walsh_shares(series_N4).T, strict=True):
                effects[f"{arm}: {name}"] = share_N - CHANCE
                p.append(min(1.0, 2 * one_sided[name]))
        level, found = simultaneous_level(len(effects)), {}
        for (name, effect_N), holm_p in zip(effects.items(), holm(p).tolist(), strict=True):
            mean, size = float(effect_N.mean()), effect_N.size
            interval = Interval(*map(float, t_interval(effect_N, level)))
            verdict = str(RULES[self.kind].judge(mean, interval, holm_p, self.smallest_effect))
            if len(effects) * 2 * CHANCE**size >= ALPHA:  # even if all runs agree
                verdict = NO_VERDICT
            found[name] = Finding(
                verdict, mean, interval, level, holm_p, size, self.smallest_effect
            )
        return found


def points(
    table: pd.DataFrame, blocks: Mapping[str, Sequence[str]], measure: str, outcome: str
) -> pd.DataFrame:
    """The measure and the outcome of each configuration that has both, by arm, and its block."""
    block = {arm: name for name, arms in blocks.items() for arm in arms}
    measured = {
        arm: float(values(runs, arm, measure).mean())
        for arm, runs in sound_runs(table, list(block)).items()
    }
    reached = {arm: float(values(table, arm, outcome).mean()) for arm in measured}
    frame = pd.DataFrame({measure: measured, outcome: reached})
    return frame.assign(block=frame.index.map(block))


@dataclass(frozen=True, kw_only=True)
class RiseTogether(Claim):
    """Two measures rise together over configurations, each the mean over its seeds.

    The effect is their rank correlation within `blocks`, lists of arms by name, times `sign`: what
    a block has in common (a learning rate that sets both) counts for nothing. A configuration whose
    runs all diverged has no routing to measure and is left out; of others those runs that did not
    diverge are measured. Fewer than 30 configurations are not judged.
    """

    EFFECTS = "blocks"

    blocks: Mapping[str, Sequence[str]]
    measure: str
    outcome: str
    smallest_effect: float
    sign: float = 1.0
    unit: str = "rank correlation"

    def measure_names(self) -> set[str]:
        return {self.measure, self.outcome}

    def within(self, arms: set[str]) -> Self | None:
        blocks = groups_within(self.blocks, arms)
        return replace(self, blocks=blocks) if blocks else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        name = "all configurations"
        points_C = points(table, self.blocks, self.measure, self.outcome)
        size = len(self.arms())
        lost = size - len(points_C)
        note = f"{lost} of {size} configurations diverged with every seed" if lost else ""
        if len(points_C) < FEWEST:
            fewer = f"{len(points_C)} configurations, of which {FEWEST} are needed"
            return {name: UnjudgeableError(f"{fewer}; {note}".rstrip("; ")).finding()}
        x_C = points_C[self.measure].to_numpy()
        y_C = self.sign * points_C[self.outcome].to_numpy()
        rho, interval, p = rank_correlation(x_C, y_C, rng, block_N=points_C["block"].to_numpy())
        verdict = str(RULES[self.kind].judge(rho, interval, p, self.smallest_effect))
        note = f"blocks mixed: {rank_correlation(x_C, y_C, rng).rho:.2f}; {note}".rstrip("; ")
        if np.ptp(x_C) == 0 or np.ptp(y_C) == 0:
            verdict, note = INCONCLUSIVE, f"one of them is the same everywhere; {note}"
        return {
            name: Finding(
                verdict, rho, interval, 1 - ALPHA, p, len(points_C), self.smallest_effect, note
            )
        }


# Figures.


@dataclass(frozen=True, kw_only=True)
class Courses(StudyFigure):
    """The clean view's mean weight over the trips of an unrolled model: a panel per arm."""

    of: Sequence[str]
    trained: int  # trips that the model was trained with

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        runs = sound_runs(table, self.of)
        if not runs:
            raise NothingToDrawError("no arm of this figure has a run that did not diverge")
        title(figure, "Routing over the trips of the unrolled model")
        count = sum(str(name).startswith("oscillation/trip_") for name in table.columns)
        trips = range(1, count + 1)
        for axes, (arm, own) in zip(panels(figure, len(runs)), runs.items(), strict=False):
            for row in own[[f"oscillation/trip_{t}" for t in trips]].to_numpy():
                axes.plot(trips, row, color="black", linewidth=0.9, alpha=0.6)
            axes.axvspan(1, BURN_IN, color="#EDEDED", zorder=0)
            axes.axvline(self.trained, color=MUTED, linestyle="--", linewidth=1)
            axes.set_title(arm.replace(", ", "\n"), fontsize=8.5)
            axes.label_outer()
        figure.supxlabel("trip (dashed: trained so far; grey: dropped in testing)", fontsize=10.5)
        figure.supylabel("weight of the clean view, a line per seed", fontsize=10.5)


@dataclass(frozen=True, kw_only=True)
class PeriodicityAndSuccess(StudyFigure):
    """The share of periodic sequences beside the loss: a point per configuration, by blocks."""

    blocks: Mapping[str, Sequence[str]]
    measure: str
    outcome: str

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        points_C = points(table, self.blocks, self.measure, self.outcome)
        if points_C.empty:
            raise NothingToDrawError("no configuration was measured")
        title(figure, "Periodic routing and success, a point per configuration")
        axes = figure.subplots()
        for k, (name, block) in enumerate(points_C.groupby("block", sort=False)):
            axes.scatter(
                block[self.outcome], block[self.measure], s=44, alpha=0.8, label=name,
                color=COLOURS[k], marker=MARKERS[k],
            )  # fmt: skip
        axes.axhline(
            ALPHA, color=MUTED, linestyle="--", linewidth=1, label="noise with a memory, at most"
        )
        axes.set(
            xlabel="validation loss (nats per byte)", ylabel="share of sequences with a period"
        )
        axes.set_ylim(-0.02, 1.02)
        legend(figure, axes)
