"""Runs side by side, from their folders or from MLflow."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from prismatic.config.paths import absolute
from prismatic.errors import require
from prismatic.report import write_comparison
from prismatic.report.record import FILE, Record, read
from prismatic.run_folder.contents import CONFIG
from prismatic.tracking import connect, flatten
from prismatic.tracking.store import find_run as find_stored_run

COPIES = ("router.focal.", "router.perturbation.")  # of groups that stand in the file themselves


class ComparedRun(NamedTuple):
    """A run by a label that tells it from others; the record is None where it left none."""

    label: str
    config: dict[str, str]
    record: Record | None


def compare(names: Sequence[str], tracking_uri: str, output: Path) -> str:
    """Write an overlay of runs and their tables to `output`; the tables as text, and where it is.

    Runs are named by folder or by MLflow's id. Raises `ValueError` for fewer than two, for one that
    is named twice and for one that is not there.
    """
    require(len(set(names)) > 1, "compare", list(names), "name at least two different runs")
    runs = [find_run(name, tracking_uri) for name in names]
    labels = [run.label for run in runs]
    require(len(set(labels)) == len(labels), "compare", list(names), "a run is named twice")
    records = {run.label: run.record for run in runs}
    configs = {run.label: run.config for run in runs}
    path, text = write_comparison(records, configs, output)
    return f"{text}\n\npicture and table: {path}"


def find_run(name: str, tracking_uri: str) -> ComparedRun:
    """A run by its folder or its id in MLflow."""
    folder = absolute(name)
    if (folder / CONFIG).is_file():
        return read_folder(folder, "/".join(folder.resolve().parts[-2:]))
    if not re.fullmatch(r"[0-9a-f]{32}", name):
        raise ValueError(
            f"{name} is neither a run folder (it has no {CONFIG}) nor a run id: give a folder "
            "that src/train.py printed, such as outputs/runs/<date>/<time>, or an id of 32 "
            "characters from MLflow's UI"
        )
    return download(name, tracking_uri)


def read_folder(folder: Path, label: str) -> ComparedRun:
    """A run from the files that it left in a folder."""
    config = OmegaConf.load(folder / CONFIG)
    assert isinstance(config, DictConfig)
    entries = {key: value for key, value in flatten(config) if not key.startswith(COPIES)}
    recorded = folder / FILE
    return ComparedRun(label, entries, read(recorded) if recorded.is_file() else None)


def download(run_id: str, tracking_uri: str) -> ComparedRun:
    """A run from what MLflow keeps of it. Raises `ValueError` for one that it does not have."""
    client = connect(tracking_uri)
    run = find_stored_run(client, run_id, tracking_uri)
    kept = {entry.path for entry in client.list_artifacts(run_id)}
    if CONFIG not in kept:
        raise ValueError(f"run {run_id} has no {CONFIG} among its artifacts: this project made it?")
    with TemporaryDirectory() as folder:
        for name in kept & {CONFIG, FILE}:
            client.download_artifacts(run_id, name, folder)
        return read_folder(Path(folder), f"{run.info.run_name} {run_id[:8]}")


def main(config: Any) -> None:
    """What `src/eval.py compare=` does."""
    listed = not isinstance(config.compare, str)
    require(listed, "compare", config.compare, "give a list, 'compare=[<run>,<run>]'")
    names = [str(name) for name in config.compare]
    print(compare(names, config.tracking_uri, absolute(config.output)))
