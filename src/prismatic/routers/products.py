"""Products with a matrix that is a mixture of views, without a copy of it for every routing.

Positions that share a routing meet one merged matrix, which lives in a buffer while it is needed.
Where every position has a routing of its own, y = x W plus, for each piece g of the change, c_g
times what the matrix D_g gives: one product with all pieces side by side.

Shapes: R routings, X leading dimensions of an input, N positions that share a routing, O output and
I input features, J, Q and L as in `perturb.views`, G pieces.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prismatic.perturb import Change, Whole, project, signed, weigh

# More pieces than this are multiplied a few at a time, and once more in the backward.
SIDE_BY_SIDE = 8


class SharedProduct(torch.autograd.Function):
    """`x[r] @ merged_r.T` with merged_r = weight * (1 + sign * (c[r] @ basis)).

    `weight` and `sign` are given as the rows and columns of the change's form.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_RNI: torch.Tensor,
        weight: torch.Tensor,
        sign: torch.Tensor | None,
        basis_QL: torch.Tensor,
        c_RJQ: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_RNI, weight, sign, basis_QL, c_RJQ)
        moved, merged = signed(sign, weight), torch.empty_like(weight)
        num_inputs = x_RNI.shape[-1]
        y_RNO = x_RNI.new_empty(*x_RNI.shape[:2], weight.numel() // num_inputs)
        for x_NI, y_NO, c_JQ in zip(x_RNI, y_RNO, c_RJQ, strict=True):
            torch.addcmul(weight, moved, c_JQ @ basis_QL, out=merged)
            torch.mm(x_NI, merged.view(-1, num_inputs).to(x_NI.dtype).T, out=y_NO)
        return y_RNO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RNO: torch.Tensor) -> Any:
        x_RNI, weight, sign, basis_QL, c_RJQ = ctx.saved_tensors
        moved, merged = signed(sign, weight), torch.empty_like(weight)
        grad_weight, grad_factored = torch.zeros_like(weight), torch.zeros_like(weight)
        grad_x_RNI = torch.empty_like(x_RNI, memory_format=torch.contiguous_format)
        grad_c = []
        for r, (x_NI, grad_NO) in enumerate(zip(x_RNI, grad_RNO, strict=True)):
            factor_JL = c_RJQ[r] @ basis_QL
            torch.addcmul(weight, moved, factor_JL, out=merged)
            merged_OI = merged.view(-1, x_RNI.shape[-1]).to(x_NI.dtype)
            torch.mm(grad_NO, merged_OI, out=grad_x_RNI[r])
            grad_merged = (grad_NO.T @ x_NI).to(weight.dtype).view_as(weight)
            grad_weight.add_(grad_merged)
            grad_factored.addcmul_(grad_merged, factor_JL)
            grad_c.append(project(grad_merged.mul_(moved), c_RJQ[r], basis_QL))
        grad_weight += signed(sign, grad_factored)
        return grad_x_RNI, grad_weight, None, None, torch.stack(grad_c)


class SideBySide(torch.autograd.Function):
    """The weight, unless it is left out, and weight * sign * pattern_g of all pieces, along `dim`.

    pattern_g is `basis_g`, or `left_g @ basis` where there is a `left`; the backward computes it
    anew, so that no matrix but the result is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight_OI: torch.Tensor,
        sign_OI: torch.Tensor | None,
        left: torch.Tensor | None,
        basis: torch.Tensor,
        dim: int,
        with_weight: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(sign_OI, left, basis)
        ctx.dim, ctx.with_weight = dim, with_weight
        moved_OI = signed(sign_OI, weight_OI)
        pieces = [moved_OI * pattern for pattern in patterns(left, basis)]
        return torch.cat([weight_OI, *pieces] if with_weight else pieces, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        sign_OI, left, basis = ctx.saved_tensors
        every = patterns(left, basis)
        grads = list(grad.chunk(len(every) + ctx.with_weight, ctx.dim))
        grad_weight = grads.pop(0) if ctx.with_weight else 0
        moved = every[0] * grads[0]
        for pattern, grad_piece in zip(every[1:], grads[1:], strict=True):
            moved.addcmul_(grad_piece, pattern)
        return grad_weight + signed(sign_OI, moved), None, None, None, None, None


def patterns(left: torch.Tensor | None, basis: torch.Tensor) -> torch.Tensor:
    """The pattern of every piece: (G, O or 1, I or 1)."""
    return basis if left is None else left @ basis


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The precision in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def multiply(
    x: torch.Tensor, matrix: torch.Tensor, coefficients: Sequence[torch.Tensor | None], side: str
) -> torch.Tensor:
    """The sum over pieces of `x @ piece.T` times a coefficient at every position, None for 1.

    `matrix` holds the pieces side by side along their `side` features, in or out. Coefficients
    belong to a position, (X, 1), or to each of its features of that side too.
    """
    if side == "in":
        scaled = [x if c is None else x * c for c in coefficients]
        return F.linear(torch.cat(scaled, -1) if len(scaled) > 1 else scaled[0], matrix)
    y, *others = F.linear(x, matrix).unflatten(-1, (len(coefficients), -1)).unbind(-2)
    first, *rest = coefficients
    y = y if first is None else y * first
    for other, c in zip(others, rest, strict=True):
        y = y + other if c is None else torch.addcmul(y, other, c)
    return y


def routed_product(
    x: torch.Tensor, change: Change, probs_XE: torch.Tensor, *, rows_in: bool
) -> torch.Tensor:
    """`x @ merged.T` for each position's own merge of a matrix (O, I), with `x` (X, I).

    Or `x @ merged` for a matrix (I, O) with `rows_in`, where its rows are input features.
    """
    form = change.form
    assert isinstance(form, Whole)
    weight, shape = change.weight, change.weight.shape
    sign = None if change.sign is None else change.sign.view(shape)
    scaled_XE = change.scaled(probs_XE)
    rows, rank, num_views = form.weights_JQE.shape
    by_rank = form.rows == shape[0] and (rank < num_views - 1 or rows == 1)
    left = None
    if by_rank:
        basis = form.basis_QL[:, None]
        tables = form.weights_JQE.unbind(1)
    else:
        tables = torch.eye(num_views, device=x.device, dtype=scaled_XE.dtype)[1:, None].unbind()
        weights_VJQ = form.weights_JQE.permute(2, 0, 1)[1:]
        if form.rows == shape[0]:
            left, basis = weights_VJQ, form.basis_QL
        else:
            basis = (weights_VJQ @ form.basis_QL).view(-1, *shape)
    coefficients = [weigh(scaled_XE, table).to(x.dtype) for table in tables]
    wide = any(c.shape[-1] > 1 for c in coefficients)
    num_inputs, num_outputs = shape if rows_in else reversed(shape)
    side = "in" if (rows_in if wide else num_inputs <= num_outputs) else "out"
    dim = 0 if rows_in == (side == "in") else 1

    def product(part: slice, with_weight: bool, *parts: torch.Tensor) -> torch.Tensor:
        lefts = None if left is None else left[part]
        bases = basis if left is not None else basis[part]
        matrix = SideBySide.apply(weight, sign, lefts, bases, dim, with_weight).to(x.dtype)
        ones = [None] if with_weight else []
        return multiply(x, matrix.T if rows_in else matrix, [*ones, *parts], side)

    if len(coefficients) <= SIDE_BY_SIDE:
        return product(slice(None), True, *coefficients)
    y = x @ (weight if rows_in else weight.T).to(x.dtype)
    for start in range(0, len(coefficients), SIDE_BY_SIDE):
        part = slice(start, start + SIDE_BY_SIDE)
        y = y + checkpoint(product, part, False, *coefficients[part], use_reentrant=False)
    return y
