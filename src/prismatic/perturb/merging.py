"""The production path: all views of a tensor at once, and their merge.

Where the views share a selection and the pattern is a short product, nothing is listed: a view's
change is selection times pattern over a few rectangles. Everything else is a list of entries.

Shapes: P positions of the tensor, J rows, L columns and G rank of a patch, E views, R routings.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .geometry import reach
from .kernel import DRAWS, Draws, solve_scale
from .lenses import Patch, patches_of
from .options import Focal, Perturbation
from .select import Edges, Selection, select
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
        return _Merge.apply(self, weight, *self.all_coefficients(probs[None]))

    def all_coefficients(self, probs_RE: torch.Tensor) -> list[torch.Tensor]:
        """The coefficients of every patch, (R, J, G) each: what `Merging` wants."""
        return [self.coefficients(patch, probs_RE) for patch in self.patches]


class Merging:
    """Merges of one tensor under R routings, one at a time in one buffer, and their gradients.

    `all_c` are the coefficients of every patch.
    """

    def __init__(self, views: Views, weight: torch.Tensor, all_c: Sequence[torch.Tensor]) -> None:
        self.views, self.weight, self.all_c = views, weight, all_c
        self.weight_P = weight.flatten().to(views.scale_E.dtype)
        self._whole = sum(patch.numel for patch in views.patches) == weight.numel()
        self._merged_P = torch.empty_like(self.weight_P) if self._whole else self.weight_P.clone()
        self._moved: dict[int, torch.Tensor] = {}
        self._factors: dict[int, torch.Tensor] = {}
        self._factored: dict[int, torch.Tensor] = {}
        self._grad_P: torch.Tensor | None = None
        self._grads_c: list[list[torch.Tensor]] = []

    def at(self, routing: int) -> "Merging":
        """Merge anew: `merged` then holds what this routing gives."""
        self._factors = {}
        for patch, moved_JL, factor_JL in self._prepared(routing):
            weight_JL, out = patch.of(self.weight_P), patch.of(self._merged_P)
            torch.addcmul(weight_JL, moved_JL, factor_JL, out=out)
        return self

    @property
    def merged(self) -> torch.Tensor:
        """The last merge, until the next."""
        return self._merged_P.view(self.weight.shape)

    def kept(self) -> "Merging":
        """This with `merged`, and without factors, which are as large and soon derived again."""
        self._factors = {}
        return self

    def collect(self, routing: int, grad: torch.Tensor) -> None:
        """Take over the gradient at `merged`: for each routing once, in their order."""
        grad_P = grad.to(self.weight_P.dtype).flatten()
        grads_c = []
        for at, (patch, moved_JL, factor_JL) in enumerate(self._prepared(routing)):
            grad_JL = patch.of(grad_P)
            grads_c.append(patch.project(grad_JL * moved_JL))
            if not self._whole:
                grad_JL += self._signed(factor_JL * grad_JL, patch)
            elif at in self._factored:
                self._factored[at].addcmul_(grad_JL, factor_JL)
            else:
                self._factored[at] = factor_JL * grad_JL
        self._grads_c.append(grads_c)
        self._grad_P = grad_P if self._grad_P is None else self._grad_P.add_(grad_P)

    def gradients(self) -> list[torch.Tensor]:
        """The gradients at the tensor and at all coefficients, of what was collected."""
        assert self._grad_P is not None
        for at, factored_JL in self._factored.items():
            patch = self.views.patches[at]
            patch.of(self._grad_P).add_(self._signed(factored_JL, patch))
        grad = self._grad_P.to(self.weight.dtype).view(self.weight.shape)
        grads_c = map(torch.stack, zip(*self._grads_c, strict=True))
        self._grad_P, self._factored, self._grads_c = None, {}, []  # a graph may be gone back twice
        return [grad, *grads_c]

    def _prepared(self, routing: int) -> Iterator[tuple[Patch, torch.Tensor, torch.Tensor]]:
        """Every patch, what it moves and its factors; kept for the next use where that pays."""
        pays = self._whole or len(self.all_c[0]) > 1
        for at, (patch, c_RJG) in enumerate(zip(self.views.patches, self.all_c, strict=True)):
            moved_JL, factor_JL = self._moved.get(at), self._factors.get(at)
            if moved_JL is None:
                moved_JL = self.views.selection.moved(self.weight_P, patch)
            if factor_JL is None:
                factor_JL = patch.factor(c_RJG[routing])
            if pays:
                self._moved[at], self._factors[at] = moved_JL, factor_JL
            yield patch, moved_JL, factor_JL

    def _signed(self, x_JL: torch.Tensor, patch: Patch) -> torch.Tensor:
        return self.views.selection.signed(x_JL, self.weight_P, patch)


class _Merge(torch.autograd.Function):
    """One merge; the backward derives what it needs anew."""

    @staticmethod
    def forward(ctx: Any, views: Views, weight: torch.Tensor, *all_c: torch.Tensor) -> torch.Tensor:
        ctx.views = views
        ctx.save_for_backward(weight, *all_c)
        return Merging(views, weight, all_c).at(0).merged.to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight, *all_c = ctx.saved_tensors
        merging = Merging(ctx.views, weight, all_c)
        merging.collect(0, grad.clone())
        return None, *merging.gradients()


def views_of(
    weight: torch.Tensor,
    num_views: int,
    perturbation: Perturbation,
    focal: Focal,
    name: str = "",
    draws: Draws = DRAWS,
    hints: MutableMapping[str, Edges] | None = None,
) -> Views | SparseChange:
    """The views of a tensor as it is now. Raises `ValueError` for a strength out of reach.

    `draws` and `hints` may remember what they were asked for a `name`, to be faster.
    """
    # In float64 a sum of angles rounds otherwise than the angle of a sum: entries follow `change`.
    if num_views > 1 and not perturbation.per_view and weight.dtype != torch.float64:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        width = reach(focal, weight.numel(), largest_scale(perturbation), torch.finfo(dtype).eps)
        patches = patches_of(weight.shape, num_views, focal, width, dtype, weight.device)
        if patches is not None:
            wide = 2 * sum(patch.numel for patch in patches) > weight.numel()
            selection = select(weight, perturbation, hints, name, all_roles=wide)
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
