"""A parameter as a mixture of views that are a selection times lenses, and products with it.

A view changes some rows of a matrix: y = W x plus, for each part of the pattern, what those rows of
the change give, times what the part counts for at each position.

Shapes: X leading dimensions that broadcast against (B, T), E views, P positions of the parameter,
O output and I input features, J rows of a patch, each of them R rows of the matrix (K = J * R).
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from prismatic.perturb import Patch, Views

from .mixtures import ViewMixture, shared
from .products import Part, SharedProduct, TokenProduct, gather, scaled

# With more views than this, the backward of a product by position computes again what it needs.
LEAN = 8


class LensMixture(ViewMixture):
    """Views of one parameter: W * (1 + sum_i r_i f_i) with f_i = scale_i * role * lens_i.

    `by_slice` allows a product per slice of the input where slices share a routing; it rounds
    otherwise than one product for all.
    """

    def __init__(self, weight: torch.Tensor, views: Views, by_slice: bool = True) -> None:
        super().__init__(weight)
        self.views, self.by_slice = views, by_slice

    def dense(self) -> torch.Tensor:
        return self.views.dense(self.weight)

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.views.merged(self.weight, probs_E)

    def linear(
        self, x: torch.Tensor, probs_XE: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        x = x.to(product_dtype(x))
        shared_RE = shared(probs_XE)
        if shared_RE is not None and (len(shared_RE) == 1 or (self.by_slice and self.is_wide)):
            all_c = self.views.all_coefficients(shared_RE)
            return SharedProduct.apply(self.views, x, self.weight, bias, *all_c)
        lean, weight = len(self.views.scale_E) > LEAN, self.weight.to(x.dtype)
        all_c = [c_XJ.to(x.dtype) for c_XJ in self._counts(probs_XE)]
        return TokenProduct.apply(self.parts, lean, x, weight, bias, *all_c)

    def matmul(self, x: torch.Tensor, probs_XE: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for part, c_XJ in zip(self.parts(), self._counts(probs_XE), strict=True):
            x_XK = scaled(gather(x, part.runs, -1), c_XJ.to(x.dtype)).to(y.dtype)
            y = y + x_XK @ part.delta(self.weight).to(y.dtype)
        return y

    @property
    def is_wide(self) -> bool:
        """Whether most weights are within some lens: then a merge costs less than a part more."""
        return 2 * sum(patch.numel for patch in self.views.patches) > self.weight.numel()

    def parts(self) -> Iterator[Part]:
        """The parts of the change, one after the other."""
        num_columns = self.weight.shape[1]
        weight_P = self.weight.detach().flatten().to(self.views.scale_E.dtype)
        for patch in self._patches():
            role_JL = self.views.signs(weight_P, patch)
            runs = rows_of(patch, self.weight)
            for _, shape_JL in patch.pieces():
                yield Part(runs, spread(role_JL * shape_JL, patch, num_columns))

    def _counts(self, probs_XE: torch.Tensor) -> list[torch.Tensor]:
        """What each part counts for at every position: (X, J) each."""
        scaled_XE = probs_XE.to(self.views.scale_E.dtype) * self.views.scale_E
        pieces = (piece for patch in self._patches() for piece in patch.pieces())
        return [scaled_XE @ weights_JE.T for weights_JE, _ in pieces]

    def _patches(self) -> Iterator[Patch]:
        """The patches, with rows of their own where they do not begin at the matrix's columns."""
        for patch in self.views.patches:
            aligned = patch.stride % self.weight.shape[1] == 0
            yield from [patch] if aligned else patch.rows()


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """The precision in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def rows_of(patch: Patch, weight: torch.Tensor) -> list[slice]:
    """The matrix rows that a patch touches: a run per patch row, or one run for all."""
    num_columns = weight.shape[1]
    first, offset = divmod(patch.start, num_columns)
    if patch.num_rows * patch.width == weight.numel():
        return [slice(None)]
    per_row = -(-(offset + patch.width) // num_columns)
    starts = [first + j * (patch.stride // num_columns) for j in range(patch.num_rows)]
    return [slice(start, start + per_row) for start in starts]


def spread(change_JL: torch.Tensor, patch: Patch, num_columns: int) -> torch.Tensor:
    """A patch's values where its matrix rows have them: (J, L) -> (K, I), 0 elsewhere."""
    offset = patch.start % num_columns
    tail = -(offset + patch.width) % num_columns
    return F.pad(change_JL, (offset, tail)).view(-1, num_columns)
