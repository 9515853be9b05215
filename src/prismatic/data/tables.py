"""Tables P(x, y, z) for `MixedTask`: functions of two tokens, with noise and uneven pairs.

Shapes: X, Y, Z values of the two tokens and of what is predicted. All tables are float64 with
sum 1, and all pairs are equally likely but for `uneven`.
"""

import numpy as np

from prismatic.errors import require

from .text import require_count

# What a move adds to the cells of a small cube: 1 where an even number of its places are others.
SIGNS = 1 - 2 * (np.indices((2, 2, 2)).sum(0) % 2)


def sum_mod(n: int = 10, noise: float = 0.1) -> np.ndarray:
    """Return P(x, y, z) of z = (x + y) mod n; shape (n, n, n).

    With probability `noise` z is a uniform draw instead. Neither x nor y alone says anything about
    z; n = 2 is the exclusive or. Raises ValueError unless n >= 1 and 0 <= noise <= 1.
    """
    require_count("n", n, "data.joint.n=10")
    x_XY, y_XY = np.indices((n, n))
    return function_table((x_XY + y_XY) % n, n, noise)


def latin_square(n: int = 10, seed: int = 0, noise: float = 0.1) -> np.ndarray:
    """Return P(x, y, z) of a random Latin square: neither token alone says anything about z.

    Each z stands once in each row and column, in an order that a Markov chain over all Latin
    squares has mixed (Jacobson and Matthews 1996); hardly any is an addition. Otherwise as
    `sum_mod`.
    """
    require_count("n", n, "data.joint.n=10")
    square_XY = mixed_square(n, generator(seed))
    return function_table(square_XY, n, noise)


def random_function(
    n: int = 10, num_values: int = 10, seed: int = 0, noise: float = 0.1
) -> np.ndarray:
    """Return P(x, y, z) of a function drawn uniformly: z of each pair is one of `num_values`."""
    require_count("n", n, "data.joint.n=10")
    require_count("num_values", num_values, "data.joint.num_values=10")
    z_XY = generator(seed).integers(num_values, size=(n, n))
    return function_table(z_XY, num_values, noise)


def sum_digit(n: int = 10, base: int = 10, place: int = 0, noise: float = 0.1) -> np.ndarray:
    """Return P(x, y, z) of a digit of x + y for x, y < n: place 0 is the last one.

    With n = `base`, place 1 is the carry of a digit sum: z is 0 or 1.
    """
    require_count("n", n, "data.joint.n=10")
    whole = isinstance(base, int) and base >= 2
    require(whole, "base", base, "give a whole number of at least 2, as data.joint.base=10")
    whole = isinstance(place, int) and place >= 0
    require(whole, "place", place, "give a whole number >= 0; 0 is the last digit")
    x_XY, y_XY = np.indices((n, n))
    z_XY = (x_XY + y_XY) // base**place % base
    return function_table(z_XY, int(z_XY.max()) + 1, noise)


def uneven(joint: np.ndarray, spread: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return the table with other odds for its pairs, and the same P(z | x, y).

    Each pair's probability is multiplied by exp(`spread` times a standard normal draw).
    """
    wanted = "give a number >= 0, as in data.joint.spread=1"
    require(0 <= spread < np.inf, "spread", spread, wanted)
    joint_XYZ = np.asarray(joint, dtype=np.float64)
    odds_XY = np.exp(spread * generator(seed).standard_normal(joint_XYZ.shape[:2]))
    uneven_XYZ = joint_XYZ * odds_XY[..., None]
    return uneven_XYZ / uneven_XYZ.sum()


def function_table(z_XY: np.ndarray, num_values: int, noise: float) -> np.ndarray:
    """Return P(x, y, z) of a function z(x, y), which with probability `noise` is a uniform draw."""
    wanted = "give a probability from 0 to 1, as in data.joint.noise=0.1"
    require(0 <= noise <= 1, "noise", noise, wanted)
    joint_XYZ = (1 - noise) * np.eye(num_values)[z_XY] + noise / num_values
    return joint_XYZ / z_XY.size


def generator(seed: int) -> np.random.Generator:
    """Return the random generator of a table."""
    whole = isinstance(seed, int) and seed >= 0
    require(whole, "seed", seed, "give a whole number >= 0, as in data.joint.seed=0")
    return np.random.default_rng(seed)


def mixed_square(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a Latin square after n^3 proper moves of Jacobson and Matthews' chain.

    A move adds 1 to a cell of the cube that is 0 and mends all lines through it; where that leaves
    a cell of -1, the next move begins there.
    """
    x_XY, y_XY = np.indices((n, n))
    cube_XYZ = np.eye(n, dtype=int)[(x_XY + y_XY) % n]
    done = 0 if n > 1 else n**3
    cell: tuple[int, ...] | None = None
    while done < n**3 or cell is not None:
        while cell is None or cube_XYZ[cell] == 1:
            cell = tuple(rng.integers(n, size=3).tolist())
        cell = moved(cube_XYZ, cell, rng)
        done += cell is None
    return cube_XYZ.argmax(-1)


def lines_through(cube_XYZ: np.ndarray, cell: tuple[int, ...]) -> list[np.ndarray]:
    """Return the lines through a cell, along each axis."""
    x, y, z = cell
    return [cube_XYZ[:, y, z], cube_XYZ[x, :, z], cube_XYZ[x, y, :]]


def moved(
    cube_XYZ: np.ndarray, cell: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, ...] | None:
    """Make one move from a cell, in place; return the cell of -1 that it leaves, if it does."""
    # On each line through the cell, one of the ones: a cell of -1 has two on each.
    ones = [np.flatnonzero(line == 1) for line in lines_through(cube_XYZ, cell)]
    other = tuple(int(places[rng.integers(len(places))]) for places in ones)
    cube_XYZ[np.ix_(*zip(cell, other, strict=True))] += SIGNS
    return other if cube_XYZ[other] < 0 else None
