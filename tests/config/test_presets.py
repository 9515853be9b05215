"""What is typed wins: a file that sets much at once leaves a typed choice of a group alone."""

import re

import pytest
import yaml
from hydra import compose, initialize_config_dir

from prismatic.config import paths
from prismatic.dashboard.rerun import flat

from ..tiny import CONF, ROOT

FOLDERS = [
    CONF / "experiment",
    CONF / "debug",
    ROOT / "sweeps" / "grid",
    ROOT / "sweeps" / "optuna",
]
PRESETS = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
GROUPS = (
    "perturbation",
    "strategy",
    "sparsity",
    "focal",
    "model",
    "router",
    "data",
    "optim",
    "loss",
)
NUMBERS = {"router.num_experts"}  # what may be asked of any option: how many views


def read_keys(path, package=""):
    """The leaves of a file by dotted names, as they stand in the whole configuration."""
    text = path.read_text()
    package = (re.search(r"^# @package (\S+)", text, re.M) or ["", package])[1]
    node = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    prefix = "" if package == "_global_" else f"{package}."
    return dict(flat(node, prefix))


def distinguishing_keys(group):
    """What a group's options are chosen for: the keys to which they give different values."""
    options = [read_keys(path, group) for path in (CONF / group).glob("*.yaml")]
    keys = {key for option in options for key in option}
    differing = {k for k in keys if len({str(one[k]) for one in options if k in one}) > 1}
    return differing - NUMBERS


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_a_preset_chooses_options_and_sets_nothing_that_they_are_chosen_for(path):
    own = read_keys(path).keys()
    assert {key: group for group in GROUPS for key in own & distinguishing_keys(group)} == {}


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("optuna=phase4_scaling focal=helical", "pattern", "helical"),
        ("grid=strategy_x_sparsity focal=helical", "pattern", "helical"),
        ("focal=relative focal.pattern=helical", "units", "fraction"),
        ("grid=strategy_x_sparsity", "pattern", "none"),
        ("experiment=default focal=relative", "length", 0.1),
    ],
)
def test_what_is_typed_beside_a_preset_wins(typed, key, value):
    paths.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", typed.split()).focal[key] == value


def test_a_typed_sparsity_wins_over_a_phase():
    paths.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for phase in ("phase1_validation", "phase2_exploration", "phase3_forced"):
            config = compose("train", [f"grid={phase}", "sparsity=moderate"])
            assert config.perturbation.sparsity == 0.2
