"""The two tiers of a tensor's magnitudes without a sort, and from nothing but the tensor.

Nothing is remembered between calls, so no way of writing to a weight can leave a stale selection.
A sorted sample says which magnitudes can reach a tier at all; the exact k-th of those few is then
found by partition. A sample that misjudges costs time and never exactness: the candidates are
counted, and too few of them means that the whole tensor is searched.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from .kernel import role
from .options import Perturbation

SAMPLE = 4096


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
    values_P: Any = magnitude_P if magnitude_P.is_cuda else magnitude_P.numpy()
    num_top, num_bottom = perturbation.counts(len(values_P))
    sample = sorted_(values_P[:: max(1, len(values_P) // SAMPLE)])
    above = largest(values_P, num_top, sample) if num_top else math.inf
    below = smallest(values_P, num_bottom, sample) if num_bottom else 0.0
    if above is None or below is None or below > above:
        return Roles(role(weight, perturbation).flatten())
    return Thresholds(above, below)


def sorted_(values: Any) -> Any:
    return np.sort(values) if isinstance(values, np.ndarray) else values.sort().values


def kth(values: Any, index: int) -> Any:
    """The value that sorting would put at an index."""
    if isinstance(values, np.ndarray):
        return np.partition(values, index)[index]
    return values.kthvalue(index + 1).values


def enough(count: int, numel: int, num_sampled: int) -> int:
    """How far into a sorted sample a tier can be expected to reach: five deviations further."""
    expected = count / numel * num_sampled
    return math.ceil(expected + 5 * math.sqrt(expected) + 5)


def largest(values: Any, count: int, sample: Any) -> float | None:
    """A number that exactly the `count` largest exceed, or None where ties or zeros forbid it."""
    far = enough(count, len(values), len(sample))
    few = values[values >= sample[-far]] if far <= len(sample) else values
    few = few if len(few) >= count else values
    least = kth(few, len(few) - count)
    if not least > 0 or int((few >= least).sum()) != count:
        return None
    return math.nextafter(float(least), 0) if values.itemsize == 8 else before(float(least))


def before(value: float) -> float:
    """The float32 before a positive one."""
    return float(np.nextafter(np.float32(value), np.float32(0)))


def smallest(values: Any, count: int, sample: Any) -> float | None:
    """The largest of the `count` smallest that are not zero, or None where ties forbid it."""
    far = enough(count, len(values), len(sample))
    few = values[values <= sample[far]] if far < len(sample) else values
    few = few[few > 0]
    few = few if len(few) >= count else values[values > 0]
    if len(few) < count:
        return None
    most = kth(few, count - 1)
    return float(most) if int((few <= most).sum()) == count else None
