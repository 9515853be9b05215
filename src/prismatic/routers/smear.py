"""Routers without views of one base: separate experts, and none at all."""

import copy
from typing import Any

import torch
from torch import nn

from prismatic.errors import require

from .base import Router, Routing
from .gate import Gate, is_causal, pool_name, seeded
from .mixtures import ExpertMixture, Mixture


class ExpertSource:
    """The wrapped module and others like it, with parameters of their own."""

    def __init__(self, others: nn.ModuleList) -> None:
        self.others, self.inert = others, len(others) == 0

    def mixtures(
        self, expert: nn.Module, x: torch.Tensor, selected: Any
    ) -> dict[torch.Tensor, Mixture]:
        return {
            parameter: ExpertMixture([parameter, *(o.get_parameter(name) for o in self.others)])
            for name, parameter in expert.named_parameters()
        }


class SmearRouter(Router):
    """SMEAR: soft merging of N separate experts by the routing weights (arXiv 2306.03745).

    Expert 0 is the module that is passed in; the others are copies, re-initialised from a
    generator keyed by `name` and `seed`. Options as for `PrismaticRouter`.
    """

    def __init__(
        self,
        expert: nn.Module,
        hidden_size: int,
        num_experts: int = 4,
        level: str = "token",
        pool: str | None = None,
        *,
        name: str = "",
        seed: int = 0,
        **options: Any,
    ) -> None:
        generator = seeded("gate", name, seed)
        gate = Gate(hidden_size, num_experts, level, pool=pool, generator=generator)
        generator = seeded("experts", name, seed)
        copies = [reinitialise(copy.deepcopy(expert), generator) for _ in range(num_experts - 1)]
        others = nn.ModuleList(copies)
        options |= {"causal": is_causal(level, pool_name(level, pool)), "name": name, "seed": seed}
        super().__init__(
            expert, gate, ExpertSource(others), num_experts=num_experts, level=level, **options
        )
        self.others = others


def reinitialise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Shuffle the entries of every matrix: a new draw from whatever initialised the module.

    Gains and biases start alike in every expert and stay so.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return module


class DenseRouter(Router):
    """The bare module under a router's interface: one view, and nothing to train beside it."""

    def __init__(
        self, expert: nn.Module, hidden_size: int, num_experts: int = 1, name: str = ""
    ) -> None:
        wanted = "router=dense has one view: add router.num_experts=1"
        require(num_experts == 1, "router.num_experts", num_experts, wanted)
        options: dict[str, Any] = {"num_experts": 1, "level": "batch", "causal": True, "name": name}
        super().__init__(expert, nn.Identity(), ExpertSource(nn.ModuleList()), **options)

    def route(self, x_BTD: torch.Tensor, gate: nn.Module | None = None) -> Routing:
        return Routing(x_BTD.new_zeros(1, 1, 1), x_BTD.new_ones(1, 1, 1))
