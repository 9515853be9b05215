"""Groups of seedings: their comparison, their verdicts, and that controls count."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from prismatic.report.style import png
from prismatic.studies import ASSAY, judge
from prismatic.studies.pi_seeding import Groups, Units, compare, splits

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


def test_all_splits_into_two_groups_are_made_once():
    split_RU = splits(6, 2, rng())
    assert len(split_RU) == comb(6, 2) == len({tuple(row) for row in split_RU.tolist()})
    assert (split_RU.sum(1) == 2).all() and split_RU[0].tolist() == [True] * 2 + [False] * 4


def test_of_too_many_splits_some_are_drawn_beside_the_seen_one():
    split_RU = splits(40, 20, rng())
    assert len(split_RU) == 20_001 and (split_RU.sum(1) == 20).all()
    assert split_RU[0].tolist() == [True] * 20 + [False] * 20


@pytest.mark.parametrize("num_b", [4, 5])
def test_a_comparison_is_scipys(num_b):
    a, b = rng().normal(0, 1, 4), rng().normal(0.7, 1, num_b)
    found = compare(a, b, rng())
    t = stats.ttest_ind(a, b)
    assert found.estimate == pytest.approx(a.mean() - b.mean())
    assert found.estimate / found.error == pytest.approx(t.statistic)

    def statistic(x, y, axis):
        return abs(x.mean(axis) - y.mean(axis))

    options = dict(permutation_type="independent", n_resamples=np.inf, alternative="greater")
    assert found.p == pytest.approx(stats.permutation_test((a, b), statistic, **options).pvalue)


def test_permuted_labels_hold_their_error_rate():
    draw, rates = rng(), []
    for _ in range(400):
        rates.append(compare(draw.normal(size=5), draw.normal(size=5), draw).p < 0.05)
    assert np.mean(rates) <= 0.075


def test_groups_that_differ_are_found_behind_far_larger_effects_of_initialisation():
    runs = table(dict.fromkeys(PI, 0.02) | dict.fromkeys(HASH, 0.0))
    measures = {"loss/val": 0.005}
    differ = Groups("", measures, PI, HASH, kind="difference").judge(runs, rng())["loss/val"]
    alike = Groups("", measures, PI, HASH).judge(runs, rng())["loss/val"]
    assert (differ.verdict, alike.verdict) == ("supported", "refuted")
    assert differ.estimate == pytest.approx(0.02, abs=0.002) and differ.n == 12
    assert differ.p == pytest.approx(2 / comb(12, 6))
    swapped = Groups("", measures, HASH, PI, kind="difference").judge(runs, rng())["loss/val"]
    assert swapped.verdict == "supported" and swapped.estimate == -differ.estimate


def test_groups_that_do_not_differ_are_equivalent():
    runs = table(dict.fromkeys(PI + HASH, 0.0))
    measures = {"loss/val": 0.005}
    differ = Groups("", measures, PI, HASH, kind="difference").judge(runs, rng())["loss/val"]
    alike = Groups("", measures, PI, HASH).judge(runs, rng())["loss/val"]
    assert (differ.verdict, alike.verdict) == ("refuted", "supported")
    wide = table(dict.fromkeys(PI + HASH, 0.0), unit_sd=0.02)
    assert Groups("", measures, PI, HASH).judge(wide, rng())["loss/val"].verdict == "inconclusive"


def test_intervals_and_p_are_those_of_the_family():
    runs = table(dict.fromkeys(PI + HASH, 0.0))
    runs["other"] = runs["loss/val"]
    alone = Groups("", {"loss/val": 0.005}, PI, HASH).judge(runs, rng())["loss/val"]
    both = Groups("", {"loss/val": 0.005, "other": 0.005}, PI, HASH).judge(runs, rng())
    assert alone.level == pytest.approx(0.9) and both["other"].level == pytest.approx(0.95)
    assert both["other"].p == pytest.approx(min(1, 2 * alone.p))
    assert np.ptp(both["other"].interval) > np.ptp(alone.interval)


def test_too_few_units_give_no_verdict_of_a_difference():
    runs = table(dict.fromkeys(PI[:3], 1.0) | dict.fromkeys(HASH[:3], 0.0))
    few = Groups("", {"loss/val": 0.005}, PI[:3], HASH[:3], kind="difference")
    assert few.judge(runs, rng())["loss/val"].verdict == "no verdict"


def test_a_tier_may_run_some_units_of_each_group():
    groups = Groups("", {"loss/val": 0.005}, PI, HASH)
    some = groups.within({*PI[:3], *HASH[:2]})
    assert some.arms() == {*PI[:3], *HASH[:2]}
    assert groups.within({*PI, HASH[0]}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "less"}, "kind='less'.*no difference, difference"),
        ({"group": PI[:1]}, "group=.*at least 2"),
        ({"measures": {"loss/val": 0}}, "smallest effect of loss/val=0"),
    ],
)
def test_nonsense_is_refused(options, message):
    given = {"measures": {"loss/val": 0.005}, "group": PI, "other": HASH} | options
    with pytest.raises(ValueError, match=message):
        Groups("", **given)


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
    picture = Units("", {"pi": PI, "hash": [*HASH, "not run"], "none": ["x"]}, {"loss/val": "loss"})
    figure = picture.draw(table(dict.fromkeys(PI + HASH, 0.0)), {})
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pi", "hash"]
    assert len(axes.lines[2].get_xdata()) == 6
    assert png(figure)
