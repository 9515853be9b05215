"""Who hears of a grid's trials, besides Hydra's own sweeper, which only hears of their end."""

import logging
from collections.abc import Iterable
from typing import Any, Protocol

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class Listener(Protocol):
    """What `on_launch(config)` of one of `hydra.callbacks` returns; called in this thread.

    An error in it is logged, and costs no trial.
    """

    def on_trial_start(self, number: int, overrides: list[str]) -> None:
        """A trial will run with these overrides; they may be added to in place."""

    def on_trial_end(self, number: int, job: JobReturn) -> None:
        """A trial ended, with a result or the reason why it has none."""

    def on_poll(self) -> None:
        """About once a second."""

    def on_launch_end(self) -> None:
        """All ended, or are about to be ended by an error or an interrupt."""


class Listeners:
    """All that listen to a batch of trials."""

    def __init__(self) -> None:
        self.all: list[Listener] = []

    def begin(self, callbacks: Iterable[Any], config: DictConfig) -> None:
        """Ask Hydra's callbacks who listens. Errors are raised: nothing has run yet."""
        for callback in callbacks:
            if hasattr(callback, "on_launch"):
                self.all.append(callback.on_launch(config))

    def tell(self, event: str, *arguments: Any) -> None:
        """Call the method `event` of each."""
        for listener in self.all:
            try:
                getattr(listener, event)(*arguments)
            except Exception:
                log.exception(f"{event} of {type(listener).__name__} failed")
