"""A parameter whose value is a soft mixture over views, and the ways to use it without building it.

Shapes: X leading dimensions that broadcast against (B, T), E views, P positions of the parameter,
O output and I input features, R routings.
"""

from typing import Protocol

import torch
from torch.nn import functional as F

from prismatic.perturb import Change, Narrow, weigh

from .products import SharedProduct, multiply, routed_product


class Mixture(Protocol):
    """What a router gives a rule instead of a parameter; `probs_XE` are the routing weights."""

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        """The merged parameter for one r: its own shape."""

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        """The merged parameter for every r, as gains and biases need it: (X, *shape)."""

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        """`x @ merged.T`, for a parameter of shape (O, I)."""

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        """`x @ merged`, for a parameter of shape (I, O)."""


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The precision in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class ViewMixture:
    """Views of one parameter: W * (1 + sum_i r_i f_i)."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.change.merged(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        weight = self.change.weight
        added_EP = weight.flatten() * self.change.factors()
        change_XP = weigh(probs_XE, added_EP.T)
        return (weight + change_XP.unflatten(-1, weight.shape or (1,)).view(
            *probs_XE.shape[:-1], *weight.shape
        )).to(weight.dtype)  # fmt: skip

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        x, change = x.to(product_dtype(x)), self.change
        form, num_views = change.form, probs_XE.shape[-1]
        if probs_XE.numel() == num_views:
            return F.linear(x, change.merged(probs_XE.flatten()).to(x.dtype))
        if isinstance(form, Narrow):
            y = F.linear(x, change.weight.to(x.dtype))
            z_XK = F.linear(x, change.narrow_delta().to(x.dtype))
            return y.index_add(-1, form.row_K, z_XK * self._counts(x, probs_XE))
        if probs_XE.shape[1:-1].numel() > 1:
            return routed_product(x, change, probs_XE, rows_in=False)
        c_RJQ = form.coefficients(change.scaled(probs_XE.reshape(-1, num_views)))
        weight = change.weight.to(change.dtype).reshape(form.rows, form.columns)
        sign = None if change.sign is None else change.sign.view_as(weight)
        x_RNI = x.reshape(len(c_RJQ), -1, x.shape[-1])
        y_RNO = SharedProduct.apply(x_RNI, weight, sign, form.basis_QL, c_RJQ)
        return y_RNO.view(*x.shape[:-1], y_RNO.shape[-1])

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        x, change = x.to(product_dtype(x)), self.change
        form = change.form
        if probs_XE.numel() == probs_XE.shape[-1]:
            return x @ change.merged(probs_XE.flatten()).to(x.dtype)
        if isinstance(form, Narrow):
            scaled_XK = x[..., form.row_K] * self._counts(x, probs_XE)
            return x @ change.weight.to(x.dtype) + scaled_XK @ change.narrow_delta().to(x.dtype)
        return routed_product(x, change, probs_XE, rows_in=True)

    def _counts(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        """What each reached row counts for at every position: (X, K)."""
        assert isinstance(self.change.form, Narrow)
        return weigh(self.change.scaled(probs_XE), self.change.form.weights_KE).to(x.dtype)


class ExpertMixture:
    """The same parameter of N separate experts: sum_i r_i W_i."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights = weights

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.elementwise(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        every_EP = torch.stack(self.weights).flatten(1)
        merged_XP = weigh(probs_XE, every_EP.T)
        return merged_XP.view(*probs_XE.shape[:-1], *self.weights[0].shape)

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        return self._product(x, probs_XE, self.weights)

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        return self._product(x, probs_XE, [weight.T for weight in self.weights])

    def _product(
        self, x: torch.Tensor, probs_XE: torch.Tensor, weights: list[torch.Tensor]
    ) -> torch.Tensor:
        x = x.to(product_dtype(x))
        if probs_XE.numel() == probs_XE.shape[-1]:
            shares = zip(probs_XE.flatten().to(weights[0].dtype), weights, strict=True)
            return F.linear(x, torch.stack([r * weight for r, weight in shares]).sum(0).to(x.dtype))
        side = "in" if weights[0].shape[1] <= weights[0].shape[0] else "out"
        matrix = torch.cat(weights, 1 if side == "in" else 0).to(x.dtype)
        return multiply(x, matrix, probs_XE.to(x.dtype).split(1, -1), side)
