"""Pictures and page of every search: without a result, with failures alone, and with enough."""

import json

import numpy as np
import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial

from prismatic.dashboard.account import Account
from prismatic.dashboard.knobs import compute_importance
from prismatic.dashboard.page import write_page

SPACE = {"x": FloatDistribution(0.1, 100, log=True), "kind": CategoricalDistribution(("a", "b"))}


def account(folder, rows):
    """A search whose trials have these values, with None for one that failed."""
    count = max((len(values) for values in rows if values), default=1)
    study = optuna.create_study(study_name="search", directions=["maximize"] * count)
    names = [f"m{i}" for i in range(count)]
    params = {name: json.loads(distribution_to_json(one)) for name, one in SPACE.items()}
    study.set_user_attr("question", {"params": params, "objectives": names})
    study.set_user_attr("total", len(rows))
    for i, values in enumerate(rows):
        failed = values is None
        study.add_trial(
            create_trial(
                params={"x": 1.0 + i, "kind": "ab"[i % 2]}, values=values, distributions=SPACE,
                state=TrialState.FAIL if failed else TrialState.COMPLETE,
                user_attrs={"reason": "ValueError: no luck"} if failed else {},
            )
        )  # fmt: skip
    overrides = {"task": ["optuna=x"], "hydra": ["hydra.mode=MULTIRUN", "hydra.sweep.dir='s'"]}
    config = {"seed": 0, "seeds": None, "hydra": {"overrides": overrides}}
    config["hydra"]["runtime"] = {"config_sources": []}
    return Account(study, OmegaConf.create(config), folder)


@pytest.mark.parametrize("rows", [[], [None, None]], ids=["no trial", "failures alone"])
def test_a_sweep_without_a_result_has_a_page(tmp_path, rows):
    made = account(tmp_path, rows)
    made.write_tables()
    text = write_page(made, made.draw(whole=True)).read_text()
    assert "no trial is complete and feasible" in text
    assert ("2 x" in "".join(made.failures)) == ("no luck" in text) == bool(rows)
    assert ("-m optuna=x hydra.sweeper.retry=failed" in text) == bool(rows)


def test_importance_tells_what_matters_from_what_does_not(tmp_path):
    made = account(tmp_path, [[float(i % 2)] for i in range(16)])
    found = compute_importance(made.study).set_index("parameter")
    assert found.loc["kind", "fANOVA"] > 0.8 and found["fANOVA"].sum() == pytest.approx(1)
    assert found.loc["kind", "PED-ANOVA"] > found.loc["x", "PED-ANOVA"]
    assert compute_importance(account(tmp_path, [[1.0]] * 9).study).empty, "too few"


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_pictures_of_every_search_are_in_its_page(tmp_path, objectives):
    values = np.random.default_rng(1).random((12, objectives)).tolist()
    made = account(tmp_path, [*values, None])
    drawn = {path.name for path in made.draw(whole=True)}
    kinds = ("parameters", "contour", "parallel")
    expected = {f"{kind}_{i}.png" for kind in kinds for i in range(2, objectives + 1)}
    expected |= {f"{kind}.png" for kind in (*kinds, "importance", "history")}
    assert drawn == expected | ({"front.png"} if objectives in (2, 3) else set())
    text = write_page(made, [tmp_path / name for name in sorted(drawn)]).read_text()
    assert text.count("data:image/png;base64,") == len(drawn)
