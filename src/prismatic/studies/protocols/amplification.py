"""Do small changes of the first layer grow through the layers? (source 000, prediction 1)

Probe, claims and figures. D is the total variation between attention rows with a change and
without it. An arm is named by its norm, its gain and its initialisation: "pre, gain 4, xavier".

Shapes: B batch, T time, D model width, N seeds, L layers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import linregress
from torch import nn
from torch.func import vjp

from prismatic.errors import one_of, require
from prismatic.models import Transformer, watched
from prismatic.report.record import NothingToDrawError
from prismatic.report.style import ACCENT, MUTED, legend, plain, title, view_style
from prismatic.stats import (
    INCONCLUSIVE,
    NO_VERDICT,
    REFUTED,
    RULES,
    SUPPORTED,
    Finding,
    growth_scores,
    holm,
    sign_flip_p,
    simultaneous_level,
    t_interval,
    too_few,
)

from ..claims import Claim, PairedClaim, UnjudgeableError, sound_runs, values
from ..figures import StudyFigure
from ..tracing import Trace, sharpness, trace

NAME = "amplification"  # what the measures begin with
FIRST = "blocks.0.expert."
SITES = ("all", "qk", "vo_mlp")  # what of the first layer is changed
SIZES = (1e-6, 1e-4, 1e-2, 0.1)  # of changes, the smallest to compare with
CHAIN = 1.5  # the growth per step of the linear chain that is measured as a control
RIVALS = ("constant", "linear", "power")
STATES = {"init": "at initialisation", "trained": "trained"}
SATURATED = 0.1  # total variation between attention rows from which on D cannot grow freely
TINY = 1e-14  # less than that two rows of attention differ by rounding alone


# The probe.


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
        self.measured: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.measured = self.look(trainer, pl_module, "init")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        trained = self.look(trainer, pl_module, "trained") if trainer.max_steps > 1 else {}
        pl_module.log_dict(self.measured | trained)

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
    measured = {
        f"{NAME}/{state}/exponent": exponent_of(model, x_BTD[:2], seed),
        f"{NAME}/{state}/chain": exponent(chain, x_BTD[:2], seed),
    }
    for layer, shown in enumerate(zip(clean.logits_L, clean.probs_L, strict=True), 1):
        for name, value in sharpness(*shown)._asdict().items():
            measured[f"{NAME}/{state}/layer_{layer}/{name}"] = value

    def differences(site: str, size: float) -> tuple[list[float], list[float]]:
        return apart(clean, trace(model, tokens_BT, changed_weights(model, site, size, seed)))

    for site in SITES:
        for size in sizes:
            for name, value_L in zip(("tv", "hidden"), differences(site, size), strict=True):
                for layer, value in enumerate(value_L, 1):
                    measured[f"{NAME}/{state}/{site}/{size:g}/layer_{layer}/{name}"] = value
    measured[f"{NAME}/{state}/nothing"] = max(map(max, differences("all", 0.0)))
    return measured


def site_of(model: Transformer, site: str) -> dict[str, slice]:
    """The parameters of the first layer that belong to a site, and which rows of each."""
    one_of("site", site, SITES)
    names = [name for name, _ in model.named_parameters() if name.startswith(FIRST)]
    whole, width = slice(None), 2 * model.embedding.embedding_dim  # of queries and keys
    if site == "all":
        return dict.fromkeys(names, whole)
    joint = [name for name in names if ".qkv." in name]
    alone = [name for name in names if ".inner." in name and name not in joint]
    norms = [name for name in alone if "q_norm" in name or "k_norm" in name]
    if site == "qk":
        return dict.fromkeys(joint, slice(width)) | dict.fromkeys(norms, whole)
    rest = [name for name in alone if name not in norms]
    return dict.fromkeys(joint, slice(width, None)) | dict.fromkeys(rest, whole)


def changed_weights(
    model: Transformer, site: str, size: float, seed: int
) -> dict[str, torch.Tensor]:
    """The first layer's parameters after a random change, `size` times as large as they are.

    The relative size is in norm, of each parameter or of its rows that belong to the site. One
    direction for all sizes.
    """
    generator, weights = torch.Generator().manual_seed(seed), dict(model.named_parameters())
    changed = {}
    for name, rows in site_of(model, site).items():
        weight = weights[name].detach().clone()
        part = weight[rows]
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part)
        weight[rows] = part + size * part.norm() / noise.norm() * noise
        changed[name] = weight
    return changed


def apart(clean: Trace, moved: Trace) -> tuple[list[float], list[float]]:
    """By layer: the mean total variation between attention rows, those of one entry left out, and
    the relative change in norm of the hidden state.
    """
    variation_L = [
        float((after - before)[:, :, 1:].abs().sum(-1).mean() / 2)
        for before, after in zip(clean.probs_L, moved.probs_L, strict=True)
    ]
    change_L = [
        float((after - before).norm() / before.norm())
        for before, after in zip(clean.hidden_L, moved.hidden_L, strict=True)
    ]
    return variation_L, change_L


def exponent(
    steps: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    x_BTD: torch.Tensor,
    seed: int,
    iterations: int = 4,
) -> float:
    """The finite-time Lyapunov exponent per step: ln of the largest singular value of the Jacobian
    of all steps, by power iteration, over their number. Mean over sequences, which are independent.

    Power iteration comes from below: after four rounds ln of the singular value is some 1 % low.
    """

    def through(x_BTD: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x_BTD = step(x_BTD)
        return x_BTD

    def unit(v_BTD: torch.Tensor) -> torch.Tensor:
        return v_BTD / v_BTD.flatten(1).norm(dim=1)[:, None, None]

    noise = torch.randn(x_BTD.shape, generator=torch.Generator().manual_seed(seed))
    x_BTD, v_BTD = x_BTD.detach(), unit(noise.to(x_BTD))
    with torch.enable_grad():
        back = vjp(through, x_BTD)[1]
        # The transpose of the transpose: torch's forward mode loads a second for its own use.
        push = vjp(lambda u_BTD: vjp(through, x_BTD)[1](u_BTD)[0], torch.zeros_like(x_BTD))[1]
        for _ in range(iterations):
            v_BTD = unit(back(push(v_BTD)[0])[0])
        u_BTD = push(v_BTD)[0]
    return float(u_BTD.flatten(1).norm(dim=1).log().mean() / len(steps))


def exponent_of(model: Transformer, x_BTD: torch.Tensor, seed: int, iterations: int = 4) -> float:
    """`exponent` of the layers after the first, from the hidden state that it leaves."""
    steps = [lambda x, router=router: router(x, model.positions) for router in model.passes()[1:]]
    with watched(model, lambda logits, probs: None), without_gradients(model):
        return exponent(steps, x_BTD, seed, iterations)


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Within the context no parameter wants a gradient."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


# What a table of runs says of D.


def curve(table: pd.DataFrame, arm: str, state: str, site: str, size: float) -> np.ndarray:
    """D by seed and layer, from the first layer whose attention the change can reach: (N, L). A
    change of values, outputs and MLP reaches that of the second layer.

    Raises `UnjudgeableError` for a run without these measures.
    """
    names: list[str] = []
    layer = 2 if site == "vo_mlp" else 1
    of_arm = table[table["arm"] == arm]
    while (name := f"{NAME}/{state}/{site}/{size:g}/layer_{layer}/tv") in table and (
        not names or of_arm[name].notna().any()
    ):
        names.append(name)
        layer += 1
    require(len(names) > 1, "layers measured", len(names), f"{NAME}/{state}/{site}/{size:g}/...")
    return np.stack([values(table, arm, name) for name in names], -1)


def require_state(table: pd.DataFrame, arms: Sequence[str]) -> None:
    """Raises `UnjudgeableError` where a run of these arms diverged: it has no state to measure."""
    runs = table[table["arm"].isin(arms)]
    if lost := int(runs["diverged"].sum()):
        reason = f"{lost} of {len(runs)} runs diverged: there is no state to measure"
        raise UnjudgeableError(reason, INCONCLUSIVE)


def why_bent(small_N2: np.ndarray, large_N2: np.ndarray, ratio: float, gate: float) -> str:
    """Why D is not proportional to the size of a change, or nothing.

    Both are D by seed in the first and the last layer that count, for a change and for one `ratio`
    times as large: the 90 % interval of the exponent must lie within 1 +- `gate` in both layers.
    """
    rise_N2 = np.log(large_N2.clip(min=TINY)) - np.log(small_N2.clip(min=TINY))
    exponent_2N = rise_N2.T / math.log(ratio)
    low_2, high_2 = map(np.asarray, t_interval(exponent_2N, 0.9))
    if (low_2 > 1 - gate).all() and (high_2 < 1 + gate).all():
        return ""
    first, last = exponent_2N.mean(1)
    return (
        f"gate: D is not proportional to the size of the change; it grows as its power "
        f"{first:.2f} in the first layer and {last:.2f} in the last that counts"
    )


def gated(found: Finding, reason: str) -> Finding:
    """The finding, inconclusive where there is a reason why the change is not small."""
    if reason and found.verdict in (SUPPORTED, REFUTED):
        return replace(found, verdict=INCONCLUSIVE, note=reason)
    return found


@dataclass(frozen=True, kw_only=True)
class Amplified(PairedClaim):
    """Attention differs more in the last layer than in the first: R = ln(D_L / D_1), per regime.

    D is what a change of `size` at `site` makes in a `state`. One family: all regimes. Gate: from
    the smallest size on D must be proportional to the size, in the first and the last layer: the
    90 % interval of its exponent must lie within 1 +- `gate`. A regime that fails it is
    inconclusive.
    """

    EFFECTS = "of"

    of: Sequence[str]
    state: str
    site: str = "all"
    size: float = 1e-4
    smallest_effect: float = math.log(2)
    gate: float = 0.1
    unit: str = "ln(D_L/D_1)"

    def effect(self, table: pd.DataFrame, name: str) -> np.ndarray:
        require_state(table, [name])
        first_N, last_N = self.ends(table, name, self.size).clip(min=TINY).T
        return np.log(last_N / first_N)

    def ends(self, table: pd.DataFrame, arm: str, size: float) -> np.ndarray:
        """D in the first and the last layer, by seed: (N, 2)."""
        return curve(table, arm, self.state, self.site, size)[:, [0, -1]]

    def checked(self, table: pd.DataFrame, name: str, found: Finding) -> Finding:
        small_N2, large_N2 = (self.ends(table, name, size) for size in (SIZES[0], self.size))
        return gated(found, why_bent(small_N2, large_N2, self.size / SIZES[0], self.gate))


@dataclass(frozen=True, kw_only=True)
class Exponential(Claim):
    """D grows exponentially over layers: better than constant, linear and by a power, per regime.

    A regime is a name and its arms (one per depth). In all of them D must grow, and the exponential
    must predict ln D of a seed, about its own level, from the other seeds better than every rival.
    Both are judged by `smallest_effect`: the rise of a straight line through ln D from the first
    layer to the last, and the mean squared error of ln D. Points count below saturation; with fewer
    than three in a seed there is no verdict, and none unless D is proportional to the size of the
    change (the gate of `Amplified`) in the first and the last layer that count. p is the largest of
    a regime's, adjusted over regimes; the estimate is the smallest.
    """

    EFFECTS = "of"

    of: Mapping[str, Sequence[str]]
    state: str
    site: str = "all"
    size: float = 1e-4
    smallest_effect: float = 0.01
    gate: float = 0.1
    unit: str = "less squared error of ln D; of growth: rise of ln D"

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        lost, leads = {}, {}
        for name, arms in self.of.items():
            try:
                require_state(table, arms)
                leads[name] = self.leads(table, arms)
            except UnjudgeableError as reason:
                lost[name] = reason.finding()
        p = [sign_flip_p(np.stack([*one.values()]), rng).max() for one in leads.values()]
        adjusted = holm([*p, *[1.0] * len(lost)]).tolist()
        found = {
            name: gated(self.found(one, holm_p), self.why_bent(table, self.of[name]))
            for (name, one), holm_p in zip(leads.items(), adjusted, strict=False)
        }
        return found | lost

    def curves(self, table: pd.DataFrame, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """D by seed and layer, and which points count."""
        curve_NL = curve(table, arm, self.state, self.site, self.size)
        return curve_NL, (curve_NL < SATURATED) & (curve_NL > TINY)

    def leads(self, table: pd.DataFrame, arms: Sequence[str]) -> dict[str, np.ndarray]:
        """By seed, the rise in each arm and by how much the exponential beats each rival."""
        curves = {arm: self.curves(table, arm) for arm in arms}
        if (fewest := min(int(use_NL.sum(1).min()) for _, use_NL in curves.values())) < 3:
            reason = f"a seed has {fewest} layers below saturation: 3 are needed"
            raise UnjudgeableError(reason, INCONCLUSIVE)
        leads = {}
        for arm, (curve_NL, use_NL) in curves.items():
            curve_NL = curve_NL.clip(min=TINY)
            leads[f"growth, {arm}"] = rises(curve_NL, use_NL)
            score_N = growth_scores(curve_NL, use_NL)
            for rival in RIVALS:
                leads[f"{rival}, {arm}"] = score_N["exponential"] - score_N[rival]
        return leads

    def found(self, leads: Mapping[str, np.ndarray], p: float) -> Finding:
        """The regime's finding, on its weakest lead."""
        level = simultaneous_level(len(self.of) * len(leads))
        intervals = {name: t_interval(lead_N, level) for name, lead_N in leads.items()}
        judge = RULES[self.kind].judge
        verdicts = {
            str(judge(leads[name].mean(), interval, p, self.smallest_effect))
            for name, interval in intervals.items()
        }
        verdict = SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE
        verdict = REFUTED if REFUTED in verdicts else verdict
        weakest = min(leads, key=lambda name: leads[name].mean())
        size = leads[weakest].size
        if too_few(size, len(self.of)):
            verdict = NO_VERDICT
        estimate, note = float(leads[weakest].mean()), f"weakest: {weakest}"
        return Finding(
            verdict, estimate, intervals[weakest], level, p, size, self.smallest_effect, note
        )

    def why_bent(self, table: pd.DataFrame, arms: Sequence[str]) -> str:
        """Why the change is not small in an arm, or nothing."""
        for arm in arms:
            large_NL, use_NL = self.curves(table, arm)
            small_NL = curve(table, arm, self.state, self.site, SIZES[0])
            last = use_NL.shape[1] - 1 - use_NL[:, ::-1].argmax(1)
            at_N2 = np.stack([use_NL.argmax(1), last], 1)
            small_N2, large_N2 = (np.take_along_axis(one, at_N2, 1) for one in (small_NL, large_NL))
            if reason := why_bent(small_N2, large_N2, self.size / SIZES[0], self.gate):
                return reason
        return ""


def rises(curve_NL: np.ndarray, use_NL: np.ndarray) -> np.ndarray:
    """How much a straight line through ln D rises from the first layer to the last, by seed."""
    layer_L = np.arange(curve_NL.shape[1])
    slopes = [
        linregress(layer_L[use_L], np.log(curve_L[use_L])).slope
        for curve_L, use_L in zip(curve_NL, use_NL, strict=True)
    ]
    return np.array(slopes) * layer_L[-1]


# Figures.


def measured_arms(table: pd.DataFrame, arms: Sequence[str]) -> dict[tuple[str, float], str]:
    """The arms that have a run which did not diverge, by norm and gain."""
    known = {}
    for arm in sound_runs(table, arms):
        norm, gain, *_ = arm.split(", ")
        known[norm, float(gain.removeprefix("gain "))] = arm
    if not known:
        raise NothingToDrawError("no arm of this figure has a run that did not diverge")
    return known


@dataclass(frozen=True, kw_only=True)
class Growth(StudyFigure):
    """ln D over the layer, and over its logarithm beside it: a row per gain, a line per norm.

    On the left an exponential is straight, on the right a power law is.
    """

    heading: str
    of: Sequence[str]
    state: str
    site: str = "all"
    size: float = 1e-4

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        sound = table[table["diverged"] == 0]
        curves = {
            key: curve(sound, arm, self.state, self.site, self.size).clip(min=TINY)
            for key, arm in measured_arms(table, self.of).items()
        }
        title(figure, plain(self.heading))
        gains = sorted({gain for _, gain in curves})
        norms = list(dict.fromkeys(norm for norm, _ in curves))
        figure.set_size_inches(8, 1.3 + 2.1 * len(gains))
        grid = figure.subplots(len(gains), 2, sharey=True, sharex="col", squeeze=False)
        first = 2 if self.site == "vo_mlp" else 1
        for row, gain in zip(grid, gains, strict=True):
            for axes in row:
                for norm, curve_NL in ((n, curves[n, gain]) for n in norms if (n, gain) in curves):
                    look = view_style(norms.index(norm)) | {"markersize": 3.5}
                    layer_L = np.arange(first, first + curve_NL.shape[1])
                    axes.plot(layer_L, np.exp(np.log(curve_NL).mean(0)), label=norm, **look)
                axes.axhline(SATURATED, color=ACCENT, linestyle=":", linewidth=1.1)
                axes.set_yscale("log")
            row[0].set(title=f"gain {gain:g}", ylabel="D (total variation)")
            row[1].set_xscale("log")
            # Powers of two, since logarithmic ticks would be one or two.
            places = [2**k for k in range(int(layer_L[-1]).bit_length()) if 2**k <= layer_L[-1]]
            label_ticks(row[1], places)
        grid[-1][0].set_xlabel("layer")
        grid[-1][1].set_xlabel("layer, logarithmic")
        legend(figure, grid[0][0])


@dataclass(frozen=True, kw_only=True)
class ExponentOverGain(StudyFigure):
    """The Lyapunov exponent over the query-key gain: a panel per set of arms, a line per norm."""

    panels: dict[str, Sequence[str]]  # by initialisation
    states: Sequence[str] = ("init", "trained")

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        title(figure, "Lyapunov exponent per layer, after the first")
        sound, rows = table[table["diverged"] == 0], len(self.panels)
        figure.set_size_inches(8, 1.2 + 2.5 * rows)
        grid = figure.subplots(rows, len(self.states), sharex=True, sharey=True, squeeze=False)
        for row, (name, arms) in zip(grid, self.panels.items(), strict=True):
            known = measured_arms(table, arms)
            for axes, state in zip(row, self.states, strict=True):
                by_arm = sound.groupby("arm")[f"{NAME}/{state}/exponent"]
                mean, spread = by_arm.mean(), by_arm.std(ddof=0)
                norms = list(dict.fromkeys(norm for norm, _ in known))
                for k, norm in enumerate(norms):
                    gains = sorted(gain for n, gain in known if n == norm)
                    at = [known[norm, gain] for gain in gains]
                    look = view_style(k) | {"label": norm, "capsize": 2}
                    axes.errorbar(gains, mean[at], yerr=spread[at], **look)
                axes.axhline(0, color=MUTED, linewidth=1)
                axes.set(title=f"{name}, {STATES[state]}", xscale="log")
                axes.set_xlabel("gain of the query-key product")
                label_ticks(axes, sorted({gain for _, gain in known}))
                axes.label_outer()
        figure.supylabel("ln of growth per layer, mean and deviation over seeds", fontsize=10.5)
        legend(figure, grid[0][0])


def label_ticks(axes: Axes, places: Sequence[float]) -> None:
    """Ticks at these places of a logarithmic axis, and no others."""
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
