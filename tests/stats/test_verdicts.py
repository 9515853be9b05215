"""The three-way rule, its limits, and families of claims."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.stats import RULES, Finding, Interval, family_findings, holm, sign_flip_p, t_interval

NOISE = np.array([1, -1, 2, -2, 3, -3, 4, -4, 5, -5]) / 1000


def rng() -> np.random.Generator:
    return np.random.default_rng(2)


def judged(values, smallest_effect=0.01, **options) -> Finding:
    """A family of one."""
    return family_findings({"": values}, smallest_effect, **options)[""]


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
@given(st.floats(-0.03, 0.03))
def test_a_difference_is_an_effect_in_either_direction_or_none(shift):
    found = judged(NOISE + shift, kind="difference")
    one_way, other_way = judged(NOISE + shift), judged(-NOISE - shift)
    either = {one_way.verdict, other_way.verdict}
    assert (found.verdict == "supported") == ("supported" in either)
    assert (found.verdict == "refuted") == (either == {"refuted"})


@settings(max_examples=25)
@given(st.floats(-0.03, 0.03), st.sampled_from(["greater", "no difference"]))
def test_a_verdict_is_the_rule_applied_to_what_it_reports(shift, kind):
    differences = NOISE + shift
    found = judged(differences, kind=kind)
    assert found.n == 10 and found.estimate == pytest.approx(shift)
    assert found.level == pytest.approx({"greater": 0.95, "no difference": 0.9}[kind])
    assert found.interval == pytest.approx(t_interval(differences, found.level))
    assert found.p == sign_flip_p(differences)
    better = (differences > 0).mean() + (differences == 0).mean() / 2
    assert found.note == f"P(larger on a new seed) = {better:.2f}"
    assert found.verdict == RULES[kind].judge(found.estimate, found.interval, found.p, 0.01)


@settings(max_examples=15)
@given(st.floats(-0.03, 0.03), st.floats(0.01, 100), st.sampled_from(sorted(RULES)))
def test_a_verdict_does_not_depend_on_units_nor_a_difference_on_direction(shift, unit, kind):
    values = NOISE + shift
    found = judged(values, kind=kind).verdict
    assert judged(unit * values, 0.01 * unit, kind=kind).verdict == found
    assert kind == "greater" or judged(-values, kind=kind).verdict == found


def test_arms_that_are_equal_bit_for_bit_differ_in_nothing():
    same = judged(np.zeros(10), kind="no difference")
    assert (same.verdict, same.estimate, same.p) == ("supported", 0.0, 1.0)
    assert same.note.endswith("0.50")
    assert judged(np.zeros(10)).verdict == "refuted"


@pytest.mark.parametrize("kind", ["greater", "no difference"])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_five_seeds_give_no_verdict_and_six_do(kind, shift):
    for size in (2, 5):
        few = judged(NOISE[:size] + shift, kind=kind)
        assert few.verdict == "no verdict" and few.p >= 0.0625
    assert judged(NOISE[:6] + shift, kind=kind).verdict in ("supported", "refuted")


def test_thirty_seeds_need_a_generator_and_repeat_with_it():
    many = np.tile(NOISE, 3) + 0.02
    first, again = (judged(many, rng=rng()) for _ in range(2))
    assert first == again and first.verdict == "supported" and first.p == 2 / 20_001
    with pytest.raises(ValueError, match="rng=None"):
        judged(many)


def test_a_family_is_adjusted_together():
    table = {"strong": NOISE + 0.02, "weak": NOISE + 0.003, "none": NOISE}
    found = family_findings(table, smallest_effect=0.001)
    p = [float(sign_flip_p(values)) for values in table.values()]
    assert [one.p for one in found.values()] == holm(p).tolist()
    for name, one in found.items():
        assert one.level == pytest.approx(1 - 0.05 / 3)
        assert one.interval == pytest.approx(t_interval(table[name], 1 - 0.05 / 3))


def test_a_claim_that_holds_alone_may_not_hold_in_a_family():
    values = NOISE + 0.003
    assert judged(values, 0.001).verdict == "supported"
    family = {str(i): values if i == 0 else NOISE for i in range(6)}
    assert family_findings(family, smallest_effect=0.001)["0"].verdict == "inconclusive"


def test_what_is_lost_stays_in_the_family_which_may_be_too_large_for_its_seeds():
    assert judged(NOISE + 1, lost=24).verdict == "supported"
    many = judged(NOISE + 1, lost=25)
    assert many.verdict == "no verdict" and "10 seeds cannot support one of 26" in many.note


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.1, np.nan, 0.2], {}, r"\[1\]=nan"),
        ([0.1], {}, "length of =1"),
        ([[0.1, 0.2]], {}, "give seeds"),
        ([0.1, 0.2], {"smallest_effect": 0}, "smallest_effect=0"),
        ([0.1, 0.2], {"kind": "less"}, "kind='less'.*greater, no difference"),
    ],
)
def test_what_cannot_be_judged_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        judged(values, **options)
