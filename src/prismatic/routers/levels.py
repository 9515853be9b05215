"""The three ways to run a module whose parameters are mixtures: one merge per batch, row or token.

Shapes: B batch, T time, D model width, E views.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from .mixtures import Mixture
from .rules import Owners, UnroutableError, linears, owners, routed, unruled

Mixtures = Mapping[nn.Parameter, Mixture]
Level = Callable[[nn.Module, Mixtures, torch.Tensor, tuple, dict[str, Any]], Any]


class ByBatch:
    """One merge for the whole batch: works for any module.

    Linear maps merge as they compute, unless the module uses their parameters in another way.
    """

    def __init__(self) -> None:
        self.fused = True

    def __call__(
        self, expert: nn.Module, mixtures: Mixtures, probs: torch.Tensor, args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        if self.fused:
            try:
                return self._run(expert, linears(expert), mixtures, probs, args, kwargs)
            except UnroutableError:
                self.fused = False
        return self._run(expert, [], mixtures, probs, args, kwargs)

    def _run(
        self, expert: nn.Module, fused: Owners, mixtures: Mixtures, probs: torch.Tensor,
        args: tuple, kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        theirs = {parameter for _, module in fused for parameter in module.parameters()}
        named, probs_E = expert.named_parameters(), probs.flatten()
        rest = {name: mixtures[p].merged(probs_E) for name, p in named if p not in theirs}
        with routed(fused, mixtures, probs, ()):
            return functional_call(expert, rest, args, kwargs)


def by_token(
    expert: nn.Module, mixtures: Mixtures, probs: torch.Tensor, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """A merge for every position: each submodule computes with the outputs of its pieces."""
    with routed(owners(expert), mixtures, probs, tuple(args[0].shape[:2])):
        return expert(*args, **kwargs)


class BySequence:
    """A merge for every row: by rules where all submodules have one, else row by row.

    A module that reshapes its input, or reaches past a submodule's forward, cannot use rules.
    """

    def __init__(self) -> None:
        self.ruled = True

    def __call__(
        self, expert: nn.Module, mixtures: Mixtures, probs: torch.Tensor, args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        if self.ruled and unruled(expert) is None:
            try:
                with routed(owners(expert), mixtures, probs, tuple(args[0].shape[:1])):
                    return expert(*args, **kwargs)
            except UnroutableError:
                self.ruled = False
        return by_row(expert, mixtures, probs, args, kwargs)


LEVELS: dict[str, Callable[[], Level]] = {
    "batch": ByBatch,
    "sequence": BySequence,
    "token": lambda: by_token,
}


def row_dims(leaves: list[Any], num_rows: int) -> list[int | None]:
    """Which arguments are split by row: x, and tensors whose first dimension is the batch's."""
    square = leaves[0].shape[1] == num_rows > 1
    dims: list[int | None] = [0]
    for leaf in leaves[1:]:
        tensor = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == num_rows
        if tensor and square and leaf.ndim <= 2:
            raise ValueError(
                f"an argument of shape {tuple(leaf.shape)} may begin with rows or with positions: "
                f"with {num_rows} of each this cannot be told; change the batch size"
            )
        dims.append(0 if tensor else None)
    return dims


def by_row(
    expert: nn.Module, mixtures: Mixtures, probs: torch.Tensor, args: tuple, kwargs: dict[str, Any]
) -> Any:
    """Each row with its own merged parameters: vmapped, or one after the other where that fails."""
    num_rows = args[0].shape[0]
    rows_E = probs.flatten(0, -2).expand(num_rows, -1)
    leaves, tree = tree_flatten((args, kwargs))
    dims = row_dims(leaves, num_rows)

    named = dict(expert.named_parameters())
    merged = {
        name: torch.stack([mixtures[p].merged(r) for r in rows_E]) for name, p in named.items()
    }
    shape: dict[str, Any] = {}

    def run(parameters: dict[str, torch.Tensor], *row: Any) -> list[torch.Tensor]:
        lone = [x if dim is None else x[None] for x, dim in zip(row, dims, strict=True)]
        row_args, row_kwargs = tree_unflatten(lone, tree)
        out = functional_call(expert, parameters, row_args, row_kwargs)
        shape["leaves"], shape["tree"] = tree_flatten(out)
        return [x for x in shape["leaves"] if isinstance(x, torch.Tensor)]

    try:
        with vmap_friendly():
            rows = vmap(run, in_dims=(0, *dims), randomness="different")(merged, *leaves)
    except RuntimeError as error:
        if "vmap" not in str(error) and "batching rule" not in str(error):
            raise
        every = []
        for b in range(num_rows):
            row = [x if dim is None else x[b] for x, dim in zip(leaves, dims, strict=True)]
            every.append(run({name: merged[name][b] for name in merged}, *row))
        rows = [torch.stack(parts) for parts in zip(*every, strict=True)]
    joined = iter([y.flatten(0, 1) if y.ndim > 1 else y for y in rows])
    filled = [next(joined) if isinstance(x, torch.Tensor) else x for x in shape["leaves"]]
    return tree_unflatten(filled, shape["tree"])


@contextmanager
def vmap_friendly() -> Iterator[None]:
    """Lets vmap run what it has no rule for row by row, and off torch's fused encoder layer.

    Under vmap that layer takes its inference path although gradients are wanted.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
