"""What one run says of the question: routed beside dense, each view alone, and how much that is.

It is shown where a run ends: in the terminal, on its page and in MLflow.
"""

import math
from collections.abc import Mapping
from itertools import count

from .record import Record

LOSS, DENSE, EXCESS = "loss/val", "loss/dense", "loss/excess"
OVER_MERGED = "views/{}/over_merged"  # a view's loss alone less that of all merged
# Standard deviation over seeds of the difference between routed and dense, in nats per byte: the
# study `benefit`, 12 seeds of a small model. Other models and texts have others, of that order.
SEED_SPREAD = 0.02
SEEDS = 10  # that settle what is larger than half of this spread or so


def of_record(record: Record) -> dict[str, float]:
    """The metrics from which an answer is made, as far as a record has them."""
    names = [LOSS, DENSE, EXCESS]
    views = int(record.about.get("views", 1))
    names += [OVER_MERGED.format(view) for view in range(views)]
    found = {name: record.last(name) for name in names}
    return {name: float(value) for name, value in found.items() if value is not None}


def of_views(metrics: Mapping[str, float]) -> list[float]:
    """What each view alone loses over all of them merged, in nats per token."""
    names = map(OVER_MERGED.format, count())
    found = []
    while (name := next(names)) in metrics:
        found.append(float(metrics[name]))
    return found


def compute_answer(metrics: Mapping[str, float]) -> dict[str, str]:
    """The rows of the result: validation losses and differences, in nats per token."""
    if LOSS not in metrics:
        return {}
    rows = {"validation loss": f"{metrics[LOSS]:.4f}"}
    if EXCESS in metrics:
        rows["dense, same seed and budget"] = f"{metrics[DENSE]:.4f}"
        rows["routed - dense"] = f"{metrics[EXCESS]:+.4f}"
    over = {f"view {i} alone - all merged": f"{x:+.4f}" for i, x in enumerate(of_views(metrics))}
    return rows | over


def tell(metrics: Mapping[str, float]) -> list[str]:
    """What the result shows and what it does not, in sentences."""
    said = []
    excess = metrics.get(EXCESS, math.nan)
    if math.isfinite(excess):
        better = f"{abs(excess):.4f} nats per token {'better' if excess < 0 else 'worse'}"
        large = abs(excess) > 2 * SEED_SPREAD
        said.append(
            f"In this one pair of runs the routed model is {better} than the dense one. Another "
            f"seed changes such a difference by about {SEED_SPREAD:g} (standard deviation, small "
            + (
                "byte models): this one is larger than chance explains, in one pair."
                if large
                else "byte models): this pair shows neither that views help nor that they harm."
            )
        )
    over = of_views(metrics)
    if over:
        best = min(range(len(over)), key=over.__getitem__)
        than = f"{abs(over[best]):.4f} {'better' if over[best] < 0 else 'worse'} than"
        said.append(f"The best view alone is view {best}: {than} all of them merged.")
    return said
