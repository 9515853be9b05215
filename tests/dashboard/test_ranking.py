"""A sweep over seeds is told by configuration: against a definition, and in each of its forms."""

import json

import numpy as np
import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import TrialState, create_trial
from scipy import stats

from prismatic.dashboard.account import Account
from prismatic.dashboard.knobs import compute_effects

VALUES = {"router": ("dense", "routed"), "lr": (2, 1), "seed": (0, 1, 2)}


def value_of(router, lr, seed):
    """Routing gains .1 with lr=1 and nothing with lr=2, but for a ripple; seeds differ by more."""
    ripple = [0.01, -0.02, 0.01][seed] * (router == "routed")
    return 1 + seed + lr / 2 - 0.1 * (router == "routed" and lr == 1) + ripple


def account(folder, lost=(), names=("loss",), compare_to=None, value=value_of):
    """The grid of `VALUES` as a sweep of which the trials of `lost` failed."""
    space = {name: CategoricalDistribution(values) for name, values in VALUES.items()}
    study = optuna.create_study(study_name="grid", directions=["minimize"] * len(names))
    described = {name: distribution_to_json(one) for name, one in space.items()}
    params = {name: json.loads(text) for name, text in described.items()}
    study.set_user_attr("question", {"params": params, "objectives": list(names)})
    study.set_user_attr("total", 12)
    for number, point in enumerate(np.ndindex(2, 2, 3)):
        params = {name: VALUES[name][i] for name, i in zip(VALUES, point, strict=True)}
        failed = number in lost
        study.add_trial(
            create_trial(
                params=params, distributions=space,
                values=None if failed else [value(**params)] * len(names),
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                user_attrs={"reason": f"ValueError: step {number}"} if failed else {},
            )
        )  # fmt: skip
    return Account(study, OmegaConf.create({"seed": 7, "seeds": None}), folder, compare_to)


def row(ranking, **params):
    [found] = ranking[(ranking[list(params)] == list(params.values())).all(axis=1)].to_dict(
        "records"
    )
    return found


def test_means_and_intervals_over_seeds_and_differences_paired_by_them(tmp_path):
    made = account(tmp_path, compare_to={"router": "dense"})
    found = row(made.ranking, router="routed", lr=1)
    own = np.array([value_of("routed", 1, seed) for seed in range(3)])
    apart = own - [value_of("dense", 1, seed) for seed in range(3)]
    assert (found["n"], found["trials"], found["best"]) == (3, "9 10 11", True)
    assert found["loss"] == pytest.approx(own.mean())
    assert found["loss:sd"] == pytest.approx(own.std(ddof=1))
    level = stats.t.interval(0.95, 2, own.mean(), stats.sem(own))
    assert (found["loss:low"], found["loss:high"]) == pytest.approx(level)
    two = stats.t.interval(1 - 0.05 / 2, 2, apart.mean(), stats.sem(apart))  # two comparisons
    assert (found["loss:difference_low"], found["loss:difference_high"]) == pytest.approx(two)
    assert found["loss:verdict"] == ("better" if two[1] < 0 else "within noise")
    assert row(made.ranking, router="routed", lr=2)["loss:verdict"] == "within noise"
    assert row(made.ranking, router="dense", lr=2)["loss:verdict"] == "baseline"


def test_what_is_printed_names_the_noise_and_the_failures(tmp_path):
    made = account(tmp_path, lost=(10, 11))
    head, rows = made.table
    assert head[:5] == ["trial", "loss", "sd", "95 % interval", "less the best"]
    assert [cells[-2:] for cells in rows][-1] == ["routed", "1"], "it failed: the mean of one seed"
    assert "6 of" not in made.title and made.remarks[0].startswith("loss: ")
    assert made.failures == ["2 of 12 failed:", "  2 x ValueError: step 10 (trial 10, 11)"]
    assert made.ranking["best"].tolist() == [True, False, False, False]


def test_all_within_noise_is_said(tmp_path):
    rng = np.random.default_rng(0)
    made = account(tmp_path, value=lambda **params: rng.normal())
    assert "differences to the best are within noise" in made.remarks[0]


def test_effects_of_a_whole_grid_are_contrasts_of_its_seeds(tmp_path):
    made = account(tmp_path)
    found = compute_effects(made.study, made.runs, "loss").set_index("effect")
    assert found.index.tolist() == ["router=routed", "lr=1", "router=routed x lr=1"]
    assert found["estimate"].tolist() == pytest.approx([-0.025, -0.275, -0.025])
    assert found.loc["lr=1", "low"] == pytest.approx(-0.275) and (found["seeds"] == 3).all()
    alone = compute_effects(made.study, made.runs[made.runs["lr"] == 1], "loss")
    assert alone["effect"].tolist() == ["router=routed"] and alone["seeds"].tolist() == [3]
    assert alone["estimate"].tolist() == pytest.approx([-0.05])
    holed = account(tmp_path, lost=(0,))
    assert (compute_effects(holed.study, holed.runs, "loss")["seeds"] == 2).all()
    assert compute_effects(holed.study, holed.runs[holed.runs["seed"] == 0], "loss").empty


def test_the_tables_and_pictures_of_a_grid(tmp_path):
    made = account(tmp_path, lost=(3,), names=("loss", "cost"))
    made.write_tables()
    drawn = {path.name for path in made.draw(whole=True)}
    assert drawn == {"seeds.png", "front.png", "effects.png", "effects_2.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    runs = (tmp_path / "runs.csv").read_text().splitlines()
    assert runs[0] == "trial,state,reason,folder,seconds,router,lr,seed,loss,cost"
    assert len(runs) == 13 and runs[4].startswith("3,failed,ValueError: step 3,,")
    assert len((tmp_path / "configurations.csv").read_text().splitlines()) == 5
