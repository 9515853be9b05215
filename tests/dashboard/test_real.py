"""Real sweeps from the command line: what one sees, and what one can type next."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

import prismatic

from ..test_end_to_end import command
from ..tiny import ROOT
from .screenshots import CHROMIUM, photograph

pytestmark = pytest.mark.slow

SMALL = ["model=tiny", "data=text", f"data.path={ROOT / 'README.md'}", "data.seq_len=32"]
SMALL += ["optim.warmup_steps=5", "trainer.max_steps=20", "trainer.val_check_interval=10"]
TWO = ["-m", "optuna=diversity_stability", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=6"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A search of two objectives and a grid of which half fails; what the search printed."""
    folder = tmp_path_factory.mktemp("sweeps")
    # The baseline's budget is shared, so that the constraints are really there.
    searched = command("train", *TWO, *SMALL, "seeds=null", folder=folder).stdout
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    grid = ["-m", "focal=none,helical", "optim.lr=0.01,nan", *SMALL]
    subprocess.run(
        [str(ROOT / ".venv" / "bin" / "python"), str(ROOT / "src" / "train.py"), *grid],
        env=environment | {"PRISMATIC_OUTPUTS": str(folder / "outputs")}, capture_output=True,
    )  # fmt: skip
    return folder / "outputs", searched


def test_the_command_repeats_a_trial_bit_for_bit(outputs, tmp_path):
    folder, printed = outputs
    line = printed.partition("the first of the table again:\n")[2].splitlines()[0]
    first = printed[printed.index("───") :].splitlines()[1].split()[0]
    subprocess.run(
        line, shell=True, check=True, cwd=tmp_path, capture_output=True,
        env=os.environ | {"PRISMATIC_OUTPUTS": str(tmp_path)},
    )  # fmt: skip
    [repeated] = [json.loads(path.read_text()) for path in tmp_path.rglob("metrics.json")]
    runs = prismatic.results(folder / "sweeps/diversity_stability").set_index("trial")
    for name in ("objective/diversity", "objective/stability", "views/excess"):
        assert repeated[name] == runs.loc[int(first), name]


def test_a_grid_is_nested_and_its_failures_are_there(outputs):
    client = MlflowClient(f"sqlite:///{outputs[0]}/mlflow.db")
    found = client.search_runs(["1"], "tags.sweep LIKE 'focal_x_optim.lr-%'")
    [parent] = [run for run in found if "trial" not in run.data.tags]
    children = {int(r.data.tags["trial"]): r for r in found if "trial" in r.data.tags}
    assert [children[i].data.tags["state"] for i in range(4)] == ["complete", "failed"] * 2
    assert [children[i].info.status for i in range(4)] == ["FINISHED", "FAILED"] * 2
    assert children[0].info.run_name == "0: attractive"
    assert "optim.lr=nan is not valid" in children[1].data.tags["reason"]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/failed"] == 2
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_ui_shows_it(outputs, tmp_path):
    """The pictures stay in the folder that PRISMATIC_SCREENSHOTS names, if it does."""
    folder = Path(os.environ.get("PRISMATIC_SCREENSHOTS", tmp_path))
    seen = photograph(f"sqlite:///{outputs[0]}/mlflow.db", folder)
    assert set(seen) == {"diversity_stability", "focal x optim.lr"}
    search, grid = seen["diversity_stability"], seen["focal x optim.lr"]
    assert "diversity_stability" in search["runs"] and "focal x optim.lr" in search["runs"]
    assert "on the front, hypervolume" in search["page"] and "viewStateShareKey" in search["page"]
    assert "sweep/hypervolume" in search["page"] and "space.perturbation.scale" in search["page"]
    assert "front.png" in search["front"] and "runs.csv" in search["front"]
    for word in ("perturbation.scale", "objective/diversity", "complete"):
        assert word in search["table"]
    assert "Parallel Coordinates" in search["charts"]
    assert "objective/diversity vs. objective/stability" in search["charts"]
    assert "failed" in grid["table"]
    assert all((folder / f"diversity_stability-{page}.png").stat().st_size for page in search)
