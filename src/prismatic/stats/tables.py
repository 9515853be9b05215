"""Tables of probabilities: what one label says about another in nats, and what f(x) + g(y) cannot.

With logits f(x) + g(y) the cross-entropy depends on a table P(x, y, z) only through its three pair
marginals. So it is the same for every table Q that shares them, and at least H_Q(Z|X,Y): the
additive floor is the largest of these entropies. Where it needs infinite logits it is approached,
not reached.

Shapes: X, Y, Z values of three labels; A, B of two; M entries of the pair marginals; C cells of the
table that are not 0 for every Q.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg, optimize, sparse
from scipy.special import rel_entr

from prismatic.errors import one_of, require

from .checks import finite

TOLERANCE = 1e-9  # nats to which the floor is known
SWEEPS = 100
ROUNDS = 200


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
    one_of("given", given, ("", "x", "y", "xy"))
    unknown = tuple(axis for axis, name in enumerate("xy") if name not in given)
    return entropy_of_last(joint_table(joint_XYZ).sum(unknown))


def entropy_of_last(table: np.ndarray) -> float:
    """The entropy of the last axis knowing all others, of a table with sum 1."""
    # rel_entr(p, q) is p ln(p / q), with 0 ln 0 = 0.
    return -float(rel_entr(table, table.sum(-1, keepdims=True)).sum()) + 0.0


def mutual_information(table_AB: ArrayLike) -> float:
    """Plug-in mutual information, in nats, of a table of counts or weights >= 0.

    Biased upwards by about (A - 1)(B - 1) / 2n for n counts.

    >>> round(mutual_information([[5, 0], [0, 5]]), 4), mutual_information([[1, 2], [2, 4]])
    (0.6931, 0.0)
    """
    table_AB = finite("table", table_AB, "values of one label", "values of the other")
    least, total = float(table_AB.min()), float(table_AB.sum())
    require(least >= 0 and total > 0, "table", table_AB.tolist(), "give weights >= 0, one > 0")
    joint_AB = table_AB / total
    apart_AB = joint_AB.sum(1, keepdims=True) * joint_AB.sum(0)
    return max(0.0, float(rel_entr(joint_AB, apart_AB).sum()))


def additive_floor(joint_XYZ: ArrayLike) -> float:
    """The least cross-entropy, in nats, of logits f(x) + g(y) under a table P(x, y, z).

    Equal to the largest H_Q(Z|X,Y) over all Q with the pair marginals of P. Iterative proportional
    fitting finds that Q; a Newton step then makes its marginals exact. What is returned is the
    entropy of a table that has them, so never above the floor, and within 1e-9 of a cross-entropy
    that f(x) + g(y) comes arbitrarily close to. Raises ArithmeticError should that fail.

    >>> exclusive_or = np.zeros((2, 2, 2))
    >>> for x, y in np.ndindex(2, 2):
    ...     exclusive_or[x, y, x ^ y] = 1 / 4
    >>> round(additive_floor(exclusive_or), 6)
    0.693147
    """
    joint_XYZ = joint_table(joint_XYZ)
    support_XYZ = possible_cells(joint_XYZ)
    marginals_MC = pair_sums(joint_XYZ.shape)[:, support_XYZ.ravel()]
    target_M = pair_sums(joint_XYZ.shape) @ joint_XYZ.ravel()
    fitted_XYZ = support_XYZ.astype(np.float64)
    for _ in range(ROUNDS):
        fitted_XYZ = proportional_fit(fitted_XYZ, joint_XYZ)
        step_C = newton_step(fitted_XYZ[support_XYZ], marginals_MC, target_M)
        exact_XYZ = fitted_XYZ.copy()
        exact_XYZ[support_XYZ] *= 1 + step_C
        floor = entropy_of_last(exact_XYZ)  # -inf where the step went below 0
        if cross_entropy(joint_XYZ, fitted_XYZ) - floor <= TOLERANCE:
            return floor
        fitted_XYZ[support_XYZ] *= np.exp(step_C / max(1.0, np.abs(step_C).max()))
    raise ArithmeticError(
        f"the additive floor of a table of shape {joint_XYZ.shape} is not known to {TOLERANCE} "
        f"nats after {ROUNDS} rounds: its probabilities are too uneven"
    )


def loss_ladder(joint_XYZ: ArrayLike) -> dict[str, float]:
    """The least loss in nats for each thing that may be known, from nothing to everything."""
    return {
        "H(Z)": conditional_entropy(joint_XYZ),
        "H(Z|X)": conditional_entropy(joint_XYZ, "x"),
        "H(Z|Y)": conditional_entropy(joint_XYZ, "y"),
        "additive floor": additive_floor(joint_XYZ),
        "H(Z|X,Y)": conditional_entropy(joint_XYZ, "xy"),
    }


def pair_sums(shape: tuple[int, ...]) -> sparse.csr_array:
    """The matrix (M, X*Y*Z) that takes a flat table to its marginals (x, y), (x, z), (y, z)."""

    def product(*factors: sparse.sparray) -> sparse.sparray:
        return sparse.kron(sparse.kron(factors[0], factors[1]), factors[2])

    keep = [sparse.eye_array(size) for size in shape]
    add = [sparse.csr_array(np.ones((1, size))) for size in shape]
    pairs = (keep[0], keep[1], add[2]), (keep[0], add[1], keep[2]), (add[0], keep[1], keep[2])
    return sparse.vstack([product(*pair) for pair in pairs]).tocsr()


def possible_cells(joint_XYZ: np.ndarray) -> np.ndarray:
    """Which cells are above 0 in some table with these pair marginals, as booleans.

    Others would fade like 1/k over the sweeps of proportional fitting, and spoil it: with
    deterministic tables that is the rule. One linear program finds all at once: along a direction
    that keeps the marginals and takes from no empty cell, as many of these as can shall gain.
    """
    pairs = [joint_XYZ.sum(axis, keepdims=True) > 0 for axis in range(3)]
    full = joint_XYZ.ravel() > 0
    empty = (pairs[0] & pairs[1] & pairs[2]).ravel() & ~full
    if not empty.any():
        return full.reshape(joint_XYZ.shape)
    sums = pair_sums(joint_XYZ.shape)
    # The gain of an empty cell is in two parts, of which only the first, at most 1, is rewarded.
    columns = sparse.hstack([sums[:, full], sums[:, empty], sums[:, empty]])
    num_full, num_empty = int(full.sum()), int(empty.sum())
    found = optimize.linprog(
        np.repeat([0.0, 0.0, -1.0], [num_full, num_empty, num_empty]),
        A_eq=columns,
        b_eq=np.zeros(columns.shape[0]),
        bounds=[(None, None)] * num_full + [(0, None)] * num_empty + [(0, 1)] * num_empty,
        method="highs",
    )
    assert found.success, found.message
    possible = full.copy()
    possible[empty] = found.x[-num_empty:] > 0.5
    return possible.reshape(joint_XYZ.shape)


def proportional_fit(fitted_XYZ: np.ndarray, joint_XYZ: np.ndarray) -> np.ndarray:
    """Scale a table to the pair marginals of another in turn; the last, (x, y), is then exact."""
    for _ in range(SWEEPS):
        for axis in (1, 0, 2):
            target, now = joint_XYZ.sum(axis, keepdims=True), fitted_XYZ.sum(axis, keepdims=True)
            fitted_XYZ = fitted_XYZ * np.divide(target, now, out=np.zeros_like(now), where=now > 0)
    return fitted_XYZ


def newton_step(
    fitted_C: np.ndarray, marginals_MC: sparse.csr_array, target_M: np.ndarray
) -> np.ndarray:
    """The relative change of each cell that, as f + g + h of its pairs, mends all marginals."""
    seen = target_M > 0
    unit_M = 1 / np.sqrt(target_M[seen])  # rows of like size, whatever the marginals are
    rows_MC = sparse.diags_array(unit_M) @ marginals_MC[seen]
    missing_M = unit_M * target_M[seen] - rows_MC @ fitted_C
    hessian_MM = (rows_MC @ sparse.diags_array(fitted_C) @ rows_MC.T).toarray()
    # The three pairs share sums, so the matrix is singular; the least-norm solution will do.
    return rows_MC.T @ linalg.lstsq(hessian_MM, missing_M, cond=1e-13)[0]


def cross_entropy(joint_XYZ: np.ndarray, fitted_XYZ: np.ndarray) -> float:
    """The mean of -ln Q(z|x,y) under P, for Q with the (x, y) marginal of P."""
    known_XY1 = joint_XYZ.sum(2, keepdims=True)
    apart = rel_entr(joint_XYZ, fitted_XYZ).sum() - rel_entr(joint_XYZ, known_XY1).sum()
    return float(apart)
