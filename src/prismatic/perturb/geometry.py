"""How far focal patterns reach, and the entries of a tensor that they change.

Shapes: S selected positions, K entries (a position occurs once per view that reaches it), G views.
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
    Infinite where positions are shuffled: what a lens reaches then lies anywhere.
    """
    if focal.pattern in ("none", "helical") or focal.shuffle is not None:
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
