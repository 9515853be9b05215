"""Sweeps that run in this process must not leave Hydra's global state to the tests after them."""

from collections.abc import Iterator

import pytest
from hydra.core.global_hydra import GlobalHydra


@pytest.fixture(autouse=True)
def hydra_is_left_clean() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()
