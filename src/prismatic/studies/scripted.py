"""Gates that ignore what they see and follow a script."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from prismatic.routers import Router


class Scripted(nn.Module):
    """A gate that gives prepared logits, one tensor per forward."""

    def __init__(self, logits: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.logits = iter(logits)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return next(self.logits)


@contextmanager
def scripted(routers: Sequence[Router], gates: Sequence[Scripted]) -> Iterator[None]:
    """Within the context routers route as their scripts say."""
    before = [router.gate for router in routers]
    try:
        for router, gate in zip(routers, gates, strict=True):
            router.gate = gate
        yield
    finally:
        for router, own in zip(routers, before, strict=True):
            router.gate = own
