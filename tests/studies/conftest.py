"""What tests of whole studies share."""

import pytest

from prismatic.tracking.store import connect


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """MLflow's database as it is at first: making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path
