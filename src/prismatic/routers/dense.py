"""No routing: the bare module under a router's interface, the baseline of every comparison."""

from typing import Any

import torch
from torch import nn

from prismatic.errors import require

from .base import Router, Routing
from .mixtures import ExpertMixture


class DenseRouter(Router):
    """The wrapped module as it is, with one view and nothing to train beside it."""

    def __init__(
        self, expert: nn.Module, hidden_size: int, num_experts: int = 1, name: str = ""
    ) -> None:
        require(
            num_experts == 1,
            "router.num_experts",
            num_experts,
            "router=dense has one view: add router.num_experts=1",
        )
        super().__init__(expert, nn.Identity(), num_experts, "batch", causal=True, name=name)

    def mixture(self, name: str, parameter: nn.Parameter) -> ExpertMixture:
        return ExpertMixture([parameter])

    def route(self, x_BTD: torch.Tensor, gate: nn.Module | None = None) -> Routing:
        return Routing(x_BTD.new_zeros(1, 1, 1), x_BTD.new_ones(1, 1, 1))

    def forward(self, x_BTD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.record = self.route(x_BTD)
        return self.expert(x_BTD, *args, **kwargs)
