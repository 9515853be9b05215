"""SMEAR: soft merging of N separate experts (arXiv 2306.03745)."""

import copy

import torch
from torch import nn

from .base import Router
from .gate import Gate, is_causal, seeded
from .mixtures import ExpertMixture


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


class SmearRouter(Router):
    """N expert modules with parameters of their own, merged softly by the routing weights.

    Expert 0 is the module that is passed in; the others are copies, re-initialised from a
    generator keyed by `name` and `seed`. Options as for `PrismaticRouter`.
    """

    def __init__(
        self,
        expert: nn.Module,
        hidden_size: int,
        num_experts: int = 4,
        level: str = "token",
        pool: str = "causal_mean",
        temperature: float = 1.0,
        expert_dropout: float = 0.0,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        allow_leak: bool = False,
        name: str = "",
        seed: int = 0,
    ) -> None:
        gate = Gate(hidden_size, num_experts, level, pool, seeded("gate", name, seed))
        super().__init__(
            expert, gate, num_experts, level, is_causal(level, pool), temperature, expert_dropout,
            balance_loss, z_loss, allow_leak, name, seed,
        )  # fmt: skip
        generator = seeded("experts", name, seed)
        copies = [reinitialise(copy.deepcopy(expert), generator) for _ in range(num_experts - 1)]
        self.others = nn.ModuleList(copies)

    def mixture(self, name: str, parameter: nn.Parameter) -> ExpertMixture:
        others = [other.get_parameter(name) for other in self.others]
        return ExpertMixture([parameter, *others])
