"""A study is complete and consistent before anything runs, and known by its hash."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from prismatic.studies.runner import jobs
from prismatic.studies.study import digest

from .toys import toy

CLAIM, DENSE = toy().claims.better, {"dense": 1}


def study(**changes):
    node = toy()
    for key, value in changes.items():
        OmegaConf.update(node, key.replace("__", "."), value, merge=False)
    return instantiate(node)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controls": {}}, "a study needs at least one control"),
        ({"tiers__cpu__seeds": 1}, "seeds=1 is not valid: give at least 2"),
        ({"tiers__cpu__seeds": "ten"}, "seeds='ten' is not valid: give at least 2"),
        ({"arms": {"a < 1": [], "a > 1": []}}, "arm='a > 1' is not valid: it is kept under"),
        ({"claims": {"a b": CLAIM, "a/b": CLAIM}}, "claim='a/b' is not valid: it is kept"),
        ({"claims__better__contrasts": {"x<": DENSE, "x>": DENSE}}, "effect of better='x>' is not"),
        ({"claims__better__measure": "loss/vall"}, "measure of better='loss/vall' is not valid"),
        ({"claims": {"a": {"says": "x"}}}, "claim a=.* is not valid: give it a _target_"),
        ({"claims__better__contrasts": {"x": {"y": "one"}}}, "contrast x=.* give each arm a num"),
        ({"tiers__cpu__arms": ["dens"]}, "arm of tier cpu='dens' is not valid"),
        ({"tiers__cpu__arms": ["dense"]}, "controls need zero, too"),
        ({"tiers__cpu__of_arms": {"dens": []}}, "arm of tier cpu='dens' is not valid"),
        ({"tiers__laptop": {"seeds": 3}}, "tier='laptop' is not valid: choose one of smoke, cpu"),
        ({"claims__better__contrasts": {"x": {"y": 1}}}, "arm of a claim='y' is not valid"),
    ],
)  # fmt: skip
def test_an_inconsistent_study_is_refused(changes, message):
    with pytest.raises(Exception, match=message):
        study(**changes)


def test_a_tier_that_does_not_exist():
    with pytest.raises(ValueError, match="tier='gpu' is not valid: choose one of smoke, cpu"):
        study().tier("gpu")


def test_a_tier_answers_what_its_arms_allow():
    toy_study = study()
    assert set(toy_study.claims_of(toy_study.tier("cpu"))) == {"better", "worse"}
    assert set(toy_study.claims_of(toy_study.tier("smoke"))) == {"better"}


def test_a_smoke_tier_may_leave_out_controls():
    toy_study = study(tiers__smoke__arms=["dense", "token, routed"])
    assert set(toy_study.controls_of(toy_study.tier("smoke"))) == set()
    assert toy_study.controls_of(toy_study.tier("cpu")) == toy_study.controls


def test_a_tier_has_overrides_of_single_arms():
    toy_study = study(tiers__cpu__of_arms={"dense": ["trainer.max_steps=99"]})
    planned = jobs(toy_study, toy_study.tier("cpu"), [0])
    told = {one.arm: "trainer.max_steps=99" in one.overrides for one in planned}
    assert [arm for arm, is_told in told.items() if is_told] == ["dense"]
    assert planned[0].overrides.index("trainer.max_steps=99") > planned[0].overrides.index(
        toy_study.tier("cpu").overrides[0]
    )


def test_all_arms_of_a_seed_come_before_the_next_seed():
    toy_study = study()
    planned = jobs(toy_study, toy_study.tier("smoke"), range(2))
    assert [(one.arm, *one.seeds) for one in planned[:4]] == [
        ("dense", 0), ("token, routed", 0), ("zero", 0), ("dense", 1),
    ]  # fmt: skip
    assert len({one.folder for one in planned}) == len(planned) == 6
    assert "seed=1" in planned[3].overrides


def hashed(node):
    return digest(OmegaConf.to_container(node), "cpu")


def test_the_hash_is_of_what_is_asked():
    known = hashed(toy())
    for key, value in (
        ("claims.better.smallest_effect", 0.4),
        ("arms.zero", ["router=dense"]),
        ("tiers.cpu.seeds", 7),
    ):
        changed = toy()
        OmegaConf.update(changed, key, value)
        assert hashed(changed) != known, key
    drawn = toy()
    OmegaConf.update(drawn, "tiers.smoke.seeds", 3)
    OmegaConf.update(drawn, "figures", {}, force_add=True)
    assert hashed(drawn) == known
