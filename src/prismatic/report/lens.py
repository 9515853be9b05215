"""What the lens does to the weights: where it looks, and how much it changes.

Shapes: P tensors, E views, V views but the clean one, K positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .record import Floats, NothingToDrawError, Record, require_views
from .style import MUTED, SIZE, legend, styled, title, view_name, view_style

NO_LENS = "The router has no views of one base: nothing is perturbed."
NO_CHANGE = "No weight is changed by any view: perturbation.scale is 0."


@dataclass(frozen=True)
class LensOverTensor:
    """The lens over one tensor: modulation, and the relative change of the selected weights."""

    tensor: str
    position_K: Floats
    modulation_VK: Floats
    selected_VK: Floats


@dataclass(frozen=True)
class ChangeByTensor:
    """Norm of each view's change relative to the tensor's norm; whether it is a matrix."""

    tensors: list[str]
    matrix_P: list[bool]
    change_PV: Floats


def compute_lens(record: Record) -> list[LensOverTensor]:
    """The lens over the tensors that were recorded: a matrix, a gain and a bias."""
    require_views(record)
    recorded = record.about.get("lens") or {}
    if not recorded:
        raise NothingToDrawError(NO_LENS)
    arrays = ("position", "modulation", "selected")
    return [
        LensOverTensor(name, *(np.array(one[key], dtype=np.float64) for key in arrays))
        for name, one in recorded.items()
    ]


@styled
def draw_lens(figure: Figure, record: Record) -> None:
    """Modulation and selected weights over position, a row per tensor."""
    found = compute_lens(record)
    figure.set_size_inches(SIZE[0], 0.8 + 2.4 * len(found))
    title(figure, f"The lens over the positions of a tensor, {when(record)}")
    grid = figure.subplots(len(found), 2, sharex="row", squeeze=False)
    for lens, (modulation, selected) in zip(found, grid, strict=True):
        plot_lens(lens, modulation, selected)
    legend(figure, grid[0][0])


def plot_lens(lens: LensOverTensor, modulation: Axes, selected: Axes) -> None:
    """Modulation as a line per view; the change of selected weights as a mark each."""
    for view, (wave_K, change_K) in enumerate(
        zip(lens.modulation_VK, lens.selected_VK, strict=True), start=1
    ):
        look = view_style(view)
        line = {key: look[key] for key in ("color", "linestyle")}
        modulation.plot(lens.position_K, wave_K, label=view_name(view), linewidth=1.2, **line)
        chosen = change_K != 0
        selected.plot(
            lens.position_K[chosen], change_K[chosen], linestyle="none", markersize=3, alpha=0.6,
            color=look["color"], marker=look["marker"],
        )  # fmt: skip
    selected.axhline(0, color=MUTED, linewidth=0.8)
    modulation.set(xlabel="position in the tensor (weights)", ylabel="modulation", ylim=(-1.1, 1.1))
    modulation.set_title(lens.tensor)
    modulation.locator_params(axis="x", nbins=5)
    selected.set(xlabel="position in the tensor (weights)", ylabel="relative change")
    selected.set_title("selected weights only")


def compute_change(record: Record) -> ChangeByTensor:
    """Relative change per tensor and view, the clean view left out."""
    require_views(record)
    tensors = list(record.about.get("tensors") or [])
    if not tensors:
        raise NothingToDrawError(NO_LENS)
    change_PV = np.array(record.about["change_PE"], dtype=np.float64)[:, 1:]
    if not change_PV.any():
        raise NothingToDrawError(NO_CHANGE)
    return ChangeByTensor(tensors, list(record.about["matrix"]), change_PV)


@styled
def draw_change(figure: Figure, record: Record) -> None:
    """How much each view changes each tensor, on a logarithmic scale."""
    found = compute_change(record)
    rows = np.arange(len(found.tensors))
    figure.set_size_inches(SIZE[0], 1.4 + 0.2 * len(rows))
    title(figure, f"Relative change of each tensor by each view, {when(record)}")
    axes = figure.subplots()
    for view, change_P in enumerate(found.change_PV.T, start=1):
        look = view_style(view) | {"linestyle": "none"}
        axes.plot(np.where(change_P > 0, change_P, np.nan), rows, label=view_name(view), **look)
    names = label_matrices(found.tensors, found.matrix_P)
    axes.set_yticks(rows, names, size=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xscale="log", xlabel="norm of the change / norm of the tensor", ylabel="tensor")
    axes.set_xlim(*decades(found.change_PV))
    legend(figure, axes)


def decades(value_PV: Floats) -> tuple[float, float]:
    """The powers of ten around all that is not 0: fewer would leave a logarithmic axis bare."""
    powers = np.log10(value_PV[value_PV > 0])
    return 10 ** (np.floor(powers.min()) - 0.05), 10 ** (np.floor(powers.max()) + 1.05)


def when(record: Record) -> str:
    """When the views were what is shown of them."""
    step = record.about.get("as_of")
    return "before training" if step is None else f"at step {step}"


def label_matrices(tensors: Sequence[str], matrix_P: Sequence[bool]) -> list[str]:
    """Names that say which tensors are matrices."""
    pairs = zip(tensors, matrix_P, strict=True)
    return [f"{name} (matrix)" if matrix else name for name, matrix in pairs]
