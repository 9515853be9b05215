"""Growth laws are told apart, and the best value of a knob lies in its interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismatic.stats import LAWS, family_findings, growth_scores, optimum

KNOB = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def curves(law: str, layers: int = 8, noise: float = 0.0, growth: float = 3.0) -> np.ndarray:
    """Ten seeds of a law, each at a level of its own, with errors on the logarithm."""
    layer, draw = np.arange(1.0, layers + 1), rng()
    log = (
        LAWS[law](growth, layer)
        + draw.normal(size=(10, 1))
        + noise * draw.normal(size=(10, layers))
    )
    return np.exp(log)


@pytest.mark.parametrize("law", sorted(LAWS))
@pytest.mark.parametrize(("layers", "growth"), [(8, -2.0), (8, 3.0), (32, 20.0)])
def test_a_law_predicts_its_own_curves_exactly(law, layers, growth):
    scores = growth_scores(curves(law, layers, growth=growth))
    assert scores[law] == pytest.approx(np.zeros(10), abs=1e-9)
    others = [score.max() for name, score in scores.items() if name not in (law, "constant")]
    assert law == "constant" or max(others) < -0.001


@pytest.mark.parametrize("law", ["linear", "power", "exponential"])
def test_the_laws_are_what_their_names_say(law):
    layer = np.arange(1.0, 9)
    shape = {"linear": 2 + 0.7 * layer, "power": 2 * layer**1.3, "exponential": 2 * 1.5**layer}[law]
    assert growth_scores(np.stack([shape, 3 * shape]))[law] == pytest.approx([0, 0], abs=1e-9)


def test_a_linear_chain_grows_exponentially():
    chain = 1e-4 * 1.5 ** np.arange(32) * np.ones((6, 1))
    scores = growth_scores(chain)
    for law in ("constant", "linear", "power"):
        lead = {law: scores["exponential"] - scores[law]}
        assert family_findings(lead, smallest_effect=1e-3)[law].verdict == "supported"


@pytest.mark.parametrize("law", sorted(LAWS))
def test_with_noise_the_true_law_still_predicts_best(law):
    scores = growth_scores(curves(law, noise=0.05))
    assert max(scores, key=lambda name: scores[name].mean()) == law


def test_scores_ignore_each_seeds_level_and_points_that_are_left_out():
    curve, use = curves("power", noise=0.1), np.ones((10, 8), bool)
    use[:, 6:], use[3, 4:] = False, False
    spoilt = np.where(use, curve * np.logspace(-3, 3, 10)[:, None], 7.0)
    known = growth_scores(np.where(use, curve, 1e-3), use)
    for law, score in growth_scores(spoilt, use).items():
        assert score == pytest.approx(known[law], rel=1e-5)


def test_a_score_is_that_of_least_squares_with_a_level_per_seed():
    curve, use = curves("power", noise=0.2), rng().random((10, 8)) < 0.7
    scores = growth_scores(curve, use)["exponential"]
    depth, log, seeds = np.arange(8) * use, np.log(curve), np.eye(10)
    rows = [np.r_[depth[s, k], seeds[s]] for s, k in np.argwhere(use)]
    here = np.argwhere(use)[:, 0]
    for seed in range(10):
        others = here != seed
        fit = np.linalg.lstsq(np.array(rows)[others], log[use][others], rcond=None)[0][0]
        left = (log[seed] - fit * np.arange(8))[use[seed]]
        assert scores[seed] == pytest.approx(-left.var(), rel=1e-5)


def test_a_seed_is_not_fitted_to_itself():
    """Whatever one seed does, its own prediction comes from the others."""
    curve = curves("exponential")
    curve[0] = 1.0
    scores = growth_scores(curve)["exponential"]
    depth = np.linspace(0, 3, 8)
    assert scores[0] == pytest.approx(-depth.var())
    assert (scores[1:] < -1e-3).all()


def losses(best: float = 0.1, curvature: float = 0.05, noise: float = 0.01) -> np.ndarray:
    bowl = curvature * (np.log(KNOB) - np.log(best)) ** 2
    draw = rng()
    return bowl + draw.normal(size=(10, 1)) + noise * draw.normal(size=(10, 7))


def test_the_optimum_of_a_clear_bowl_is_found_and_of_a_flat_one_is_not():
    sharp = optimum(losses(), KNOB)
    assert sharp.best == 0.1 and 0.05 <= sharp.low <= 0.1 <= sharp.high <= 0.2
    assert sharp.span < 5
    flat = optimum(losses(curvature=0.0), KNOB)
    assert flat.span > 5


@pytest.mark.parametrize("noise", [0.03, 0.08, 0.13, 0.18])
def test_the_interval_is_one_of_paired_t_tests_by_hand(noise):
    loss, kept = losses(noise=noise), []
    for k in range(7):
        p = [
            stats.ttest_rel(loss[:, k], loss[:, j], alternative="greater").pvalue
            for j in range(7)
            if j != k
        ]
        if min(p) * 6 >= 0.05:
            kept.append(KNOB[k])
    found = optimum(loss, KNOB)
    assert (found.low, found.high) == (kept[0], kept[-1])


@settings(max_examples=20)
@given(st.permutations(range(10)), st.floats(0.1, 10))
def test_the_optimum_ignores_seed_levels_their_order_and_units(order, unit):
    loss = losses(noise=0.05)
    assert optimum(unit * loss[list(order)] + np.arange(10)[:, None], KNOB) == optimum(loss, KNOB)


def test_a_monotone_curve_is_best_at_its_edge():
    found = optimum(losses(best=1e-4), KNOB)
    assert found.best == found.low == KNOB[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: growth_scores(np.ones(8)), "give seeds x layers"),
        (lambda: growth_scores(np.ones((3, 2))), "length of curve=2"),
        (lambda: growth_scores(np.ones((3, 8)), np.zeros((3, 8))), "points used of a seed=0"),
        (lambda: optimum(np.ones((3, 2)), [0.0, 1.0]), r"knob=\[0.0, 1.0\].*values > 0"),
        (lambda: optimum(np.ones((3, 2)), [2.0, 1.0]), "knob="),
        (lambda: optimum(np.ones((3, 2)), [1.0]), "knob="),
        (lambda: optimum(np.ones((1, 2)), [1.0, 2.0]), "number of seeds=1"),
        (lambda: optimum([[1.0, np.nan]] * 3, [1.0, 2.0]), r"loss\[0, 1\]=nan"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
