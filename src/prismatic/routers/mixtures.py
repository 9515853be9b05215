"""A parameter whose value is a soft mixture over views, and the ways to use it without building it.

Shapes: X leading dimensions that broadcast against (B, T), E views, P positions of the parameter,
O output and I input features, R rows of the matrix that some piece touches, G pieces.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch.nn import functional as F

from prismatic.perturb import SparseChange


def shared(probs_XE: torch.Tensor) -> torch.Tensor | None:
    """Routing weights (R, E) of equal slices of an input, or None where positions differ."""
    num_views = probs_XE.shape[-1]
    each = probs_XE.shape[1:-1].numel() == 1 or probs_XE.ndim == 1
    return probs_XE.reshape(-1, num_views) if each else None


class Mixture(Protocol):
    """What a router gives a rule instead of a parameter; `probs_XE` are the routing weights."""

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        """The merged parameter for one r: its own shape."""

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        """The merged parameter for every r, as gains and biases need it: (X, *shape)."""

    def change(self, probs_XE: torch.Tensor) -> torch.Tensor:
        """`elementwise` less the base's own parameter."""

    def differences(self) -> torch.Tensor:
        """What each view adds to the parameter, (E, P): asked for of gains and biases only."""

    def linear(
        self, x: torch.Tensor, probs_XE: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`x @ merged.T + bias`, for a parameter of shape (O, I)."""

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """From `y = x @ base` to `x @ merged`, for a parameter of shape (I, O)."""


class ViewMixture(ABC):
    """Views of one parameter: W * (1 + sum_i r_i f_i), in whatever form the changes come."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    @abstractmethod
    def dense(self) -> torch.Tensor:
        """Every f_i in full, (E, P): asked for of gains and biases only."""

    def differences(self) -> torch.Tensor:
        return self.weight.flatten() * self.dense()

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        return (self.weight + self._wide_change(probs_XE)).to(self.weight.dtype)

    def change(self, probs_XE: torch.Tensor) -> torch.Tensor:
        return self._wide_change(probs_XE).to(self.weight.dtype)

    def _wide_change(self, probs_XE: torch.Tensor) -> torch.Tensor:
        added_EP = self.differences()
        change_XP = probs_XE.to(added_EP.dtype) @ added_EP
        return change_XP.view(*probs_XE.shape[:-1], *self.weight.shape)


class EntryMixture(ViewMixture):
    """Views whose changes are a list of entries."""

    def __init__(self, weight: torch.Tensor, change: SparseChange) -> None:
        super().__init__(weight)
        self.sparse = change

    def dense(self) -> torch.Tensor:
        return self.sparse.dense(self.weight.numel())

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.sparse.merged(self.weight, probs_E)

    def linear(
        self, x: torch.Tensor, probs_XE: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if probs_XE.numel() == probs_XE.shape[-1]:
            return F.linear(x, self.merged(probs_XE.flatten()), bias)
        y = F.linear(x, self.weight, bias)
        row_R, piece_R, delta_RI = self._rows()
        change_XR = F.linear(x, delta_RI) * self._coefficients(x, probs_XE)[..., piece_R]
        return y.index_add(-1, row_R, change_XR.to(y.dtype))

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        row_R, piece_R, delta_RO = self._rows()
        scaled_XR = x[..., row_R] * self._coefficients(x, probs_XE)[..., piece_R]
        return y + scaled_XR @ delta_RO

    def _coefficients(self, x: torch.Tensor, probs_XE: torch.Tensor) -> torch.Tensor:
        return self.sparse.coefficients(probs_XE).to(x.dtype)

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The change as a short matrix: for each of its rows the weight's row and the piece."""
        num_columns = self.weight.shape[1]
        position_K, piece_K, value_K, _ = self.sparse
        key_K = piece_K * self.weight.shape[0] + position_K // num_columns
        key_R, row_K = torch.unique_consecutive(key_K, return_inverse=True)
        change_K = self.weight.flatten()[position_K] * value_K.to(self.weight.dtype)
        at_K = row_K * num_columns + position_K % num_columns
        delta_RC = change_K.new_zeros(len(key_R) * num_columns).index_add(0, at_K, change_K)
        row_R, piece_R = key_R % self.weight.shape[0], key_R // self.weight.shape[0]
        return row_R, piece_R, delta_RC.view(-1, num_columns)


class ExpertMixture:
    """The same parameter of N separate experts: sum_i r_i W_i."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights = weights

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.elementwise(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        probs_XE = probs_XE.to(self.weights[0].dtype)
        shape = probs_XE.shape[:-1] + (1,) * self.weights[0].ndim
        pairs = zip(probs_XE.unbind(-1), self.weights, strict=True)
        return torch.stack([prob.reshape(shape) * weight for prob, weight in pairs]).sum(0)

    def change(self, probs_XE: torch.Tensor) -> torch.Tensor:
        return self.elementwise(self._less_base(probs_XE))

    def differences(self) -> torch.Tensor:
        first, *others = self.weights
        added = [torch.zeros_like(first), *(weight - first for weight in others)]
        return torch.stack(added).flatten(1)

    def linear(
        self, x: torch.Tensor, probs_XE: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if probs_XE.numel() == probs_XE.shape[-1]:
            return F.linear(x, self.merged(probs_XE.flatten()), bias)
        y = F.linear(x, self.weights[0], bias)
        return self._add([weight.T for weight in self.weights], x, probs_XE, y)

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._add(self.weights, x, probs_XE, y)

    def _add(
        self, weights: list[torch.Tensor], x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        probs = self._less_base(probs_XE).to(x.dtype).split(1, -1)
        pairs = zip(probs, weights, strict=True)
        return y + torch.stack([prob * (x @ weight) for prob, weight in pairs]).sum(0)

    def _less_base(self, probs_XE: torch.Tensor) -> torch.Tensor:
        return torch.cat([probs_XE[..., :1] - 1, probs_XE[..., 1:]], -1)
