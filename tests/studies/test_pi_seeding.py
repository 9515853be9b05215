"""Groups of seedings: their comparison, their verdicts, and that controls count."""

from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prismatic.report.style import png
from prismatic.studies import ASSAY, judge
from prismatic.studies.protocols.pi_seeding import Groups, Units, permutation_p

from .protocols import declared

PI, HASH = ([f"{kind} {k}" for k in range(6)] for kind in ("pi", "hash"))


def rng():
    return np.random.default_rng(0)


def table(shifts, unit_sd=0.001, seeds=10, measure="loss/val"):
    """Runs of every arm in every initialisation, which are far apart; arms differ among them."""
    draw = np.random.default_rng(3)
    start_S = draw.normal(2, 0.5, seeds)
    rows = []
    for arm, shift in shifts.items():
        own = shift + draw.normal(0, unit_sd)
        values = start_S + own + draw.normal(0, unit_sd, seeds)
        rows += [
            {"arm": arm, "seed": s, "diverged": 0.0, measure: value}
            for s, value in enumerate(values)
        ]
    return pd.DataFrame(rows)


def judged(runs, measures=("loss/val",), group=PI, other=HASH, **options):
    least = dict.fromkeys(measures, 0.005)
    return Groups(says="", measures=least, group=group, other=other, **options).judge(runs, rng())


def verdicts(runs):
    """Whether the groups differ, and whether they do not."""
    kinds = ("difference", "no difference")
    return tuple(judged(runs, kind=kind)["loss/val"].verdict for kind in kinds)


@pytest.mark.parametrize("num_b", [4, 5])
def test_a_comparison_of_units_is_that_of_their_means(num_b):
    shifts = dict.fromkeys(PI[:4], 0.0) | dict.fromkeys(HASH[:num_b], 0.002)
    runs = table(shifts)
    found = judged(runs, group=PI[:4], other=HASH[:num_b], kind="difference")["loss/val"]
    mean = runs.groupby("arm")["loss/val"].mean()
    a, b = mean[PI[:4]].to_numpy(), mean[HASH[:num_b]].to_numpy()
    known = stats.ttest_ind(a, b).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(known))
    both, seen = np.concatenate([a, b]), abs(a.mean() - b.mean())
    splits = [
        abs(both[list(first)].mean() - np.delete(both, first).mean())
        for first in combinations(range(len(both)), 4)
    ]
    assert found.p == pytest.approx(np.mean(np.array(splits) >= seen - 1e-12))


@pytest.mark.parametrize("rounding", [0.0, 1e-16])
def test_units_that_agree_to_rounding_have_a_point_for_an_interval(rounding):
    runs = table(dict.fromkeys([*PI, *HASH], 0.0), unit_sd=0.0)
    runs["loss/val"] += rounding * np.arange(len(runs))
    found = judged(runs)["loss/val"]
    assert found.verdict == "supported"
    assert found.interval == pytest.approx((0, 0), abs=1e-12)


def test_permuted_labels_hold_their_error_rate():
    draw = rng()
    p_M = permutation_p(draw.normal(size=(400, 5)), draw.normal(size=(400, 5)), draw)
    assert (p_M < 0.05).mean() <= 0.075


def test_groups_that_differ_are_found_behind_far_larger_effects_of_initialisation():
    runs = table(dict.fromkeys(PI, 0.02) | dict.fromkeys(HASH, 0.0))
    assert verdicts(runs) == ("supported", "refuted")
    differ = judged(runs, kind="difference")["loss/val"]
    assert differ.estimate == pytest.approx(0.02, abs=0.002) and differ.n == 12
    assert differ.p == pytest.approx(2 / comb(12, 6))
    swapped = judged(runs, group=HASH, other=PI, kind="difference")["loss/val"]
    assert swapped.verdict == "supported" and swapped.estimate == -differ.estimate


def test_groups_that_do_not_differ_are_equivalent():
    assert verdicts(table(dict.fromkeys(PI + HASH, 0.0))) == ("refuted", "supported")
    wide = table(dict.fromkeys(PI + HASH, 0.0), unit_sd=0.02)
    assert verdicts(wide)[1] == "inconclusive"


def test_intervals_and_p_are_those_of_the_family():
    runs = table(dict.fromkeys(PI + HASH, 0.0))
    runs["other"] = runs["loss/val"]
    alone, both = judged(runs)["loss/val"], judged(runs, ("loss/val", "other"))
    assert alone.level == pytest.approx(0.9) and both["other"].level == pytest.approx(0.95)
    assert both["other"].p == pytest.approx(min(1, 2 * alone.p))
    assert np.ptp(both["other"].interval) > np.ptp(alone.interval)


def test_too_few_units_give_no_verdict_of_a_difference():
    runs = table(dict.fromkeys(PI[:3], 1.0) | dict.fromkeys(HASH[:3], 0.0))
    few = judged(runs, group=PI[:3], other=HASH[:3], kind="difference")
    assert few["loss/val"].verdict == "no verdict"


def test_a_tier_may_run_some_units_of_each_group():
    groups = Groups(says="", measures={"loss/val": 0.005}, group=PI, other=HASH)
    some = groups.within({*PI[:3], *HASH[:2]})
    assert some.arms() == {*PI[:3], *HASH[:2]}
    assert groups.within({*PI, HASH[0]}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "less"}, "kind='less' is not valid"),
        ({"group": PI[:1]}, "group=.*at least 2"),
        ({"measures": {"loss/val": 0}}, "smallest effect of loss/val=0"),
    ],
)
def test_nonsense_is_refused(options, message):
    given = {"measures": {"loss/val": 0.005}, "group": PI, "other": HASH} | options
    with pytest.raises(ValueError, match=message):
        Groups(says="", **given)


def test_the_study_says_nothing_when_a_control_fails():
    study = declared("pi_seeding")
    run = study.arms_of(study.tier("cpu"))
    shifts = {arm: 0.1 if "x3" in arm else 0.0 for arm in study.arms if arm in run}
    sound = table(shifts)
    sound = sound.assign(**{name: sound["loss/val"] for name in study.measures})
    found = judge(study, "cpu", sound)
    assert not found.failed
    assert found.claims["pi_is_a_seed"]["loss/val"].verdict == "supported"
    assert found.claims["pi_differs"]["loss/val"].verdict == "refuted"
    assert set(found.claims) == set(study.claims)
    names = {f"hash {k}, scale x3": f"hash {k}" for k in range(3)}
    swapped = sound.assign(arm=sound["arm"].replace(names | {v: k for k, v in names.items()}))
    alike = table(dict.fromkeys(shifts, 0.0))
    alike = alike.assign(**{name: alike["loss/val"] for name in study.measures})
    for broken in (swapped, alike):
        found = judge(study, "cpu", broken)
        assert found.failed
        assert {f.verdict for c in found.claims.values() for f in c.values()} == {ASSAY}


def test_the_picture_shows_the_units_that_were_run():
    groups = {"pi": PI, "hash": [*HASH, "not run"], "none": ["x"]}
    units = Units(caption="", groups=groups, measures={"loss/val": "loss"})
    figure = units.draw(table(dict.fromkeys(PI + HASH, 0.0)))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pi", "hash"]
    assert len(axes.lines[2].get_xdata()) == 6
    assert png(figure)
