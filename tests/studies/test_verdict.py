"""No claim outlives a failed control, and no smoke tier gives a verdict."""

import pytest
from hydra.utils import instantiate

from prismatic.studies import ASSAY, judge
from prismatic.studies.study import overall

from .toys import measured, toy

SOUND = {"dense": 3.0, "token, routed": 2.0, "zero": 3.0, "fast": 5.0}


def verdicts(study, tier, table):
    judged = judge(study, tier, table)
    return {name: overall(found.values()) for name, found in judged.claims.items()}, judged.failed


def test_claims_are_judged_where_controls_hold():
    assert verdicts(instantiate(toy()), "cpu", measured(SOUND)) == (
        {"better": "supported", "worse": "supported"}, (),
    )  # fmt: skip


@pytest.mark.parametrize(
    "means",
    [
        SOUND | {"zero": 3.1},  # what must not differ differs
        SOUND | {"zero": SOUND["token, routed"], "token, routed": SOUND["zero"]},  # swapped arms
    ],
)
def test_a_broken_control_turns_every_verdict(means):
    found, failed = verdicts(instantiate(toy()), "cpu", measured(means))
    assert set(found.values()) == {ASSAY}
    assert failed == ("negative: zero",)


def test_a_wrong_null_turns_every_verdict():
    node = toy()
    node.controls.negative.contrasts = {"zero": {"dense": 1, "token, routed": -1}}
    found, failed = verdicts(instantiate(node), "cpu", measured(SOUND))
    assert set(found.values()) == {ASSAY} and failed


def test_a_smoke_tier_says_nothing():
    table = measured({arm: m for arm, m in SOUND.items() if arm != "fast"}, seeds=2)
    assert verdicts(instantiate(toy()), "smoke", table) == ({"better": "no verdict"}, ())


def test_too_few_seeds_say_nothing():
    node = toy()
    node.tiers.cpu.seeds = 5
    found, _ = verdicts(instantiate(node), "cpu", measured(SOUND, seeds=5))
    assert set(found.values()) == {ASSAY}  # nor can a control be shown to hold


def test_a_missing_value_is_no_verdict_and_says_whose():
    table = measured(SOUND)
    table.loc[(table["arm"] == "fast") & (table["seed"] == 1), "loss/val"] = float("nan")
    judged = judge(instantiate(toy()), "cpu", table)
    [finding] = judged.claims["worse"].values()
    assert finding.verdict == "no verdict"
    assert "arm 'fast', seed 1" in finding.note
    assert overall(judged.claims["better"].values()) == "supported"


def test_many_verdicts_in_a_line():
    judged = judge(instantiate(toy()), "cpu", measured(SOUND | {"token, routed": 3.5}))
    every = [one for found in judged.claims.values() for one in found.values()]
    assert overall(every) == "1 refuted, 1 supported"
