"""One command from a YAML to a verdict, recorded in MLflow; it goes on where it was stopped."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from hydra import initialize_config_dir
from mlflow import MlflowClient

from prismatic.studies import build
from prismatic.studies.study import digest
from prismatic.studies.summary import latest, present

from ..tiny import ROOT, composed
from .toys import CONF

TOY = ["--config-dir", str(CONF), "study=toy"]


@pytest.fixture
def study(script, tmp_path, empty_store):
    """Runs the toy study in this process: study("tier=cpu") -> outcome, its folder."""
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_store, tmp_path / "outputs" / "mlflow.db")

    def run(*arguments: str, name: str = "study"):
        done = script(name, *TOY, "executor=inline", *arguments)
        folders = sorted((tmp_path / "outputs" / "studies" / "toy").glob("*"))
        return done, folders[-1] if folders else None

    return run


def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")


def test_a_study_from_its_yaml_to_its_verdict(study, tmp_path):
    done, folder = study("tier=cpu")
    assert done.status == 0, done.err
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 24
    fast = table[table["arm"] == "fast"]
    assert (fast["diverged"] == 1).all()
    assert fast["loss/val"].tolist() == [pytest.approx(math.log(16))] * 6  # divergence is data
    assert "routing/expert_3_weight" in table and "routing/entropy" not in table
    losses = table.set_index(["arm", "seed"])["loss/val"]
    assert losses["dense"].tolist() == losses["zero"].tolist()  # bit for bit

    result = json.loads((folder / "verdict.json").read_text())
    assert result["claims"]["better"]["verdict"] == "refuted"
    assert result["failed_controls"] == []
    assert {f["verdict"] for one in result["controls"].values() for f in one.values()} == {
        "supported"
    }
    assert "verdict: " in done.out and str(folder / "report.html") in done.out
    page = (folder / "report.html").read_text()
    assert "Does routing help where nothing can be learned?" in page
    assert "http" not in page.split("</style>")[1]  # it opens offline
    for name in ("claim_better.png", "claim_worse.png", "measure_loss_val.png"):
        assert (folder / name).stat().st_size > 3000
        assert (name in (folder / "report.md").read_text()) == name.startswith("claim")


def test_mlflow_has_a_run_for_the_study_and_one_below_it_for_each_run(study, tmp_path):
    _, folder = study("tier=smoke")
    store = client(tmp_path)
    [experiment] = [e for e in store.search_experiments() if e.name == "prismatic"]
    runs = store.search_runs([experiment.experiment_id])
    [parent] = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 6
    known = folder.name.rpartition("-")[2]
    assert {r.data.tags["study_hash"] for r in runs} == {known}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert parent.data.tags["verdict"] == "no verdict"
    assert parent.data.tags["verdict.better/routed"] == "no verdict"
    assert "effect/better/routed" in parent.data.metrics
    assert "token, routed, seed 1" in {r.info.run_name for r in children}
    files = {file.path for file in store.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/verdict.json", "report/table.csv"} <= files
    assert "study.yaml" in {file.path for file in store.list_artifacts(parent.info.run_id)}


def test_finished_runs_are_not_repeated(study, tmp_path):
    _, folder = study("tier=smoke")
    measured = sorted(folder.glob("runs/*/*/measures.json"))
    before = {path: path.stat().st_mtime_ns for path in measured}
    first = pd.read_csv(folder / "table.csv")
    measured[0].unlink()
    assert study("tier=smoke")[0].status == 0
    again = {path: path.stat().st_mtime_ns for path in measured}
    assert [path for path in measured if again[path] != before[path]] == measured[:1]
    same = ["arm", "seed", "loss/val"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table.csv")[same], first[same])
    store = client(tmp_path)
    parents = [r for r in store.search_runs(["1"]) if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1


def test_another_specification_is_another_study(study):
    _, first = study("tier=smoke")
    done, _ = study("tier=smoke", "study.claims.better.smallest_effect=0.4")
    assert done.status == 0
    assert len(list(first.parent.glob("smoke-*"))) == 2


def test_a_table_with_a_hole_is_not_judged(study):
    done, folder = study("tier=smoke", "study.arms.dense=['router=dense','optim.batch_size=0']")
    assert done.status == 1
    assert "2 of 6 runs failed" in done.err and "an incomplete table is not judged" in done.err
    assert "optim.batch_size=0 is not valid" in done.out + done.err
    assert not (folder / "verdict.json").exists()
    assert len(list(folder.glob("runs/*/*/measures.json"))) == 4


def test_pilot_seeds_give_the_spread_of_effects_and_no_verdict(study):
    done, folder = study("tier=smoke", "pilot=2")
    assert done.status == 0
    assert "standard deviation" in done.out and "verdict" not in done.out
    assert not (folder / "verdict.json").exists()
    seeds = {path.parent.name for path in folder.glob("runs/*/*/measures.json")}
    assert seeds == {"seed_10000", "seed_10001"}


def test_a_study_that_runs_elsewhere_is_left_alone(study):
    _, folder = study("tier=smoke")
    with FileLock(folder / "lock"):
        done, _ = study("tier=smoke")
    assert done.status == 1
    assert "another process runs this study" in done.err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tier=big", "tier='big' is not valid: choose one of smoke, cpu, gpu"),
        ("tier=gpu", "tier='gpu' is not valid: choose one of smoke, cpu"),
        ("+seed=3", "there is no key seed"),
        ("pilot=1", "pilot=1 is not valid: give a number of seeds >= 2"),
        ("executor=process", "executor='process' is not valid: choose one of fork, inline"),
        ("output=/proc/no", "output='/proc/no' is not valid: give a folder that can be written"),
        (
            "study.arms.dense=['router=dens']",
            "arm 'dense': In 'train': Could not find 'router/dens'",
        ),
        ("study.claims.better.measure=loss/vall", "measure of better='loss/vall' is not valid"),
    ],
)
def test_bad_input_is_one_error(study, argument, message):
    done, _ = study(argument)
    assert done.status == 1
    assert message in done.err and "Traceback" not in done.err


def test_one_study_at_a_time(script):
    done = script("study", "study=[leak,floor]")
    assert done.status == 1 and "give one: `-m study=leak,floor`" in done.err


def test_a_folder_with_a_quote_in_its_name(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(tmp_path / "it's"))
    done = script("study", *TOY, "executor=inline", "tier=smoke")
    assert done.status == 0, done.err


def test_what_is_to_be_repeated_is_what_was_typed(study):
    typed = ["study.claims.better.smallest_effect=0.4", "logger.experiment_name=of_${tier}"]
    _, folder = study("tier=smoke", *typed)
    told = shlex.split(json.loads((folder / "verdict.json").read_text())["command"])
    assert str(CONF) in told and set(typed) <= set(told)


def test_a_result_of_another_specification_is_marked():
    """It also yields to one of a smaller tier that has the present one."""
    results = [
        {"study": "a", "tier": "gpu", "hash": "old"},
        {"study": "a", "tier": "cpu", "hash": "new"},
        {"study": "a", "tier": "smoke", "hash": "new"},
        {"study": "b", "tier": "cpu", "hash": "old"},
        {"study": "c", "tier": "cpu", "hash": "any"},
    ]
    known = {"a": "new", "b": "new"}
    found = latest(results, lambda study, tier: known.get(study))
    marked = [(one["study"], one["tier"], one["outdated"]) for one in found]
    assert marked == [("a", "cpu", False), ("b", "cpu", True), ("c", "cpu", False)]


def test_what_a_study_is_known_by_is_found_again():
    node = build(composed("study=leak", config_name="study").study).node
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for tier in ("smoke", "cpu"):
            assert present("leak", tier) == digest(node, tier)
        assert present("no_such_study", "cpu") is None


def test_a_summary_of_all_studies(study, script, tmp_path):
    none = script("study", "study=summary")
    assert none.status == 1 and "holds no finished study" in none.err
    study("tier=smoke")
    study("tier=cpu")
    done = script("study", "study=summary", "publish=true")
    assert done.status == 0
    folder = tmp_path / "outputs" / "studies"
    text = (folder / "summary.md").read_text()
    assert "toy (cpu)" in text and "toy (smoke)" not in text  # the largest tier counts
    assert "Routing is better than none" in text and "refuted" in text
    [link] = [line for line in text.splitlines() if line.startswith("- [toy](")]
    assert (folder / link.split("(")[1].split(")")[0]).is_file()
    assert "A mad learning rate is worse" in (folder / "summary.html").read_text()
    results = tmp_path / "outputs" / "results"
    assert "| [toy](toy/report.md) |" in (results / "README.md").read_text()
    report = (results / "toy" / "report.md").read_text()
    shown = [line.split("(")[1].split(")")[0] for line in report.splitlines() if line[:2] == "!["]
    kept = {path.name for path in (results / "toy").iterdir()}
    assert kept == {"verdict.json", "table.csv", "report.md", *shown}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_study_killed_in_the_middle_goes_on(tmp_path, kind):
    command = [sys.executable, str(ROOT / "src" / "study.py"), *TOY, "tier=cpu"]
    environment = os.environ | {"PRISMATIC_OUTPUTS": str(tmp_path / "outputs")}
    begun = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (found := list(tmp_path.rglob("measures.json"))):
        assert begun.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    begun.send_signal(kind)
    out, _ = begun.communicate(timeout=60)
    assert ("the same command goes on" in out) == (kind != signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in found}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in found} == kept
    assert len(list(tmp_path.rglob("measures.json"))) == 24
    statuses = {run.info.status for run in client(tmp_path).search_runs(["1"])}
    assert "RUNNING" not in statuses
