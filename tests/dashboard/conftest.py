"""Sweeps of the toy app of the plugins' tests, which take simulated time."""

import pytest

from ..hydra_plugins.conftest import hydra_is_left_clean  # noqa: F401
from ..hydra_plugins.toys import Sweep


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)
