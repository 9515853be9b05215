"""Hydra's own suites for launchers, for each way to run a trial.

A trial by command (`process`) composes anew; a sweep from within a test has no command, and its
trials are then forks of a server that has loaded the task alone.
"""

import os
from pathlib import Path

import pytest
from hydra import version
from hydra.core.singleton import Singleton
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

from hydra_plugins.prismatic_local import _trials

SOURCES = Path(__file__).parents[2] / "src"
# The suites give no `version_base`, as whoever has not yet chosen.
pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer:UserWarning")
EXECUTORS = ("inline", "fork", "process")


@pytest.fixture(autouse=True)
def no_version_base():
    """Hydra keeps the last `version_base` of a process, here that of other tests."""
    before = Singleton.get_state()
    version.VersionBase.instance().version_base = version._UNSPECIFIED_
    yield
    Singleton.set_state(before)


@pytest.fixture(autouse=True)
def no_server_is_left(monkeypatch):
    """The suites never close a launcher, whose fork server would live as long as the tests."""
    served = set()
    serve = _trials.Processes.serve
    monkeypatch.setattr(_trials.Processes, "serve", lambda self: (served.add(self), serve(self))[1])
    yield
    for processes in served:
        processes.close()


def settings(executor: str) -> dict:
    return {"executor": executor, "n_jobs": 2, "preload": []}


def overrides(executor: str) -> list[str]:
    return [f"hydra.launcher.{key}={value}" for key, value in settings(executor).items()]


@pytest.mark.parametrize("launcher_name", ["prismatic_local"])
@pytest.mark.parametrize(
    "overrides", [overrides(executor) for executor in EXECUTORS], ids=EXECUTORS
)
class TestLauncher(LauncherTestSuite):
    """One batch of trials."""


@pytest.mark.parametrize("launcher_name", ["prismatic_local"])
@pytest.mark.parametrize(
    "overrides",
    [["hydra.sweeper.max_batch_size=2", *overrides(executor)] for executor in EXECUTORS],
    ids=EXECUTORS,
)
class TestBatches(BatchedSweeperTestSuite):
    """Several batches, one after another."""


def configuration(executor: str) -> dict:
    return {
        "defaults": [{"override hydra/launcher": "prismatic_local"}],
        "hydra": {"launcher": settings(executor)},
    }


@pytest.mark.parametrize("extra_flags", [["-m"]])
@pytest.mark.parametrize(
    "task_launcher_cfg", [configuration(executor) for executor in EXECUTORS], ids=EXECUTORS
)
class TestScripts(IntegrationTestSuite):
    """Scripts as commands."""

    @pytest.fixture(autouse=True)
    def plugin(self, monkeypatch):
        inherited = filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(inherited))
