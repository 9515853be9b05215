"""What all routers share: a gate, a level, forced views and a record of the last forward.

Shapes: B batch, T time, D model width, E views. Routing weights are (B, T, E) at level token,
(B, 1, E) at level sequence and (1, 1, E) at level batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from prismatic.errors import require

from .gate import require_views, seeded
from .levels import LEVELS
from .mixtures import Mixture
from .rules import UnroutableError, unruled


class Routing(NamedTuple):
    """What a router decided in one forward, before dropout and before a view is forced."""

    logits: torch.Tensor
    probs: torch.Tensor


def drop_views(probs: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Renormalise over the views that are kept: view 0 where none is."""
    kept = probs * keep
    total = kept.sum(-1, keepdim=True)
    view_0 = torch.zeros_like(probs).index_fill(-1, torch.tensor(0, device=probs.device), 1)
    return torch.where(total > 0, kept / total.clamp(min=torch.finfo(total.dtype).tiny), view_0)


class Router(nn.Module, ABC):
    """Runs a module with parameters that are soft mixtures over `num_experts` views.

    A subclass says what the mixtures are. `forward(x, *args, **kwargs)` takes `x` of shape
    (B, T, D) and returns what the wrapped module returns; `record` is the last forward's routing.
    `causal` says whether a position's output may depend on later positions or other rows by way of
    the routing. Raises `ValueError` for options out of range and a module that cannot be routed.
    """

    record: Routing | None = None

    def __init__(
        self,
        expert: nn.Module,
        gate: nn.Module,
        num_experts: int,
        level: str,
        causal: bool,
        temperature: float = 1.0,
        expert_dropout: float = 0.0,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        allow_leak: bool = False,
        name: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_views(num_experts)
        require(temperature > 0, "router.temperature", temperature, "give a number > 0")
        share = 0 <= expert_dropout < 1
        require(share, "router.expert_dropout", expert_dropout, "give a share in [0, 1)")
        require(balance_loss >= 0, "router.balance_loss", balance_loss, "give a weight >= 0")
        require(z_loss >= 0, "router.z_loss", z_loss, "give a weight >= 0")
        self.expert, self.gate = expert, gate
        self.num_experts, self.level = num_experts, level
        self._run = LEVELS[level]()
        self.causal, self.allow_leak = causal, allow_leak
        self.temperature, self.expert_dropout = temperature, expert_dropout
        self.balance_loss, self.z_loss = balance_loss, z_loss
        self.name, self.seed = name, seed
        self._forced: int | None = None
        self._dropout_draws = 0
        lacking = unruled(expert) if level == "token" else None
        if lacking:
            raise ValueError(self._refusal(f"{lacking} has parameters and no rule"))

    @abstractmethod
    def mixture(self, name: str, parameter: nn.Parameter) -> Mixture:
        """The mixture that stands for a parameter of the wrapped module in one forward."""

    @property
    def inert(self) -> bool:
        """Whether no routing whatever can change what the wrapped module computes."""
        return self.num_experts == 1

    def forward(self, x_BTD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.record = self.route(x_BTD)
        if self.inert and unruled(self.expert):
            return self.expert(x_BTD, *args, **kwargs)  # merged row by row it would round otherwise
        probs = self._applied(self.record.probs)
        named = self.expert.named_parameters()
        mixtures = {parameter: self.mixture(name, parameter) for name, parameter in named}
        try:
            return self._run(self.expert, mixtures, probs, (x_BTD, *args), kwargs)
        except UnroutableError as error:
            raise ValueError(self._refusal(str(error))) from error

    def route(self, x_BTD: torch.Tensor, gate: nn.Module | None = None) -> Routing:
        """Routing weights of an input, in float32 at least; they sum to 1 over the views.

        Of another `gate` than the router's own if one is given.
        """
        logits = (gate or self.gate)(x_BTD)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        probs = logits.softmax(-1)
        return Routing(logits, probs.mean(0, keepdim=True) if self.level == "batch" else probs)

    @contextmanager
    def forced(self, view: int) -> Iterator[None]:
        """Within the context every forward runs one view alone (one-hot routing)."""
        last = self.num_experts - 1
        require(0 <= view <= last, "view", view, f"give a view from 0 to {last}")
        before, self._forced = self._forced, view
        try:
            yield
        finally:
            self._forced = before

    def penalty(self, routing: Routing) -> torch.Tensor:
        """Weighted auxiliary losses of one forward, a scalar.

        Balance: N * sum_i w_i^2 - 1 of the mean routing weights w, 0 when all views are used alike
        (the soft form of arXiv 2101.03961). z: the mean squared log-partition (arXiv 2202.08906).
        """
        mean_E = routing.probs.flatten(0, -2).mean(0)
        balance = self.num_experts * mean_E.square().sum() - 1
        return (
            self.balance_loss * balance + self.z_loss * routing.logits.logsumexp(-1).square().mean()
        )

    def get_extra_state(self) -> dict[str, int]:
        return {"dropout_draws": self._dropout_draws}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._dropout_draws = state["dropout_draws"]

    def __getstate__(self) -> dict[str, Any]:
        # The last routing belongs to a graph, which cannot be copied.
        return {**self.__dict__, "record": None}

    def _applied(self, probs: torch.Tensor) -> torch.Tensor:
        """The weights that are used: forced, thinned by dropout, or as they are."""
        if self._forced is not None:
            index = torch.full(probs.shape[:-1], self._forced, device=probs.device)
            return F.one_hot(index, self.num_experts).to(probs.dtype)
        if not (self.training and self.expert_dropout):
            return probs
        rank = dist.get_rank() if dist.is_initialized() else 0
        generator = seeded("dropout", self.name, self.seed, self._dropout_draws, rank)
        self._dropout_draws += 1
        keep = torch.rand(probs.shape, generator=generator) >= self.expert_dropout
        return drop_views(probs, keep.to(probs.device))

    def _refusal(self, reason: str) -> str:
        return (
            f"router.level={self.level} cannot wrap {type(self.expert).__name__}: {reason}; use "
            "router.level=batch, or teach it with prismatic.routers.register_rule(cls, fn)"
        )
