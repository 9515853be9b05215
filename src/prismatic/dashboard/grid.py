"""The door for Hydra's grids: what listens to an Optuna sweep listens to them, too.

Imported at every start of a script, so `grid_study`, which is heavy, waits until a grid begins.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

if TYPE_CHECKING:
    from .grid_study import GridStudy

DIRECTIONS = ("minimize", "maximize")


class Grid(Callback):
    """Tells `callbacks`, as `hydra.sweeper.callbacks` of an Optuna sweep, of a grid's trials.

    A grid has no direction: give one for all objectives, or null, which stands for maximize where
    a name begins with `objective/` and for minimize elsewhere. Works with the local launcher.
    """

    def __init__(self, callbacks: Mapping[str, Any], direction: str | None = None) -> None:
        if direction not in (None, *DIRECTIONS):
            raise ValueError(
                f"hydra.callbacks.sweep.direction={direction!r} is not valid: give "
                f"{' or '.join(DIRECTIONS)}, or null"
            )
        self.nodes, self.direction = callbacks, direction
        self.study: GridStudy | None = None

    def on_launch(self, config: DictConfig) -> "GridStudy":
        """The launcher begins a batch of the grid's trials; it tells what this returns of them."""
        if self.study is None:
            from .grid_study import GridStudy

            self.study = GridStudy(config, self.nodes, self.direction)
        self.study.begin()
        return self.study
