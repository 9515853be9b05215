"""The two tiers of a tensor's magnitudes without a sort, found anew at every call.

A tier ends at its last member's magnitude, its edge. An edge is first looked for in a narrow
bracket around that of the last call, and counting proves whether it is there; otherwise a partition
finds it. What is remembered says where to look and never what is selected, so no way of writing to
a weight can leave a stale selection.

Shapes: P positions of a tensor, C of them in a chunk, K of them in a bracket.
"""

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.autograd.profiler import record_function
from torch.nn.functional import hardshrink

from .kernel import role
from .options import Perturbation

# Weights that are looked at together, so that their magnitudes stay in a core's cache.
CHUNK = 1 << 17
# Smaller tensors are partitioned at once.
SEARCHED = 1 << 14
# A bracket's first and least half-width relative to its edge, and its half-width in moves of it.
ROOM, LEAST_ROOM, MOVES = 2.0**-6, 2.0**-12, 8


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
        return hardshrink(weight, self.above).add_(hardshrink(weight, self.below)).sub_(weight)

    def signed(self, x: torch.Tensor, weight_P: torch.Tensor, region: Region) -> torch.Tensor:
        """`x * role` for any `x` over a region."""
        return self.moved(weight_P, region).sign_().mul_(region.of(weight_P).sign()).mul_(x)


class Roles(NamedTuple):
    """Tiers weight by weight: where weights tie at an edge, and where all are asked for."""

    role_P: torch.Tensor  # int8

    def moved(self, weight_P: torch.Tensor, region: Region) -> torch.Tensor:
        return region.of(weight_P) * region.of(self.role_P)

    def signed(self, x: torch.Tensor, weight_P: torch.Tensor, region: Region) -> torch.Tensor:
        return x * region.of(self.role_P)


Selection = Thresholds | Roles


@dataclass(frozen=True)
class Edge:
    """The magnitude of a tier's last member, how many too many have it, and where to look next."""

    value: float
    surplus: int = 0
    room: float = 0.0

    def after(self, before: "Edge | None") -> "Edge":
        """The edge, with room around it for more movement than there was lately."""
        if before is None:
            return replace(self, room=ROOM * self.value)
        moved = MOVES * abs(self.value - before.value)
        return replace(self, room=max(moved, before.room / 2, LEAST_ROOM * self.value))


class Scan:
    """Looks for the edge of a tier of `count` members in the bracket of a hint, chunk by chunk."""

    def __init__(self, count: int, hint: Edge, is_top: bool) -> None:
        self.count, self.hint, self.is_top = count, hint, is_top
        self.past = np.greater if is_top else np.less
        away = hint.room if is_top else -hint.room
        self.far, self.near = hint.value + away, hint.value - away
        self.num_beyond = 0
        self.inside: list[np.ndarray] = []

    def see(self, magnitude_C: np.ndarray, beyond_C: np.ndarray, inside_C: np.ndarray) -> None:
        """Take in some magnitudes; the other two are room to work in."""
        self.past(magnitude_C, self.far, out=beyond_C)
        self.num_beyond += int(np.count_nonzero(beyond_C))
        self.past(magnitude_C, self.near, out=inside_C)
        self.inside.append(magnitude_C[np.not_equal(inside_C, beyond_C, out=inside_C)])

    def found(self) -> Edge | None:
        """The edge, or None where counting shows that it is not in the bracket."""
        inside_K, rank = np.concatenate(self.inside), self.count - self.num_beyond
        return edge(inside_K, rank, self.is_top) if 0 < rank <= len(inside_K) else None


Edges = tuple[Edge, Edge]  # of the top tier and of the bottom tier
# Where a tier ends that has no members.
NOBODY = Edge(math.inf), Edge(0.0)


@torch.compiler.disable
@record_function("select")
def select(
    weight: torch.Tensor,
    perturbation: Perturbation,
    hints: MutableMapping[str, Edges] | None = None,
    name: str = "",
    all_roles: bool = False,
) -> Selection:
    """What `role` selects by magnitude, for the strategies that do not draw.

    `hints` keeps the edges of named tensors from call to call: they can speed up the next one and
    do nothing else. `all_roles` suits a caller that needs most weights' roles, and more than once.
    """
    weight_P = weight.detach().flatten()
    if weight_P.dtype.itemsize < 4:
        weight_P = weight_P.float()
    if weight_P.device.type != "cpu":
        return on_device(weight, weight_P.abs(), perturbation)
    values_P, counts = readable(weight_P), perturbation.counts(len(weight_P))
    hint = hints.get(name) if hints else None
    edges = (hint and searched(values_P, counts, hint)) or parted(np.abs(values_P), counts)
    if edges is None:
        return Roles(role(weight, perturbation).flatten())
    if hints is not None and len(values_P) >= SEARCHED:
        before = hint or (None, None)
        hints[name] = edges[0].after(before[0]), edges[1].after(before[1])
    if all_roles or edges[0].surplus or edges[1].surplus:
        return Roles(torch.from_numpy(roles_of(values_P, edges)))
    least = np.asarray(edges[0].value, values_P.dtype)
    return Thresholds(float(np.nextafter(least, np.zeros_like(least))), edges[1].value)


def readable(x_P: torch.Tensor) -> np.ndarray:
    """A tensor's memory, to read; `Tensor.numpy` would keep FSDP from freeing it ever after."""
    return np.from_dlpack(x_P)


def edge(magnitude_K: np.ndarray, rank: int, is_top: bool) -> Edge:
    """The edge of the tier that takes `rank` of some magnitudes, the largest or the smallest."""
    index = len(magnitude_K) - rank if is_top else rank - 1
    value = np.partition(magnitude_K, index)[index]
    taken_K = magnitude_K >= value if is_top else magnitude_K <= value
    return Edge(float(value), int(np.count_nonzero(taken_K)) - rank)


def parted(magnitude_P: np.ndarray, counts: tuple[int, int]) -> Edges | None:
    """The edges by partition; None where zeros, or one magnitude in both tiers, are in the way."""
    num_zeros = len(magnitude_P) - int(np.count_nonzero(magnitude_P))
    if sum(counts) + num_zeros > len(magnitude_P):
        return None
    top = edge(magnitude_P, counts[0], True) if counts[0] else NOBODY[0]
    bottom = edge(magnitude_P, counts[1] + num_zeros, False) if counts[1] else NOBODY[1]
    return (top, bottom) if bottom.value < top.value else None


def searched(values_P: np.ndarray, counts: tuple[int, int], hint: Edges) -> Edges | None:
    """The edges if counting proves that they lie in the brackets of a hint, else None."""
    scans = [Scan(counts[tier], hint[tier], tier == 0) for tier in (0, 1) if counts[tier]]
    magnitude_C, mask_2C = np.empty(CHUNK, values_P.dtype), np.empty((2, CHUNK), bool)
    for value_C in chunks(values_P):
        size = len(value_C)
        np.abs(value_C, out=magnitude_C[:size])
        if not magnitude_C[:size].min():
            return None  # zeros are no candidates
        for scan in scans:
            scan.see(magnitude_C[:size], *mask_2C[:, :size])
    found = iter([scan.found() for scan in scans])
    top, bottom = (
        next(found) if count else nobody for count, nobody in zip(counts, NOBODY, strict=True)
    )
    return (top, bottom) if top and bottom and bottom.value < top.value else None


def roles_of(values_P: np.ndarray, edges: Edges) -> np.ndarray:
    """Roles by magnitude; where more weights share an edge than its tier takes, to the first."""
    top, bottom = edges
    role_P = np.empty(len(values_P), np.int8)
    room_C, mask_2C = np.empty(CHUNK, values_P.dtype), np.empty((2, CHUNK), bool)
    for value_C, role_C in zip(chunks(values_P), chunks(role_P), strict=True):
        magnitude_C = np.abs(value_C, out=room_C[: len(value_C)])
        low_C, some_C = mask_2C[:, : len(value_C)]
        np.greater_equal(magnitude_C, top.value, out=role_C.view(bool))
        np.less_equal(magnitude_C, bottom.value, out=low_C)
        low_C &= np.greater(magnitude_C, 0, out=some_C)
        role_C -= low_C.view(np.int8)
    for tier in edges:
        if tier.surplus:
            role_P[np.flatnonzero(np.abs(values_P) == tier.value)[-tier.surplus :]] = 0
    return role_P


def chunks(x_P: np.ndarray) -> Iterator[np.ndarray]:
    return (x_P[start : start + CHUNK] for start in range(0, len(x_P), CHUNK))


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
