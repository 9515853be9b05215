"""Where routing sends tokens: over training, over passes, by domain, and by pairs of tokens.

Shapes: S steps or sequences, L passes, E views, D domains, X and Y the two tokens of a mixed task,
M heads, K views or heads.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .losses import NO_VALIDATION
from .record import (
    Floats,
    NothingToDrawError,
    Record,
    Steps,
    require_last,
    require_series,
    require_views,
)
from .style import (
    MARKERS,
    MUTED,
    SIZE,
    STEP,
    left_out,
    legend,
    panels,
    plain,
    styled,
    title,
    view_name,
    view_style,
)

WEIGHT = "routing weight (share)"
NO_TABLE = "The task is no mixed function of two tokens."
NO_DOMAINS = "The task has one domain: routing cannot differ between domains."


@dataclass(frozen=True)
class Passes:
    """Routing weights over the passes, of some held-out sequences and on average over all."""

    sample_SLE: Floats
    mean_LE: Floats


@dataclass(frozen=True)
class Domains:
    """Mean routing weights by domain, of the trained router and of one that never trained."""

    names: list[str]
    weight_DE: Floats
    null_DE: Floats
    information: float
    information_null: float


@dataclass(frozen=True)
class AdaptationCurves:
    """A measure of adaptation, as a share of the most possible, and that of untrained twins."""

    step_S: Steps
    found_S: Floats
    null_S: Floats


def compute_weights(record: Record) -> tuple[Steps, Floats]:
    """Steps (S,) and mean routing weights (S, E) on training batches."""
    require_views(record)
    return require_series(record, "routing/train_E", "The run ended before it recorded routing.")


@styled
def draw_weights(figure: Figure, record: Record) -> None:
    """The mean routing weight of every view over training."""
    step_S, weight_SE = compute_weights(record)
    views = weight_SE.shape[1]
    title(figure, "Routing weight of each view over training")
    axes = figure.subplots()
    axes.axhline(1 / views, color=MUTED, linewidth=0.8, label=f"uniform, 1/{views}")
    marks = max(1, len(step_S) // 8)
    for view in range(views):
        look = view_style(view)
        axes.plot(step_S, weight_SE[:, view], label=view_name(view), markevery=marks, **look)
    axes.set(xlabel=STEP, ylabel=f"mean {WEIGHT}")
    legend(figure, axes)


def compute_entropy(record: Record) -> tuple[Steps, Floats]:
    """Steps (S,) and the routing entropy of every pass (S, L), as a share of ln N."""
    require_views(record)
    return require_series(record, "routing/entropy_L", NO_VALIDATION)


@styled
def draw_entropy(figure: Figure, record: Record) -> None:
    """The entropy of each pass's mean routing over training."""
    step_S, entropy_SL = compute_entropy(record)
    title(figure, "Routing entropy of each pass over training")
    axes = figure.subplots()
    plot_passes(axes, step_S, entropy_SL)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set(xlabel=STEP, ylabel="routing entropy (share of ln N)")
    legend(figure, axes)


def plot_passes(axes: Axes, step_S: Steps, value_SL: Floats) -> None:
    """A line per pass, from dark to light, which is also its order in grey, with a mark each."""
    last = max(1, value_SL.shape[1] - 1)
    for t, value_S in enumerate(value_SL.T):
        colour = colormaps["cividis"](0.85 * t / last)
        look = {"color": colour, "marker": MARKERS[t % len(MARKERS)], "markersize": 5}
        axes.plot(step_S, value_S, label=f"pass {t}", **look)


def tick_passes(axes: Axes, passes: int) -> None:
    """Whole numbers from 0 on the horizontal axis, not too many."""
    axes.set_xticks(range(0, passes, -(-passes // 8)))


def compute_passes(record: Record) -> Passes:
    """Routing weights over the passes at the last validation."""
    require_views(record)
    if record.about.get("passes", 1) < 2:
        raise NothingToDrawError("The model makes one pass: there are none to compare.")
    sample_SLE = require_last(record, "routing/sample_SLE", NO_VALIDATION)
    return Passes(sample_SLE, require_last(record, "routing/weight_LE", NO_VALIDATION))


@styled
def draw_passes(figure: Figure, record: Record) -> None:
    """The routing weight over passes: a panel per view, a thin line per sequence, the mean."""
    found = compute_passes(record)
    views = found.mean_LE.shape[1]
    drawn = f"{len(found.sample_SLE)} held-out sequences and the mean{left_out(views)}"
    title(figure, f"Routing over passes: {drawn}")
    for view, axes in enumerate(panels(figure, views)):
        pass_L, look = np.arange(len(found.mean_LE)), view_style(view)
        axes.plot(pass_L, found.sample_SLE[:, :, view].T, color=look["color"], lw=0.6, alpha=0.4)
        axes.plot(pass_L, found.mean_LE[:, view], linewidth=2.6, label=view_name(view), **look)
        axes.axhline(1 / views, color=MUTED, linewidth=0.8)
        axes.set(xlabel="pass", ylabel=WEIGHT, title=view_name(view))
        tick_passes(axes, len(pass_L))
        axes.label_outer()


def compute_domains(record: Record) -> Domains:
    """Routing by domain at the last validation."""
    require_views(record)
    weight_DE = require_last(record, "routing/domain_DE", NO_DOMAINS)
    return Domains(
        names=list(record.about["domains"]),
        weight_DE=weight_DE,
        null_DE=require_last(record, "routing/domain_null_DE", NO_DOMAINS),
        information=float(require_last(record, "routing/mutual_information", NO_DOMAINS)),
        information_null=float(require_last(record, "routing/mutual_information_null", NO_DOMAINS)),
    )


@styled
def draw_domains(figure: Figure, record: Record) -> None:
    """Routing weights by domain, and what a router that never trained gives them."""
    found = compute_domains(record)
    title(figure, "Routing by domain, trained and null (a twin that never trained)")
    figure.set_size_inches(SIZE[0], 1.6 + 0.5 * len(found.names))
    both = [found.weight_DE, found.null_DE]
    low, high = np.nanmin(both), np.nanmax(both)
    captions = [
        f"trained, MI {found.information:.4f}",
        f"null, MI {found.information_null:.4f}",
    ]
    grid = figure.subplots(1, 2, sharey=True)
    for axes, value_DE, caption in zip(grid, both, captions, strict=True):
        image = axes.imshow(value_DE, vmin=low, vmax=high, aspect="auto")
        write_cells(axes, value_DE, (low + high) / 2)
        views = value_DE.shape[1]
        axes.set(xlabel="view", title=caption, xticks=range(0, views, -(-views // 16)))
        axes.grid(False)
    grid[0].set_yticks(range(len(found.names)), [plain(name) for name in found.names])
    grid[0].set_ylabel("domain")
    figure.colorbar(image, ax=grid, label=WEIGHT)


def write_cells(axes: Axes, value_XY: Floats, middle: float) -> None:
    """The numbers in a heat map that is small enough for them."""
    if max(value_XY.shape) > 12:
        return
    for (x, y), value in np.ndenumerate(value_XY):
        colour = "black" if value > middle else "white"
        axes.text(y, x, f"{value:.3f}", ha="center", va="center", size=8.5, color=colour)


def compute_dependence(record: Record) -> AdaptationCurves:
    """Dependence of routing on its input at every validation."""
    require_views(record)
    return beside_null(record, "routing/input_dependence", NO_VALIDATION)


def compute_information(record: Record) -> AdaptationCurves:
    """Mutual information of view and domain at every validation."""
    require_views(record)
    return beside_null(record, "routing/mutual_information", NO_DOMAINS)


def beside_null(record: Record, name: str, why_absent: str) -> AdaptationCurves:
    """A measure of the trained routers, and of their untrained twins."""
    steps, found_S = require_series(record, name, why_absent)
    _, null_S = require_series(record, f"{name}_null", why_absent)
    return AdaptationCurves(steps, found_S, null_S)


@styled
def draw_dependence(figure: Figure, record: Record) -> None:
    """How much routing depends on its input, beside a router that never trained."""
    found = compute_dependence(record)
    title(figure, "How much routing depends on its input")
    plot_adaptation(figure, found, "H(mean r) - mean H(r) (share of ln N)")


@styled
def draw_information(figure: Figure, record: Record) -> None:
    """How much the choice of view tells of the domain, beside a router that never trained."""
    found = compute_information(record)
    title(figure, "What routing knows of the domain")
    plot_adaptation(
        figure, found, "mutual information of view and\ndomain (share of the most possible)"
    )


def plot_adaptation(figure: Figure, found: AdaptationCurves, measure: str) -> None:
    """A measure and its null over training."""
    axes = figure.subplots()
    axes.plot(found.step_S, found.found_S, "o-", color="black", label="trained")
    axes.plot(found.step_S, found.null_S, "s--", color=MUTED, label="null: never trained")
    axes.set(xlabel=STEP, ylabel=measure)
    axes.set_ylim(bottom=0)
    legend(figure, axes)


def compute_routing_table(record: Record) -> Floats:
    """Routing weights at the last position by the two tokens: (X, Y, E)."""
    require_views(record)
    return require_last(record, "table/routing_XYE", NO_TABLE)


def compute_attention_table(record: Record) -> Floats:
    """Attention of the last position to x by the two tokens and head: (X, Y, M)."""
    return require_last(record, "table/attention_XYM", NO_TABLE)


@styled
def draw_routing_table(figure: Figure, record: Record) -> None:
    """The routing weight of each view for every pair of tokens."""
    table_XYE = compute_routing_table(record)
    names = [view_name(view) for view in range(table_XYE.shape[2])]
    title(figure, f"Routing at the last position by the two tokens{left_out(len(names))}")
    draw_tables(figure, table_XYE, names, WEIGHT)


@styled
def draw_attention_table(figure: Figure, record: Record) -> None:
    """The attention weight on x of each head for every pair of tokens."""
    table_XYM = compute_attention_table(record)
    names = [f"head {head}" for head in range(table_XYM.shape[2])]
    title(figure, f"Attention to x at the last position by the two tokens{left_out(len(names))}")
    draw_tables(figure, table_XYM, names, "attention weight (share)")


def draw_tables(figure: Figure, table_XYK: Floats, names: list[str], unit: str) -> None:
    """A heat map over (x, y) per name, all on one scale."""
    low, high = np.nanmin(table_XYK), np.nanmax(table_XYK)
    grid = panels(figure, len(names))
    for axes, name, table_XY in zip(grid, names, np.moveaxis(table_XYK, 2, 0), strict=False):
        image = axes.imshow(table_XY, vmin=low, vmax=high, origin="lower")
        axes.set(xlabel="token y", ylabel="token x", title=name)
        axes.grid(False)
        axes.label_outer()
    figure.colorbar(image, ax=grid, label=unit, shrink=0.8)
