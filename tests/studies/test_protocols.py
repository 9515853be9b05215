"""Every arm of the studies' own YAML files is a run that exists, at every tier."""

import pytest

from prismatic.experiment import build
from prismatic.studies.runner import jobs

from ..tiny import QUIET, composed
from .protocols import declared, probes

STUDIES = ["benefit", "leak", "pi_seeding", "sparsity"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_every_tier_composes(name):
    study = declared(name)
    for tier in study.tiers.values():
        for one in jobs(study, tier, [0]):
            config = composed(*QUIET, *one.overrides, *probes(name))
            assert config.trainer.max_steps >= 1 and config.tags == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_the_cpu_tier_builds(name, tmp_path):
    study = declared(name)
    small = [] if name == "leak" else ["data.max_bytes=30_000"]
    for one in jobs(study, study.tier("cpu"), [0]):
        parts = build(composed(*QUIET, *one.overrides, *probes(name), *small), tmp_path)
        assert len(parts.trainer.callbacks) >= 1 + len(probes(name))
