"""The two tiers of a tensor's magnitudes without a sort, and from nothing but the tensor.

Nothing is remembered between calls, so no way of writing to a weight can leave a stale selection.
The k-th magnitude is found by partition; where it is unique, it alone tells the tier.
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch

from .kernel import role
from .options import Perturbation


class Region(Protocol):
    """A view of some positions of a flat tensor."""

    def of(self, x_P: torch.Tensor) -> torch.Tensor: ...


class Thresholds(NamedTuple):
    """Tiers that magnitudes alone decide: above `above` is top, up to `below` bottom."""

    above: float
    below: float

    def moved(self, weight_P: torch.Tensor, region: Region) -> torch.Tensor:
        """`weight * role` in a region; exact, since every weight cancels or doubles."""
        weight = region.of(weight_P)
        top = torch.nn.functional.hardshrink(weight, self.above)
        return top.add_(torch.nn.functional.hardshrink(weight, self.below)).sub_(weight)


class Roles(NamedTuple):
    """Tiers of a tensor with ties at a threshold, weight by weight."""

    role_P: torch.Tensor  # int8

    def moved(self, weight_P: torch.Tensor, region: Region) -> torch.Tensor:
        return region.of(weight_P) * region.of(self.role_P)


Selection = Thresholds | Roles


@torch.compiler.disable
def select(weight: torch.Tensor, perturbation: Perturbation) -> Selection:
    """What `role` selects by magnitude, for the strategies that do not draw."""
    magnitude_P = weight.detach().abs().flatten()
    if magnitude_P.dtype.itemsize < 4:
        magnitude_P = magnitude_P.float()
    if magnitude_P.device.type != "cpu":
        return on_device(weight, magnitude_P, perturbation)
    values_P = magnitude_P.numpy()
    num_top, num_bottom = perturbation.counts(len(values_P))
    above, below = largest(values_P, num_top), smallest(values_P, num_bottom)
    if above is None or below is None or below > above:
        return Roles(torch.from_numpy(tied(values_P, num_top, num_bottom)))
    return Thresholds(above, below)


def largest(values_P: np.ndarray, count: int) -> float | None:
    """A number that exactly the `count` largest exceed, or None where ties or zeros forbid it."""
    if not count:
        return math.inf
    parted_P = np.partition(values_P, len(values_P) - count)
    least, rest = parted_P[-count], parted_P[:-count]
    if not least > 0 or (len(rest) and rest.max() == least):
        return None
    return float(np.nextafter(least, np.zeros_like(least)))


def smallest(values_P: np.ndarray, count: int) -> float | None:
    """The largest of the `count` smallest that are not zero, or None where ties forbid it."""
    if not count:
        return 0.0
    skip = len(values_P) - int(np.count_nonzero(values_P > 0))
    if skip + count >= len(values_P):
        return None
    parted_P = np.partition(values_P, skip + count - 1)
    most, rest = parted_P[skip + count - 1], parted_P[skip + count :]
    return None if rest.min() == most else float(most)


def tied(values_P: np.ndarray, num_top: int, num_bottom: int) -> np.ndarray:
    """The roles where positions decide among equals, or where zeros leave too few candidates."""
    role_P = np.zeros(len(values_P), np.int8)
    role_P[lowest(-values_P, values_P > 0, num_top)] = 1
    role_P[lowest(values_P, (values_P > 0) & (role_P == 0), num_bottom)] = -1
    return role_P


def lowest(key_P: np.ndarray, candidate_P: np.ndarray, count: int) -> np.ndarray:
    """The candidates with the `count` smallest keys, equals by their position."""
    at = np.flatnonzero(candidate_P)
    if len(at) <= count or not count:
        return at[:count]
    key = key_P[at]
    bound = np.partition(key, count - 1)[count - 1]
    below, equal = at[key < bound], at[key == bound]
    return np.concatenate([below, equal[: count - len(below)]])


def on_device(
    weight: torch.Tensor, magnitude_P: torch.Tensor, perturbation: Perturbation
) -> Selection:
    """The same where sorting is fast and a round trip is not: two transfers of a few numbers."""
    num_top, num_bottom = perturbation.counts(len(magnitude_P))
    if num_top + num_bottom >= len(magnitude_P) or not bool(magnitude_P.all()):
        return Roles(role(weight, perturbation).flatten())
    ordered_P, top = magnitude_P.sort().values, len(magnitude_P) - num_top
    edge_P = torch.cat([ordered_P, ordered_P.new_full((1,), math.inf)])
    before, least, most, after = edge_P[[top - 1, top, num_bottom - 1, num_bottom]].tolist()
    if before == least or (num_bottom and most == after):
        return Roles(role(weight, perturbation).flatten())
    return Thresholds(before, most if num_bottom else 0.0)
