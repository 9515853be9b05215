"""A contrast is a paired, weighted sum of one measure over arms, judged as a family."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from prismatic.stats import equivalence_power, family_findings
from prismatic.studies import Contrast, Frequency, UnjudgeableError, values
from prismatic.studies.report import power_rows

SEEDS = 8


def table(**arms) -> pd.DataFrame:
    """A table of one measure `m`: an array of values by seed for each arm."""
    rows = [
        {"arm": arm, "seed": seed, "diverged": 0.0, "m": value}
        for arm, column in arms.items()
        for seed, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def contrast(contrasts=None, **options) -> Contrast:
    given = {"says": "a is larger", "measure": "m", "smallest_effect": 0.1}
    return Contrast(contrasts=contrasts or {"a": {"a": 1, "b": -1}}, **given | options)


@pytest.fixture
def runs() -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(0, 0.05, (4, SEEDS))
    return table(a=noise[0] + 3, b=noise[1] + 2, c=noise[2] + 2, d=noise[3] + 1.5)


def test_effects_are_paired_by_seed_whatever_the_order_of_rows(runs):
    shuffled = runs.sample(frac=1, random_state=0)
    effect = contrast().effect(shuffled, "a")
    by_arm = {arm: rows["m"].to_numpy() for arm, rows in runs.groupby("arm")}
    np.testing.assert_array_equal(effect, by_arm["a"] - by_arm["b"])


def test_a_difference_of_differences_and_an_offset(runs):
    weights = {"a": 1, "b": -1, "c": -1, "d": 1}
    effect = contrast({"x": weights}, offset=-0.25).effect(runs, "x")
    a, b, c, d = (rows["m"].to_numpy() for _, rows in runs.groupby("arm"))
    np.testing.assert_allclose(effect, (a - b) - (c - d) - 0.25, atol=1e-12)


def test_a_family_is_judged_together(runs):
    rng = np.random.default_rng
    effects = {"a": {"a": 1, "b": -1}, "c": {"c": 1, "d": -1}, "none": {"b": 1, "c": -1}}
    found = contrast(effects).judge(runs, rng(0))
    expected = family_findings(contrast(effects).effects(runs)[0], smallest_effect=0.1, rng=rng(0))
    assert {name: one.verdict for name, one in found.items()} == {
        "a": "supported", "c": "supported", "none": "refuted",
    }  # fmt: skip
    assert found == expected


def test_a_diverged_run_counts_as_declared(runs):
    runs.loc[(runs["arm"] == "b") & (runs["seed"] == 2), ["diverged", "m"]] = 1.0, math.nan
    with pytest.raises(UnjudgeableError, match=r"m of arm 'b', seed 2, diverged"):
        contrast().effect(runs, "a")
    effect = contrast(if_diverged=9.0).effect(runs, "a")
    assert effect[2] == values(runs, "a", "m")[2] - 9.0


def test_a_value_that_is_not_finite_is_refused(runs):
    runs.loc[(runs["arm"] == "a") & (runs["seed"] == 0), "m"] = math.inf
    with pytest.raises(UnjudgeableError, match=r"arm 'a', seed 0, is inf"):
        contrast().effect(runs, "a")


def test_the_logarithm_of_a_measure(runs):
    effect = contrast(log=True).effect(runs, "a")
    np.testing.assert_allclose(effect, np.log(values(runs, "a", "m") / values(runs, "b", "m")))


def test_a_tier_leaves_out_effects_whose_arms_it_lacks():
    claim = contrast({"one": {"a": 1, "b": -1}, "two": {"a": 1, "c": -1}})
    assert claim.arms() == {"a", "b", "c"}
    assert list(claim.within({"a", "b"}).contrasts) == ["one"]
    assert claim.within({"b", "c"}) is None


def test_a_run_without_a_value_takes_its_own_effect_alone(runs):
    two = {"one": {"a": 1, "b": -1}, "two": {"a": 1, "c": -1}}
    whole = contrast(two).judge(runs, np.random.default_rng(0))
    runs.loc[(runs["arm"] == "c") & (runs["seed"] == 2), ["m", "diverged"]] = [math.nan, 1.0]
    found = contrast(two).judge(runs, np.random.default_rng(0))
    assert found["two"].verdict == "no verdict" and "arm 'c', seed 2, diverged" in found["two"].note
    assert found["one"] == whole["one"]  # of a family of two, still


def test_a_family_too_large_for_its_seeds_says_so(runs):
    many = {f"effect {k}": {"a": 1, "b": -1} for k in range(26)}
    found = contrast(many).judge(runs, np.random.default_rng(0))["effect 3"]
    assert found.verdict == "no verdict" and "8 seeds cannot support one of 26" in found.note
    ((*_, power),) = power_rows({"x": contrast(many, pilot_sd=1.0)}, 8)
    assert power == "none: 8 seeds cannot support one of 26 claims"


def test_power_is_in_the_units_of_what_is_known():
    unknown, known = contrast(), contrast(pilot_sd=0.1, unit="nats")
    assert unknown.power(10).unit == "standard deviations" and unknown.power(10).power is None
    assert known.power(10).smallest == pytest.approx(0.1 * unknown.power(10).smallest)
    assert 0.99 < known.power(10).power <= 1  # two standard deviations, ten seeds


def test_power_of_no_difference_is_that_of_showing_it():
    two = {"one": {"a": 1, "b": -1}, "two": {"a": 1, "c": -1}}
    claim = contrast(two, kind="no difference", pilot_sd=0.1)
    assert claim.power(10).power == equivalence_power(10, 0.1, 0.1, 0.05 / 2)
    exact = contrast(
        two, kind="no difference", pilot_sd=0.1, smallest_effect=claim.power(10).smallest
    )
    assert exact.power(10).power == pytest.approx(0.8)


def happens(shares, runs=20, **options):
    """How `Frequency` judges arms in which so many of 20 runs have it."""
    columns = {arm: np.arange(runs) < count for arm, count in shares.items()}
    groups = {"all": list(shares)} | {arm: [arm] for arm in shares}
    given = {"above": 0.1, "smallest_effect": 0.1, "groups": groups}
    claim = Frequency(says="it happens", measure="m", **given | options)
    found = claim.judge(table(**{k: v.astype(float) for k, v in columns.items()}), None)
    return claim, found


def test_a_frequency_is_judged_by_exact_intervals():
    _, found = happens({"never": 0, "often": 19})
    assert found["often"].verdict == "supported" and found["often"].estimate == 0.85
    assert found["never"].verdict == "inconclusive"  # 20 runs do not exclude a fifth
    low, high = binomtest(0, 20).proportion_ci(1 - 0.05 / 3)
    assert found["never"].interval == pytest.approx((low - 0.1, high - 0.1))
    assert found["all"].n == 40 and found["all"].verdict == "supported"
    assert happens({"never": 0}, runs=200)[1]["never"].verdict == "refuted"


def test_a_frequency_of_a_tier_counts_the_arms_it_has():
    claim, _ = happens({"a": 1, "b": 2})
    assert claim.within({"a"}).groups == {"all": ["a"], "a": ["a"]}
    assert claim.within({"c"}) is None and claim.arms() == {"a", "b"}
    with pytest.raises(ValueError, match=r"above=1\.5 is not valid"):
        happens({"a": 1}, above=1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "equal"}, "kind='equal' is not valid: choose one of greater, no difference"),
        ({"smallest_effect": 0.0}, "smallest_effect=0.0 is not valid"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        contrast(**options)
