"""How often intervals cover and tests err, by simulation: the log has these figures.

Each bound allows four standard errors of the simulation itself.
"""

import numpy as np
import pytest
from scipy import stats

from prismatic.stats import (
    LAWS,
    RULES,
    ar1_series,
    family_findings,
    growth_scores,
    holm,
    optimum,
    periodicity_test,
    rank_correlation,
    sign_flip_p,
    t_interval,
    walsh_test,
)

pytestmark = pytest.mark.slow

# Distributions of mean 0: symmetric, long-tailed on one side, long-tailed on both.
SHAPES = {
    "normal": stats.norm(),
    "skewed": stats.expon(loc=-1),
    "heavy": stats.t(3),
}


def rng() -> np.random.Generator:
    return np.random.default_rng(2026)


def margin(rate: float, studies: int) -> float:
    return 4 * np.sqrt(rate * (1 - rate) / studies)


def t_coverage(shape: str, n: int, studies: int = 20_000) -> float:
    low, high = t_interval(SHAPES[shape].rvs((studies, n), random_state=rng()))
    return float(((low <= 0) & (high >= 0)).mean())


@pytest.mark.parametrize(
    ("shape", "n", "coverage"),
    [
        ("normal", 10, 0.95), ("normal", 30, 0.95),
        ("skewed", 10, 0.90), ("skewed", 30, 0.93),
        ("heavy", 10, 0.96), ("heavy", 30, 0.955),
    ],
)  # fmt: skip
def test_t_interval_covers_unless_differences_are_skewed(shape, n, coverage):
    assert t_coverage(shape, n) == pytest.approx(coverage, abs=0.01)


@pytest.mark.parametrize("n", [6, 10, 12])
@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_sign_flips_reject_a_symmetric_null_at_most_as_often_as_they_say(shape, n):
    studies = 4000
    sample = SHAPES[shape].rvs((studies, n), random_state=rng())
    rejected = (sign_flip_p(sample) < 0.05).mean()
    assert rejected <= 0.05 + margin(0.05, studies)
    assert rejected >= (0.03 if n == 6 else 0.045) - margin(0.05, studies)


def test_holm_rarely_rejects_any_true_null_of_a_family():
    draw, studies = rng(), 4000
    effect = np.array([0, 0, 0, 1.5, 1.5])[:, None]
    table = effect + draw.normal(size=(studies, 5, 10)) + draw.normal(size=(studies, 1, 10))
    wrong = np.mean([(holm(p)[:3] < 0.05).any() for p in sign_flip_p(table)])
    assert wrong <= 0.05 + margin(0.05, studies)


def rates(n: int, effect: float, spread: float, kind: str) -> dict[str, float]:
    """How often each verdict is given in 4,000 studies, with D = 1."""
    differences = rng().normal(effect, spread, (4000, n))
    rule, p = RULES[kind], sign_flip_p(differences)
    verdict = rule.judge(differences.mean(-1), t_interval(differences, rule.level), p, 1.0)
    return {name: float((verdict == name).mean()) for name in ("supported", "refuted")}


@pytest.mark.parametrize("n", [6, 10])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_the_three_way_rule_errs_rarely(n, spread):
    """`spread` is the deviation of the differences in units of D."""
    assert rates(n, 0.0, spread, "greater")["supported"] <= 0.025 + margin(0.025, 4000)
    assert rates(n, 1.0, spread, "greater")["refuted"] <= 0.025 + margin(0.025, 4000)
    edge = rates(n, 1.0, spread, "no difference")
    assert max(edge.values()) <= 0.05 + margin(0.05, 4000)


def periodic_share(phi: float, amplitude: float = 0.0, period: float = 4, studies: int = 200):
    """Share of series of AR(1) noise of variance 1, with a sinusoid or not, called periodic."""
    draw, wave = rng(), np.cos(2 * np.pi * np.arange(64) / period)
    noise = ar1_series(phi, (studies, 64), draw) * np.sqrt(1 - phi**2)
    found = [periodicity_test(amplitude * wave + series, draw, surrogates=39) for series in noise]
    return np.mean([test.p <= 0.05 for test in found])


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_noise_with_a_memory_is_not_called_periodic(phi):
    assert periodic_share(phi) <= 0.05 + margin(0.05, 200)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_an_injected_sinusoid_is_found(phi):
    assert periodic_share(phi, amplitude=2.0, studies=50) >= 0.9


def test_walsh_shares_of_any_order_are_rarely_called_a_pattern():
    draw, studies = rng(), 1000
    p = [walsh_test(draw.exponential(size=(10, 4)), draw, draws=199).p for _ in range(studies)]
    for name in p[0]:
        assert np.mean([test[name] <= 0.05 for test in p]) <= 0.05 + margin(0.05, studies)


@pytest.mark.parametrize("curvature", [0.0, 0.002, 0.01])
def test_the_interval_of_the_optimum_holds_it(curvature):
    draw, knob = rng(), np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    truth = curvature * np.log(knob / 0.1) ** 2
    found = [optimum(truth + 0.01 * draw.normal(size=(10, 7)), knob) for _ in range(1000)]
    holds = np.mean([test.low <= 0.1 <= test.high for test in found])
    assert holds >= 0.95 - margin(0.95, 1000)


@pytest.mark.parametrize("law", sorted(LAWS))
def test_growth_is_called_exponential_when_it_is(law):
    """Called so: it predicts better than each other law, by the three-way rule."""
    draw, layer, studies, called = rng(), np.arange(1.0, 9), 20, 0
    for _ in range(studies):
        noise = 0.15 * draw.normal(size=(10, 8)) + draw.normal(size=(10, 1))
        scores = growth_scores(np.exp(LAWS[law](np.log(8.0), layer) + noise))
        best = scores.pop("exponential")
        gains = {name: best - score for name, score in scores.items()}
        found = family_findings(gains, smallest_effect=1e-3)
        called += all(verdict.verdict == "supported" for verdict in found.values())
    assert called >= 0.8 * studies if law == "exponential" else called <= 1


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_rank_correlations_are_covered_and_rarely_invented(rho):
    draw, studies = rng(), 1500
    true = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's, of a normal pair
    x = draw.normal(size=(studies, 32))
    y = rho * x + np.sqrt(1 - rho**2) * draw.normal(size=x.shape)
    found = [rank_correlation(*pair, draw, draws=199) for pair in zip(x, y, strict=True)]
    covered = np.mean([one.interval.low <= true <= one.interval.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.01 + margin(0.95, studies))
    if rho == 0:
        rejected = np.mean([one.p <= 0.05 for one in found])
        assert rejected == pytest.approx(0.05, abs=margin(0.05, studies))
