"""Tables of probabilities or counts: what one label says about another, in nats.

Shapes: X, Y, Z values of three labels; A, B of two; N units; V views.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from .checks import finite, require


def joint_table(values: ArrayLike) -> np.ndarray:
    """The table P(x, y, z) in float64 with sum 1; ValueError unless it is a distribution."""
    joint_XYZ = finite("joint", values, "x", "y", "z")
    least, total = float(joint_XYZ.min()), float(joint_XYZ.sum())
    require(least >= 0, "entry of joint", least, "give probabilities >= 0")
    require(abs(total - 1) <= 1e-6, "sum of joint", total, "give probabilities of sum 1")
    return joint_XYZ / total


def conditional_entropy(joint_XYZ: ArrayLike, given: str = "") -> float:
    """H(Z | given) of a table P(x, y, z), in nats; `given` is "", "x", "y" or "xy".

    H(Z|X,Y) is the Bayes loss: no prediction of z from x and y has less.

    >>> exclusive_or = np.zeros((2, 2, 2))
    >>> for x, y in np.ndindex(2, 2):
    ...     exclusive_or[x, y, x ^ y] = 1 / 4
    >>> [round(conditional_entropy(exclusive_or, given), 4) for given in ("", "x", "y", "xy")]
    [0.6931, 0.6931, 0.6931, 0.0]
    """
    require(given in ("", "x", "y", "xy"), "given", given, "choose one of '', 'x', 'y', 'xy'")
    unknown = tuple(axis for axis, name in enumerate("xy") if name not in given)
    return entropy_of_last(joint_table(joint_XYZ).sum(unknown))


def entropy_of_last(table: np.ndarray) -> float:
    """The entropy of the last axis knowing all others, of a table with sum 1."""
    # rel_entr(p, q) is p ln(p / q), with 0 ln 0 = 0.
    return -float(rel_entr(table, table.sum(-1, keepdims=True)).sum()) + 0.0


class Association(NamedTuple):
    """Mutual information of two labels, and how much of it chance alone would give.

    `corrected` is `nats` less its mean over permutations; `normalised` is `nats` over the mean of
    the two entropies; `p` is one-sided.
    """

    nats: float
    corrected: float
    normalised: float
    p: float


def mutual_information(table_AB: ArrayLike) -> float:
    """Plug-in mutual information, in nats, of a table of counts or weights >= 0.

    Biased upwards by about (A - 1)(B - 1) / 2n for n counts: see `association_test`.

    >>> round(mutual_information([[5, 0], [0, 5]]), 4), mutual_information([[1, 2], [2, 4]])
    (0.6931, 0.0)
    """
    joint_AB = contingency(table_AB)
    apart_AB = joint_AB.sum(1, keepdims=True) * joint_AB.sum(0)
    return max(0.0, float(rel_entr(joint_AB, apart_AB).sum()))


def normalised_mutual_information(table_AB: ArrayLike) -> float:
    """Mutual information over the mean of the two labels' entropies; 0 where a label is constant.

    >>> normalised_mutual_information([[5, 0], [0, 5]])
    1.0
    """
    joint_AB = contingency(table_AB)
    unit = (entropy_of_last(joint_AB.sum(0)) + entropy_of_last(joint_AB.sum(1))) / 2
    return mutual_information(joint_AB) / unit if unit > 0 else 0.0


def association_test(
    weight_NV: ArrayLike, label_N: ArrayLike, rng: np.random.Generator, permutations: int = 999
) -> Association:
    """Do units with different labels (domains) have different weights (on views)?

    `weight_NV` >= 0 are soft labels, such as routing weights with sum 1, or one-hot. Labels are
    permuted over units, which must be independent: a unit is a sequence, not a token.
    """
    weight_NV, label_N = finite("weight", weight_NV, "units", "views"), np.asarray(label_N)
    wanted = f"give one label for each of the {len(weight_NV)} units"
    require(label_N.shape == weight_NV.shape[:1], "shape of label", label_N.shape, wanted)
    require(permutations >= 1, "permutations", permutations, "give a whole number >= 1")
    one_hot_DN = (np.unique(label_N)[:, None] == label_N).astype(np.float64)
    table_DV = one_hot_DN @ weight_NV
    nats = mutual_information(table_DV)
    chance = np.array([
        mutual_information(one_hot_DN @ rng.permutation(weight_NV)) for _ in range(permutations)
    ])  # fmt: skip
    p = (1 + (chance >= nats - 1e-12).sum()) / (1 + permutations)
    normalised = normalised_mutual_information(table_DV)
    return Association(nats, nats - float(chance.mean()), normalised, float(p))


def contingency(table_AB: ArrayLike) -> np.ndarray:
    table_AB = finite("table", table_AB, "values of one label", "values of the other")
    least, total = float(table_AB.min()), float(table_AB.sum())
    require(least >= 0 and total > 0, "table", table_AB.tolist(), "give weights >= 0, one > 0")
    return table_AB / total
