"""The three-way rule, its limits, and families of claims."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.stats import VERDICTS, family_verdicts, holm, paired_verdict, sign_flip_p, t_interval
from prismatic.stats.intervals import Interval
from prismatic.stats.verdicts import RULES

NOISE = np.array([1, -1, 2, -2, 3, -3, 4, -4, 5, -5]) / 1000


def rng() -> np.random.Generator:
    return np.random.default_rng(2)


@pytest.mark.parametrize(
    ("mean", "low", "high", "p", "verdict"),
    [
        (0.02, 0.005, 0.035, 0.01, "supported"),
        (0.01, 0.001, 0.019, 0.01, "supported"),  # an estimate of D itself is interesting
        (0.02, 0.005, 0.035, 0.05, "inconclusive"),  # p must be below .05
        (0.02, 0.0, 0.04, 0.01, "inconclusive"),  # the interval must be above 0
        (0.009, 0.001, 0.017, 0.01, "inconclusive"),  # too small to matter, perhaps
        (0.005, 0.001, 0.009, 0.001, "refuted"),  # certain, and too small to matter
        (-0.05, -0.06, -0.04, 0.001, "refuted"),  # the opposite holds
        (0.0, -0.01, 0.01, 1.0, "inconclusive"),  # an interval that ends at D holds D
    ],
)
def test_the_rule_for_an_effect(mean, low, high, p, verdict):
    assert RULES["greater"].judge(mean, Interval(low, high), p, 0.01) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.009, 0.009, "supported"),
        (0.001, 0.009, "supported"),  # a real difference of no interest
        (-0.01, 0.009, "inconclusive"),
        (-0.001, 0.011, "inconclusive"),
        (0.011, 0.02, "refuted"),
        (-0.02, -0.011, "refuted"),
    ],
)
def test_the_rule_for_no_difference(low, high, verdict):
    mean = (low + high) / 2
    assert RULES["no difference"].judge(mean, Interval(low, high), 0.5, 0.01) == verdict


@settings(max_examples=25)
@given(st.floats(-0.03, 0.03), st.sampled_from(sorted(RULES)))
def test_a_verdict_is_the_rule_applied_to_what_it_reports(shift, claim):
    differences = NOISE + shift
    found = paired_verdict(differences, smallest_effect=0.01, claim=claim)
    assert found.n == 10 and found.estimate == pytest.approx(shift)
    assert found.level == pytest.approx({"greater": 0.95, "no difference": 0.9}[claim])
    assert found.interval == pytest.approx(t_interval(differences, found.level))
    assert found.p == found.holm_p == sign_flip_p(differences)
    assert found.p_better == (differences > 0).mean() + (differences == 0).mean() / 2
    judge = RULES[claim].judge
    assert found.verdict == judge(found.estimate, found.interval, found.holm_p, 0.01)


@settings(max_examples=15)
@given(st.floats(-0.03, 0.03), st.floats(0.01, 100))
def test_a_verdict_does_not_depend_on_units_nor_no_difference_on_direction(shift, unit):
    differences = NOISE + shift
    for claim in RULES:
        found = paired_verdict(differences, smallest_effect=0.01, claim=claim)
        scaled = paired_verdict(unit * differences, smallest_effect=0.01 * unit, claim=claim)
        assert scaled.verdict == found.verdict
    assert paired_verdict(-differences, smallest_effect=0.01, claim=claim).verdict == found.verdict


def test_two_arms_are_judged_by_their_differences():
    better = np.linspace(2, 3, 10)
    worse = better + NOISE + 0.02
    found = paired_verdict(worse, better, smallest_effect=0.01)
    assert found.verdict == "supported" and found.p_better == 1
    apart = paired_verdict(worse - better, smallest_effect=0.01)
    assert dataclasses.astuple(found) == dataclasses.astuple(apart)
    assert paired_verdict(better, worse, smallest_effect=0.01).verdict == "refuted"


def test_arms_that_are_equal_bit_for_bit_differ_in_nothing():
    same = paired_verdict(NOISE, NOISE, smallest_effect=0.01, claim="no difference")
    assert (same.verdict, same.estimate, same.p, same.p_better) == ("supported", 0.0, 1.0, 0.5)
    assert paired_verdict(NOISE, NOISE, smallest_effect=0.01).verdict == "refuted"


@pytest.mark.parametrize("claim", sorted(RULES))
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_five_seeds_give_no_verdict_and_six_do(claim, shift):
    for size in (2, 5):
        few = paired_verdict(NOISE[:size] + shift, smallest_effect=0.01, claim=claim)
        assert few.verdict == "no verdict" and few.p >= 0.0625
    six = paired_verdict(NOISE[:6] + shift, smallest_effect=0.01, claim=claim)
    assert six.verdict in ("supported", "refuted")


def test_a_family_too_large_for_its_seeds_is_not_judged():
    assert (
        paired_verdict(NOISE + 1, smallest_effect=0.01, other_p=[0.5] * 24).verdict == "supported"
    )
    assert (
        paired_verdict(NOISE + 1, smallest_effect=0.01, other_p=[0.5] * 25).verdict == "no verdict"
    )


def test_thirty_seeds_need_a_generator_and_repeat_with_it():
    many = np.tile(NOISE, 3) + 0.02
    first, again = (paired_verdict(many, smallest_effect=0.01, rng=rng()) for _ in range(2))
    assert first == again and first.verdict == "supported" and first.p == 1 / 20_001
    with pytest.raises(ValueError, match="rng=None"):
        paired_verdict(many, smallest_effect=0.01)


def test_a_family_is_adjusted_together():
    shifts = {"strong": 0.02, "weak": 0.003, "none": 0.0}
    table = {name: NOISE + shift for name, shift in shifts.items()}
    found = family_verdicts(table, smallest_effect=0.001)
    p = {name: float(sign_flip_p(values)) for name, values in table.items()}
    assert {name: v.p for name, v in found.items()} == p
    assert [v.holm_p for v in found.values()] == holm(list(p.values())).tolist()
    for name, verdict in found.items():
        alone = paired_verdict(
            table[name], smallest_effect=0.001, other_p=[p[k] for k in p if k != name]
        )
        assert verdict == alone
        assert verdict.num_claims == 3 and verdict.level == pytest.approx(1 - 0.05 / 3)
        assert verdict.interval == pytest.approx(t_interval(table[name], 1 - 0.05 / 3))


def test_a_claim_that_holds_alone_may_not_hold_in_a_family():
    values = NOISE + 0.003
    assert paired_verdict(values, smallest_effect=0.001).verdict == "supported"
    family = {str(i): values if i == 0 else NOISE for i in range(6)}
    assert family_verdicts(family, smallest_effect=0.001)["0"].verdict == "inconclusive"


def test_verdicts_are_frozen_and_one_of_four():
    verdict = paired_verdict(NOISE, smallest_effect=0.01)
    assert verdict.verdict in VERDICTS
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.verdict = "supported"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.1, np.nan, 0.2],), {}, r"a\[1\]=nan"),
        (([0.1, 0.2], [0.1, np.inf]), {}, r"b\[1\]=inf"),
        (([0.1, 0.2, 0.3], [0.1, 0.2]), {}, "length of b=2.*3 seeds"),
        (([0.1],), {}, "length of a=1"),
        (([[0.1, 0.2]],), {}, "give seeds"),
        (([0.1, 0.2],), {"smallest_effect": 0}, "smallest_effect=0"),
        (([0.1, 0.2],), {"claim": "less"}, "claim='less'.*greater, no difference"),
        (([0.1, 0.2],), {"other_p": [2]}, "p="),
    ],
)
def test_what_cannot_be_judged_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        paired_verdict(*arguments, **{"smallest_effect": 0.01} | options)
