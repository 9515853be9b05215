"""Draws what a run recorded, as files of the run and as artifacts of its loggers."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from prismatic.errors import DiskFullError, naming_full_disk, require
from prismatic.report import FOLDER, described, leading, write_report
from prismatic.report.record import FILE, read


class Pictures(pl.Callback):
    """Writes the pictures of a run's record and `report.html` into the folder `report` of the run.

    After every `every`-th validation (0: none) and at the end, whichever way the run ends. A logger
    with `log_file` gets a copy of them and of the record, one with `describe` what they come to.
    Belongs after what writes the record.
    """

    def __init__(self, every: int = 5) -> None:
        require(every >= 0, "callbacks.pictures.every", every, "give a whole number >= 0")
        self.every, self.validations = every, 0

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.validations += 1
        if self.every and self.validations % self.every == 0:
            self.draw(trainer)

    def on_fit_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.draw(trainer)

    def on_exception(self, trainer: pl.Trainer, *args: Any) -> None:
        with suppress(DiskFullError):  # the exception itself is what to tell
            self.draw(trainer)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draw what is recorded so far; nothing above rank 0 and for a run without a record."""
        folder = Path(trainer.default_root_dir)
        recorded = folder / FILE
        if not (trainer.is_global_zero and recorded.is_file()):
            return
        name = getattr(trainer.logger, "run_name", None)
        title = f"{name}: {folder.name}" if name else folder.name
        found = read(recorded)
        with naming_full_disk(folder / FOLDER):
            files = write_report(found, folder / FOLDER, title)
        for logger in trainer.loggers:
            if hasattr(logger, "log_file"):
                logger.log_file(recorded)
                for path in files:
                    logger.log_file(path, FOLDER)
            if hasattr(logger, "describe"):
                shown = [f"{FOLDER}/{path.name}" for path in leading(files)]
                logger.describe(described(found), shown)
