"""What a curve says, measured once per seed: how it grows over depth, where it is least.

Shapes: S seeds, L layers, K values of a knob.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from prismatic.errors import require

from .checks import finite, share


def straight(growth: float, depth_L: np.ndarray) -> np.ndarray:
    """ln of a line from 1 at depth 0 to exp(growth) at depth 1."""
    with np.errstate(divide="ignore"):  # ln 0 at both ends
        return np.logaddexp(np.log1p(-depth_L), growth + np.log(depth_L))


# The logarithm of a curve that grows by a factor exp(growth) from the first layer to the last, up
# to its level: one parameter, of the same meaning, in each law that has one.
LAWS: dict[str, Callable[[float, np.ndarray], np.ndarray]] = {
    "constant": lambda growth, layer_L: 0 * layer_L,
    "linear": lambda growth, layer_L: straight(growth, depth(layer_L)),
    "power": lambda growth, layer_L: growth * np.log(layer_L) / np.log(layer_L[-1]),
    "exponential": lambda growth, layer_L: growth * depth(layer_L),
}


def depth(layer_L: np.ndarray) -> np.ndarray:
    """From 0 at the first layer to 1 at the last."""
    return (layer_L - 1) / (layer_L[-1] - 1)


def growth_scores(curve_SL: ArrayLike, use_SL: ArrayLike | None = None) -> dict[str, np.ndarray]:
    """How well each growth law, fitted to the other seeds, predicts each seed's curve.

    `curve_SL` is a positive measure D_l at layers 1..L, `use_SL` says which points count (those
    below saturation; at least 3 in every seed). A score is minus the mean squared error of ln D_l,
    each curve about its own level: higher is better, 0 is perfect. Returns (S,) per law, so that
    `scores["exponential"] - scores["power"]` are paired differences (which share what they were
    fitted to). Laws: constant; linear, D = a + b l; power, D = a l^b; exponential, D = a exp(b l).
    """
    curve_SL = finite("curve", curve_SL, "seeds", "layers", least=3)
    use_SL = np.ones(curve_SL.shape, bool) if use_SL is None else np.asarray(use_SL, bool)
    least = int(use_SL.sum(1).min())
    require(least >= 3, "points used of a seed", least, "give at least 3 in every seed")
    log_SL = np.log(np.where(use_SL, curve_SL, 1.0))
    return {law: held_out_scores(law, log_SL, use_SL) for law in LAWS}


def held_out_scores(law: str, log_SL: np.ndarray, use_SL: np.ndarray) -> np.ndarray:
    """Fit a law's growth without each seed in turn, and score it on that seed: (S,)."""
    layer_L = np.arange(1.0, log_SL.shape[1] + 1)

    def residual_SL(growth: float) -> np.ndarray:
        off_SL = (log_SL - LAWS[law](growth, layer_L)) * use_SL
        return (off_SL - off_SL.sum(1, keepdims=True) / use_SL.sum(1, keepdims=True)) * use_SL

    def score(seed: int) -> float:
        fit = optimize.least_squares(
            lambda growth: np.delete(residual_SL(growth[0]), seed, 0).ravel(), [0.1], method="lm"
        )
        return -(residual_SL(fit.x[0])[seed] ** 2).sum() / use_SL[seed].sum()

    return np.array([score(seed) for seed in range(len(log_SL))])


@dataclass(frozen=True)
class Optimum:
    """Where a curve is least on the values tried, and the range in which it may be."""

    best: float
    low: float
    high: float

    @property
    def span(self) -> float:
        """How many times `high` is `low`."""
        return self.high / self.low


def optimum(loss_SK: ArrayLike, knob_K: ArrayLike, level: float = 0.95) -> Optimum:
    """Find the value of a positive knob with the least mean loss, and an interval for it.

    The interval reaches from the first to the last value that is not worse than any other by
    one-sided paired t tests, with Bonferroni's correction for the K - 1 comparisons. It holds the
    value of least true mean with probability `level` or more at any number of seeds, where a
    bootstrap over ten would not. Only tried values are in it.

    >>> optimum([[3.1, 1.0, 2.9], [3.2, 1.1, 3.0], [3.0, 1.2, 3.1]], [0.01, 0.1, 1])
    Optimum(best=0.1, low=0.1, high=0.1)
    """
    share("level", level)
    loss_SK = finite("loss", loss_SK, "seeds", "values of the knob", least=2)
    knob_K = finite("knob", knob_K)
    require(len(loss_SK) >= 2, "number of seeds", len(loss_SK), "give at least 2")
    rising = knob_K.shape == loss_SK.shape[1:] and knob_K[0] > 0 and (np.diff(knob_K) > 0).all()
    wanted = f"give the {loss_SK.shape[1]} rising values > 0 of the columns of loss"
    require(bool(rising), "knob", knob_K.tolist(), wanted)
    worse_SKK = loss_SK[:, :, None] - loss_SK[:, None, :]
    edge = stats.t.isf((1 - level) / (knob_K.size - 1), len(loss_SK) - 1)
    beaten_KK = worse_SKK.mean(0) > edge * stats.sem(worse_SKK, axis=0)
    kept = knob_K[~beaten_KK.any(1)]
    best = knob_K[loss_SK.mean(0).argmin()]
    return Optimum(float(best), float(kept[0]), float(kept[-1]))
