"""Whether routing adapts to its input: by domain, beside a twin router that is never trained.

Shapes: B batch, L passes, D domains, E views.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prismatic.models import Transformer
from prismatic.routers import Router, Routing


class Twins:
    """Copies of a model's gates as they are now, which nothing trains.

    An untrained gate tells inputs apart, too: what it does with the same inputs is the null. From
    `begin` to `end` every forward leaves in `routing` what the twins make of it, pass by pass.
    """

    def __init__(self, model: Transformer) -> None:
        self.gates = [copy.deepcopy(router.gate).requires_grad_(False) for router in model.routers]
        self.routing: list[Routing] = []
        self.handles: list[RemovableHandle] = []

    def begin(self, model: Transformer) -> None:
        self.handles = [
            router.register_forward_pre_hook(partial(self.look, gate))
            for router, gate in zip(model.routers, self.gates, strict=True)
        ]

    def look(self, gate: nn.Module, router: Router, inputs: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            self.routing.append(router.route(inputs[0], gate.to(inputs[0].device)))

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()


def by_row(routing: Sequence[Routing], num_rows: int) -> torch.Tensor:
    """Each pass's routing weights of each sequence, the mean over its positions: (L, B, E)."""
    probs = torch.stack([record.probs.detach().double().mean(1) for record in routing])
    return probs.expand(-1, num_rows, -1)


class DomainRouting:
    """Sums of each pass's routing weights over sequences, by their domain."""

    def __init__(
        self, num_passes: int, num_domains: int, num_views: int, device: torch.device
    ) -> None:
        shape = num_passes, num_domains, num_views
        self.total_LDE = torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, routing: Sequence[Routing], domain_B: torch.Tensor) -> None:
        self.total_LDE.index_add_(1, domain_B, by_row(routing, len(domain_B)))

    def weights(self) -> torch.Tensor:
        """Mean routing weights of each domain, (D, E); NaN for one that was not seen."""
        total_DE = self.total_LDE.sum(0)
        return total_DE / total_DE.sum(1, keepdim=True)

    def information(self) -> torch.Tensor:
        """`mutual_information` of each pass, (L,): view 1 of one router is not that of another."""
        return torch.tensor([mutual_information(total_DE) for total_DE in self.total_LDE])


def mutual_information(joint_DE: torch.Tensor) -> float:
    """I(view; domain) / ln min(D, E) of a table of weights that need not sum to 1.

    Plug-in estimate, with domains that were seen; 0 where there is one of either.
    """
    joint_DE = joint_DE[joint_DE.sum(1) > 0]
    fewest = min(joint_DE.shape)
    if fewest < 2:
        return 0.0
    joint_DE = joint_DE / joint_DE.sum()
    apart_DE = joint_DE.sum(1, keepdim=True) * joint_DE.sum(0)
    # A view without any weight has none to divide by.
    xlogy = torch.special.xlogy
    information = (xlogy(joint_DE, joint_DE) - xlogy(joint_DE, apart_DE)).sum()
    return max(0.0, float(information)) / math.log(fewest)
