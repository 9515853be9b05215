"""Routers without views of one base: separate experts, and none at all."""

import copy
from typing import Any

import torch
from torch import nn

from prismatic.errors import require
from prismatic.perturb.mixtures import Mixture, multiply, weigh

from .base import Router, Routing
from .gate import Gate, is_causal, pool_name, seeded


class ExpertMixture(Mixture):
    """The same parameter of N separate experts: sum_i r_i W_i."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights = weights

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        return self.elementwise(probs_E)

    def elementwise(self, probs_XE: torch.Tensor) -> torch.Tensor:
        merged_XP = weigh(probs_XE, torch.stack(self.weights).flatten(1).T)
        return merged_XP.view(*probs_XE.shape[:-1], *self.weights[0].shape)

    def by_position(
        self, x: torch.Tensor, probs_XE: torch.Tensor, *, rows_in: bool
    ) -> torch.Tensor:
        weights = [weight.T for weight in self.weights] if rows_in else self.weights
        num_outputs, num_inputs = weights[0].shape
        inputs = num_inputs <= num_outputs
        matrix = torch.cat(weights, 1 if inputs else 0).to(x.dtype)
        return multiply(x, matrix, probs_XE.to(x.dtype).split(1, -1), inputs=inputs)


class ExpertSource:
    """The wrapped module and others like it, with parameters of their own."""

    def __init__(self, others: nn.ModuleList) -> None:
        self.others, self.inert = others, len(others) == 0

    def mixtures(
        self, expert: nn.Module, x: torch.Tensor, selected: Any
    ) -> dict[torch.Tensor, ExpertMixture]:
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
