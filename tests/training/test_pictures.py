"""Pictures lie in the run's folder and in its loggers, whichever way the run ends."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from prismatic.experiment import build
from prismatic.report import record
from prismatic.training import DivergedError, Pictures

from ..tiny import tiny


class Recorder(Callback):
    """Records losses, in place of all that a run measures."""

    def on_fit_start(self, trainer, *args):
        self.path = Path(trainer.default_root_dir) / record.FILE
        record.begin(self.path, {"views": 1})

    def on_validation_end(self, trainer, *args):
        loss = trainer.callback_metrics["loss/val"]
        record.append(self.path, trainer.global_step, {"loss/val": loss})


class Keeper(CSVLogger):
    """A logger that takes files, as MLflow's does."""

    run_name = "attractive"

    def __init__(self, folder):
        super().__init__(folder)
        self.files, self.told = [], []

    def describe(self, text, pictures):
        self.told.append((text, pictures))

    def log_file(self, path, folder=None):
        self.files.append((folder, Path(path).name))


def run(folder, every=0, recorder=True):
    """What a tiny run of four steps and two validations gives to a logger."""
    parts = build(tiny("trainer.val_check_interval=2"), folder)
    keeper = Keeper(folder)
    callbacks = ([Recorder()] if recorder else []) + [Pictures(every)]
    parts.trainer.callbacks += callbacks
    parts.trainer.loggers = [keeper, CSVLogger(folder)]
    return parts, keeper


def fit(parts):
    parts.trainer.fit(parts.learner, parts.data)


def test_pictures_are_drawn_at_the_end_for_the_folder_and_the_logger(tmp_path):
    parts, keeper = run(tmp_path)
    fit(parts)
    kept = {path.name for path in (tmp_path / "report").iterdir()}
    assert kept == {"losses.png", "report.html"}
    assert set(keeper.files) == {
        (None, record.FILE), ("report", "losses.png"), ("report", "report.html"),
    }  # fmt: skip
    assert len(keeper.files) == 3, "drawn once"
    [(text, pictures)] = keeper.told
    assert text.startswith("**No alarm.**") and "| validation loss | " in text
    assert pictures == ["report/losses.png"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert f"attractive: {tmp_path.name}" in page


def test_pictures_are_drawn_at_a_set_cadence(tmp_path):
    parts, keeper = run(tmp_path, every=1)
    fit(parts)
    assert keeper.files.count(("report", "report.html")) == 3  # two validations and the end


def test_a_run_that_fails_has_pictures_of_what_it_reached(tmp_path):
    parts, keeper = run(tmp_path)
    block = parts.model.blocks[0]
    after = parts.learner.on_validation_epoch_end

    def break_weights():
        after()
        with torch.no_grad():
            next(block.parameters()).fill_(torch.nan)

    parts.learner.on_validation_epoch_end = break_weights
    with pytest.raises(DivergedError):
        fit(parts)
    assert ("report", "report.html") in keeper.files
    assert (tmp_path / "report" / "losses.png").is_file()


def test_a_run_without_a_record_has_no_pictures(tmp_path):
    parts, keeper = run(tmp_path, recorder=False)
    fit(parts)
    assert keeper.files == [] and not (tmp_path / "report").exists()


def test_a_cadence_must_be_a_count(tmp_path):
    with pytest.raises(ValueError, match=r"callbacks.pictures.every=-1 .* whole number >= 0"):
        Pictures(-1)
