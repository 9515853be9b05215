"""What every function of this room asks of its input."""

import numpy as np
from numpy.typing import ArrayLike

from prismatic.errors import require


def finite(name: str, values: ArrayLike, *axes: str, least: int = 1) -> np.ndarray:
    """The values in float64: finite, with these axes if any, `least` or more along the last one.

    A table with a hole is refused and not judged by what is left of it.
    """
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(axes) if axes else array.ndim > 0
    require(fits, f"shape of {name}", array.shape, f"give {' x '.join(axes) or 'an array'}")
    for place in np.argwhere(~np.isfinite(array))[:1]:
        spot = ", ".join(map(str, place))
        require(False, f"{name}[{spot}]", float(array[tuple(place)]), "give finite values only")
    size = array.shape[-1]
    require(array.size > 0 and size >= least, f"length of {name}", size, f"give at least {least}")
    return array


def share(name: str, value: float) -> None:
    require(0 < value < 1, name, value, "give a number between 0 and 1")
