"""The study `floor`: its claims, its design, its controls and its pictures."""

from fnmatch import fnmatchcase
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from prismatic.experiment import build_model
from prismatic.report.style import png
from prismatic.stats import loss_ladder
from prismatic.studies import ASSAY, UnjudgeableError, build, judge
from prismatic.studies.full_batch import LADDER, cells_of
from prismatic.studies.protocols.floor import PASSED_BY, Floor, entries

from ..tiny import CONF, composed

NODE = OmegaConf.load(CONF / "study" / "floor.yaml")
STUDY = build(NODE).study
RNG = np.random.default_rng(0)
SEEDS = 20
NEVER_BELOW = set(STUDY.claims["constant_attention"].regimes)
NEVER_BELOW |= {"merged by sequence, scale 0", "carry, full"}


@cache
def config_of(arm):
    return composed(*STUDY.common, *STUDY.arms[arm])


def kind_of(config):
    """The attention of a model, by its name."""
    kind = config.model.attention
    return kind if isinstance(kind, str) else kind._target_.rpartition(".")[2]


@cache
def task_of(arm):
    return instantiate(config_of(arm).data)


@pytest.fixture(scope="module")
def ladders():
    """What is known of each arm's table."""
    joints = {arm: task_of(arm).joint_XYZ for arm in STUDY.arms}
    found: dict[bytes, dict] = {}
    for joint_XYZ in joints.values():
        key = joint_XYZ.tobytes()
        found[key] = found.get(key) or loss_ladder(joint_XYZ)
    return {arm: found[joint_XYZ.tobytes()] for arm, joint_XYZ in joints.items()}


@pytest.fixture
def runs(ladders):
    """A table as the study's runs would give it if constant attention alone kept to the floor."""
    rows = []
    for arm, ladder in ladders.items():
        for seed in range(SEEDS):
            noise = 1e-5 * np.random.default_rng(seed).random()
            at = ladder["additive floor"] if arm in NEVER_BELOW else ladder["H(Z|X,Y)"]
            loss = 0.346574 if arm == "exclusive or, no positions" else at
            rows.append(
                {
                    "arm": arm, "seed": seed, "diverged": 0.0, "loss/val": loss + noise,
                    "loss/excess": loss + noise - ladder["H(Z|X,Y)"],
                    PASSED_BY: ladder["additive floor"] - loss - noise,
                    "escape/step": 30.0 + seed, "escape/passed": float(arm not in NEVER_BELOW),
                    **{name: ladder[rung] for rung, name in LADDER.items()},
                    **{f"attention/head_0/x_{x}/y_{y}": 0.1 * (x + y) for x, y in PAIRS},
                    **{f"routing/view_{e}/x_{x}/y_{y}": 0.25 for x, y in PAIRS for e in range(4)},
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


PAIRS = [(x, y) for x in range(5) for y in range(5)]


def passed_by(**arms):
    rows = [
        {"arm": arm, "seed": seed, "diverged": 0.0, PASSED_BY: value}
        for arm, column in arms.items()
        for seed, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_one_run_below_the_floor_refutes_it_and_others_prove_nothing():
    table = passed_by(a=[-0.2, -0.1], b=[-0.2, 0.3], c=[-1e-3, 5e-8])
    found = Floor(says="it holds", regimes=["a", "b", "c"]).judge(table, RNG)
    verdicts = {arm: one.verdict for arm, one in found.items()}
    assert verdicts == {"a": "inconclusive", "b": "refuted", "c": "inconclusive"}
    assert (found["b"].estimate, found["b"].interval, found["b"].n) == (-0.3, (-0.3, 0.2), 2)
    assert "1 of 2 exact losses are below" in found["b"].note
    proved = Floor(says="it holds", regimes=["a", "b", "c"], proof="by algebra").judge(table, RNG)
    verdicts = {arm: one.verdict for arm, one in proved.items()}
    assert verdicts == {"a": "supported", "b": "refuted", "c": "supported"}
    assert "by algebra" in proved["a"].note and "by algebra" not in proved["b"].note


def test_a_floor_needs_every_run():
    table = passed_by(a=[-0.2, np.nan])
    with pytest.raises(UnjudgeableError, match="arm 'a', seed 1"):
        Floor(says="it holds", regimes=["a"]).judge(table, RNG)
    with pytest.raises(ValueError, match=r"regimes=.*name at least one"):
        Floor(says="it holds", regimes=[])
    with pytest.raises(ValueError, match="tolerance=0"):
        Floor(says="it holds", regimes=["a"], tolerance=0)


def test_a_tier_judges_the_arms_that_it_has():
    claim = Floor(says="it holds", regimes=["a", "b"], proof="yes")
    assert claim.within({"b", "c"}) == Floor(says="it holds", regimes=["b"], proof="yes")
    assert claim.within({"c"}) is None
    smoke = STUDY.claims_of(STUDY.tier("smoke"))
    assert smoke["constant_attention"].regimes == ["mod 5, uniform", "carry, uniform"]


def test_a_table_comes_back_from_its_numbers():
    run = pd.Series({"a/x_0/y_1": 0.5, "a/x_1/y_0": 0.25, "a/x_2/y_2": np.nan, "ab/x_9/y_9": 1.0})
    assert np.array_equal(entries(run, "a"), [[np.nan, 0.5], [0.25, np.nan]], equal_nan=True)
    assert entries(run, "c").size == 0


@pytest.mark.parametrize("arm", STUDY.arms)
def test_every_arm_composes_and_builds(arm):
    task = task_of(arm)
    model = build_model(config_of(arm), task.vocab_size, task.seq_len)
    assert cells_of(task).loss(model).isfinite()


def test_arms_differ_in_what_their_names_say(ladders):
    for name in STUDY.figures["ladder"].tasks:
        uniform, full = (config_of(f"{name}, {kind}") for kind in ("uniform", "full"))
        assert (kind_of(uniform), kind_of(full)) == ("Uniform", "full")
        same = OmegaConf.merge(full, {"model": {"attention": uniform.model.attention}})
        assert same == uniform
    merged = [arm for arm in STUDY.arms if arm.startswith(("merged", "smear"))]
    for arm in merged:
        config = config_of(arm)
        assert config.model == config_of("mod 5, uniform").model
        assert config.router.level == ("batch" if "batch" in arm else "sequence")
    named = {arm: config_of(arm).router.num_experts for arm in merged if "N = " in arm}
    assert all(arm.endswith(f"N = {num_experts}") for arm, num_experts in named.items())
    heads = {n: config_of(f"{n} heads").model.num_heads for n in (2, 4, 8)}
    assert heads == {2: 2, 4: 4, 8: 8}
    assert kind_of(config_of("weights from y")) == "FromQuery"
    assert kind_of(config_of("weights from x")) == "FromKey"
    assert config_of("merged by sequence, scale .01").perturbation.scale == 0.01


def test_the_design_shows_the_tables_that_are_trained_on():
    shown = STUDY.figures["design"].tables
    assert list(shown) == list(STUDY.figures["ladder"].tasks)
    for name, joint in shown.items():
        trained = task_of(f"{name}, full").joint_XYZ
        np.testing.assert_allclose(joint, trained, atol=1e-15, err_msg=name)


def test_measures_are_what_training_tells():
    told = ["loss/val", "loss/excess", PASSED_BY, "escape/step", *LADDER.values()]
    told += ["attention/head_0/x_0/y_0", "routing/view_1/x_0/y_0"]
    for pattern in STUDY.measures:
        assert any(fnmatchcase(name, pattern) for name in told), pattern


def verdicts(judged, claim):
    return {effect: one.verdict for effect, one in judged.claims[claim].items()}


def test_verdicts_of_a_world_in_which_only_constant_attention_keeps_to_the_floor(runs):
    judged = judge(STUDY, "cpu", runs)
    assert judged.failed == ()
    assert set(verdicts(judged, "constant_attention").values()) == {"supported"}
    assert set(verdicts(judged, "one_layer").values()) == {"refuted"}
    for claim in ("reaches_floor", "reaches_bayes", "half_ln_2", "other_ways"):
        assert set(verdicts(judged, claim).values()) == {"supported"}, claim
    merging = verdicts(judged, "soft_merging")
    assert merging.pop("N = 4, one merge for the batch") == "refuted"
    assert set(merging.values()) == {"supported"}


def swapped(runs, a, b):
    return runs.assign(arm=runs["arm"].replace({a: b, b: a}))


def with_loss(runs, arm, more):
    own = runs["arm"] == arm
    changed = runs.copy()
    changed.loc[own, "loss/val"] += more
    changed.loc[own, PASSED_BY] -= more
    return changed


@pytest.mark.parametrize(
    ("broken", "control"),
    [
        (lambda t: swapped(t, "mod 5, uniform", "MLP, uniform"), "mlp_passes: MLP"),
        (lambda t: swapped(t, "mod 5, uniform", "MLP, uniform"), "scale_0_is_dense: scale 0"),
        (lambda t: swapped(t, "merged by sequence, scale 0", "merged by sequence, N = 4"),
         "scale_0_is_dense: scale 0"),
        (lambda t: with_loss(t, "mod 5, uniform", -0.001), "scale_0_is_dense: scale 0"),
        (lambda t: with_loss(t, "carry, uniform", 0.05), "additive_table: carry"),
        (lambda t: with_loss(t, "carry, uniform", -0.05), "additive_table: carry"),
    ],
)  # fmt: skip
def test_a_broken_control_makes_every_verdict_inconclusive(runs, broken, control):
    judged = judge(STUDY, "cpu", broken(runs))
    assert control in judged.failed
    for claim in judged.claims.values():
        assert {one.verdict for one in claim.values()} == {ASSAY}


@pytest.mark.parametrize("name", STUDY.figures)
def test_every_picture_is_drawn(runs, name):
    figure = STUDY.figures[name].draw(runs)
    assert figure.axes and len(png(figure)) > 5_000
    some = runs[runs["arm"].isin(["mod 5, full", "mod 5, uniform", "merged by sequence, N = 4"])]
    some = some.assign(diverged=(some["seed"] == 0).astype(float))
    assert STUDY.figures[name].draw(some).axes


@pytest.mark.parametrize("name", [name for name in STUDY.figures if name != "design"])
def test_a_picture_without_runs_says_so(runs, name):
    lost = runs[runs["arm"] == "no residual"].assign(diverged=1.0)
    figure = STUDY.figures[name].draw(lost)
    assert not figure.axes and "no finite run of" in figure.texts[0].get_text()


@pytest.mark.slow
def test_the_study_runs_in_workers_of_its_own(script, tmp_path):
    done = script("study", "study=floor", "tier=smoke", "executor=fork", "n_jobs=2")
    assert done.status == 0, done.err
    assert "verdict: no verdict" in done.out
    [folder] = (tmp_path / "outputs" / "studies" / "floor").glob("smoke-*")
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 2 * len(STUDY.tier("smoke").arms)
    assert all((folder / f"{name}.png").exists() for name in STUDY.figures)
