import pytest

from prismatic.tracking import connect


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The address of a sqlite store in a folder with a space, which takes seconds to make."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/out puts/mlflow.db"
    connect(uri)
    return uri
