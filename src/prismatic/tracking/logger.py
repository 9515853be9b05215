"""The recorder as a Lightning logger."""

import logging
import sys
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.errors import causes

from .recorder import REASON_LENGTH, Recorder

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


class MLflowLogger(Recorder, Logger):
    """A `Recorder` for a `Trainer`; above rank 0 nothing happens.

    While `prefix` is set, it is one of several Lightning runs in one of MLflow's, which does not
    end with it.
    """

    _call = rank_zero_only(Recorder._call)
    log_metrics = rank_zero_only(Recorder.log_metrics)
    save = rank_zero_only(Recorder.save)  # Lightning calls it after each `log_metrics`
    flush = rank_zero_only(Recorder.flush)
    end = rank_zero_only(Recorder.end)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient | None":
        return super().experiment

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning's end. Its "failed" comes in an except clause: the error is the tag `reason`.

        That of Ctrl-C or SIGTERM means KILLED. An error of the logger does not hide the run's.
        """
        error = sys.exception()
        good = status in ("success", "finished")
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = "" if good else first_reason(error)
        try:
            if killed or not self.prefix:
                self.end("FINISHED" if good else "KILLED" if killed else "FAILED", reason)
            else:
                self.flush()
                if reason:
                    self.set_tags({f"{self.prefix}reason": reason[:REASON_LENGTH]})
        except Exception as fault:
            if good:
                raise
            log.warning(f"warning: MLflow could not be told how the run ended: {fault}")


def first_reason(error: BaseException | None) -> str:
    """What an error says; where that is Hydra's, which names a place, what its cause says."""
    told = next((c for c in causes(error) if not isinstance(c, HydraException)), error)
    return "" if told is None else f"{type(told).__name__}: {told}".strip(": ")
