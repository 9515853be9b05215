"""A parameter as a mixture of views that are a selection times lenses, and products with it.

A view changes some rows of a matrix: y = W x plus, for each part of the pattern, what those rows of
the change give, times what the part counts for at each position.

Shapes: X leading dimensions that broadcast against (B, T), E views, P positions of the parameter,
O output and I input features, J rows of a patch, each of them R rows of the matrix (K = J * R).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from prismatic.perturb import Patch, Views

from .mixtures import ViewMixture


class Part(NamedTuple):
    """A part of the change: `change_KI` over some of the matrix's rows, and what it counts for."""

    runs: list[slice]
    change_KI: torch.Tensor
    coefficient_XJ: torch.Tensor


class LensMixture(ViewMixture):
    """Views of one parameter: W * (1 + sum_i r_i f_i) with f_i = scale_i * role * lens_i."""

    def __init__(self, weight: torch.Tensor, views: Views) -> None:
        super().__init__(weight)
        self.views = views

    def dense(self) -> torch.Tensor:
        return self.views.dense(self.weight)

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.views.merged(self.weight, probs_E)

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        parts = list(self._parts(probs_XE))
        coefficients = [part.coefficient_XJ.to(y.dtype) for part in parts]
        return _AddRows.apply(parts, y, x.to(y.dtype), self.weight.to(y.dtype), *coefficients)

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for runs, change_KO, coefficient_XJ in self._parts(probs_XE):
            delta_KO = gather(self.weight, runs, 0) * change_KO
            x_XK = scaled(gather(x, runs, -1), coefficient_XJ.to(x.dtype))
            y = y + x_XK.to(y.dtype) @ delta_KO.to(y.dtype)
        return y

    def _parts(self, probs_XE: torch.Tensor) -> Iterator[Part]:
        num_columns = self.weight.shape[1]
        weight_P = self.weight.detach().flatten().to(self.views.scale_E.dtype)
        scaled_XE = probs_XE.to(weight_P.dtype) * self.views.scale_E
        for whole in self.views.patches:
            aligned = whole.stride % num_columns == 0
            for patch in [whole] if aligned else whole.rows():
                role_JL = self.views.signs(weight_P, patch)
                runs = rows_of(patch, self.weight)
                for weights_JE, shape_JL in patch.pieces():
                    change_KI = spread(role_JL * shape_JL, patch, num_columns)
                    yield Part(runs, change_KI, scaled_XE @ weights_JE.T)


def rows_of(patch: Patch, weight: torch.Tensor) -> list[slice]:
    """The matrix rows that a patch touches: a run per patch row, or one run for all."""
    num_columns = weight.shape[1]
    first, offset = divmod(patch.start, num_columns)
    if patch.num_rows * patch.width == weight.numel():
        return [slice(None)]
    per_row = -(-(offset + patch.width) // num_columns)
    starts = [first + j * (patch.stride // num_columns) for j in range(patch.num_rows)]
    return [slice(start, start + per_row) for start in starts]


def gather(x: torch.Tensor, runs: list[slice], dim: int) -> torch.Tensor:
    """Some runs of indices, one after the other."""
    if len(runs) == 1:
        return along(x, runs[0], dim)
    return torch.cat([along(x, run, dim) for run in runs], dim)


def add_to(y: torch.Tensor, runs: list[slice], dim: int, change: torch.Tensor) -> None:
    """Add to some runs of indices in place, the opposite of `gather`; runs may overlap."""
    parts = [change] if len(runs) == 1 else change.chunk(len(runs), dim)
    for run, part in zip(runs, parts, strict=True):
        along(y, run, dim).add_(part)


def along(x: torch.Tensor, run: slice, dim: int) -> torch.Tensor:
    return x[run] if dim == 0 else x[..., run]


def spread(change_JL: torch.Tensor, patch: Patch, num_columns: int) -> torch.Tensor:
    """A patch's values where its matrix rows have them: (J, L) -> (K, I), 0 elsewhere."""
    offset = patch.start % num_columns
    tail = -(offset + patch.width) % num_columns
    return F.pad(change_JL, (offset, tail)).view(-1, num_columns)


def scaled(x_XK: torch.Tensor, coefficient_XJ: torch.Tensor) -> torch.Tensor:
    """Each patch row's features times what it counts for."""
    x_XJR = x_XK.unflatten(-1, (coefficient_XJ.shape[-1], -1))
    return (x_XJR * coefficient_XJ[..., None]).flatten(-2)


class _AddRows(torch.autograd.Function):
    """Adds what the parts' rows give to `y = x @ W.T`, in place; the backward keeps nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: list[Part],
        y: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        *all_c: torch.Tensor,
    ) -> torch.Tensor:
        ctx.parts = [part[:2] for part in parts]
        ctx.save_for_backward(x, weight, *all_c)
        ctx.mark_dirty(y)
        for (runs, change_KI), coefficient_XJ in zip(ctx.parts, all_c, strict=True):
            add_to(y, runs, -1, scaled(x @ delta(weight, runs, change_KI).T, coefficient_XJ))
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, *all_c = ctx.saved_tensors
        grad_x, flat_x = torch.zeros_like(x), x.flatten(0, -2)
        grad_weight = torch.zeros_like(weight)
        grad_c = []
        for (runs, change_KI), coefficient_XJ in zip(ctx.parts, all_c, strict=True):
            delta_KI = delta(weight, runs, change_KI)
            grad_XK = gather(grad, runs, -1)
            per_row = (grad_XK * (x @ delta_KI.T)).unflatten(-1, (coefficient_XJ.shape[-1], -1))
            grad_c.append(per_row.sum(-1).sum_to_size(coefficient_XJ.shape))
            grad_XK = scaled(grad_XK, coefficient_XJ)
            grad_x.add_(grad_XK @ delta_KI)
            grad_KI = (grad_XK.flatten(0, -2).T @ flat_x).mul_(change_KI)
            add_to(grad_weight, runs, 0, grad_KI)
        return None, grad, grad_x, grad_weight, *grad_c


def delta(weight: torch.Tensor, runs: list[slice], change_KI: torch.Tensor) -> torch.Tensor:
    return gather(weight, runs, 0) * change_KI.to(weight.dtype)
