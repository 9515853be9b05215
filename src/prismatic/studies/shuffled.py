"""A lens whose geometry is taken away: the control of studies that ask what geometry does.

Shapes: P positions of a tensor, row-major.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from prismatic.errors import require
from prismatic.perturb import Focal


@dataclass(frozen=True)
class ShuffledFocal(Focal):
    """A focal pattern that counts positions in a mixed order: it keeps its values, at other places.

    `shuffle` is the seed of the order. Raises `ValueError` for what is no whole number >= 0.
    """

    shuffle: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.shuffle, int) and self.shuffle >= 0
        require(whole, "focal.shuffle", self.shuffle, "give a whole number >= 0")

    def modulation(
        self, position: torch.Tensor, numel: int, view: Any, num_views: int
    ) -> torch.Tensor:
        place_P = mixed_order(numel, self.shuffle).to(position.device)
        return super().modulation(place_P[position.long()], numel, view, num_views)


@lru_cache(maxsize=64)
def mixed_order(numel: int, seed: int) -> torch.Tensor:
    """A place for each position, by a seed and the number of weights alone: (P,) float64."""
    source = np.random.Generator(np.random.Philox(key=seed))
    return torch.from_numpy(source.permutation(numel)).double()
