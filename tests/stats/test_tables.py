"""Entropies and mutual information of tables agree with sums over cells and with scipy."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from prismatic.stats import conditional_entropy, mutual_information

COUNTS = arrays(int, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 9))
JOINTS = arrays(int, (2, 3, 3), elements=st.integers(0, 5)).filter(np.any)


def rng() -> np.random.Generator:
    return np.random.default_rng(9)


@settings(max_examples=40)
@given(JOINTS)
def test_conditional_entropy_is_the_mean_log_loss_of_the_true_conditional(counts):
    joint = counts / counts.sum()
    for given_, axes in {"": (), "x": (0,), "y": (1,), "xy": (0, 1)}.items():
        total = 0.0
        for cell in np.ndindex(joint.shape):
            if joint[cell] > 0:
                seen = tuple(cell[a] if a in axes else slice(None) for a in (0, 1))
                here = joint[seen].reshape(-1, 3).sum(0)
                total -= joint[cell] * log(here[cell[2]] / here.sum())
        assert conditional_entropy(joint, given_) == pytest.approx(total, abs=1e-12)


@settings(max_examples=40)
@given(JOINTS)
def test_knowing_more_never_costs(counts):
    joint = counts / counts.sum()
    h = {known: conditional_entropy(joint, known) for known in ("", "x", "y", "xy")}
    assert h["xy"] <= min(h["x"], h["y"]) + 1e-12
    assert max(h["x"], h["y"]) <= h[""] + 1e-12 <= log(3) + 1e-11


@settings(max_examples=40)
@given(COUNTS.filter(np.any))
def test_mutual_information_is_what_entropies_leave(counts):
    p = counts / counts.sum()
    rows, columns = entropy(p.sum(1)), entropy(p.sum(0))
    known = rows + columns - entropy(p.ravel())
    assert mutual_information(counts) == pytest.approx(known, abs=1e-12)
    assert mutual_information(counts.T) == pytest.approx(known, abs=1e-12)


@given(st.integers(2, 6), st.floats(0.01, 100))
def test_equal_labels_share_everything_whatever_they_are_called(size, unit):
    names = rng().permutation(np.eye(size)) * unit
    assert mutual_information(names) == pytest.approx(log(size))
    apart = np.outer(rng().random(size), rng().random(3))
    assert mutual_information(apart) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conditional_entropy(np.ones((2, 2)) / 4), "give x x y x z"),
        (lambda: conditional_entropy(np.ones((2, 2, 2))), "sum of joint=8.0"),
        (lambda: conditional_entropy([[[1.5, -0.5]]]), "entry of joint=-0.5"),
        (lambda: conditional_entropy([[[1.0, np.nan]]]), r"joint\[0, 0, 1\]=nan"),
        (lambda: conditional_entropy([[[1.0]]], "z"), "given='z'"),
        (lambda: mutual_information([[0, 0]]), "table="),
        (lambda: mutual_information([[1, -1]]), "table="),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
