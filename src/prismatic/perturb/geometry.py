"""Focal patterns as a few separable pieces, so that their cost does not grow with the views.

Every pattern is f_i(p) = sum over pieces g of weights[g, i] * shape_g(p), and a piece is confined
to the positions where it can change a weight at all. `none` needs one piece and `helical` two,
whatever the number of views. An exponential lens needs one piece per view; or, where lenses
overlap, the pieces of the gaps between neighbouring focal points: all lenses to the left of a gap
fade alike across it, and so do all lenses to its right.

Shapes: S selected positions, K entries (a position may occur in several pieces), G pieces, E views.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .kernel import modulation
from .options import Focal


class Pieces(NamedTuple):
    """f_i(position[entry_k]) = sum over the k of one position of weights[piece_k, i] * shape_k."""

    entry_K: torch.Tensor  # int64, into the selected positions
    piece_K: torch.Tensor  # int64
    shape_K: torch.Tensor  # float64
    weights_GE: torch.Tensor  # float64


def turns(distance: torch.Tensor, wavelength: float) -> torch.Tensor:
    """The angle of a wave at a distance, in radians, whole turns dropped."""
    return 2 * math.pi * torch.frac(distance / wavelength)


def reach(focal: Focal, numel: int, scale: float, eps: float) -> float:
    """The distance beyond which a lens changes a weight by less than its rounding, in weights.

    Scale 0 keeps the windows of scale 1, so that a scale-0 run does the work of a real one.
    """
    if focal.pattern in ("none", "helical"):
        return math.inf
    fade = math.log(2 * max(scale, 1.0) / eps)
    if focal.profile == "gaussian":
        fade = math.sqrt(2 * fade)
    return focal.lengths(numel)[0] * fade


def runs(start_R: torch.Tensor, stop_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of several half-open runs, one after the other, and the run of each."""
    length_R = (stop_R - start_R).clamp(min=0)
    run_K = torch.arange(len(length_R), device=start_R.device).repeat_interleave(length_R)
    before_R = length_R.cumsum(0) - length_R
    return torch.arange(len(run_K), device=start_R.device) + (start_R - before_R)[run_K], run_K


def pieces_of(
    position_S: torch.Tensor,
    numel: int,
    views: Sequence[int],
    num_views: int,
    focal: Focal,
    scale: float,
    eps: float,
) -> Pieces:
    """The fewest entries that give some views their pattern over sorted float64 positions.

    `views` are those of 1..num_views-1 that share the selection; `scale` is the largest factor
    and `eps` the rounding of the weights, which bound a lens.
    """
    if len(views) == 1 or (focal.pattern == "helical" and len(views) == 2):
        return by_lens(position_S, numel, views, num_views, focal, scale, eps)
    if focal.pattern in ("none", "helical"):
        return everywhere(position_S, numel, num_views, focal)
    width = reach(focal, numel, scale, eps)
    waves = 2 if focal.pattern == "radial_helical" else 1
    overlap = min(1.0, numel / num_views / width)  # how much of a lens fits into a gap
    crowded = waves * overlap * 2 * width < min(2 * width, numel)
    split = by_gap if crowded and focal.profile == "exponential" else by_lens
    return split(position_S, numel, views, num_views, focal, scale, eps)


def everywhere(position_S: torch.Tensor, numel: int, num_views: int, focal: Focal) -> Pieces:
    """`none` and `helical`: one or two pieces over all positions, whatever the number of views."""
    view_E = torch.arange(num_views, device=position_S.device).double()
    shapes, weights = [torch.ones_like(position_S)], [torch.ones_like(view_E)]
    if focal.pattern == "helical":
        turn_S = turns(position_S, focal.lengths(numel)[1])
        phase_E = focal.phase_of(view_E, num_views)
        shapes, weights = [turn_S.cos(), turn_S.sin()], [phase_E.cos(), -phase_E.sin()]
    weights_GE = torch.stack(weights) * (view_E > 0)
    entry_S = torch.arange(len(position_S), device=position_S.device)
    piece_K = torch.arange(len(shapes), device=position_S.device).repeat_interleave(len(entry_S))
    return Pieces(entry_S.repeat(len(shapes)), piece_K, torch.cat(shapes), weights_GE)


def by_lens(
    position_S: torch.Tensor,
    numel: int,
    views: Sequence[int],
    num_views: int,
    focal: Focal,
    scale: float,
    eps: float,
) -> Pieces:
    """One piece per view: its pattern, as far as it reaches."""
    width = reach(focal, numel, scale, eps)
    view_G = torch.tensor(views, device=position_S.device)
    centre_G = view_G.double() / num_views * numel
    bound_2G = torch.stack([centre_G - width, centre_G + width])
    entry_K, piece_K = runs(*torch.searchsorted(position_S, bound_2G))
    shape_K = modulation(position_S[entry_K], numel, view_G[piece_K].double(), num_views, focal)
    weights_GE = torch.nn.functional.one_hot(view_G, num_views).double()
    return Pieces(entry_K, piece_K, shape_K, weights_GE)


def by_gap(
    position_S: torch.Tensor,
    numel: int,
    views: Sequence[int],
    num_views: int,
    focal: Focal,
    scale: float,
    eps: float,
) -> Pieces:
    """Two or four pieces per gap between focal points: what fades from its left and from its right.

    With u the distance to the near end of the gap and D_i the distance from there to focal point
    i, exp(-(u + D_i)/f) factors, and so does the cosine of a sum. Needs all views.
    """
    length, wavelength = focal.lengths(numel)
    width = reach(focal, numel, scale, eps)
    view_E = torch.arange(num_views, device=position_S.device).double()
    centre_E = view_E / num_views * numel
    phase_E = focal.phase_of(view_E, num_views)
    end_J = centre_E[1:]
    gap_2J = {
        1: (end_J, torch.cat([centre_E[2:], centre_E.new_tensor([numel])])),
        -1: (centre_E[:-1], end_J),
    }
    parts: list[Pieces] = []
    for side in (1, -1):  # lenses that fade to the right of end j, then those that fade to its left
        near_2J = torch.stack([end_J, end_J + side * width]).sort(0).values
        near_2J = near_2J.clamp(min=gap_2J[side][0], max=gap_2J[side][1])
        entry_K, gap_K = runs(*torch.searchsorted(position_S, near_2J))
        near_K = (position_S[entry_K] - end_J[gap_K]).abs()
        far_JE = side * (end_J[:, None] - centre_E)
        fade_K = torch.exp(-near_K / length)
        fade_JE = torch.exp(-far_JE.clamp(min=0) / length) * (far_JE >= 0) * (view_E > 0)
        factors = [(fade_K, fade_JE)]
        if focal.pattern == "radial_helical":
            turn_K, turn_JE = turns(near_K, wavelength), turns(far_JE, wavelength) + phase_E
            factors = [
                (fade_K * turn_K.cos(), fade_JE * turn_JE.cos()),
                (fade_K * turn_K.sin(), -fade_JE * turn_JE.sin()),
            ]
        for shape_K, weights_JE in factors:
            parts.append(Pieces(entry_K, gap_K + len(parts) * len(end_J), shape_K, weights_JE))
    return Pieces(*map(torch.cat, zip(*parts, strict=True)))
