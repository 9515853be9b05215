"""Losses of a small fixed run, so that a change of the mathematics does not pass unseen.

If the change is meant: GOLDEN=write .venv/bin/python -m pytest tests/golden
"""

import json
import os
from pathlib import Path

import pytest

from ..tiny import fit, text_data

LOSSES = Path(__file__).with_name("losses.json")
FIXED = [
    "trainer.precision=64-true", "trainer.max_steps=10", "seed=0", "router.num_experts=3",
    "router.balance_loss=0.01", "router.z_loss=0.001", "router.expert_dropout=0.1",
    "model.depth=3", "perturbation=noise", "focal.length=50", "focal.wavelength=200",
    "optim.lr=0.01",
]  # fmt: skip
RUNS = {
    "prismatic": FIXED,
    "attractive": [*FIXED, "perturbation=attractive", "router.level=sequence", "router.pool=first"],
    "dense": ["router=dense", *FIXED[:2]],
}


def test_the_first_losses_are_the_known_ones(tmp_path):
    found = {name: fit(tmp_path / name, *text_data(tmp_path), *RUNS[name])[1] for name in RUNS}
    if os.environ.get("GOLDEN") == "write":
        LOSSES.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(LOSSES.read_text())
    assert found.keys() == expected.keys()
    for name, losses in expected.items():
        assert found[name] == pytest.approx(losses, rel=1e-6), name
