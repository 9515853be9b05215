"""A parameter that is a soft mixture over views, and products with it without building copies.

A change is f_i = scale_i * sign * form_i, where the sign holds the roles and is found anew at each
forward. Positions that share a routing meet one merged matrix, which lives in a buffer while it is
needed. Where every position has a routing of its own, y = x W plus, for each piece g of the change,
c_g times what the matrix D_g gives: one product with all pieces side by side.

Shapes: X leading dimensions that broadcast against (B, T), E views, V views but the first, O output
and I input features, R routings, N positions that share one, G pieces, J, Q, L, K and P as in
`forms`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .forms import Narrow, Whole

# A product with more pieces than this keeps nothing for the backward, which computes it again.
KEPT_PIECES = 8


class Mixture:
    """A parameter as rules multiply with it, under routing weights that are given each time."""

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        """The mixture for one r: of the parameter's shape, differentiable in r and in the base."""
        raise NotImplementedError

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        """The mixture for every r, as gains and biases need it: (X, *shape)."""
        raise NotImplementedError

    def by_position(
        self, x: torch.Tensor, probs_XE: torch.Tensor, *, rows_in: bool
    ) -> torch.Tensor:
        """`product` where there are several r."""
        raise NotImplementedError

    def product(self, x: torch.Tensor, probs_XE: torch.Tensor, *, rows_in: bool) -> torch.Tensor:
        """`x @ mixture` where the parameter's rows are inputs (I, O), or else `x @ mixture.T`."""
        x = x.to(product_dtype(x))
        if probs_XE.numel() > probs_XE.shape[-1]:
            return self.by_position(x, probs_XE, rows_in=rows_in)
        merged = self.merged(probs_XE.flatten()).to(x.dtype)
        return F.linear(x, merged.T if rows_in else merged)


class Change(Mixture):
    """What all views change of one tensor, for one forward: the mixture W * (1 + sum_i r_i f_i).

    `scale` is one number or one per view.
    """

    weight: torch.Tensor
    form: Any
    scale: Any = 1.0

    def scaled(self, probs: torch.Tensor) -> torch.Tensor:
        """Routing weights times each view's scale: (..., E), single precision at least."""
        return probs.to(self.form[3].dtype) * self.scale

    def factors(self) -> torch.Tensor:
        """Every f_i in full, (E, P): for vectors and for reports."""
        f_EP = self.unscaled()
        return f_EP * self.scaled(f_EP.new_ones(len(f_EP)))[:, None]

    def unscaled(self) -> torch.Tensor:
        """Every f_i at scale 1, (E, P)."""
        raise NotImplementedError

    def norms(self) -> torch.Tensor:
        """The norm of W f_i at scale 1: (E,) float64."""
        return torch.stack([wide_norm(f_P * self.weight.flatten()) for f_P in self.unscaled()])

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        added_XP = weigh(probs_XE, (weight.flatten() * self.factors()).T)
        return (weight + added_XP.view(*probs_XE.shape[:-1], *weight.shape)).to(weight.dtype)


class NarrowChange(Change):
    """Of the few rows that lenses reach; signs are theirs, one row after the other."""

    def __init__(self, weight: torch.Tensor, form: Narrow, sign: torch.Tensor) -> None:
        self.weight, self.form = weight, form
        # Each row's f by its own view at scale 1.
        self.change_KI = form.basis_KI * sign.view_as(form.basis_KI)

    def reached(self) -> torch.Tensor:
        """Each row times its f by its own view at scale 1: (K, I)."""
        return self.weight.flatten(1)[self.form.row_K].to(self.change_KI.dtype) * self.change_KI

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        count_K = weigh(self.scaled(probs_E), self.form.weights_KE)
        delta_KI = self.reached() * count_K[:, None]
        merged = self.weight.flatten(1).to(delta_KI.dtype)
        merged = merged.index_add(0, self.form.row_K, delta_KI)
        return merged.to(self.weight.dtype).view(self.weight.shape)

    def unscaled(self) -> torch.Tensor:
        change_KI, weights_KE = self.change_KI, self.form.weights_KE
        f_OEI = change_KI.new_zeros(len(self.weight), weights_KE.shape[1], change_KI.shape[1])
        f_OEI = f_OEI.index_add(0, self.form.row_K, weights_KE[..., None] * change_KI[:, None])
        return f_OEI.transpose(0, 1).flatten(1)

    def norms(self) -> torch.Tensor:
        energy_K = self.reached().double().square().sum(1)
        return (energy_K @ self.form.weights_KE.double()).sqrt()

    def by_position(
        self, x: torch.Tensor, probs_XE: torch.Tensor, *, rows_in: bool
    ) -> torch.Tensor:
        row_K, weight, reached = (
            self.form.row_K,
            self.weight.to(x.dtype),
            self.reached().to(x.dtype),
        )
        count_XK = weigh(self.scaled(probs_XE), self.form.weights_KE).to(x.dtype)
        if rows_in:
            return x @ weight + (x[..., row_K] * count_XK) @ reached
        return F.linear(x, weight).index_add(-1, row_K, F.linear(x, reached) * count_XK)


class WholeChange(Change):
    """Of all positions. Signs are flat, or (V, P) where each view has signs of its own."""

    def __init__(self, weight: torch.Tensor, form: Whole, sign: torch.Tensor) -> None:
        self.weight, self.form = weight, form
        own = sign.ndim > 1
        self.sign: torch.Tensor | None = None if own else sign
        self.own_sign: torch.Tensor | None = sign if own else None

    def basis_QL(self) -> torch.Tensor:
        """The form's basis with the views' own signs."""
        return signed(self.own_sign, self.form.basis_QL)

    def views_VJL(self) -> torch.Tensor:
        """The pattern of every view but the first."""
        basis_QL, weights_JQE = self.basis_QL(), self.form.weights_JQE
        if self.form.rows == 1 and len(basis_QL) == weights_JQE.shape[2] - 1:
            return basis_QL[:, None]  # which is what it has a row for
        return weights_JQE.permute(2, 0, 1)[1:] @ basis_QL

    def coefficients(self, probs: torch.Tensor) -> torch.Tensor:
        """What each basis vector counts for: (..., E) -> (..., J, Q)."""
        weights_JQE = self.form.weights_JQE
        flat = weigh(self.scaled(probs), weights_JQE.flatten(0, 1))
        return flat.unflatten(-1, weights_JQE.shape[:2])

    def constants(self) -> tuple[torch.Tensor | None, ...]:
        """Weight and sign as the form's rows and columns, and the basis in two factors."""
        weight_RC = self.weight.to(self.form.basis_QL.dtype).reshape(self.form[:2])
        sign_RC = None if self.sign is None else self.sign.view(self.form[:2])
        return weight_RC, sign_RC, self.form.basis_QL, self.own_sign

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        merged = Merge.apply(*self.constants(), self.coefficients(probs_E))
        return merged.to(self.weight.dtype).view(self.weight.shape)

    def unscaled(self) -> torch.Tensor:
        f_VP = signed(self.sign, self.views_VJL().expand(-1, *self.form[:2]).flatten(1))
        return F.pad(f_VP, (0, 0, 1, 0))

    def by_position(
        self, x: torch.Tensor, probs_XE: torch.Tensor, *, rows_in: bool
    ) -> torch.Tensor:
        form, shape, num_views = self.form, self.weight.shape, probs_XE.shape[-1]
        if not rows_in and probs_XE.shape[1:-1].numel() == 1:  # one r for each sequence
            c_RJQ = self.coefficients(probs_XE.flatten(0, -2))
            x_RNI = x.reshape(len(c_RJQ), -1, x.shape[-1])
            y_RNO = SharedProduct.apply(x_RNI, *self.constants(), c_RJQ)
            return y_RNO.view(*x.shape[:-1], y_RNO.shape[-1])
        if form.rows == shape[0] and (len(form.basis_QL) < num_views - 1 or form.is_flat):
            tables, patterns = form.weights_JQE.unbind(1), self.basis_QL()[:, None]
        else:  # the views are fewer
            tables = torch.eye(num_views, device=x.device)[1:, None].unbind()
            patterns = self.views_VJL().expand(-1, form.rows, form.columns).reshape(-1, *shape)
        scaled_XE = self.scaled(probs_XE)
        counts = [weigh(scaled_XE, table.to(scaled_XE.dtype)).to(x.dtype) for table in tables]
        by_row = any(c.shape[-1] > 1 for c in counts)
        num_inputs, num_outputs = shape if rows_in else shape[::-1]
        inputs = rows_in if by_row else num_inputs <= num_outputs
        sign = None if self.sign is None else self.sign.view(shape)

        def product(x: torch.Tensor, weight: torch.Tensor, *counts: torch.Tensor) -> torch.Tensor:
            moved = signed(sign, weight)
            matrix = torch.cat(
                [weight, *(moved * p for p in patterns)], 0 if rows_in == inputs else 1
            )
            matrix = matrix.T if rows_in else matrix
            return multiply(x, matrix.to(x.dtype), [None, *counts], inputs=inputs)

        if len(counts) > KEPT_PIECES:
            return checkpoint(product, x, self.weight, *counts, use_reentrant=False)
        return product(x, self.weight, *counts)


class Merge(torch.autograd.Function):
    """`weight * (1 + sign * (c @ basis))`; the backward derives what it needs anew.

    The basis is given as a constant and as its signs.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        ctx.save_for_backward(*args)
        weight_RC, sign_RC, basis_QL, own_QL, c_JQ = args
        factor_JL = c_JQ @ signed(own_QL, basis_QL)
        return torch.addcmul(weight_RC, weight_RC, signed(sign_RC, factor_JL))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RC: torch.Tensor) -> Any:
        weight_RC, sign_RC, basis_QL, own_QL, c_JQ = ctx.saved_tensors
        basis_QL = signed(own_QL, basis_QL)
        grad_c_JQ = project(signed(sign_RC, grad_RC * weight_RC), c_JQ, basis_QL)
        grad_weight_RC = torch.addcmul(grad_RC, grad_RC, signed(sign_RC, c_JQ @ basis_QL))
        return grad_weight_RC, None, None, None, grad_c_JQ


class SharedProduct(torch.autograd.Function):
    """`x[r] @ merged_r.T` with merged_r = weight * (1 + sign * (c[r] @ basis)).

    `weight` and `sign` are given as the rows and columns of the change's form, the basis as in
    `Merge`.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        ctx.save_for_backward(*args)
        x_RNI, weight, sign, basis_QL, own_QL, c_RJQ = args
        basis_QL = signed(own_QL, basis_QL)
        moved, merged, num_inputs = signed(sign, weight), torch.empty_like(weight), x_RNI.shape[-1]
        y_RNO = x_RNI.new_empty(*x_RNI.shape[:2], weight.numel() // num_inputs)
        for x_NI, y_NO, c_JQ in zip(x_RNI, y_RNO, c_RJQ, strict=True):
            torch.addcmul(weight, moved, c_JQ @ basis_QL, out=merged)
            torch.mm(x_NI, merged.view(-1, num_inputs).to(x_NI.dtype).T, out=y_NO)
        return y_RNO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RNO: torch.Tensor) -> Any:
        x_RNI, weight, sign, basis_QL, own_QL, c_RJQ = ctx.saved_tensors
        basis_QL = signed(own_QL, basis_QL)
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
        return grad_x_RNI, grad_weight, None, None, None, torch.stack(grad_c)


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


def weigh(probs: torch.Tensor, table_XE: torch.Tensor) -> torch.Tensor:
    """Sums over views, (..., E) -> (..., X), in the table's precision whatever autocast says."""
    with torch.autocast(probs.device.type, enabled=False):
        return probs.to(table_XE.dtype) @ table_XE.T


def project(grad_RC: torch.Tensor, c_JQ: torch.Tensor, basis_QL: torch.Tensor) -> torch.Tensor:
    """The gradient of `c_JQ` from that of `c_JQ @ basis_QL`, spread over all rows and columns."""
    return grad_RC.sum_to_size(len(c_JQ), basis_QL.shape[1]) @ basis_QL.T


def signed(sign: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x if sign is None else x * sign


def wide_norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x.detach(), dtype=torch.float64)
