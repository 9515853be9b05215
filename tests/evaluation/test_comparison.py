"""Runs are laid side by side, from their folders and from MLflow."""

import json
import re

import pytest

from prismatic.evaluation.comparison import compare
from prismatic.report import compute_differences, draw_comparison, record
from prismatic.run_folder.contents import CONFIG
from prismatic.tracking.logger import MLflowLogger

from ..report import records
from ..tiny import CONF, composed


def write_run(folder, recorded=None, **config):
    """A run's folder: its configuration and, if given, its record."""
    folder.mkdir(parents=True)
    values = {"seed": 0, "model": {"dim": 8}, "router": {"focal": {"length": 1}}} | config
    (folder / CONFIG).write_text(json.dumps(values))  # JSON is YAML
    if recorded is not None:
        lines = [{"about": recorded.about}, *recorded.lines]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / record.FILE).write_text(text)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "2026-01-01"
    routed = (*records.ROUTING, *records.DOMAIN, *records.DEPENDENCE, *records.BETWEEN)
    dense = records.without(*routed, views=1, norm_E=[])
    return [
        write_run(root / "12-00-00", records.with_alarms((30, "nan")), model={"dim": 8}),
        write_run(root / "12-00-01", dense, model={"dim": 16}, router={"focal": {"length": 2}}),
        write_run(root / "12-00-02"),
    ]


@pytest.fixture(scope="module")
def store(folders, tmp_path_factory):
    """An MLflow store that holds the first two runs, and their ids."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    ids = []
    for folder in folders[:2]:
        logger = MLflowLogger(uri, run_name="attractive")
        for path in (folder / CONFIG, folder / record.FILE):
            logger.log_file(path)
        logger.finalize("success")
        ids.append(logger.version)
    return uri, ids


def rows(text):
    """The table's cells by the name of their row."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line[1:]}


EXPECTED = {
    "validation loss": ["2.4", "2.4"], "best at step": ["30", "30"], "alarms": ["nan", "none"],
    "input dependence": ["0.2", "-"], "input dependence, untrained twin": ["0.05", "-"],
    "mutual information with domain": ["0.1", "-"],
    "mutual information, untrained twin": ["0.01", "-"],
    "relative norm of the strongest view": ["0.3", "-"], "model.dim": ["8", "16"],
}  # fmt: skip


def test_folders_are_compared(folders, tmp_path):
    text = compare([str(folder) for folder in folders[:2]], "sqlite:////nowhere/x.db", tmp_path)
    found = rows(text)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert "seed" not in found and "router.focal.length" not in found
    assert f"{tmp_path / 'compare.html'}" in text
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "compare.html").read_text()
    assert "data:image/png;base64," in page and "<td>model.dim</td>" in page
    assert "2026-01-01/12-00-00" in text and "2026-01-01/12-00-01" in page


def test_runs_of_mlflow_are_compared(store, tmp_path):
    uri, ids = store
    text = compare(ids, uri, tmp_path)
    found = rows(text)
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert f"attractive {ids[0][:8]}" in text and (tmp_path / "compare.html").is_file()


def test_a_folder_and_a_run_of_mlflow_are_compared(folders, store, tmp_path):
    uri, ids = store
    found = rows(compare([str(folders[0]), ids[1]], uri, tmp_path))
    assert found["model.dim"] == ["8", "16"]


def test_a_run_without_a_record_is_named(folders, tmp_path):
    text = compare([str(folders[0]), str(folders[2])], "", tmp_path)
    assert "2026-01-01/12-00-02 left no record" in text
    assert rows(text)["validation loss"] == ["2.4", "-"]
    assert "left no record" in (tmp_path / "compare.html").read_text()


def test_runs_without_any_record_have_a_picture_that_says_so():
    figure = draw_comparison({"a": None, "b": None})
    assert not figure.axes and "left a record" in figure.texts[0].get_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["A"], "name at least two different runs"),
        (["A", "A"], "name at least two different runs"),
        (["A", "A/"], "a run is named twice"),
        (["A", "nowhere"], r"nowhere is neither a run folder \(it has no config.yaml\) nor a run"),
        (["A", "0" * 32], "the run 0{32} of sqlite.* is missing"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(names, message, folders, store, tmp_path):
    typed = [name.replace("A", str(folders[0])) for name in names]
    with pytest.raises(ValueError, match=message):
        compare(typed, store[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_what_differs_and_all_have_is_listed():
    configs = {"a": {"x": "1", "y": "2", "only": "3"}, "b": {"x": "1", "y": "5"}}
    assert compute_differences(configs) == [["y", "2", "5"]]


def test_the_command_writes_where_it_says(folders, script, tmp_path):
    outcome = script("eval", f"compare=[{folders[0]},{folders[1]}]")
    assert outcome.status == 0, outcome.err
    [page] = (tmp_path / "outputs" / "compare").glob("*/*/compare.html")
    assert str(page) in outcome.out
    outcome = script("eval", f"compare=[{folders[0]},{folders[1]}]", "run=x")
    assert outcome.status == 1 and "here: run, compare" in outcome.err
    outcome = script("eval", f"compare={folders[0]}")
    assert outcome.status == 1 and "give a list, 'compare=[<run>,<run>]'" in outcome.err


def test_the_store_is_that_of_training(monkeypatch):
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(CONF))
    ours, theirs = composed(config_name="eval"), composed()
    assert ours.tracking_uri == theirs.logger.tracking_uri
