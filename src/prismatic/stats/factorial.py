"""What each factor of a grid does by itself, and what two do beyond that.

Shapes: one axis for the levels of each factor, and N independent values, one per seed.
"""

from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from prismatic.errors import require

from .checks import finite


def factorial_effects(values: ArrayLike) -> dict[tuple[int, ...], np.ndarray]:
    """Main effects and interactions of two factors, by the axes of their factors, for each seed.

    `values` has an axis per factor and a last one for the N seeds. A main effect, of shape (levels,
    N), is the mean at a level less the grand mean; an interaction, (levels, levels, N), is the mean
    at two levels less the grand mean and both main effects. Each sums to 0 over any of its factors.

    >>> found = factorial_effects([[[1.0], [2.0]], [[3.0], [8.0]]])
    >>> found[0,].ravel().tolist(), found[0, 1].ravel().tolist()
    ([-2.0, 2.0], [1.0, -1.0, -1.0, 1.0])
    """
    values = finite("values", values)
    factors = range(values.ndim - 1)
    require(values.ndim > 1, "shape of values", values.shape, "give an axis per factor, and seeds")
    wanted = [(axis,) for axis in factors] + list(combinations(factors, 2))
    centred = values - values.mean(tuple(factors))
    found: dict[tuple[int, ...], np.ndarray] = {}
    for axes in wanted:
        mean = centred.mean(tuple(axis for axis in factors if axis not in axes))
        if len(axes) == 2:
            first, second = (found[axis,] for axis in axes)
            mean = mean - first[:, None] - second[None]
        found[axes] = mean
    return found
