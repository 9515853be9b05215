"""The study of what happens without normalisation (source 000, prediction 5).

Shapes: N seeds, L layers, A rates.
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

from prismatic.errors import one_of, require
from prismatic.models import Transformer
from prismatic.stats import clopper_pearson, family_verdicts, simultaneous_level
from prismatic.stats.verdicts import INCONCLUSIVE, NO_VERDICT, REFUTED, SUPPORTED

from .claims import Finding, Power, finding, paired_design, values
from .propagation import sharpness, trace

NAME = "layernorm"
HALF = 0.5
EVERY = "every one of them"


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
        self.found: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.found = self.look(pl_module, "init")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.log_dict(self.found | self.look(pl_module, "trained"))

    def look(self, pl_module: Any, state: str) -> dict[str, float]:
        probe_BT = pl_module.probe.tokens_BT
        rows = torch.linspace(0, len(probe_BT) - 1, self.rows).long()
        found_L = largest_logits(pl_module.model, probe_BT[rows].to(pl_module.device))
        return {
            f"{NAME}/{state}/layer_{layer}/largest": value for layer, value in enumerate(found_L, 1)
        }


def first_above(largest_NL: np.ndarray, threshold: float) -> np.ndarray:
    """The first layer whose logit passes the threshold, by seed; infinite if none does: (N,)."""
    above_NL = largest_NL > threshold
    return np.where(above_NL.any(1), above_NL.argmax(1) + 1.0, math.inf)


@dataclass(frozen=True)
class Explodes:
    """Some logit has passed a threshold by layer `by`, in most seeds: a finding per arm.

    The estimate is the share of seeds less 1/2, its interval that of Clopper and Pearson,
    simultaneous over arms and thresholds; supported if it is above 0, refuted if below. A run that
    diverged may count either way: the interval reaches from one to the other.
    """

    says: str
    of: Mapping[str, str]  # arms by the name of the effect
    state: str
    thresholds: Sequence[float] = (20.0, 88.7)
    by: int = 4
    source: str = ""
    unit: str = "share of seeds less 1/2"

    def __post_init__(self) -> None:
        one_of("state", self.state, ("init", "trained"))

    def arms(self) -> set[str]:
        return set(self.of.values())

    def within(self, arms: set[str]) -> "Explodes | None":
        kept = {name: arm for name, arm in self.of.items() if arm in arms}
        return replace(self, of=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        level = simultaneous_level(len(self.of) * len(self.thresholds))
        return {
            f"{name}: {threshold:g}": self.found(table[table["arm"] == arm], arm, threshold, level)
            for name, arm in self.of.items()
            for threshold in self.thresholds
        }

    def found(self, runs: pd.DataFrame, arm: str, threshold: float, level: float) -> Finding:
        sound, size = runs[runs["diverged"] == 0], len(runs)
        lost = size - len(sound)
        first_N = np.zeros(0)
        if len(sound):
            first_N = first_above(largest_of(sound, arm, self.state), threshold)
        passed = int((first_N <= self.by).sum())
        low = clopper_pearson(passed, size, level).low
        high = clopper_pearson(passed + lost, size, level).high
        verdict = SUPPORTED if low > HALF else REFUTED if high < HALF else INCONCLUSIVE
        if clopper_pearson(size, size, level).low <= HALF:  # even if all seeds agree
            verdict = NO_VERDICT
        return Finding(
            verdict, passed / size - HALF, (float(low) - HALF, float(high) - HALF), level, None,
            size, None, note(first_N, lost),
        )  # fmt: skip


def note(first_N: np.ndarray, lost: int) -> str:
    """Where it was passed, in words."""
    passed = np.sort(first_N[np.isfinite(first_N)]).astype(int).tolist()
    never = len(first_N) - len(passed)
    parts = [f"first layers {passed}"] if passed else []
    parts += [f"never in {never} seeds"] if never else []
    parts += [f"{lost} seeds diverged"] if lost else []
    return "; ".join(parts)


def largest_of(sound: pd.DataFrame, arm: str, state: str) -> np.ndarray:
    """The largest logit by seed and layer: (N, L)."""
    names, layer = [], 1
    while (name := f"{NAME}/{state}/layer_{layer}/largest") in sound:
        names.append(name)
        layer += 1
    require(bool(names), "measure", f"{NAME}/{state}/layer_1/largest", "no run has it")
    return np.stack([values(sound, arm, name) for name in names], -1)


@dataclass(frozen=True)
class AtBestRate:
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

    says: str
    contrasts: Mapping[str, Mapping[str, float]]
    rates: Sequence[str]
    smallest_effect: float
    measure: str = "loss/val"
    worst: float | None = None
    every: bool = False
    source: str = ""
    unit: str = "nats per byte"
    pilot_sd: float | None = None

    def groups(self) -> set[str]:
        return {group for weights in self.contrasts.values() for group in weights}

    def arms(self) -> set[str]:
        return {f"{group}, rate {rate}" for group in self.groups() for rate in self.rates}

    def within(self, arms: set[str]) -> "AtBestRate | None":
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
        loss_AN = np.stack([
            values(table, f"{group}, rate {rate}", self.measure) for rate in self.rates
        ])  # fmt: skip
        if self.worst is not None:
            loss_AN = loss_AN.clip(max=self.worst)
        others_AN = loss_AN.sum(1, keepdims=True) - loss_AN
        chosen_N = others_AN.argmin(0)
        return loss_AN[chosen_N, np.arange(loss_AN.shape[1])], chosen_N

    def effects(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        best = {group: self.tuned(table, group)[0] for group in self.groups()}
        return {
            name: np.sum([weight * best[group] for group, weight in weights.items()], axis=0)
            for name, weights in self.contrasts.items()
        }

    def power(self, num_seeds: int) -> Power:
        return paired_design(
            num_seeds, len(self.contrasts), "greater", self.smallest_effect, self.unit,
            self.pilot_sd,
        )  # fmt: skip

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        verdicts = family_verdicts(
            self.effects(table), smallest_effect=self.smallest_effect, rng=rng
        )
        found = {
            name: self.bounded(table, finding(verdict), self.contrasts[name])
            for name, verdict in verdicts.items()
        }
        return found | ({EVERY: weakest(found)} if self.every else {})

    def bounded(self, table: pd.DataFrame, found: Finding, weights: Mapping[str, float]) -> Finding:
        """The finding, inconclusive where a rate beyond the grid could take it back."""
        took = {group: set(self.tuned(table, group)[1].tolist()) for group in weights}
        ends = {0, len(self.rates) - 1} if len(self.rates) > 1 else set()
        sign = {SUPPORTED: 1, REFUTED: -1}.get(found.verdict, 0)
        short = [group for group in weights if sign * weights[group] > 0 and took[group] & ends]
        verdict = INCONCLUSIVE if short else found.verdict
        return replace(found, verdict=verdict, note=self.chosen(table, weights))

    def chosen(self, table: pd.DataFrame, groups: Mapping[str, float]) -> str:
        """The rates that were chosen; those at an end of the grid say that it is too short."""
        parts = []
        for group in groups:
            rates = [self.rates[k] for k in np.unique(self.tuned(table, group)[1])]
            at_end = len(self.rates) > 1 and {self.rates[0], self.rates[-1]} & set(rates)
            parts.append(f"{group}: {' or '.join(rates)}{' (end of the grid)' if at_end else ''}")
        return "best rates: " + "; ".join(parts)


def weakest(found: Mapping[str, Finding]) -> Finding:
    """Whether a claim holds for all effects of a family; the numbers are those of the smallest."""
    name = min(found, key=lambda name: found[name].estimate)
    verdicts = {one.verdict for one in found.values()}
    if NO_VERDICT in verdicts:
        verdict = NO_VERDICT
    elif REFUTED in verdicts:
        verdict = REFUTED
    else:
        verdict = SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE
    return replace(found[name], verdict=verdict, note=f"the smallest effect: {name}")
