"""Focal patterns as products of short vectors over rectangles of positions.

Between two focal points all lenses to the left fade alike, and so do all to the right: over the
gaps J and the positions L within a gap, sum_i r_i m_i is a matrix of rank two, four with a wave,
whatever the number of views. `helical` has rank two over any rectangle; `none` is one number.
Where lenses do not overlap, each has a window of its own.

Shapes: P positions of the tensor, J rows and L columns of a rectangle, G rank, E views.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch

from .geometry import turns
from .kernel import modulation
from .options import Focal

# So many windows at most are one patch: what is derived from a patch stays small.
WINDOWS = 8


@dataclass(frozen=True)
class Patch:
    """A rectangle of flat positions, `start + j * stride + l`, and the pattern over it.

    sum_i r_i m_i = (weights_JGE @ r) @ basis_GL.
    """

    start: int
    stride: int
    weights_JGE: torch.Tensor
    basis: torch.Tensor

    @property
    def num_rows(self) -> int:
        return len(self.weights_JGE)

    @property
    def width(self) -> int:
        return self.basis.shape[1]

    @property
    def numel(self) -> int:
        return self.num_rows * self.width

    def of(self, x_P: torch.Tensor) -> torch.Tensor:
        """The rectangle of a tensor: (..., P) -> (..., J, L), no copy."""
        *outer, step = x_P.stride()
        size = (*x_P.shape[:-1], self.num_rows, self.width)
        start = x_P.storage_offset() + self.start * step
        return x_P.as_strided(size, (*outer, self.stride * step, step), start)

    def rows(self) -> list["Patch"]:
        """The same as one patch per row."""
        return [type(self)(self.start + j * self.stride, 0, *self._row(j))
                for j in range(self.num_rows)]  # fmt: skip

    def _row(self, j: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weights_JGE[j : j + 1], self.basis

    def coefficients(self, probs: torch.Tensor) -> torch.Tensor:
        """What each basis vector counts for: (..., E) -> (..., J, G)."""
        flat = probs.to(self.weights_JGE.dtype) @ self.weights_JGE.flatten(0, 1).T
        return flat.unflatten(-1, self.weights_JGE.shape[:2])

    def factor(self, coefficient_JG: torch.Tensor) -> torch.Tensor:
        """The pattern in full: (J, L)."""
        return coefficient_JG @ self.basis

    def project(self, grad_JL: torch.Tensor) -> torch.Tensor:
        """The gradient of `coefficient_JG` from that of `factor`."""
        return grad_JL @ self.basis.T

    def pieces(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The fewest pairs of weights (J, E) and shapes (1 or J, L) that add up to the pattern."""
        rank, num_views = self.weights_JGE.shape[1:]
        if rank < num_views:
            return [(self.weights_JGE[:, g], self.basis[g : g + 1]) for g in range(rank)]
        eye = torch.eye(num_views).to(self.basis)
        views = range(1, num_views)
        return [
            (eye[i].expand(self.num_rows, -1), self.weights_JGE[:, :, i] @ self.basis)
            for i in views
        ]


@dataclass(frozen=True)
class Flat(Patch):
    """The pattern 1 everywhere: one number for all positions; `weights` and `basis` are (1, 1)."""

    length: int

    @property
    def width(self) -> int:
        return self.length

    def project(self, grad_JL: torch.Tensor) -> torch.Tensor:
        return grad_JL.sum(-1, keepdim=True)


class Windows(Patch):
    """One lens per row: rank one, with a shape of its own in every row; `basis` is (J, L)."""

    def _row(self, j: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weights_JGE[j : j + 1], self.basis[j : j + 1]

    def factor(self, coefficient_JG: torch.Tensor) -> torch.Tensor:
        return coefficient_JG * self.basis

    def project(self, grad_JL: torch.Tensor) -> torch.Tensor:
        return (grad_JL * self.basis).sum(-1, keepdim=True)

    def pieces(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.weights_JGE[:, 0], self.basis)]


@lru_cache(maxsize=512)
@torch.compiler.disable
def patches_of(
    shape: torch.Size,
    num_views: int,
    focal: Focal,
    width: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Patch, ...] | None:
    """The patches that hold all that a pattern changes; None for one that has no short product.

    `width` is how far a lens reaches. Constants, kept from call to call: they depend on no weight.
    """
    numel = shape.numel()
    with torch.inference_mode(False), torch.no_grad():
        if focal.pattern == "none":
            found: list[Patch] = [flat(numel, num_views)]
        elif focal.shuffle is not None:
            return None
        elif focal.pattern == "helical":
            found = [waving(numel, shape[0] if len(shape) > 1 else 1, num_views, focal)]
        elif num_views == 2 or numel / num_views > 2 * math.ceil(width) + 2:
            found = windows(numel, num_views, focal, width)
        elif focal.profile == "exponential":
            found = [gaps(*rows, numel, num_views, focal) for rows in gap_rows(numel, num_views)]
        else:
            return None
        return tuple(
            replace(p, weights_JGE=p.weights_JGE.to(device, dtype), basis=p.basis.to(device, dtype))
            for p in found
        )


def waves(
    offset_JE: torch.Tensor, near_L: torch.Tensor, num_views: int, focal: Focal, wavelength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos(2 pi (near + offset) / wavelength + phase) by the cosine of a sum: rank two."""
    phase_E = focal.phase_of(torch.arange(num_views).double(), num_views) if num_views > 1 else 0.0
    turn_JE, turn_L = turns(offset_JE, wavelength) + phase_E, turns(near_L, wavelength)
    weights_JGE = torch.stack([turn_JE.cos(), -turn_JE.sin()], 1)
    return weights_JGE, torch.stack([turn_L.cos(), turn_L.sin()])


def flat(numel: int, num_views: int) -> Flat:
    """`none`: all views but the first count alike, at every position."""
    weights_JGE = torch.ones(1, 1, num_views, dtype=torch.float64)
    weights_JGE[:, :, 0] = 0
    return Flat(0, 0, weights_JGE, torch.ones(1, 1, dtype=torch.float64), numel)


def waving(numel: int, num_rows: int, num_views: int, focal: Focal) -> Patch:
    """`helical`: any rectangle will do, so it is that of the matrix."""
    length = numel // num_rows
    offset_JE = (torch.arange(num_rows).double() * length)[:, None].expand(-1, num_views)
    near_L = torch.arange(length).double()
    weights_JGE, basis_GL = waves(offset_JE, near_L, num_views, focal, focal.lengths(numel)[1])
    weights_JGE[:, :, 0] = 0
    return Patch(0, length, weights_JGE, basis_GL)


def windows(numel: int, num_views: int, focal: Focal, width: float) -> list[Patch]:
    """A window per lens; those that have the same form are the rows of one patch."""
    radius = min(math.ceil(width) if width < numel else numel, numel)
    centres = [numel * view // num_views for view in range(1, num_views)]
    spans = [(max(0, c - radius), min(numel, c + radius + 1)) for c in centres]
    together = WINDOWS if numel % num_views == 0 else 1
    groups = [
        range(first, min(first + together, num_views)) for first in range(1, num_views, together)
    ]
    patches: list[Patch] = []
    for views in groups:
        start, stop = spans[views[0] - 1]
        view_J1 = torch.tensor(views)[:, None]
        stride = numel // num_views
        at_J1 = start + torch.arange(len(views))[:, None] * stride
        position_JL = (at_J1 + torch.arange(stop - start)).double()
        basis_JL = modulation(position_JL, numel, view_J1.double(), num_views, focal)
        weights_JGE = torch.nn.functional.one_hot(view_J1, num_views).double()
        patches.append(Windows(start, stride, weights_JGE, basis_JL))
    return patches


def gap_rows(numel: int, num_views: int) -> list[tuple[int, int, int]]:
    """(first gap, number of gaps, length) of rectangles that cover a tensor's gaps."""
    if numel % num_views == 0:
        return [(0, num_views, numel // num_views)]
    starts = [-(-j * numel // num_views) for j in range(num_views + 1)]
    lengths = [after - start for start, after in pairwise(starts)]
    return [(j, 1, length) for j, length in enumerate(lengths) if length]


def gaps(first: int, num_rows: int, length: int, numel: int, num_views: int, focal: Focal) -> Patch:
    """What fades to the right from the lenses before a gap, and to the left from those after."""
    fade, wavelength = focal.lengths(numel)
    start = -(-first * numel // num_views)
    gap_J1 = torch.arange(first, first + num_rows)[:, None]
    view_E = torch.arange(num_views)
    from_JE = start + (gap_J1 - first) * length - view_E.double() * numel / num_views
    near_L = torch.arange(length).double()
    sides = [
        (from_JE, near_L, view_E <= gap_J1),
        (-from_JE - (length - 1), near_L.flip(0), view_E > gap_J1),
    ]
    all_weights, all_bases = [], []
    for offset_JE, at_L, active_JE in sides:
        fade_JE = torch.exp(-offset_JE / fade) * active_JE * (view_E > 0)
        fade_JE = torch.where(active_JE, fade_JE, 0)
        weights_JGE, basis_GL = fade_JE[:, None], torch.exp(-at_L / fade)[None]
        if focal.pattern == "radial_helical":
            wave_JGE, wave_GL = waves(offset_JE, at_L, num_views, focal, wavelength)
            weights_JGE, basis_GL = weights_JGE * wave_JGE, basis_GL * wave_GL
        all_weights.append(weights_JGE)
        all_bases.append(basis_GL)
    return Patch(start, length, torch.cat(all_weights, 1), torch.cat(all_bases))
