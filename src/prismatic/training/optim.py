"""The optimiser: AdamW with warm-up and a cosine, router and trunk apart."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from prismatic.errors import require
from prismatic.models import RoutedModel, full_tensor


def split_parameters(model: RoutedModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trunk and router parameters: each trained parameter is in exactly one."""
    gates = [p for r in model.routers for p in r.gate.parameters() if p.requires_grad]
    apart = set(gates)
    trunk = [p for p in model.parameters() if p.requires_grad and p not in apart]
    assert len(trunk) + len(gates) == sum(p.requires_grad for p in model.parameters())
    return trunk, gates


@dataclass(frozen=True)
class Optimization:
    """AdamW (arXiv 1711.05101), linear warm-up, cosine to `final_share` of `lr` at `total_steps`.

    `batch_size` is the number of sequences of a step over all ranks. Weight decay is for matrices.
    Raises `ValueError` for values out of range.
    """

    lr: float = 3e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_steps: int = 50
    total_steps: int = 500
    final_share: float = 0.1
    batch_size: int = 16

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optim.lr", self.lr, "give a number > 0")
        require(
            self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "give a number >= 0"
        )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optim.{name}", value, "give a number in [0, 1)")
        for name, least in (("warmup_steps", 0), ("total_steps", 1), ("batch_size", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and value >= least
            require(whole, f"optim.{name}", value, f"give a whole number >= {least}")
        share = self.final_share
        require(0 <= share <= 1, "optim.final_share", share, "give a share in [0, 1]")

    def lr_share(self, step: int) -> float:
        """The learning rate of a step (from 0), as a share of `lr`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        return self.final_share + (1 - self.final_share) * (1 + math.cos(math.pi * done)) / 2

    def optimizer(self, model: RoutedModel) -> torch.optim.Optimizer:
        """Groups: trunk matrices, trunk vectors, routers."""
        trunk, gates = split_parameters(model)
        groups = [
            {"params": [p for p in trunk if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trunk if p.ndim <= 1], "weight_decay": 0.0},
            {"params": gates, "weight_decay": 0.0},
        ]
        kept = [group for group in groups if group["params"]]
        return torch.optim.AdamW(kept, lr=self.lr, betas=(self.beta1, self.beta2))

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_share)


def clip_apart(model: RoutedModel, limit: float) -> torch.Tensor:
    """Clip trunk and routers each to a norm; returns the global norm before, a scalar.

    Apart, so that a router's gradient cannot shrink the trunk's step. Waits for no result.
    """
    norms = [
        full_tensor(nn.utils.clip_grad_norm_(group, limit))
        for group in split_parameters(model)
        if any(p.grad is not None for p in group)
    ]
    return torch.stack(norms).norm() if norms else torch.zeros(())
