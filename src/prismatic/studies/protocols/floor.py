"""What can one layer of attention without an MLP say of a function of two tokens? (source 004)

Attentions, claim and figures. Losses here are exact (`prismatic.studies.full_batch`), so a run
below a floor is a counterexample and needs no statistics.

Shapes: X, Y the two tokens of a task, Z what is predicted, N seeds; B batch, T time of the query,
S of the key, H heads, W features of a token that the logits are made of.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from prismatic.errors import require
from prismatic.models import Attention, hide_future
from prismatic.models.parts import NORMS, NoPositions
from prismatic.report.record import NothingToDrawError
from prismatic.report.style import (
    ACCENT,
    COLOURS,
    MUTED,
    SIZE,
    panels,
    plain,
    title,
    view_style,
)
from prismatic.stats import INCONCLUSIVE, REFUTED, SUPPORTED, Finding, Interval, loss_ladder

from ..claims import Claim, sound_runs, values
from ..figures import StudyFigure, rows_of, side_by_side
from ..full_batch import LADDER

PASSED_BY = "floor/passed_by"  # nats that a run's exact loss is below its table's additive floor


# Attentions whose weights depend on less than both tokens.


class WithoutProduct(Attention):
    """Attention without queries and keys. Positions that rotate those have no effect here; a bias
    of positions, as alibi's, is added as ever.
    """

    def __init__(
        self, dim: int, num_heads: int, seq_len: int, *, bias: bool = False,
        qk_norm: Callable[[int], nn.Module] = NORMS["none"], qk_gain: float = 1.0,
    ) -> None:  # fmt: skip
        wanted = "it acts on queries and keys, which only model.attention=full has"
        require(qk_norm is NORMS["none"], "model.qk_norm", qk_norm, wanted)
        require(qk_gain == 1, "model.qk_gain", qk_gain, wanted)
        super().__init__(dim, num_heads, seq_len, bias=bias)

    @abstractmethod
    def table(self, features_BTW: torch.Tensor) -> torch.Tensor:
        """Logits (B, H, T, S), with what does not vary left at size 1, without the causal mask."""

    def logits(
        self, features_BTW: torch.Tensor, positions: NoPositions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_rows, num_positions, _ = features_BTW.shape
        nothing = features_BTW.new_zeros(num_rows, self.num_heads, num_positions, 1)
        shape = num_rows, self.num_heads, num_positions, num_positions
        table_BHTS, bias_HTS = self.table(features_BTW).expand(shape), positions.bias(nothing)
        masked = hide_future(table_BHTS) if bias_HTS is None else table_BHTS + bias_HTS
        return nothing, nothing, masked


class Uniform(WithoutProduct):
    """All logits are 0: equal weights on what is visible, unless positions add a bias."""

    def num_features(self, dim: int) -> int:
        return 0

    def table(self, features_BTW: torch.Tensor) -> torch.Tensor:
        return features_BTW.new_zeros(1, 1, 1, 1)


class Constant(Uniform):
    """A learned logit per head, query position and key position, whatever the tokens are.

    They are a linear map of the query's position as a one-hot vector, so that routers merge it as
    any other.
    """

    def __init__(self, dim: int, num_heads: int, seq_len: int, **options: Any) -> None:
        super().__init__(dim, num_heads, seq_len, **options)
        self.by_position = nn.Linear(seq_len, num_heads * seq_len, bias=False)

    def table(self, features_BTW: torch.Tensor) -> torch.Tensor:
        num_rows, num_positions, _ = features_BTW.shape
        onehot_TT = torch.eye(num_positions, self.seq_len).to(features_BTW)
        return by_key(self.by_position(onehot_TT.expand(num_rows, -1, -1)), self.num_heads)


class FromQuery(WithoutProduct):
    """A logit per head and key position that is a linear map of the query's token alone."""

    def num_features(self, dim: int) -> int:
        return self.num_heads * self.seq_len

    def table(self, features_BTW: torch.Tensor) -> torch.Tensor:
        return by_key(features_BTW, self.num_heads)


class FromKey(WithoutProduct):
    """A logit per head that is a linear map of the key's token alone.

    It is 0 where a query meets its own token, against which the others count: so the weights of a
    query do not depend on its token, and of two tokens the last one's are a function of the first.
    """

    def num_features(self, dim: int) -> int:
        return self.num_heads

    def table(self, features_BTW: torch.Tensor) -> torch.Tensor:
        own_TS = torch.eye(features_BTW.shape[1], dtype=torch.bool, device=features_BTW.device)
        return features_BTW.mT[:, :, None].masked_fill(own_TS, 0)


def by_key(features_BTW: torch.Tensor, num_heads: int) -> torch.Tensor:
    """One feature per head and key position, as logits: (B, T, W) -> (B, H, T, S)."""
    num_positions = features_BTW.shape[1]
    return features_BTW.unflatten(-1, (num_heads, -1)).transpose(1, 2)[..., :num_positions]


# The claim.


@dataclass(frozen=True, kw_only=True)
class Floor(Claim):
    """That no run of these arms has less loss than the additive floor of its table.

    One run that is below by more than `tolerance` refutes the claim for its arm. Runs above it
    prove nothing: they support the claim only where `proof` says why it must hold.
    """

    EFFECTS = "regimes"

    regimes: Sequence[str]
    unit: str = "nats above the floor"
    proof: str = ""
    tolerance: float = 1e-7  # nats: a floor is known to 1e-9, and a loss to float64's rounding

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tolerance > 0, "tolerance", self.tolerance, "give a number > 0")

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        """A finding per arm: the least distance above the floor, and the range over seeds."""
        found = {}
        for arm in self.regimes:
            above_N = -values(table, arm, PASSED_BY).to_numpy()
            least, most = float(above_N.min()), float(above_N.max())
            below = int((above_N < -self.tolerance).sum())
            verdict = REFUTED if below else SUPPORTED if self.proof else INCONCLUSIVE
            note = f"{below} of {len(above_N)} exact losses are below; the interval is their range"
            if self.proof and not below:
                note += f"; {self.proof}"
            interval = Interval(least, most)
            found[arm] = Finding(verdict, least, interval, 1.0, None, len(above_N), None, note)
        return found


def entries(run: pd.Series, name: str) -> np.ndarray:
    """A table over pairs of tokens that a run logged as numbers: `name`/x_2/y_3 for (2, 3).

    NaN where there is none.
    """
    own = {
        tuple(int(part.split("_")[1]) for part in str(key).split("/")[-2:]): value
        for key, value in run.items()
        if str(key).startswith(f"{name}/x_") and np.isfinite(cast(float, value))
    }
    sizes = np.max(list(own), axis=0) + 1 if own else (0, 0)
    table_XY = np.full(sizes, np.nan)
    for pair, value in own.items():
        table_XY[pair] = value
    return table_XY


# Figures. What each rung of a ladder looks like: the floor is the one that stands out.

RUNGS: dict[str, dict[str, Any]] = {
    "H(Z)": {"color": MUTED, "linestyle": ":", "linewidth": 1.4},
    "H(Z|X)": {"color": MUTED, "linestyle": "--", "linewidth": 1.2},
    "H(Z|Y)": {"color": MUTED, "linestyle": "-.", "linewidth": 1.2},
    "additive floor": {"color": "black", "linestyle": "-", "linewidth": 2.6},
    "H(Z|X,Y)": {"color": ACCENT, "linestyle": "-", "linewidth": 1.4},
}
RUNG_NAMES = {rung: rung for rung in RUNGS} | {"H(Z|X,Y)": "Bayes loss H(Z|X,Y)"}


def dots(kind: int) -> dict[str, Any]:
    """Open circles, filled squares, filled triangles: apart in print, too."""
    face = "white" if kind == 0 else COLOURS[kind % len(COLOURS)]
    return {
        "linestyle": "none", "marker": "os^D"[kind % 4], "markersize": 4.5,
        "color": COLOURS[kind % len(COLOURS)], "markerfacecolor": face, "alpha": 0.8,
    }  # fmt: skip


def require_runs(table: pd.DataFrame, arms: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The finite runs of these arms. Raises `NothingToDrawError` where there is none."""
    runs = sound_runs(table, arms)
    if not runs:
        raise NothingToDrawError(f"no finite run of {', '.join(arms)}")
    return runs


def ladder_of(runs: pd.DataFrame) -> dict[str, float]:
    """The exact losses of the table that these runs were trained on."""
    return {rung: float(runs[name].iloc[0]) for rung, name in LADDER.items()}


@dataclass(frozen=True, kw_only=True)
class TaskTables(StudyFigure):
    """The likeliest z of every pair of tokens, a panel per task, above the task's exact losses."""

    tables: Mapping[str, Any]  # P(x, y, z) by task

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        columns = min(5, len(self.tables))
        rows = -(-len(self.tables) // columns)
        figure.set_size_inches(1.2 + 2.0 * columns, 0.7 + 3.0 * rows)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        title(figure, "Likeliest z by the two tokens, and what can be known of it (nats)")
        for axes, (name, joint) in zip(grid, self.tables.items(), strict=False):
            joint_XYZ = np.asarray(joint)
            weight_XY, ladder = joint_XYZ.sum(2), loss_ladder(joint_XYZ)
            axes.imshow(joint_XYZ.argmax(2), origin="lower")
            if np.ptp(weight_XY) > 1e-9:  # a circle at every pair, its area the pair's probability
                x_C, y_C = np.indices(weight_XY.shape).reshape(2, -1)
                area_C = 400 * (weight_XY / weight_XY.max()).ravel() / len(weight_XY)
                axes.scatter(y_C, x_C, area_C, color="white", edgecolors="black", linewidths=0.8)
            lines = [f"{RUNG_NAMES[rung]}  {ladder[rung]:.3f}" for rung in RUNGS]
            axes.set(title=plain(name), xticks=[], yticks=[], ylabel="token x")
            axes.set_xlabel("token y\n" + "\n".join(lines), size=9)
            axes.grid(False)
        for spare in grid[len(self.tables) :]:
            spare.remove()


@dataclass(frozen=True, kw_only=True)
class Ladder(StudyFigure):
    """A ladder of known losses per task, and beside it a dot per seed of each kind of model."""

    tasks: Mapping[str, Mapping[str, str]]  # arms by kind of model, by task

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        runs = require_runs(table, [arm for of in self.tasks.values() for arm in of.values()])
        known = {
            task: {kind: runs[arm] for kind, arm in arms.items() if arm in runs}
            for task, arms in self.tasks.items()
        }
        known = {task: of_task for task, of_task in known.items() if of_task}
        figure.set_size_inches(max(SIZE[0], 1.15 * len(known)), 5.4)
        axes = figure.subplots()
        title(figure, "What can be known of z, and the exact loss of each seed")
        kinds = list(dict.fromkeys(kind for of_task in known.values() for kind in of_task))
        for place, of_task in enumerate(known.values()):
            for rung, nats in ladder_of(next(iter(of_task.values()))).items():
                axes.plot([place - 0.42, place + 0.42], [nats] * 2, **RUNGS[rung])
            for kind, own in of_task.items():
                k = kinds.index(kind)
                centre = place + 0.44 * (k - (len(kinds) - 1) / 2)
                axes.plot(side_by_side(len(own), centre), own["loss/val"], **dots(k))
        axes.set_xticks(range(len(known)), [plain(task).replace(" ", "\n") for task in known])
        axes.tick_params(axis="x", labelsize=9)
        axes.grid(visible=False, axis="x")
        axes.set(ylabel="loss (nats)", ylim=(-0.06, None))
        handles = [Line2D([], [], **look, label=RUNG_NAMES[rung]) for rung, look in RUNGS.items()]
        handles += [Line2D([], [], **dots(k), label=plain(kind)) for k, kind in enumerate(kinds)]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)


@dataclass(frozen=True, kw_only=True)
class Variants(StudyFigure):
    """A row per model on one task, a dot per seed, beside the floor and the Bayes loss."""

    heading: str
    arms: Sequence[str]

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        runs = require_runs(table, self.arms)
        axes, place = rows_of(figure, list(runs), self.heading)
        ladder = ladder_of(next(iter(runs.values())))
        for rung in ("additive floor", "H(Z|X,Y)"):
            axes.axvline(ladder[rung], **RUNGS[rung], label=RUNG_NAMES[rung])
        for y, own in zip(place, runs.values(), strict=True):
            axes.plot(own["loss/val"], side_by_side(len(own), y), **dots(1))
        axes.set_xlabel("exact loss after training (nats)")
        figure.legend(loc="outside lower center", ncols=2)


@dataclass(frozen=True, kw_only=True)
class Pairs(StudyFigure):
    """A heat map over pairs of tokens, from 0 to 1, of each seed (or, with several `names`, of the
    first seeds).
    """

    heading: str
    unit: str
    arm: str
    names: Mapping[str, str]  # what is drawn, by the name of its measure

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        runs = require_runs(table, [self.arm])[self.arm].set_index("seed").sort_index()
        tables = {
            f"{said}, seed {seed}" if said else f"seed {seed}: {run['loss/val']:.2f} nats": own
            for seed, run in runs.iterrows()
            for name, said in self.names.items()
            if (own := entries(run, name)).size
        }
        if not tables:
            raise NothingToDrawError(f"no run of {self.arm} has {', '.join(self.names)}")
        title(figure, plain(self.heading))
        grid = panels(figure, len(tables))
        columns = -(-len(grid) // -(-len(grid) // 4))
        figure.set_size_inches(SIZE[0], 0.6 + (0.6 + 6.6 / columns) * (len(grid) // columns))
        for axes, (name, table_XY) in zip(grid, tables.items(), strict=False):
            image = axes.imshow(table_XY, vmin=0, vmax=1, origin="lower")
            axes.set(xlabel="token y", ylabel="token x", title=plain(name))
            axes.grid(False)
            axes.label_outer()
        figure.colorbar(image, ax=grid, label=self.unit, shrink=0.8)


@dataclass(frozen=True, kw_only=True)
class Escapes(StudyFigure):
    """The share of each model's seeds that are below the floor by each step."""

    arms: Sequence[str]

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        runs = require_runs(table, self.arms)
        axes = figure.subplots()
        title(figure, "When losses fall below the additive floor (by more than .01 nats)")
        total = max(own["escape/step"].max() for own in runs.values())
        first = total
        for k, (arm, own) in enumerate(runs.items()):
            passed = np.sort(own.loc[own["escape/passed"] == 1, "escape/step"])
            first = min([first, *passed])
            share = np.arange(len(passed) + 1) / len(own)
            x = [1, *np.maximum(passed, 1), total]
            look = {**view_style(k), "marker": None}
            axes.step(x, [*share, share[-1]], where="post", **look, label=plain(arm))
        axes.set(
            xscale="log", xlim=(max(1, 0.7 * first), 1.05 * total), ylim=(-0.03, 1.03),
            xlabel="step", ylabel="share of seeds below the floor",
        )  # fmt: skip
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
