"""What views change, as a constant of a tensor's shape and of options: found once, by looking.

* `Narrow`, where lenses leave most of the tensor alone: the few rows that they reach.
* `Whole`: sum_i r_i m_i = (weights_JQE @ r) @ basis_QL over the rows J and columns L of a matrix.
  A smooth pattern has a rank Q of one to six. Anything else (noise, a random order) is one row with
  a basis vector for each view, as every pattern is for vectors and in float64.

Shapes: P positions of the tensor, J rows and L columns of a form, Q rank, E views, V views but the
first, K rows that narrow lenses reach, I columns of the matrix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .kernel import draw_noise
from .options import Focal, Perturbation

# A pattern's short form is as exact as single precision; beyond this rank it is not short.
TOLERANCE, MOST_RANK = 2.0**-25, 16


class Whole(NamedTuple):
    """sum_i r_i m_i = (weights_JQE @ r) @ basis_QL, over `rows` times `columns` positions.

    J or L is 1 where all rows or all columns are alike.
    """

    rows: int
    columns: int
    weights_JQE: torch.Tensor
    basis_QL: torch.Tensor

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """From where to where roles are needed."""
        return ((0, self.rows * self.columns),)

    @property
    def is_flat(self) -> bool:
        """Whether all positions are alike."""
        return len(self.weights_JQE) == self.basis_QL.shape[1] == 1


class Narrow(NamedTuple):
    """m_i over some rows of a matrix: row k belongs to one view and has a pattern of its own."""

    runs: tuple[tuple[int, int], ...]  # of positions, one per view
    row_K: torch.Tensor  # int64
    weights_KE: torch.Tensor  # 1 at the row's view
    basis_KI: torch.Tensor


Form = Whole | Narrow
PatternOf = Callable[[int], torch.Tensor]


def build_form(
    shape: torch.Size,
    num_views: int,
    focal: Focal,
    least: float,
    dtype: torch.dtype,
    device: torch.device,
    *,
    shared: bool,
    noise: tuple[Perturbation, str] | None = None,
) -> Form:
    """The form of a tensor's changes; a constant, since it depends on no weight.

    `least` is the least change that counts; `shared` says whether all views share their signs;
    `noise` keys draws that multiply the pattern.
    """
    numel = shape.numel()

    def pattern(view: int) -> torch.Tensor:
        shape_P = focal.modulation(torch.arange(numel).double(), numel, view, num_views)
        return shape_P * draw_noise(*noise, view, numel) if noise else shape_P

    with torch.inference_mode(False), torch.no_grad():
        form: Form | None = narrow(pattern, shape, num_views, least) if len(shape) > 1 else None
        if form is None and len(shape) > 1 and shared and dtype != torch.float64:
            form = short(pattern, shape, num_views)
        if form is None:
            basis_VP = torch.stack([pattern(view) for view in range(1, num_views)])
            form = Whole(1, numel, torch.eye(num_views)[None, 1:], basis_VP)
        fields: list[Any] = [x.to(device) if isinstance(x, torch.Tensor) else x for x in form]
        return type(form)(*fields[:2], *(x.to(dtype) for x in fields[2:]))


def narrow(pattern: PatternOf, shape: torch.Size, num_views: int, least: float) -> Narrow | None:
    """The rows that each view reaches, if they are at most half of all rows taken together."""
    columns, left = shape[1:].numel(), shape[0] // 2
    spans, rows, bases = [], [], []
    for view in range(1, num_views):
        shape_OI = pattern(view).view(-1, columns)
        reached = (shape_OI.abs().amax(1) >= least).nonzero().flatten().tolist()
        first, last = (reached[0], reached[-1] + 1) if reached else (0, 0)
        left -= last - first
        if left < 0:
            return None
        spans.append((first * columns, last * columns))
        rows.append(torch.arange(first, last))
        bases.append(shape_OI[first:last])
    view_K = torch.cat([torch.full_like(row, view) for view, row in enumerate(rows, 1)])
    weights_KE = F.one_hot(view_K, num_views)
    return Narrow(tuple(spans), torch.cat(rows), weights_KE, torch.cat(bases))


def short(pattern: PatternOf, shape: torch.Size, num_views: int) -> Whole | None:
    """A pattern as a product of few vectors, if there is one.

    The rows of all views are spanned one after the other: whatever is left of the worst row that
    the basis does not span yet joins it, until nothing is left that single precision could show.
    """
    # A lens has a bend at its focus, which best lies between rows.
    rows = num_views if shape[0] % num_views and shape.numel() % num_views == 0 else shape[0]
    columns = shape.numel() // rows
    basis_QL, all_weights = torch.zeros(0, columns, dtype=torch.float64), []
    for view in range(1, num_views):
        shape_JL = pattern(view).view(rows, columns)
        rest_JL = shape_JL - shape_JL @ basis_QL.T @ basis_QL
        while rest_JL.abs().max() > TOLERANCE:
            if len(basis_QL) == min(MOST_RANK, columns):
                return None
            vector_L = rest_JL[rest_JL.square().sum(1).argmax()]
            for _ in range(2):  # the second time for what rounding left
                vector_L = F.normalize(vector_L - vector_L @ basis_QL.T @ basis_QL, dim=0)
            basis_QL = torch.cat([basis_QL, vector_L[None]])
            rest_JL = rest_JL - (rest_JL @ vector_L)[:, None] * vector_L
        all_weights.append(shape_JL @ basis_QL.T)
    padded = [
        F.pad(weights_JQ, (0, len(basis_QL) - weights_JQ.shape[1])) for weights_JQ in all_weights
    ]
    weights_JQE = torch.stack([torch.zeros_like(padded[0]), *padded], -1)
    if torch.allclose(weights_JQE, weights_JQE[:1], rtol=0, atol=1e-12):
        weights_JQE = weights_JQE[:1]
    if torch.allclose(basis_QL, basis_QL[:, :1], rtol=0, atol=1e-12):
        weights_JQE = weights_JQE * basis_QL[:, 0, None]
        basis_QL = torch.ones_like(basis_QL[:, :1])
    form = Whole(rows, columns, weights_JQE, basis_QL)
    return form._replace(rows=shape[0], columns=shape[1:].numel()) if form.is_flat else form
