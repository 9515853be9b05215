"""A parameter that is a soft mixture over views, and products with it without building copies.

Positions that share a routing meet one merged matrix, which lives in a buffer while it is needed.
Where every position has a routing of its own, y = x W plus, for each piece g of the change, c_g
times what the matrix D_g gives: one product with all pieces side by side.

Shapes: X leading dimensions that broadcast against (B, T), E views, V views but the first, O output
and I input features, R routings, N positions that share one, G pieces, J, Q, L and K as in
`perturb.views`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prismatic.perturb import Change, Narrow, Whole, project, signed, weigh

# A product with more pieces than this keeps nothing for the backward, which computes it again.
KEPT_PIECES = 8


class ViewMixture:
    """Views of one parameter: W * (1 + sum_i r_i f_i). `probs` are routing weights."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        """The merged parameter for one r: its own shape."""
        return self.change.merged(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        """The merged parameter for every r, as gains and biases need it: (X, *shape)."""
        weight, f_EP = self.change.weight, self.change.factors()
        added_XP = weigh(probs_XE, (weight.flatten() * f_EP).T)
        return (weight + added_XP.view(*probs_XE.shape[:-1], *weight.shape)).to(weight.dtype)

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        """`x @ merged.T`, for a parameter of shape (O, I)."""
        x, change, form = x.to(product_dtype(x)), self.change, self.change.form
        if probs_XE.numel() == probs_XE.shape[-1]:
            return F.linear(x, change.merged(probs_XE.flatten()).to(x.dtype))
        if isinstance(form, Narrow):
            z_XK = F.linear(x, change.reached().to(x.dtype)) * self._counts(x, probs_XE)
            return F.linear(x, change.weight.to(x.dtype)).index_add(-1, form.row_K, z_XK)
        if probs_XE.shape[1:-1].numel() > 1:
            return self._by_position(x, probs_XE, rows_in=False)
        c_RJQ = form.coefficients(change.scaled(probs_XE.flatten(0, -2)))
        x_RNI = x.reshape(len(c_RJQ), -1, x.shape[-1])
        y_RNO = SharedProduct.apply(x_RNI, *change.laid_out(), form.basis_QL, c_RJQ)
        return y_RNO.view(*x.shape[:-1], y_RNO.shape[-1])

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        """`x @ merged`, for a parameter of shape (I, O)."""
        x, change, form = x.to(product_dtype(x)), self.change, self.change.form
        if probs_XE.numel() == probs_XE.shape[-1]:
            return x @ change.merged(probs_XE.flatten()).to(x.dtype)
        if isinstance(form, Narrow):
            scaled_XK = x[..., form.row_K] * self._counts(x, probs_XE)
            return x @ change.weight.to(x.dtype) + scaled_XK @ change.reached().to(x.dtype)
        return self._by_position(x, probs_XE, rows_in=True)

    def _counts(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        """What each row that a narrow lens reaches counts for at every position: (X, K)."""
        return weigh(self.change.scaled(probs_XE), self.change.form[2]).to(x.dtype)

    def _by_position(
        self, x: torch.Tensor, probs_XE: torch.Tensor, *, rows_in: bool
    ) -> torch.Tensor:
        """A product with each position's own merge; the matrix's rows are inputs or outputs."""
        change, form, shape = self.change, self.change.form, self.change.weight.shape
        assert isinstance(form, Whole)
        num_views = form.weights_JQE.shape[-1]
        if form.rows == shape[0] and (len(form.basis_QL) < num_views - 1 or form.is_flat):
            tables, patterns = form.weights_JQE.unbind(1), form.basis_QL[:, None]
        else:  # the views are fewer
            tables = torch.eye(num_views, device=x.device)[1:, None].unbind()
            patterns = form.views_VJL().expand(-1, form.rows, form.columns).reshape(-1, *shape)
        scaled_XE = change.scaled(probs_XE)
        counts = [weigh(scaled_XE, table.to(scaled_XE.dtype)).to(x.dtype) for table in tables]
        by_row = any(c.shape[-1] > 1 for c in counts)
        num_inputs, num_outputs = shape if rows_in else shape[::-1]
        inputs = rows_in if by_row else num_inputs <= num_outputs
        sign = None if change.sign is None else change.sign.view(shape)

        def product(x: torch.Tensor, weight: torch.Tensor, *counts: torch.Tensor) -> torch.Tensor:
            moved = signed(sign, weight)
            matrix = torch.cat(
                [weight, *(moved * p for p in patterns)], 0 if rows_in == inputs else 1
            )
            matrix = matrix.T if rows_in else matrix
            return multiply(x, matrix.to(x.dtype), [None, *counts], inputs=inputs)

        if len(counts) > KEPT_PIECES:
            return checkpoint(product, x, change.weight, *counts, use_reentrant=False)
        return product(x, change.weight, *counts)


class ExpertMixture:
    """The same parameter of N separate experts, sum_i r_i W_i; used as `ViewMixture` is."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights = weights

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.elementwise(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        merged_XP = weigh(probs_XE, torch.stack(self.weights).flatten(1).T)
        return merged_XP.view(*probs_XE.shape[:-1], *self.weights[0].shape)

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        x = x.to(product_dtype(x))
        if probs_XE.numel() == probs_XE.shape[-1]:
            return F.linear(x, self.merged(probs_XE.flatten()).to(x.dtype))
        num_outputs, num_inputs = self.weights[0].shape
        inputs = num_inputs <= num_outputs
        matrix = torch.cat(self.weights, 1 if inputs else 0).to(x.dtype)
        return multiply(x, matrix, probs_XE.to(x.dtype).split(1, -1), inputs=inputs)

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        return ExpertMixture([weight.T for weight in self.weights]).linear(x, probs_XE)


Mixture = ViewMixture | ExpertMixture


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The precision in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def multiply(
    x: torch.Tensor, matrix: torch.Tensor, counts: Sequence[torch.Tensor | None], *, inputs: bool
) -> torch.Tensor:
    """The sum over pieces of `x @ piece.T` times what it counts for at every position, None for 1.

    `matrix` (O, I) holds the pieces side by side along its inputs or its outputs; counts are (X, 1)
    or (X, features of that side).
    """
    if inputs:
        return F.linear(torch.cat([x if c is None else x * c for c in counts], -1), matrix)
    y, *others = F.linear(x, matrix).unflatten(-1, (len(counts), -1)).unbind(-2)
    y = y if counts[0] is None else y * counts[0]
    for other, c in zip(others, counts[1:], strict=True):
        y = y + other if c is None else torch.addcmul(y, other, c)
    return y


class SharedProduct(torch.autograd.Function):
    """`x[r] @ merged_r.T` with merged_r = weight * (1 + sign * (c[r] @ basis)).

    `weight` and `sign` are given as the rows and columns of the change's form.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        ctx.save_for_backward(*args)
        x_RNI, weight, sign, basis_QL, c_RJQ = args
        moved, merged, num_inputs = signed(sign, weight), torch.empty_like(weight), x_RNI.shape[-1]
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
