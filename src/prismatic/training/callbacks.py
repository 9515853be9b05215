"""What accompanies training: progress, clock, checkpoints, a sweep's eye on its trial, pictures."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.data import Batch
from prismatic.errors import DiskFullError, naming_full_disk, one_of, require
from prismatic.files import append_line, replacing
from prismatic.measures.guard import FATAL
from prismatic.measures.held_out import probe_of, views_over_merged
from prismatic.measures.objectives import forced_views
from prismatic.report import FOLDER, described, leading, write_report
from prismatic.report.answer import OVER_MERGED
from prismatic.report.record import FILE, append, read

from .diagnostics import Diagnostics
from .module import Learner

PREDICTIONS = "predictions.pt"  # log-probabilities
BEST = "best.ckpt"
STOP = "stop"  # the file by which a sweep ends a run; holds the reason

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the current loss, bits per byte and routing entropy.

    Where the output is no terminal: a line every `seconds`, and one at each validation.
    """

    def __init__(self, refresh_rate: int = 10, seconds: float = 30.0) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.seconds, self.last_line = seconds, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.last_line = time.monotonic()
        if not sys.stdout.isatty():
            self.disable()

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        return {name: f"{value:.3f}" for name, value in pl_module.live.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if self.is_disabled and time.monotonic() - self.last_line >= self.seconds:
            self.write_line(trainer, self.get_metrics(trainer, pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.is_disabled and "loss/val" in trainer.callback_metrics:
            loss = f"{float(trainer.callback_metrics['loss/val']):.3f}"
            self.write_line(
                trainer, self.get_metrics(trainer, pl_module) | {"validation loss": loss}
            )

    @rank_zero_only
    def write_line(self, trainer: pl.Trainer, shown: Mapping[str, str]) -> None:
        self.last_line = time.monotonic()
        end = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        values = "".join(f", {name} {value}" for name, value in shown.items())
        log.info(f"step {trainer.global_step}{end}{values}")


class Clock(pl.Callback):
    """Logs `time/step` in seconds and `time/tokens_per_second` over all ranks.

    Averaged over the steps since it last logged; validation and checkpoints are not counted.
    """

    def __init__(self) -> None:
        self.seconds, self.tokens, self.steps, self.begun = 0.0, 0, 0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        self.seconds += time.perf_counter() - self.begun
        self.tokens += batch.tokens_BT.numel() * trainer.world_size
        self.steps += 1
        if trainer._logger_connector.should_update_logs and self.seconds:
            pl_module.log("time/step", self.seconds / self.steps)
            pl_module.log("time/tokens_per_second", self.tokens / self.seconds)
            self.seconds, self.tokens, self.steps = 0.0, 0, 0


class Objectives(pl.Callback):
    """Refuses an objective that is not measured: at the first validation.

    Also at the end, before a logger is told that the run succeeded.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name in self.names:
            one_of("objective", name, tuple(sorted(trainer.callback_metrics)))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_end(trainer, pl_module)


class TrialProgress(pl.Callback):
    """Lets a sweep follow a trial by way of its folder, and end it.

    Every validation adds a line to `progress.jsonl`: {"step": int, "values": {objective: float}},
    and so does an alarm for which a sweep may give a trial up: {"alarm/{name}": 1.0}. At a
    validation a file `stop`, which holds a reason, ends the training; `stopped` is then true on all
    ranks.
    Of several trainings, one after another, each counts on from the step where the one before was
    to end, so that two trials at the same step are equally far.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self.begun, self.end, self.stopped = 0, 0, False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun, self.end = self.end, self.end + max(trainer.max_steps, 0)
        self.alarms: set[str] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        guards = [c.guard for c in callbacks if isinstance(c, Diagnostics)]
        sounded = {name for guard in guards for name in guard.sounded & FATAL}
        if sounded - self.alarms:
            self.tell(trainer, {f"alarm/{name}": 1.0 for name in sorted(sounded)})
        self.alarms |= sounded

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        values = {name: float(metrics[name]) for name in self.names if name in metrics}
        self.tell(trainer, values)
        self.stopped = trainer.strategy.broadcast((self.folder / STOP).exists())
        if self.stopped:
            trainer.should_stop = True

    def tell(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Add a line, on rank 0."""
        if trainer.is_global_zero:
            line = json.dumps({"step": self.begun + trainer.global_step, "values": values})
            append_line(self.folder / "progress.jsonl", line)


class Predictions(pl.Callback):
    """Keeps in the run's folder what its views predict at last on the probe: (E, K, V)."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        probe = (part.to(pl_module.device) for part in pl_module.probe[:2])
        logp_EKV = forced_views(pl_module.model, *probe)
        torch.save(logp_EKV.cpu(), Path(trainer.default_root_dir) / PREDICTIONS)


def publish(trainer: pl.Trainer, found: Mapping[str, float]) -> None:
    """Add what is known only as training ends to the run's metrics, its record and its loggers."""
    trainer.callback_metrics.update({name: torch.tensor(x) for name, x in found.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(found), trainer.global_step)
    recorded = Path(trainer.default_root_dir) / FILE
    if trainer.is_global_zero and recorded.is_file():
        append(recorded, trainer.global_step, found)


class ViewsAlone(pl.Callback):
    """Gives at last what each view alone loses over all of them merged: `views/{i}/over_merged`.

    On `rows` sequences of the validation data, evenly from all of them.
    """

    def __init__(self, rows: int = 512) -> None:
        require(rows >= 1, "callbacks.views_alone.rows", rows, "give a whole number >= 1")
        self.rows = rows

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Learner)
        if pl_module.model.routers[0].num_experts == 1:
            return
        batch = probe_of(pl_module.task, self.rows)
        batch = Batch(*(part.to(pl_module.device) for part in batch))
        pl_module.eval()
        with trainer.precision_plugin.val_step_context():
            over = views_over_merged(pl_module.model, batch)
        pl_module.train()
        publish(trainer, {OVER_MERGED.format(view): x for view, x in enumerate(over)})


class WholeCheckpoints(TorchCheckpointIO):
    """Saves beside the earlier checkpoint and then renames.

    Lightning copies from the system's temporary folder, and leaves half a file on a full disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Raises `DiskFullError`; what was there is kept then."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with replacing(Path(path)) as draft:
            draft.write_bytes(content.getbuffer())


class Checkpoints(ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt` and `checkpoints/last.ckpt` in the run's folder.

    With `save_top_k` other than 1 also the best few as `step_<step>.ckpt`, -1 for all of them.
    SIGTERM, and SIGUSR1 as a cluster sends it before a time limit, save the last one before the
    process ends with status 143. With `resume` "auto" the same command goes on from there, so SLURM
    is asked after SIGUSR1 to run it again.
    """

    def __init__(
        self,
        monitor: str = "loss/val",
        mode: str = "min",
        resume: str | None = None,
        *,
        save_top_k: int = 1,
    ) -> None:
        least = "give a whole number >= 1, or -1 for all"
        require(save_top_k >= 1 or save_top_k == -1, "save_top_k", save_top_k, least)
        self.resume, self.time_is_up, self.in_own_folder = resume, False, False
        self.copied = ""  # the name of what is now best.ckpt, too
        super().__init__(
            monitor=monitor, mode=mode, save_top_k=save_top_k, save_last=True,
            filename=Path(BEST).stem if save_top_k == 1 else "step_{step}",
            auto_insert_metric_name=False, enable_version_counter=False,
        )  # fmt: skip

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = os.path.join(trainer.default_root_dir, "checkpoints")
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        # Before Lightning's own handler for SLURM, which saves in the middle of a step.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self.end_soon)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            super().setup(trainer, pl_module, stage)

    def end_soon(self, *args: Any) -> None:
        """Lightning ends a training after SIGTERM as soon as a batch is done."""
        self.time_is_up = True
        signal.raise_signal(signal.SIGTERM)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, SIGTERMException):
            return
        if not self._should_skip_saving_checkpoint(trainer):
            if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
                return  # broken weights shall not take the place of sound ones
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if trainer.is_global_zero:
            again = (
                "repeat the command"
                if self.resume == "auto"
                else f"ckpt_path={self.last_model_path}"
            )
            log.warning(f"ended by a signal at step {trainer.global_step}; to go on: {again}")
            job = os.environ.get("SLURM_JOB_ID")
            if job and self.time_is_up and self.resume == "auto":
                subprocess.run(["scontrol", "requeue", job], check=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        # Lightning 2.6 writes the last checkpoint only where it is also the best so far.
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        best = Path(self.best_model_path)
        if trainer.is_global_zero and best.is_file() and best.name not in (BEST, self.copied):
            with replacing(best.with_name(BEST)) as draft:
                shutil.copyfile(best, draft)
            self.copied = best.name

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        folder = os.path.dirname(os.path.realpath(trainer.ckpt_path or ""))
        self.in_own_folder = folder == os.path.realpath(str(self.dirpath))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that is resumed in another folder looks for its best from there on.

        One that was moved with its folder does not.
        """
        folder = str(self.dirpath)
        if self.in_own_folder or state_dict["dirpath"] == folder:
            names = ("best_model_path", "kth_best_model_path", "last_model_path")
            here = {name: moved(state_dict[name], folder) for name in names}
            best = {moved(path, folder): x for path, x in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, **here, "best_k_models": best, "dirpath": folder}
            super().load_state_dict(state_dict)


def moved(path: str, folder: str) -> str:
    """The file of that name in the folder; none stays none."""
    return path and os.path.join(folder, os.path.basename(path))


class EndTogether(pl.Callback):
    """Ends a training of several processes after a batch if one of them was sent SIGTERM.

    Lightning's own handler tells the others at once, in the middle of what they exchange just then,
    and all wait for ever. Where it ends a training, the process ends with status 143.
    """

    asked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.ask)  # Lightning puts back what was there before it

    def ask(self, *args: Any) -> None:
        self.asked = True

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.world_size > 1:
            self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
            trainer._signal_connector.received_sigterm |= self.asked

    on_validation_batch_end = on_train_batch_end  # type: ignore[assignment]

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, SIGTERMException):  # of which python would make a success
            exception.code = 128 + signal.SIGTERM


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
