"""What accompanies training: pictures in the folder and the loggers, progress, objectives."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from prismatic import replicas
from prismatic.experiment import build, conclude
from prismatic.report import record
from prismatic.run_folder.contents import read_checkpoint
from prismatic.training import DivergedError, Pictures

from ..tiny import tiny

UNVALIDATED = ["trainer.limit_val_batches=0", "objective=loss/train"]


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
    assert "**No alarm.**" in text and "| validation loss | " in text
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


def fit_with_bar(folder, *overrides):
    bar = ["callbacks=default", *(f"~callbacks.{name}" for name in ("checkpoint", "pictures"))]
    parts = build(tiny(*bar, "trainer.val_check_interval=2", *overrides), folder)
    parts.trainer.fit(parts.learner, parts.data)


def test_a_redirected_log_has_a_line_per_validation(tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    fit_with_bar(tmp_path, "callbacks.progress.refresh_rate=1")
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 2 of 4", "step 4 of 4"]
    assert all(", loss " in line and ", validation loss " in line for line in lines)
    assert not any(capsys.readouterr()), "no bar"


def test_between_validations_there_is_a_line_every_so_often(tmp_path, caplog):
    caplog.set_level("INFO")
    fit_with_bar(tmp_path, "callbacks.progress.seconds=0", *UNVALIDATED)
    steps = [line.split(",")[0] for line in caplog.messages if line.startswith("step ")]
    assert steps == [f"step {step} of 4" for step in (1, 2, 3, 4)]


def test_a_terminal_has_a_bar(tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    fit_with_bar(tmp_path, "callbacks.progress.refresh_rate=1")
    assert "4/4" in capsys.readouterr().out
    assert not any(line.startswith("step ") for line in caplog.messages)


def test_without_validation_a_run_may_have_an_objective_of_its_training(tmp_path):
    config = tiny(*UNVALIDATED, "callbacks=default")
    config.callbacks = {"checkpoint": config.callbacks.checkpoint}
    assert replicas.run(config, tmp_path) > 0
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_a_run_counts_as_finished_only_after_its_last_check(tmp_path):
    ended = []
    logger = SimpleNamespace(log_metrics=lambda *args: None, finalize=ended.append)
    with pytest.raises(ValueError, match="objective='loss/excess' is not valid"):
        conclude(tiny("objective=loss/excess"), {"loss/val": 1.0}, logger)
    assert ended == ["failed"]
    with pytest.raises(ValueError, match="objective='loss/excess' is not valid"):
        replicas.run(tiny("objective=loss/excess", "trainer.max_steps=8"), tmp_path)
    assert not (tmp_path / "metrics.json").exists(), "found at the first validation"


LONG = ["callbacks.progress=null", "callbacks.pictures=null", "trainer.max_steps=12"]
LONG += ["trainer.val_check_interval=2", "callbacks.views_alone=null"]


def test_the_best_few_checkpoints_are_kept_and_the_very_best_has_its_name(tmp_path):
    parts = build(tiny("callbacks=default", *LONG, "callbacks.checkpoint.save_top_k=2"), tmp_path)
    fit(parts)
    kept = parts.trainer.checkpoint_callback.best_k_models
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert len(kept) == 2
    assert names == {"best.ckpt", "last.ckpt", *(Path(path).name for path in kept)}
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert f"step_{best['global_step']}.ckpt" == Path(min(kept, key=kept.get)).name


def test_a_run_that_no_longer_improves_ends_early(tmp_path):
    still = ["callbacks.early_stopping.min_delta=100", "callbacks.early_stopping.patience=2"]
    parts = build(tiny("callbacks=early_stopping", *LONG, *still), tmp_path)
    fit(parts)
    assert parts.trainer.global_step == 2 + 2 * 2  # the first validation, and two no better
