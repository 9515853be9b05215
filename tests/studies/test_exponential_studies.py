"""The studies of source 000 as their YAMLs say them: their tiers, and what broken controls do."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from prismatic.studies import ASSAY, Study, build, judge

from ..tiny import CONF, composed

NAMES = ("amplification", "layernorm", "oscillation")


@cache
def study(name: str) -> Study:
    return build(OmegaConf.load(CONF / "study" / f"{name}.yaml")).study


@pytest.mark.parametrize("tier", ["smoke", "cpu", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_tier_asks_something_and_says_what_it_covers(name, tier):
    given = study(name).tier(tier)
    assert study(name).claims_of(given)
    assert tier == "smoke" or given.covers
    assert (given.seeds >= 10) == (tier != "smoke")


@pytest.mark.parametrize("name", NAMES)
def test_cpu_leaves_out_no_claim_for_want_of_an_arm_that_it_says_it_has(name):
    made = study(name)
    left_out = set(made.claims) - set(made.claims_of(made.tier("cpu")))
    assert (
        left_out
        == {
            "amplification": {
                "exponential_when_trained_normal_02",
                "exponential_when_trained_xavier",
            },
            "layernorm": {"worse_than_post", "worse_than_RMS", "worse_than_QK"},
            "oscillation": set(),
        }[name]
    )
    assert set(made.claims_of(made.tier("gpu"))) == set(made.claims)


@pytest.mark.parametrize("name", NAMES)
def test_arms_of_the_smoke_tier_compose(name):
    made = study(name)
    for arm in made.arms_of(made.tier("smoke")):
        config = composed(*made.common, *made.tier("smoke").overrides, *made.arms[arm])
        assert config.model.dim == 64 and config.data.seq_len == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_arms_compose_and_differ(name):
    made = study(name)
    seen = {
        OmegaConf.to_yaml(composed(*made.common, *overrides), resolve=False): arm
        for arm, overrides in made.arms.items()
    }
    assert len(seen) == len(made.arms)


def table(name: str) -> pd.DataFrame:
    """Ten seeds of every arm of the cpu tier: nothing but what the controls should find."""
    made, draw = study(name), np.random.default_rng(1)
    rows = []
    for arm in sorted(made.arms_of(made.tier("cpu"))):
        for seed in range(10):
            row = {"arm": arm, "seed": seed, "diverged": 0.0, "loss/val": 3.0 + 0.001 * seed}
            rows.append(row | measured(name, arm, draw))
    return pd.DataFrame(rows)


def measured(name: str, arm: str, draw: np.random.Generator) -> dict[str, float]:
    if name == "oscillation":
        passes = {f"routing/pass_{t}/expert_0_weight": 0.5 + 0.1 * draw.normal() for t in range(8)}
        share = draw.uniform(0, 0.1)
        return passes | {
            "oscillation/share": share, "oscillation/mean_routing": 0.0,
            "oscillation/control/ar1/share": 0.0, "oscillation/control/sinusoid/share": 1.0,
        }  # fmt: skip
    if name == "layernorm":
        size = 1000.0 if "gain 1000" in arm else 1.0
        loss = 5.5 if "untrained" in arm else 3.0
        return {"loss/val": loss} | {
            f"layernorm/{state}/layer_{layer}/largest": size
            for state in ("init", "trained")
            for layer in range(1, 9)
        }
    depth = 32 if "L=32" in arm else 8
    known = {}
    for state in ["init"] if depth == 32 else ["init", "trained"]:
        known |= {
            f"amplification/{state}/chain": np.log(1.5),
            f"amplification/{state}/nothing": 0.0,
        }
        level = np.exp(0.1 * draw.normal())
        for size in ("1e-06", "0.0001"):
            for layer in range(1, depth + 1):
                noise = np.exp(0.01 * draw.normal())
                name = f"amplification/{state}/all/{size}/layer_{layer}/tv"
                known[name] = float(size) * level * noise
    return known


@cache
def with_few_claims(name: str) -> Study:
    """Of `amplification` two claims: all of them take long to judge."""
    node = OmegaConf.load(CONF / "study" / f"{name}.yaml")
    if name == "amplification":
        few = ("amplified_at_initialisation_xavier", "exponential_at_initialisation_xavier")
        node.claims = {claim: node.claims[claim] for claim in few}
    return build(node).study


@pytest.mark.parametrize("name", NAMES)
def test_sound_controls_let_claims_be_judged(name):
    judged = judge(with_few_claims(name), "cpu", table(name))
    assert judged.failed == ()
    verdicts = {one.verdict for found in judged.claims.values() for one in found.values()}
    assert "refuted" in verdicts and ASSAY not in verdicts and "supported" not in verdicts
    if name == "amplification":
        assert verdicts == {"refuted"}, "D stays as it is in this table"


BROKEN = [
    ("amplification", "chain", {"amplification/init/chain": lambda v: v * 0 + np.log(1.6)}),
    ("amplification", "nothing", {"amplification/init/nothing": lambda v: v + 1e-9}),
    ("layernorm", "scale_0", {"loss/val": lambda v: v + np.arange(len(v)) * 1e-3}),
    ("layernorm", "gain", {"layernorm/init/layer_1/largest": lambda v: v * 0 + 1}),
    ("oscillation", "sinusoid", {"oscillation/control/sinusoid/share": lambda v: v * 0 + 0.5}),
    # A white-noise null calls most AR(1) routers periodic.
    ("oscillation", "ar1", {"oscillation/control/ar1/share": lambda v: v * 0 + 0.6}),
]


@pytest.mark.parametrize(("name", "control", "broken"), BROKEN)
def test_a_broken_control_leaves_nothing_to_be_said(name, control, broken):
    runs = table(name)
    for column, breaks in broken.items():
        runs[column] = breaks(runs[column])
    judged = judge(with_few_claims(name), "cpu", runs)
    assert all(one.startswith(f"{control}: ") for one in judged.failed) and judged.failed
    assert {one.verdict for found in judged.claims.values() for one in found.values()} == {ASSAY}


def test_swapped_arms_are_seen_by_the_controls():
    runs = table("layernorm")
    names = {"control: untrained": "pre, normal_02, rate 0.003"}
    names |= {new: old for old, new in names.items()}
    runs["arm"] = runs["arm"].replace(names)
    judged = judge(study("layernorm"), "cpu", runs)
    assert set(judged.failed) == {"untrained: untrained", "scale_0: twin"}
    assert {one.verdict for found in judged.claims.values() for one in found.values()} == {ASSAY}
