from collections import Counter
from itertools import product
from math import log

import numpy as np
import pytest

from prismatic.data import MixedTask, latin_square, random_function, sum_digit, sum_mod, uneven


def function_of(joint):
    """z(x, y) of a table without noise."""
    assert set(np.unique(joint * joint.shape[0] * joint.shape[1])) <= {0.0, 1.0}
    assert np.allclose(joint.sum(2) * joint.shape[0] * joint.shape[1], 1)
    return joint.argmax(2)


@pytest.mark.parametrize(("n", "noise"), [(2, 0.0), (2, 0.5), (7, 0.1), (5, 1.0), (1, 0.3)])
def test_sum_mod_is_the_noisy_sum_and_neither_token_alone_helps(n, noise):
    joint = sum_mod(n, noise)
    for x, y, z in product(range(n), repeat=3):
        p = (1 - noise) * (z == (x + y) % n) + noise / n
        assert joint[x, y, z] == pytest.approx(p / n**2)
    right, wrong = 1 - noise + noise / n, noise / n
    known = -right * log(right) - ((n - 1) * wrong * log(wrong) if wrong else 0)
    task = MixedTask(joint)
    assert task.bayes_loss == pytest.approx(known, abs=1e-12)
    assert list(task.baselines.values()) == pytest.approx([log(n)] * 4, abs=1e-12)


def test_latin_squares_have_each_value_once_in_each_row_and_column():
    for seed in range(5):
        square = function_of(latin_square(6, seed, noise=0))
        for line in [*square, *square.T]:
            assert sorted(line) == list(range(6))
    assert not np.array_equal(latin_square(6, 0), latin_square(6, 1))
    assert function_of(latin_square(1, noise=0)).tolist() == [[0]]
    assert list(MixedTask(latin_square(4)).baselines.values()) == pytest.approx([log(4)] * 4)


def test_all_twelve_latin_squares_of_three_are_equally_likely():
    drawn = [function_of(latin_square(3, seed, noise=0)).tobytes() for seed in range(600)]
    counts = np.array(list(Counter(drawn).values()))
    chi_square = ((counts - 50) ** 2 / 50).sum()
    assert len(counts) == 12 and chi_square < 31.3  # 0.1 % point of 11 degrees of freedom


def test_random_functions_draw_each_value_apart():
    z_XY = function_of(random_function(40, 4, seed=1, noise=0))
    assert z_XY.shape == (40, 40)
    assert np.abs(np.bincount(z_XY.ravel()) / 1600 - 0.25).max() < 0.05
    assert not np.array_equal(random_function(seed=0), random_function(seed=1))


@pytest.mark.parametrize(("n", "base", "place"), [(10, 10, 0), (10, 10, 1), (12, 3, 1), (3, 7, 0)])
def test_sum_digit_is_the_digit_that_is_written(n, base, place):
    z_XY = function_of(sum_digit(n, base, place, noise=0))
    for x, y in product(range(n), repeat=2):
        written = np.base_repr(x + y, base).rjust(place + 1, "0")
        assert z_XY[x, y] == int(written[-1 - place], base)


def test_the_carry_is_a_digit_of_the_sum():
    x, y = np.indices((10, 10))
    assert np.array_equal(function_of(sum_digit(place=1, noise=0)), x + y >= 10)


def test_uneven_changes_pairs_and_nothing_else():
    even = random_function(5, 3)
    skewed = uneven(even, spread=1.5, seed=2)
    pairs = skewed.sum(2, keepdims=True)
    assert skewed.sum() == pytest.approx(1) and pairs.std() > 0.5 * pairs.mean()
    assert np.allclose(skewed / pairs, even / even.sum(2, keepdims=True))
    assert np.allclose(uneven(even, spread=0), even)


@pytest.mark.parametrize(
    "table",
    [latin_square, random_function, sum_digit],
)
def test_noise_is_a_uniform_draw(table):
    clean, noisy = table(4, noise=0.0), table(4, noise=0.3)
    num_values = clean.shape[2]
    assert np.allclose(noisy, 0.7 * clean + 0.3 / num_values / 16)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sum_mod(0), "n=0"),
        (lambda: sum_mod(3, 1.5), r"noise=1\.5 is not valid: give a probability from 0 to 1"),
        (lambda: sum_mod(3, float("nan")), "noise=nan"),
        (lambda: latin_square(0), "n=0"),
        (lambda: latin_square(3, seed=-1), "seed=-1 is not valid: give a whole number >= 0"),
        (lambda: random_function(3, 0), "num_values=0"),
        (lambda: sum_digit(3, base=1), "base=1 is not valid: give a whole number of at least 2"),
        (lambda: sum_digit(3, place=-1), "place=-1 is not valid: give a whole number >= 0"),
        (lambda: uneven(sum_mod(2), spread=-1.0), r"spread=-1\.0 is not valid: give a number >= 0"),
        (lambda: uneven(sum_mod(2), spread=float("nan")), "spread=nan"),
    ],
)
def test_nonsense_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
