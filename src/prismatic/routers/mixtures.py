"""A parameter whose value is a soft mixture over views, and the ways to use it without building it.

Shapes: X leading dimensions that broadcast against (B, T), E views, P positions of the parameter,
O output and I input features, R routings, N positions that share one, K rows of a narrow form.
"""

from typing import Protocol

import torch
from torch.nn import functional as F

from prismatic.perturb import Change, Narrow, weigh

from .products import SharedProduct, multiply, product_dtype, routed_product


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


class ViewMixture:
    """Views of one parameter: W * (1 + sum_i r_i f_i)."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.change.merged(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        weight, f_EP = self.change.weight, self.change.factors()
        added_XP = weigh(probs_XE, (weight.flatten() * f_EP).T)
        return (weight + added_XP.view(*probs_XE.shape[:-1], *weight.shape)).to(weight.dtype)

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        x, change, form = x.to(product_dtype(x)), self.change, self.change.form
        num_views = probs_XE.shape[-1]
        if probs_XE.numel() == num_views:
            return F.linear(x, change.merged(probs_XE.flatten()).to(x.dtype))
        if isinstance(form, Narrow):
            z_XK = F.linear(x, change.reached().to(x.dtype)) * self._counts(x, probs_XE)
            return F.linear(x, change.weight.to(x.dtype)).index_add(-1, form.row_K, z_XK)
        if probs_XE.shape[1:-1].numel() > 1:
            return routed_product(x, change, probs_XE, rows_in=False)
        c_RJQ = form.coefficients(change.scaled(probs_XE.reshape(-1, num_views)))
        x_RNI = x.reshape(len(c_RJQ), -1, x.shape[-1])
        y_RNO = SharedProduct.apply(x_RNI, *change.laid_out(), form.basis_QL, c_RJQ)
        return y_RNO.view(*x.shape[:-1], y_RNO.shape[-1])

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        x, change, form = x.to(product_dtype(x)), self.change, self.change.form
        if probs_XE.numel() == probs_XE.shape[-1]:
            return x @ change.merged(probs_XE.flatten()).to(x.dtype)
        if isinstance(form, Narrow):
            scaled_XK = x[..., form.row_K] * self._counts(x, probs_XE)
            return x @ change.weight.to(x.dtype) + scaled_XK @ change.reached().to(x.dtype)
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
        merged_XP = weigh(probs_XE, torch.stack(self.weights).flatten(1).T)
        return merged_XP.view(*probs_XE.shape[:-1], *self.weights[0].shape)

    def linear(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        x = x.to(product_dtype(x))
        if probs_XE.numel() == probs_XE.shape[-1]:
            return F.linear(x, self.merged(probs_XE.flatten()).to(x.dtype))
        num_outputs, num_inputs = self.weights[0].shape
        side = "in" if num_inputs <= num_outputs else "out"
        matrix = torch.cat(self.weights, 1 if side == "in" else 0).to(x.dtype)
        return multiply(x, matrix, probs_XE.to(x.dtype).split(1, -1), side)

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        return ExpertMixture([weight.T for weight in self.weights]).linear(x, probs_XE)
