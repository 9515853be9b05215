"""The prismatic router: soft mixtures over deterministic views of one set of weights."""

import torch
from torch import nn

from prismatic.perturb import (
    Draws,
    Edges,
    Focal,
    Perturbation,
    SparseChange,
    sparse_change,
    views_of,
)

from .base import Router
from .gate import ConstantGate, Gate, is_causal, seeded
from .lenses import LensMixture
from .mixtures import EntryMixture, Mixture


class KeptDraws(Draws):
    """Draws that are made once per tensor and view, since they depend on names and options only."""

    def __init__(self) -> None:
        self.kept: dict[tuple[object, ...], torch.Tensor] = {}

    def normal(self, perturbation: Perturbation, name: str, view: int, numel: int) -> torch.Tensor:
        key = ("normal", perturbation, name, view, numel)
        if key not in self.kept:
            self.kept[key] = super().normal(perturbation, name, view, numel)
        return self.kept[key]

    def order(self, perturbation: Perturbation, name: str, view: int, numel: int) -> torch.Tensor:
        key = ("order", perturbation, name, view, numel)
        if key not in self.kept:
            self.kept[key] = super().order(perturbation, name, view, numel)
        return self.kept[key]


class PrismaticRouter(Router):
    """Wraps a module so that each forward is a soft merge of N views of its parameters.

    View 0 is the module as it is; views 1..N-1 exist only as relative changes of the current
    weights (`prismatic.perturb.change`), so nothing is stored and every view follows the base.

    `expert` is any module whose first argument is (B, T, `hidden_size`); `forward` returns what it
    returns. `level` says what shares one merge (`token`, `sequence`: arXiv 2306.03745, or `batch`:
    the formula of source 002), `pool` what the gate sees; `name` keys noise and random selection
    and must differ between blocks. `gate` replaces the default LayerNorm and Linear over the pool.
    Raises `ValueError` for options out of range, and for a module that the level cannot wrap.
    """

    def __init__(
        self,
        expert: nn.Module,
        hidden_size: int,
        num_experts: int = 4,
        perturbation: Perturbation | None = None,
        focal: Focal | None = None,
        level: str = "token",
        pool: str = "causal_mean",
        temperature: float = 1.0,
        expert_dropout: float = 0.0,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        allow_leak: bool = False,
        name: str = "",
        seed: int = 0,
        gate: nn.Module | None = None,
    ) -> None:
        gate = gate or Gate(hidden_size, num_experts, level, pool, seeded("gate", name, seed))
        super().__init__(
            expert, gate, num_experts, level, is_causal(level, pool), temperature, expert_dropout,
            balance_loss, z_loss, allow_leak, name, seed,
        )  # fmt: skip
        self.perturbation = perturbation or Perturbation()
        self.focal = focal or Focal()
        self._draws = KeptDraws()
        self._hints: dict[str, Edges] = {}

    @property
    def inert(self) -> bool:
        unscaled = self.perturbation.scale == 0 and self.perturbation.strength is None
        return unscaled or super().inert

    def change(self, name: str, parameter: nn.Parameter) -> SparseChange:
        """The change of every view of one of the wrapped module's parameters."""
        return sparse_change(parameter, *self._options(name))

    def mixture(self, name: str, parameter: nn.Parameter) -> Mixture:
        views = views_of(parameter, *self._options(name), hints=self._hints)
        if isinstance(views, SparseChange):
            return EntryMixture(parameter, views)
        return LensMixture(parameter, views, by_slice=not self.inert)

    def _options(self, name: str) -> tuple[int, Perturbation, Focal, str, Draws]:
        path = f"{self.name}.{name}".lstrip(".")
        return self.num_experts, self.perturbation, self.focal, path, self._draws


class ConstantRouter(PrismaticRouter):
    """Prismatic views under one trained vector of routing weights, the same for every input.

    The control that separates input-dependent routing from a re-scaled weight. One merge serves
    every position, so any module can be wrapped and nothing leaks.
    """

    def __init__(
        self,
        expert: nn.Module,
        hidden_size: int,
        num_experts: int = 4,
        perturbation: Perturbation | None = None,
        focal: Focal | None = None,
        temperature: float = 1.0,
        expert_dropout: float = 0.0,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        name: str = "",
        seed: int = 0,
    ) -> None:
        gate = ConstantGate(num_experts)
        super().__init__(
            expert, hidden_size, num_experts, perturbation, focal, "batch", "mean", temperature,
            expert_dropout, balance_loss, z_loss, name=name, seed=seed, gate=gate,
        )  # fmt: skip
        self.causal = True
