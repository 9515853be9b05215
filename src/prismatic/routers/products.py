"""`x @ merged.T` for a matrix that is a mixture of views, without keeping merged matrices.

Positions that share a routing meet one merged matrix, which lives in a buffer while it is needed.
Where every position has a routing of its own, each part of the change gives some features more,
times what the part counts for at each position.

Shapes: R routings, X leading dimensions of the input, O output and I input features, J rows of a
patch, each of them some rows of the matrix, K in all.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from prismatic.perturb import Merging, Views


class SharedProduct(torch.autograd.Function):
    """`x @ merged.T + bias`, one merge for each of R equal slices of x along its first dimension.

    `all_c` are the coefficients of the views' patches, (R, J, G) each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        views: Views,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *all_c: torch.Tensor,
    ) -> torch.Tensor:
        ctx.views, ctx.num_routings, ctx.has_bias = views, len(all_c[0]), bias is not None
        ctx.save_for_backward(x, weight, *all_c)
        merging = Merging(views, weight, all_c)
        ctx.merging = None
        if ctx.num_routings == 1:
            y = F.linear(x, merging.at(0).merged.to(x.dtype), bias)
            ctx.merging = merging.kept()
            return y
        y = x.new_empty(*x.shape[:-1], len(weight))
        for routing, (x_r, y_r) in enumerate(slices(ctx.num_routings, x, y)):
            merged = merging.at(routing).merged.to(x.dtype)
            torch.mm(x_r, merged.T, out=y_r)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, *all_c = ctx.saved_tensors
        merging = ctx.merging or Merging(ctx.views, weight, all_c)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        per_routing = slices(ctx.num_routings, x, grad, grad_x)
        for routing, (x_r, grad_r, grad_x_r) in enumerate(per_routing):
            merged = (merging if ctx.merging else merging.at(routing)).merged.to(x.dtype)
            torch.mm(grad_r, merged, out=grad_x_r)
            merging.collect(routing, grad_r.T @ x_r)
        grad_weight, *grad_c = merging.gradients()
        return None, grad_x, grad_weight, sum_of(grad) if ctx.has_bias else None, *grad_c


def slices(num_routings: int, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The parts of some tensors that share a routing, each as a matrix."""
    chunks = (t.reshape(num_routings, -1, t.shape[-1]).unbind() for t in tensors)
    return zip(*chunks, strict=True)


class Part(NamedTuple):
    """A part of the change: `change_KI` over some of the matrix's rows."""

    runs: list[slice]
    change_KI: torch.Tensor

    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        return gather(weight, self.runs, 0) * self.change_KI.to(weight.dtype)


class TokenProduct(torch.autograd.Function):
    """`x @ merged.T + bias`, one routing per position.

    `all_c` say what every one of `parts()` counts for at each position, (X, J) each. A `lean`
    product keeps neither parts nor what they give, and its backward computes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parts: Callable[[], Iterable[Part]],
        lean: bool,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *all_c: torch.Tensor,
    ) -> torch.Tensor:
        y = F.linear(x, weight, bias)
        made, kept = [], []
        for part, c_XJ in zip(parts(), all_c, strict=True):
            z_XK = x @ part.delta(weight).T
            add_to(y, part.runs, -1, scaled(z_XK, c_XJ))
            if not lean:
                made.append(part)
                kept.append(z_XK)
        ctx.parts, ctx.has_bias = parts if lean else lambda: made, bias is not None
        ctx.save_for_backward(x, weight, *all_c, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, *rest = ctx.saved_tensors
        num_parts = len(ctx.needs_input_grad) - 5
        all_c, kept = rest[:num_parts], rest[num_parts:] or [None] * num_parts
        flat_x, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_x, grad_weight = flat_grad @ weight, flat_grad.T @ flat_x
        grad_c = []
        for part, z_XK, c_XJ in zip(ctx.parts(), kept, all_c, strict=True):
            delta_KI, grad_XK = part.delta(weight), gather(grad, part.runs, -1)
            z_XK = x @ delta_KI.T if z_XK is None else z_XK
            per_row = (grad_XK * z_XK).unflatten(-1, (c_XJ.shape[-1], -1))
            grad_c.append(per_row.sum(-1).sum_to_size(c_XJ.shape))
            grad_K = scaled(grad_XK, c_XJ).flatten(0, -2)
            grad_x.addmm_(grad_K, delta_KI)
            add_to(grad_weight, part.runs, 0, (grad_K.T @ flat_x).mul_(part.change_KI))
        grad_bias = sum_of(grad) if ctx.has_bias else None
        return None, None, grad_x.view(x.shape), grad_weight, grad_bias, *grad_c


class UnitProduct(torch.autograd.Function):
    """`y + unit(x) * (probs @ gains)`: what routing adds to a norm's output `y`.

    `unit` normalises without gains of its own; `probs_XE` weighs the rows of `gains_EP`. The
    backward normalises again instead of keeping what it did.
    """

    @staticmethod
    def forward(
        ctx: Any,
        unit: Callable[[torch.Tensor], torch.Tensor],
        shape: torch.Size,
        y: torch.Tensor,
        x: torch.Tensor,
        probs_XE: torch.Tensor,
        gains_EP: torch.Tensor,
    ) -> torch.Tensor:
        ctx.unit, ctx.shape = unit, shape
        ctx.save_for_backward(x, probs_XE, gains_EP)
        change = (probs_XE @ gains_EP).unflatten(-1, shape)
        return torch.addcmul(y, unit(x).to(y.dtype), change.to(y.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, probs_XE, gains_EP = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            u = ctx.unit(again)
        change = (probs_XE @ gains_EP).unflatten(-1, ctx.shape)
        (grad_x,) = torch.autograd.grad(u, again, (change * grad).to(u.dtype))
        per_change = (u.detach() * grad).sum_to_size(change.shape).to(probs_XE.dtype)
        per_change_XP = per_change.flatten(-len(ctx.shape))
        grad_gains = probs_XE.flatten(0, -2).T @ per_change_XP.flatten(0, -2)
        return None, None, grad, grad_x, per_change_XP @ gains_EP.T, grad_gains


def sum_of(grad: torch.Tensor) -> torch.Tensor:
    """The gradient of a bias."""
    return grad.flatten(0, -2).sum(0)


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


def scaled(x_XK: torch.Tensor, c_XJ: torch.Tensor) -> torch.Tensor:
    """Each patch row's features times what it counts for."""
    x_XJR = x_XK.unflatten(-1, (c_XJ.shape[-1], -1))
    return (x_XJR * c_XJ[..., None]).flatten(-2)
