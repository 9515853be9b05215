"""What may listen to a sweep: `hydra.sweeper.callbacks: [{_target_: ...}]`."""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial


class Callback:
    """Hears of every step of a sweep, in the sweeper's process and thread; does nothing itself.

    An error in `on_sweep_start` ends the sweep, since nothing has run yet. In the other methods
    an error is logged and the sweep goes on: a display or a tracking server that breaks costs no
    trial. Methods hold the sweep up for as long as they run.
    """

    def on_sweep_start(self, study: "Study", config: DictConfig, sweep_dir: Path) -> None:
        """The study is open, lost trials are queued again, no job has started.

        `config` is the whole configuration as composed for the sweep, with its `hydra` node;
        `sweep_dir` is absolute.
        """

    def on_trial_start(self, trial: "Trial", overrides: list[str]) -> None:
        """A trial has its parameters; `overrides` go to its job, and may be added to in place."""

    def on_trial_end(
        self, study: "Study", frozen_trial: "FrozenTrial", job_return: JobReturn | None
    ) -> None:
        """A trial is told: COMPLETE, PRUNED or FAIL, then with `user_attrs["reason"]`.

        `user_attrs["again"]` is "lost" when its process died and it will be asked again.
        `job_return` is None for a job that was stopped with the sweep.
        """

    def on_poll(self, study: "Study") -> None:
        """About once a second while jobs run; between batches on launchers that cannot stream."""

    def on_sweep_end(self, study: "Study") -> None:
        """The sweep ends, whether finished, interrupted or by an error; results are written."""
