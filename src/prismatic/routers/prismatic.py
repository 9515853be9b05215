"""The prismatic router: soft mixtures over deterministic views of one set of weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from prismatic.perturb import Focal, Perturbation
from prismatic.perturb.mixtures import Change, product_dtype
from prismatic.perturb.views import Views, changes_of

from .base import Router
from .gate import ConstantGate, Gate, is_causal, pool_name, seeded


class ViewSource:
    """Views of a module's parameters, which exist only as changes of the current weights."""

    def __init__(self, views: Views) -> None:
        self.views, self.inert = views, views.inert

    def mixtures(
        self, expert: nn.Module, x: torch.Tensor, selected: Mapping[str, Change] | None
    ) -> dict[torch.Tensor, Change]:
        named = dict(expert.named_parameters())
        changes = selected or self.views.changes(named, product_dtype(x))
        return {parameter: changes[name] for name, parameter in named.items()}


class PrismaticRouter(Router):
    """Wraps a module so that each forward is a soft merge of N views of its parameters.

    View 0 is the module as it is; views 1..N-1 exist only as relative changes of the current
    weights (`prismatic.perturb.change`), so nothing is stored and every view follows the base.

    `expert` is any module whose first argument is (B, T, `hidden_size`); `forward` returns what it
    returns. `level` says what shares one merge (`token`, `sequence`: arXiv 2306.03745, or `batch`:
    the formula of source 002), `pool` what the gate sees, None for the level's default; `name` keys
    noise and random selection and must differ between blocks. `gate` replaces the default LayerNorm
    and Linear over the pool. Other options are those of `Router`.
    Raises `ValueError` for options out of range, and for a module that the level cannot wrap.
    """

    source: ViewSource

    def __init__(
        self,
        expert: nn.Module,
        hidden_size: int,
        num_experts: int = 4,
        perturbation: Perturbation | None = None,
        focal: Focal | None = None,
        level: str = "token",
        pool: str | None = None,
        *,
        gate: nn.Module | None = None,
        name: str = "",
        seed: int = 0,
        **options: Any,
    ) -> None:
        generator = seeded("gate", name, seed)
        gate = gate or Gate(hidden_size, num_experts, level, pool=pool, generator=generator)
        views = Views(num_experts, perturbation or Perturbation(), focal or Focal(), name)
        causal = is_causal(level, pool_name(level, pool))
        options = {"causal": causal, "name": name, "seed": seed, **options}
        super().__init__(
            expert, gate, ViewSource(views), num_experts=num_experts, level=level, **options
        )

    @property
    def perturbation(self) -> Perturbation:
        return self.source.views.perturbation

    @property
    def focal(self) -> Focal:
        return self.source.views.focal

    def factors(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """The relative change by every view of one of the wrapped module's parameters: (E, P)."""
        return self.source.views.changes({name: parameter})[name].factors()


class ConstantRouter(PrismaticRouter):
    """Prismatic views under one trained vector of routing weights, the same for every input.

    The control that separates input-dependent routing from a re-scaled weight. One merge serves
    every position, so any module can be wrapped and nothing leaks.
    """

    def __init__(
        self, expert: nn.Module, hidden_size: int, num_experts: int = 4, **options: Any
    ) -> None:
        options |= {"gate": ConstantGate(num_experts), "level": "batch", "pool": "mean"}
        super().__init__(expert, hidden_size, num_experts, causal=True, **options)


def select_together(routers: Sequence[Router], x: torch.Tensor) -> list[dict[str, Change] | None]:
    """What each router then takes as `selected`: one selection for all their weights.

    None for a router without views, and for one that has only a share of its weights before it
    runs. `x` is of the precision that all compute in.
    """
    found: list[dict[str, Change] | None] = [None] * len(routers)
    views, named, places = [], [], []
    for k, router in enumerate(routers):
        own = dict(router.expert.named_parameters())
        shared_out = any(isinstance(parameter, DTensor) for parameter in own.values())
        if isinstance(router, PrismaticRouter) and not router.source.inert and not shared_out:
            views.append(router.source.views)
            named.append(own)
            places.append(k)
    for k, changes in zip(places, changes_of(views, named, product_dtype(x)), strict=True):
        found[k] = changes
    return found
