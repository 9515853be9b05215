"""What a model is to the rest of the project: the one thing that a model of your own subclasses."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from prismatic.routers import Router, Routing


class RoutedModel(nn.Module):
    """A model of token sequences with routers in it: tokens (B, T) -> logits (B, T, V).

    A subclass takes `vocab_size`, `seq_len` and `router` among its arguments, wraps what it likes
    by `router(module, hidden_size=..., name=...)`, says the longest sequence that it takes as
    `seq_len`, and computes `forward(tokens_BT)`. The rest is found by itself: `routers`, and
    `passes` and `routing` for a model that calls each of them once, in order.
    """

    seq_len: int

    @property
    def routers(self) -> list[Router]:
        """The routers, in order."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def passes(self) -> list[Router]:
        """The router of each call in a forward, in order."""
        return self.routers

    @property
    def routing(self) -> Sequence[Routing]:
        """What was decided in each call of the last forward."""
        return [router.record for router in self.passes() if router.record is not None]

    @contextmanager
    def forced(self, view: int) -> Iterator[None]:
        """Within the context every router runs one view alone."""
        with ExitStack() as stack:
            for router in self.routers:
                stack.enter_context(router.forced(view))
            yield

    def penalty(self) -> torch.Tensor:
        """The routers' auxiliary losses in the last forward, averaged over calls: a scalar."""
        pairs = zip(self.passes(), self.routing, strict=True)
        return torch.stack([router.penalty(routing) for router, routing in pairs]).mean()
