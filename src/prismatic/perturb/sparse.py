"""The views of a tensor as one list of entries: for draws of their own, and for reports.

Shapes: P positions of the tensor, S selected ones, K entries, G pieces, E views.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .geometry import by_lens
from .kernel import DRAWS, Draws, modulation, role, solve_scale, unit_change
from .options import Focal, Perturbation

# No standard normal draw in float64 is larger.
LARGEST_DRAW = 9.0


class SparseChange(NamedTuple):
    """The change of every view at once: f_i(p) = sum of weights[piece_k, i] * value_k.

    The sum is over the entries k at position p. Entries are ordered by piece, then by position;
    view 0 has weight 0 in every piece.
    """

    position_K: torch.Tensor  # int64
    piece_K: torch.Tensor  # int64
    value_K: torch.Tensor
    weights_GE: torch.Tensor

    def coefficients(self, probs: torch.Tensor) -> torch.Tensor:
        """What each piece counts for under routing weights: (..., E) -> (..., G)."""
        return probs.to(self.weights_GE.dtype) @ self.weights_GE.T

    def merged(self, weight: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """`weight * (1 + sum_i r_i f_i)` for one r of shape (E,): differentiable in both."""
        factor_K = self.value_K * self.coefficients(probs)[self.piece_K]
        weight_P = weight.flatten().to(self.value_K.dtype)
        factor_P = torch.zeros_like(weight_P).index_add(0, self.position_K, factor_K)
        return (weight_P + weight_P * factor_P).to(weight.dtype).view(weight.shape)

    def dense(self, numel: int) -> torch.Tensor:
        """Every f_i in full, (E, P): for small tensors such as gains and biases."""
        f_EP = self.value_K.new_zeros(self.weights_GE.shape[1], numel)
        value_EK = self.weights_GE.T[:, self.piece_K] * self.value_K
        return f_EP.index_add_(1, self.position_K, value_EK)


def sparse_change(
    weight: torch.Tensor,
    num_views: int,
    perturbation: Perturbation,
    focal: Focal,
    name: str = "",
    draws: Draws = DRAWS,
) -> SparseChange:
    """Factorise all views of a tensor: what `change` defines one view at a time.

    `draws` may be an object that remembers. Values are at least float32, whatever the
    weight's dtype. Raises `ValueError` for a strength that cannot be reached.
    """
    weight_P = weight.detach().flatten()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    views = range(1, num_views)
    groups = [[view] for view in views] if perturbation.per_view else [views] if views else []
    piece = torch.zeros(0, dtype=torch.int64, device=weight.device)
    value, weights = torch.zeros_like(piece, dtype=dtype), weight_P.new_zeros(0, num_views)
    parts = [SparseChange(piece, piece, value, weights)]
    for group in groups:
        position_S, unit_S, scale_E = selection(
            weight_P, group, num_views, perturbation, focal, name, draws
        )
        largest = float(scale_E.max()) * (LARGEST_DRAW if perturbation.mode == "noise" else 1)
        entry_K, piece_K, shape_K, weights_GE = by_lens(
            position_S.double(),
            len(weight_P),
            group,
            num_views,
            focal,
            largest,
            torch.finfo(weight.dtype).eps,
        )
        first = sum(len(part.weights_GE) for part in parts)
        value_K = (unit_S[entry_K] * shape_K).to(dtype)
        weights_GE = (weights_GE * scale_E).to(dtype)
        parts.append(SparseChange(position_S[entry_K], piece_K + first, value_K, weights_GE))
    return SparseChange(*map(torch.cat, zip(*parts, strict=True)))


def selection(
    weight_P: torch.Tensor,
    views: Sequence[int],
    num_views: int,
    perturbation: Perturbation,
    focal: Focal,
    name: str,
    draws: Draws,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The positions that some views share, their change at scale 1, and each view's scale."""
    role_P = role(weight_P, perturbation, name, views[0], draws)
    position_S = role_P.nonzero().flatten()
    weight_S, at_S = weight_P[position_S], position_S.double()
    xi_S = None
    if perturbation.mode == "noise":
        xi_S = draws.normal(perturbation, name, views[0], len(weight_P)).to(weight_P.device)[
            position_S
        ]
    unit_S = unit_change(weight_S, role_P[position_S], perturbation, xi_S)
    scale_E = torch.zeros(num_views, dtype=torch.float64, device=weight_P.device)
    scale_E[list(views)] = perturbation.scale
    if perturbation.strength is not None:
        norm = float(weight_P.double().norm())
        for view in views:
            shape_S = modulation(at_S, len(weight_P), view, num_views, focal)
            moved = float((weight_S.double() * unit_S * shape_S).norm())
            scale_E[view] = solve_scale(moved, norm, perturbation)
    return position_S, unit_S, scale_E
