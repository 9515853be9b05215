"""The production path: all views of a tensor at once, and their merge.

Where the views share a selection and the pattern is a short product, nothing is listed: a view's
change is selection times pattern over a few rectangles. Everything else is a list of entries.

Shapes: P positions of the tensor, J rows, L columns and G rank of a patch, E views.
"""

from typing import Any

import torch

from .geometry import reach
from .kernel import DRAWS, Draws, solve_scale
from .lenses import Patch, patches_of
from .options import Focal, Perturbation
from .select import Selection, select
from .sparse import SparseChange, sparse_change


class Views:
    """The changes of every view of one tensor, for one forward: f_i = scale_i * role * m_i."""

    def __init__(
        self, selection: Selection, patches: tuple[Patch, ...], scale_E: torch.Tensor
    ) -> None:
        self.selection, self.patches, self.scale_E = selection, patches, scale_E

    def coefficients(self, patch: Patch, probs: torch.Tensor) -> torch.Tensor:
        """What each part of a patch counts for: (..., E) -> (..., J, G)."""
        return patch.coefficients(probs.to(self.scale_E.dtype) * self.scale_E)

    def signs(self, weight_P: torch.Tensor, patch: Patch) -> torch.Tensor:
        """The role of every weight of a patch: (J, L), in the factors' precision."""
        return self.selection.moved(weight_P, patch).sign_().mul_(patch.of(weight_P).sign())

    def dense(self, weight: torch.Tensor) -> torch.Tensor:
        """Every f_i in full, (E, P): for small tensors such as gains and biases."""
        weight_P = weight.detach().flatten().to(self.scale_E.dtype)
        f_EP = weight_P.new_zeros(len(self.scale_E), len(weight_P))
        each_EE = torch.eye(len(self.scale_E), device=weight.device)
        for patch in self.patches:
            shape_EJL = patch.factor(self.coefficients(patch, each_EE))
            patch.of(f_EP).add_(shape_EJL * self.signs(weight_P, patch))
        return f_EP

    def merged(self, weight: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """`weight * (1 + sum_i r_i f_i)` for one r of shape (E,): differentiable in both."""
        coefficients = [self.coefficients(patch, probs) for patch in self.patches]
        return _Merge.apply(self, weight, *coefficients)


class _Merge(torch.autograd.Function):
    """A copy of the weight, changed where patches are; the backward derives what it needs anew."""

    @staticmethod
    def forward(
        ctx: Any, views: Views, weight: torch.Tensor, *coefficients: torch.Tensor
    ) -> torch.Tensor:
        ctx.views = views
        ctx.save_for_backward(weight, *coefficients)
        weight_P = weight.flatten().to(views.scale_E.dtype)
        merged_P = weight_P.clone()
        for patch, coefficient_JG in zip(views.patches, coefficients, strict=True):
            moved_JL = views.selection.moved(weight_P, patch)
            patch.of(merged_P).add_(moved_JL.mul_(patch.factor(coefficient_JG)))
        return merged_P.to(weight.dtype).view(weight.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight, *coefficients = ctx.saved_tensors
        views = ctx.views
        weight_P = weight.flatten().to(views.scale_E.dtype)
        merged_P = grad.flatten().to(weight_P.dtype)
        grad_P = merged_P.clone()
        projected = []
        for patch, coefficient_JG in zip(views.patches, coefficients, strict=True):
            moved_JL = views.selection.moved(weight_P, patch)
            grad_JL = patch.of(merged_P)
            projected.append(patch.project(moved_JL * grad_JL))
            role_JL = moved_JL.sign_().mul_(patch.of(weight_P).sign())
            change_JL = role_JL.mul_(patch.factor(coefficient_JG))
            patch.of(grad_P).add_(change_JL * grad_JL)
        return None, grad_P.to(weight.dtype).view(weight.shape), *projected


def views_of(
    weight: torch.Tensor,
    num_views: int,
    perturbation: Perturbation,
    focal: Focal,
    name: str = "",
    draws: Draws = DRAWS,
) -> Views | SparseChange:
    """The views of a tensor as it is now. Raises `ValueError` for a strength out of reach."""
    # In float64 a sum of angles rounds otherwise than the angle of a sum: entries follow `change`.
    if num_views > 1 and not perturbation.per_view and weight.dtype != torch.float64:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        width = reach(focal, weight.numel(), largest_scale(perturbation), torch.finfo(dtype).eps)
        patches = patches_of(weight.shape, num_views, focal, width, dtype, weight.device)
        if patches is not None:
            selection = select(weight, perturbation)
            direction = -1 if perturbation.mode == "attractive" else 1
            scale_E = torch.full((num_views,), direction * perturbation.scale, dtype=dtype)
            views = Views(selection, patches, scale_E.to(weight.device))
            if perturbation.strength is not None:
                views.scale_E = direction * solved(weight, views, num_views, perturbation)
            return views
    return sparse_change(weight, num_views, perturbation, focal, name, draws=draws)


def largest_scale(perturbation: Perturbation) -> float:
    strength = perturbation.strength
    return perturbation.scale if strength is None else perturbation.strength_max_scale


def solved(
    weight: torch.Tensor, views: Views, num_views: int, perturbation: Perturbation
) -> torch.Tensor:
    """The scale of each view at which its change has `strength`; 0 for view 0."""
    weight_P = weight.detach().flatten().to(views.scale_E.dtype)
    norm = float(weight_P.double().norm())
    total_E = torch.zeros(num_views, dtype=torch.float64)
    for patch in views.patches:
        moved_JL = views.selection.moved(weight_P, patch)
        for view in range(1, num_views):
            shape_JL = patch.factor(patch.weights_JGE[:, :, view])
            total_E[view] += float((moved_JL * shape_JL).double().square().sum())
    scales = [solve_scale(moved, norm, perturbation) for moved in total_E[1:].sqrt().tolist()]
    return torch.tensor([0.0, *scales]).to(views.scale_E)


def merge(
    weight: torch.Tensor,
    probs: torch.Tensor,
    perturbation: Perturbation,
    focal: Focal,
    name: str = "",
) -> torch.Tensor:
    """The soft merge of all views under routing weights `probs` of shape (N,), summing to 1.

    Same shape and dtype as `weight`. Differentiable in both; the selection is a constant. No view
    is ever built. Source: 002, "Merge all views by routing weights".
    """
    return views_of(weight, len(probs), perturbation, focal, name).merged(weight, probs)
