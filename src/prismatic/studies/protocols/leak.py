"""Does training on independent tokens get below the loss of knowing nothing? Then something leaks.

A guard, with its planted leak: probe, claim and figure.

Shapes: B rows, T positions, G batches, S seeds, C means over tokens.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from prismatic.data import Task
from prismatic.models import Transformer
from prismatic.report.style import ACCENT, COLOURS, MUTED, plain, title
from prismatic.routers import PrismaticRouter, Routing
from prismatic.stats import INCONCLUSIVE, REFUTED, SUPPORTED, Finding, Interval

from ..claims import Claim, values
from ..figures import StudyFigure

FRESH = 2**32  # the first batch that no training reaches


class PeekingRouter(PrismaticRouter):
    """A router that passes for causal and is not: what it routes a position by is the next one.

    The positive control. With pool `last` at level token, it sees the very token to be predicted.
    """

    def route(self, x_BTD: torch.Tensor, gate: nn.Module | None = None) -> Routing:
        return super().route(x_BTD.roll(-1, 1), gate)


@torch.no_grad()
def fresh_gains(
    model: Transformer, task: Task, batch_size: int, num_batches: int, seed: int
) -> torch.Tensor:
    """ln(vocabulary) less the loss at each position, on tokens that no training saw: (G, T).

    Each row is the mean over a batch, of the size of training's since all of a batch may share one
    merge. Rows are independent of one another.
    """
    device = next(model.parameters()).device
    gains = []
    for index in range(FRESH, FRESH + num_batches):
        batch = task.train_batch(index, batch_size, seed)
        logits_BTV = model(batch.tokens_BT.to(device)).double()
        target_BT = batch.targets_BT.to(device)
        loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none")
        gains.append(math.log(task.vocab_size) - loss_BT.mean(0).cpu())
    return torch.stack(gains)


def named(gain_GT: torch.Tensor) -> dict[str, float]:
    """`leak/gain` over all tokens and `leak/position_{t}/gain`, in nats, each with its `error`, the
    standard error over independent rows.
    """
    gain_GC = torch.cat([gain_GT.mean(1, keepdim=True), gain_GT], 1)
    error_C = gain_GC.std(0) / math.sqrt(len(gain_GC))
    places = ["leak", *(f"leak/position_{t}" for t in range(gain_GT.shape[1]))]
    measured: dict[str, float] = {}
    for place, gain, error in zip(places, gain_GC.mean(0).tolist(), error_C.tolist(), strict=True):
        measured |= {f"{place}/gain": gain, f"{place}/error": error}
    return measured


class ByPosition(pl.Callback):
    """Logs how far the loss is below ln(vocabulary), by position.

    On fresh tokens of training's kind, as many as are held out: those were not drawn anew per seed.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data, task = trainer.datamodule, pl_module.task  # type: ignore[attr-defined]
        num_batches = -(-task.num_rows("val") // data.batch_size)
        gain_GT = fresh_gains(pl_module.model, task, data.batch_size, num_batches, data.seed)
        pl_module.log_dict(named(gain_GT) | {"leak/batches": float(num_batches)})


def positions(table: pd.DataFrame) -> list[str]:
    """The measures of single positions, without `/gain`, in their order."""
    found = [re.fullmatch(r"leak/position_(\d+)/gain", str(name)) for name in table.columns]
    return [f"leak/position_{t}" for t in sorted(int(match[1]) for match in found if match)]


@dataclass(frozen=True)
class FreshMean:
    """How far the mean loss over some fresh tokens is below ln(vocabulary)."""

    name: str
    gain: float
    error: float
    batches: int

    @property
    def size(self) -> float:
        """In standard errors; those of tokens on which all losses are alike are 0."""
        return self.gain / self.error if self.error else math.copysign(math.inf, self.gain)


def means(table: pd.DataFrame, arm: str) -> Iterator[FreshMean]:
    """Over all tokens of each run, of all runs, and at each position of all runs."""
    gain_S, error_S = values(table, arm, "leak/gain"), values(table, arm, "leak/error")
    batches_S = values(table, arm, "leak/batches").astype(int)
    for seed in gain_S.index:
        yield FreshMean(f"seed {seed}", float(gain_S[seed]), float(error_S[seed]), batches_S[seed])
    for place in ["leak", *positions(table)]:
        gain_S, error_S = (values(table, arm, f"{place}/{part}") for part in ("gain", "error"))
        name = "all tokens" if place == "leak" else place.removeprefix("leak/").replace("_", " ")
        error = math.sqrt(float((error_S**2).sum())) / len(error_S)
        yield FreshMean(f"{name}, all seeds", float(gain_S.mean()), error, int(batches_S.sum()))


@dataclass(frozen=True, kw_only=True)
class Independence(Claim):
    """Arms that get no loss below ln(vocabulary), or with `leaks` arms that do.

    A leak is a mean over fresh tokens more than `errors` standard errors below ln(vocabulary): over
    all tokens of one run, or of all runs together, at all positions or at one. There is none where
    all of these means are, with as many errors added, less than `smallest_effect` below it; that
    does not refute `leaks`, since a model need not have learnt to use what it sees.
    """

    EFFECTS = "routers"

    routers: Sequence[str]
    unit: str = "nats per token"
    leaks: bool = False
    errors: float = 4.0
    smallest_effect: float = 0.01

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        return {arm: self.judge_arm(table, arm) for arm in self.routers}

    def judge_arm(self, table: pd.DataFrame, arm: str) -> Finding:
        """On the mean that is most errors below ln(vocabulary)."""
        measured = list(means(table, arm))
        most = max(measured, key=lambda mean: mean.size)
        leaks, verdict = most.size > self.errors, INCONCLUSIVE
        if leaks or all(m.gain + self.errors * m.error < self.smallest_effect for m in measured):
            verdict = SUPPORTED if leaks == self.leaks else INCONCLUSIVE if self.leaks else REFUTED
        reach = self.errors * most.error
        interval = Interval(most.gain - reach, most.gain + reach)
        level = math.erf(self.errors / math.sqrt(2))
        note = f"largest at {most.name}: {most.size:.1f} standard errors"
        return Finding(
            verdict, most.gain, interval, level, None, int(most.batches), self.smallest_effect, note
        )


@dataclass(frozen=True, kw_only=True)
class GainByPosition(StudyFigure):
    """A panel per arm: the gain at every position, mean over seeds, with a band of four errors."""

    errors: float = 4.0

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        arms = list(dict.fromkeys(table["arm"]))
        rows = -(-len(arms) // 4)
        figure.set_size_inches(10.5, 0.9 + 2.1 * rows)
        title(figure, "How far the loss on fresh independent tokens is below ln(vocabulary)")
        grid = figure.subplots(rows, 4, sharex=True, squeeze=False).ravel()
        for spare in grid[len(arms) :]:
            spare.remove()
        for axes, arm in zip(grid, arms, strict=False):
            by_position = [mean for mean in means(table, arm) if "position" in mean.name]
            place_T = np.arange(len(by_position))
            gain_T = 1000 * np.array([mean.gain for mean in by_position])
            reach_T = 1000 * self.errors * np.array([mean.error for mean in by_position])
            leak_T = np.array([mean.size > self.errors for mean in by_position])
            low_T, high_T = gain_T - reach_T, gain_T + reach_T
            axes.fill_between(place_T, low_T, high_T, color="#D9D9D9", linewidth=0)
            axes.axhline(0, color=MUTED, linewidth=1)
            axes.plot(place_T, gain_T, color=COLOURS[1], linewidth=1.2)
            axes.plot(place_T[leak_T], gain_T[leak_T], "^", color=ACCENT, markersize=5)
            axes.set_title(plain(arm), size=10)
        figure.supxlabel("position (filled triangle: a leak)", size=10)
        figure.supylabel("gain, thousandths of a nat", size=10)
