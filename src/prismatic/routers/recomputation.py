"""A routed module whose activations are computed again in the backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from .base import Router, Routing


def recomputed(
    router: Router, checkpoint: Callable[..., Any], run: Callable[..., Any], *args: Any
) -> Any:
    """`run(*args)`, which calls the router once, in a checkpoint: what it returns.

    `checkpoint(fn, *args)` is as `torch.utils.checkpoint.checkpoint`, of either kind. The record
    leaves it as an output and so keeps its graph, and views are dropped the second time as the
    first.
    """
    structure: Any = None
    step = router.dropout_step.clone()

    @contextmanager
    def replayed() -> Iterator[None]:
        later = router.dropout_step.clone()
        try:
            router.dropout_step.copy_(step)
            yield
        finally:  # a checkpoint stops the second time as soon as it has what it needs
            router.dropout_step.copy_(torch.maximum(router.dropout_step, later))

    def both(*args: Any) -> tuple[Any, ...]:
        nonlocal structure
        with replayed() if router.expert_dropout else nullcontext():
            leaves, structure = tree_flatten(run(*args))
        assert router.record is not None
        return (*leaves, *router.record)

    *leaves, logits, probs = checkpoint(both, *args)
    router.record = Routing(logits, probs)
    return tree_unflatten(leaves, structure)
