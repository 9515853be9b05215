"""Losses over training, and what each view is worth alone.

Shapes: S steps, E views.
"""

from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from .record import Floats, NothingToDrawError, Record, Steps, require_series, require_views
from .style import ACCENT, MUTED, STEP, legend, styled, title, view_name, view_style

NATS = "loss (nats per token)"
NO_VALIDATION = "The run ended before its first validation."
COLOUR, BASELINES = "#000000", ("--", ":", "-.", (0, (1, 3)))


@dataclass(frozen=True)
class Losses:
    """Training and validation loss, and what they are to be compared with, by name."""

    train_step: Steps
    train: Floats
    val_step: Steps
    val: Floats
    known: dict[str, float]


@dataclass(frozen=True)
class Apart:
    """How far the views' predictions are apart (bits), and what all gain over the best (nats)."""

    step_S: Steps
    disagreement_S: Floats
    gain_S: Floats


def compute_losses(record: Record) -> Losses:
    """Losses in nats per token, and those known without training."""
    train, val = record.series("loss/train"), record.series("loss/val")
    if not (len(train[0]) or len(val[0])):
        raise NothingToDrawError("The run ended before it recorded a loss.")
    if not np.isfinite([*train[1], *val[1]]).any():
        raise NothingToDrawError("Every loss that was recorded is NaN or infinite.")
    known = dict(record.about.get("baselines") or {})
    if record.about.get("bayes") is not None:
        known["least possible"] = record.about["bayes"]
    return Losses(*train, *val, known)


@styled
def draw_losses(figure: Figure, record: Record) -> None:
    """Training and validation loss over steps, beside the baselines."""
    found = compute_losses(record)
    title(figure, "Loss over training")
    axes = figure.subplots()
    axes.plot(found.train_step, found.train, color=MUTED, linewidth=1, label="training batch")
    axes.plot(found.val_step, found.val, "o-", color=COLOUR, label="validation")
    for line, (name, value) in zip(cycle(BASELINES), found.known.items(), strict=False):
        axes.axhline(
            value, color=ACCENT, linestyle=line, linewidth=1.1, label=f"{name} {value:.3f}"
        )
    axes.set(xlabel=STEP, ylabel=NATS)
    legend(figure, axes)


def compute_forced(record: Record) -> tuple[Steps, Floats]:
    """Steps (S,) and held-out losses with one-hot routing (S, E)."""
    require_views(record)
    return require_series(record, "loss/forced_E", NO_VALIDATION)


@styled
def draw_forced(figure: Figure, record: Record) -> None:
    """Each view's loss alone over steps, and how far it is from the clean view's."""
    step_S, loss_SE = compute_forced(record)
    title(figure, "Held-out loss of each view alone")
    loss, excess = figure.subplots(1, 2)
    for view in range(loss_SE.shape[1]):
        alone_S, look = loss_SE[:, view], view_style(view)
        loss.plot(step_S, alone_S, label=view_name(view), **look)
        excess.plot(step_S, alone_S - loss_SE[:, 0], **look)
    loss.set(xlabel=STEP, ylabel=NATS)
    excess.set(xlabel=STEP, ylabel="loss minus view 0's (nats per token)")
    legend(figure, loss)


def compute_apart(record: Record) -> Apart:
    """Disagreement and useful diversity at each validation."""
    require_views(record)
    steps, disagreement_S = require_series(record, "views/disagreement", NO_VALIDATION)
    _, gain_S = require_series(record, "views/useful_diversity", NO_VALIDATION)
    return Apart(steps, disagreement_S, gain_S)


@styled
def draw_apart(figure: Figure, record: Record) -> None:
    """Disagreement of the views' predictions over steps, and whether it is of use."""
    found = compute_apart(record)
    title(figure, "How far the views' predictions are apart")
    left, right = figure.subplots(1, 2)
    left.plot(found.step_S, found.disagreement_S, "o-", color=COLOUR)
    left.set(xlabel=STEP, ylabel="Jensen-Shannon divergence (bits)")
    left.set_ylim(bottom=0)
    right.plot(found.step_S, found.gain_S, "o-", color=COLOUR)
    right.axhline(0, color=MUTED, linewidth=1)
    right.set(xlabel=STEP, ylabel="useful diversity (nats per token)")
