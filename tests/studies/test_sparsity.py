"""The claim of a best share: what supports and what refutes it, and that its controls count."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from prismatic.report.style import png
from prismatic.studies import ASSAY, judge
from prismatic.studies.protocols.sparsity import BestShare, Curve, is_flat, is_monotone

from .protocols import declared

SHARES = [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
NOISE_SK = np.random.default_rng(0).normal(0, 0.001, (10, 8))
RAW, EQUAL = ([f"{kind} {share:g}" for share in SHARES] for kind in "re")
DIP = [0.1, 0.08, 0.06, 0.03, 0, 0.03, 0.06, 0.1]
RISING = [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4]
FLAT = [0.0] * 8


def claim(**options):
    given = {"shares": SHARES, "raw": RAW, "equal": EQUAL, "smallest_effect": 0.01}
    return BestShare(says="", measure="loss/val", **given | options)


def table(curves, spread=1.0, seeds=10):
    """Runs whose mean losses are these, by arm; seeds shift all arms alike."""
    rows = []
    for names, mean_K in curves:
        for k, (arm, mean) in enumerate(zip(names, mean_K, strict=True)):
            for seed in range(seeds):
                loss = 2 + mean + 0.1 * seed + spread * NOISE_SK[seed, k]
                rows.append({"arm": arm, "seed": seed, "diverged": 0.0, "loss/val": loss})
    return pd.DataFrame(rows)


def judged(raw_K, equal_K, **options):
    return claim().judge(table([(RAW, raw_K), (EQUAL, equal_K)], **options), rng())


def rng():
    return np.random.default_rng(0)


def test_a_dip_at_the_claimed_share_supports_it():
    found = judged(DIP, DIP)
    assert {f.verdict for f in found.values()} == {"supported"}
    assert found["raw"].estimate == pytest.approx(0.06, abs=0.002)
    assert found["raw"].note == "least at 10 %, may be 10 % to 10 %"
    assert found["raw"].p < 0.01 and found["raw"].n == 10


@pytest.mark.parametrize(
    ("mean_K", "note"),
    [
        (RISING, "least at 0 %, may be 0 % to 0 %; the curve is monotone"),
        (RISING[::-1], "least at 100 %, may be 100 % to 100 %; the curve is monotone"),
        ([0.1, 0.05, 0.06, 0.03, 0.05, 0, 0.05, 0.1], "least at 20 %, may be 20 % to 20 %"),
    ],
)
def test_another_optimum_refutes_it(mean_K, note):
    found = judged(mean_K, mean_K)["raw"]
    assert found.verdict == "refuted" and found.note == note


def test_a_flat_curve_refutes_it_although_its_interval_holds_the_claimed_share():
    found = judged(FLAT, FLAT)["raw"]
    assert found.verdict == "refuted" and found.note.endswith("; the curve is flat")


def test_an_optimum_too_wide_or_too_shallow_is_inconclusive():
    wide = [0.1, 0.05, 0.0, 0.0, 0.0, 0.0, 0.05, 0.1]
    assert judged(wide, wide)["raw"].verdict == "inconclusive"
    one_sided = [0.1, 0.08, 0.06, 0.03, 0, 0.005, 0.009, 0.03]
    assert judged(one_sided, one_sided)["raw"].verdict == "inconclusive"


def test_an_optimum_of_the_raw_arms_alone_is_one_of_strength():
    found = judged(DIP, FLAT)
    assert (found["raw"].verdict, found["equal strength"].verdict) == ("supported", "refuted")
    assert found["raw"].note.endswith("not at equal strength, so an effect of strength")
    assert "strength" not in judged(DIP, DIP)["raw"].note


def test_five_seeds_give_no_verdict():
    assert judged(DIP, DIP, seeds=5)["raw"].verdict == "no verdict"


def test_curves_are_told_apart():
    rising_SK, flat_SK = np.array(RISING) + NOISE_SK, 1 + NOISE_SK
    assert is_monotone(rising_SK, 0.01, rng()) and not is_monotone(flat_SK, 0.01, rng())
    assert is_monotone(-rising_SK, 0.01, rng())
    slight_SK = np.linspace(0, 0.009, 8) + 0.01 * NOISE_SK
    assert not is_monotone(slight_SK, 0.01, rng())  # its ends do not differ by what matters
    assert is_flat({"a": NOISE_SK[:, 0]}, 0.01, rng())
    assert not is_flat({"a": NOISE_SK[:, 0], "b": 0.02 + NOISE_SK[:, 1]}, 0.01, rng())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": SHARES[1:]}, "shares=.*begin with 0"),
        ({"raw": RAW[1:]}, "raw arms=.*one per share"),
        ({"claimed": 0.3}, "share='30 %'.*10 %"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        claim(**options)


def test_the_study_says_nothing_when_a_control_fails():
    study = declared("sparsity")
    best = study.claims["best_share_at_scale_0.8"]
    curves = [(best.raw, DIP), (best.equal[1:], DIP[1:]), (["slow"], [1.0])]
    sound = table(curves)
    dense = sound[sound["arm"] == "none"].assign(arm="dense")
    sound = pd.concat([sound, dense]).assign(**{m: 0.5 for m in study.measures if m != "loss/val"})
    assert set(sound["arm"]) == study.arms_of(study.tier("cpu"))
    found = judge(study, "cpu", sound)
    verdicts = {f.verdict for f in found.claims["best_share_at_scale_0.8"].values()}
    assert verdicts == {"supported"} and not found.failed
    swapped = sound.assign(arm=sound["arm"].replace({"none": "slow", "slow": "none"}))
    no_effect = sound.assign(**{"loss/val": sound["loss/val"].where(sound["arm"] != "slow", 2.0)})
    for broken in (swapped, no_effect):
        found = judge(study, "cpu", broken)
        assert found.failed
        assert {f.verdict for c in found.claims.values() for f in c.values()} == {ASSAY}


def test_the_picture_leaves_out_scales_that_were_not_run():
    panels = {"0.8": {"raw": RAW, "equal strength": EQUAL}, "0.1": {"raw": ["x"] * 8}}
    given = {"caption": "", "measure": "loss/val", "heading": "Excess", "label": "loss"}
    curve = Curve(**given, shares=SHARES, panels=panels, smallest_effect=0.01)
    figure = curve.draw(table([(RAW, DIP), (EQUAL, FLAT)]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["0.8"]
    assert png(figure)
    drawn = replace(curve, panels={"0.1": panels["0.1"]}).draw(table([(RAW, DIP)]))
    assert not drawn.axes and "no scale" in drawn.texts[0].get_text()
