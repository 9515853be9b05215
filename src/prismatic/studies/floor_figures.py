"""The pictures of the study `floor`.

Shapes: X, Y the two tokens of a task, N seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prismatic.report.missing import NothingToDrawError
from prismatic.stats import loss_ladder

from .floor import entries
from .ladder import draw_design, draw_escapes, draw_ladder, draw_pairs, draw_variants
from .spec import Findings
from .together import LADDER


def rows_of(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """The runs of an arm that did not diverge, by seed."""
    rows = table[(table["arm"] == arm) & (table["diverged"] == 0)]
    return rows.set_index("seed").sort_index()


def ladder_of(rows: pd.DataFrame) -> dict[str, float]:
    """The exact losses of the table that these runs were trained on."""
    return {rung: float(rows[name].iloc[0]) for rung, name in LADDER.items()}


def present(table: pd.DataFrame, arms: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The runs of those arms that have any. Raises `NothingToDrawError` where none has."""
    found = {arm: rows_of(table, arm) for arm in arms}
    kept = {arm: rows for arm, rows in found.items() if len(rows)}
    if not kept:
        raise NothingToDrawError(f"no finite run of {', '.join(arms)}")
    return kept


@dataclass(frozen=True)
class Design:
    """The tables P(x, y, z) of the tasks, with their exact entropies, floor and Bayes loss."""

    caption: str
    tables: Mapping[str, Any]

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        joints = {name: np.asarray(joint) for name, joint in self.tables.items()}
        ladders = {name: loss_ladder(joint_XYZ) for name, joint_XYZ in joints.items()}
        return draw_design(joints, ladders)


@dataclass(frozen=True)
class Ladder:
    """Predicted losses by task, and what each seed reached: `tasks` are arms by kind of model."""

    caption: str
    tasks: Mapping[str, Mapping[str, str]]

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        arms = [arm for kinds in self.tasks.values() for arm in kinds.values()]
        rows = present(table, arms)
        ladders, losses = {}, {}
        for task, kinds in self.tasks.items():
            known = {kind: rows[arm] for kind, arm in kinds.items() if arm in rows}
            if known:
                ladders[task] = ladder_of(next(iter(known.values())))
                losses[task] = {kind: own["loss/val"].tolist() for kind, own in known.items()}
        return draw_ladder(ladders, losses)


@dataclass(frozen=True)
class Variants:
    """What each seed of several models reached on one task."""

    caption: str
    heading: str
    arms: Sequence[str]

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        rows = present(table, self.arms)
        losses = {arm: own["loss/val"].tolist() for arm, own in rows.items()}
        return draw_variants(losses, ladder_of(next(iter(rows.values()))), self.heading)


@dataclass(frozen=True)
class Pairs:
    """A table over pairs of tokens of each seed (or, with several `names`, of the first seeds)."""

    caption: str
    heading: str
    unit: str
    arm: str
    names: Mapping[str, str]  # what is drawn, by the name of its measure

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        rows = present(table, [self.arm])[self.arm]
        tables = {
            f"{said}, seed {seed}" if said else f"seed {seed}: {run['loss/val']:.2f} nats": own
            for seed, run in rows.iterrows()
            for name, said in self.names.items()
            if (own := entries(run, name)).size
        }
        if not tables:
            raise NothingToDrawError(f"no run of {self.arm} has {', '.join(self.names)}")
        return draw_pairs(tables, self.heading, self.unit)


@dataclass(frozen=True)
class Escapes:
    """When each seed of several models was below the floor for the first time."""

    caption: str
    arms: Sequence[str]

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        rows = present(table, self.arms)
        passed = {arm: own["escape/passed"] == 1 for arm, own in rows.items()}
        steps = {arm: own["escape/step"].where(passed[arm], np.inf) for arm, own in rows.items()}
        total = max(own["escape/step"].max() for own in rows.values())
        return draw_escapes({arm: step_N.tolist() for arm, step_N in steps.items()}, total)
