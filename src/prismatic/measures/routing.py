"""Where routing sends tokens, and whether that depends on them: by pass, router and domain.

Shapes: B batch, T time, L passes, R routers, D domains, E views.
"""

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prismatic.models import RoutedModel
from prismatic.routers import Router, Routing
from prismatic.stats import mutual_information


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """-sum p ln p over the last dimension, in nats, with 0 ln 0 = 0."""
    return torch.special.entr(probs).sum(-1)


def max_entropy(num_views: int) -> float:
    """ln N, by which entropies of routing are divided; infinite for one view, which has none."""
    return math.log(num_views) if num_views > 1 else math.inf


def is_routed(model: RoutedModel) -> bool:
    return model.routers[0].num_experts > 1


def routing_by_router(model: RoutedModel) -> torch.Tensor:
    """Each router's mean routing weights in the last forward, over its passes: (R, E)."""
    weight_LE = torch.stack([r.probs.detach().flatten(0, -2).mean(0) for r in model.routing])
    num_routers = len(model.routers)
    return torch.stack([weight_LE[k::num_routers].mean(0) for k in range(num_routers)])


class RoutingMeasure:
    """Accumulates routing weights over batches: per pass, their mean and their mean entropy."""

    def __init__(self, num_passes: int, num_views: int, device: torch.device) -> None:
        self.total_LE = torch.zeros(num_passes, num_views, dtype=torch.float64, device=device)
        self.entropy_L = torch.zeros(num_passes, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, routing: Sequence[Routing], num_rows: int) -> None:
        """Add a forward's routing, weighted by its rows."""
        for t, record in enumerate(routing):
            probs = record.probs.detach().double()
            self.total_LE[t] += num_rows * probs.flatten(0, -2).mean(0)
            self.entropy_L[t] += num_rows * entropy(probs).mean()
        self.count += num_rows

    def tensors(self) -> list[torch.Tensor]:
        """What must be summed over ranks before `compute`."""
        return [self.total_LE, self.entropy_L, self.count]

    def compute(self, num_routers: int | None = None) -> dict[str, float]:
        """Measures over all passes, of each pass and, where blocks recur, of each router."""
        num_passes = len(self.total_LE)
        groups = {"": slice(None)}
        if num_passes > 1:
            groups |= {f"pass_{t}/": slice(t, t + 1) for t in range(num_passes)}
        if num_routers is not None and num_routers < num_passes:
            groups |= {f"router_{k}/": slice(k, None, num_routers) for k in range(num_routers)}
        measured: dict[str, float] = {}
        for group, passes in groups.items():
            mean_E = self.mean_LE[passes].mean(0)
            measured |= routing_measures(mean_E, float(self.dependence_L[passes].mean()), group)
        return measured

    @property
    def mean_LE(self) -> torch.Tensor:
        """Each pass's mean routing weights."""
        return self.total_LE / self.count

    @property
    def dependence_L(self) -> torch.Tensor:
        """Each pass's H(mean r) - mean H(r), in nats.

        Within a pass: blocks that differ from one another do not make routing depend on input.
        """
        return (entropy(self.mean_LE) - self.entropy_L / self.count).clamp(min=0)


def routing_measures(
    weight_E: torch.Tensor, dependence: float, group: str = ""
) -> dict[str, float]:
    """Entropy, concentration, variance and input dependence of mean routing weights.

    `dependence` is H(mean r) - mean H(r) over the inputs, in nats; `group` is part of the names.
    """
    num_views = len(weight_E)
    unit = max_entropy(num_views)
    spread = float(entropy(weight_E))
    return {
        **{f"routing/{group}expert_{i}_weight": float(w) for i, w in enumerate(weight_E)},
        f"routing/{group}entropy": spread / unit,
        f"routing/{group}concentration": float(weight_E.max()) if num_views > 1 else 0.0,
        f"routing/{group}variance": float(weight_E.var(correction=0)),
        f"routing/{group}input_dependence": dependence / unit,
    }


class Twins:
    """Copies of a model's gates as they are now, which nothing trains.

    An untrained gate tells inputs apart, too: what it does with the same inputs is the null. From
    `begin` to `end` every forward leaves in `routing` what the twins make of it, pass by pass.
    """

    def __init__(self, model: RoutedModel) -> None:
        self.gates = [copy.deepcopy(router.gate).requires_grad_(False) for router in model.routers]
        self.routing: list[Routing] = []
        self.handles: list[RemovableHandle] = []

    def begin(self, model: RoutedModel) -> None:
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


def routing_by_row(routing: Sequence[Routing], num_rows: int) -> torch.Tensor:
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
        self.total_LDE.index_add_(1, domain_B, routing_by_row(routing, len(domain_B)))

    def weights(self) -> torch.Tensor:
        """Mean routing weights of each domain, (D, E); NaN for one that was not seen."""
        total_DE = self.total_LDE.sum(0)
        return total_DE / total_DE.sum(1, keepdim=True)

    def information(self) -> torch.Tensor:
        """`domain_information` of each pass, (L,): view 1 of one router is not that of another."""
        return torch.tensor([domain_information(total_DE) for total_DE in self.total_LDE])


def domain_information(joint_DE: torch.Tensor) -> float:
    """I(view; domain) / ln min(D, E) of a table of weights that need not sum to 1.

    Plug-in estimate, with domains that were seen; 0 where there is one of either.
    """
    seen_DE = joint_DE[joint_DE.sum(1) != 0]
    fewest = min(seen_DE.shape)
    if fewest < 2:
        return 0.0
    if not seen_DE.isfinite().all():
        return math.nan
    return mutual_information(seen_DE.cpu().numpy()) / math.log(fewest)


class AdaptationSums:
    """Sums over a validation of what says whether routing adapts: by domain, beside the twins.

    For a model with several views.
    """

    def __init__(self, model: RoutedModel, num_domains: int, device: torch.device) -> None:
        num_views = model.routers[0].num_experts
        shape = (len(model.passes()), num_domains, num_views, device)
        self.by_domain, self.by_domain_null = DomainRouting(*shape), DomainRouting(*shape)
        self.null = RoutingMeasure(len(model.passes()), num_views, device)

    def update(
        self, routing: Sequence[Routing], twins: Sequence[Routing], domain_B: torch.Tensor
    ) -> None:
        self.by_domain.update(routing, domain_B)
        self.by_domain_null.update(twins, domain_B)
        self.null.update(twins, len(domain_B))

    def tensors(self) -> list[torch.Tensor]:
        """What must be summed over ranks before `compute`."""
        return [self.by_domain.total_LDE, self.by_domain_null.total_LDE, *self.null.tensors()]

    def compute(self) -> dict[str, torch.Tensor]:
        """By domain only where there are several. A name that ends in `_L` is of each pass, and the
        same name without is the mean over passes.
        """
        _, num_domains, num_views = self.by_domain.total_LDE.shape
        null_L = self.null.dependence_L / max_entropy(num_views)
        by_pass, found = {"routing/input_dependence_null": null_L}, {}
        if num_domains > 1:
            for suffix, table in (("", self.by_domain), ("_null", self.by_domain_null)):
                found[f"routing/domain{suffix}_DE"] = table.weights()
                by_pass[f"routing/mutual_information{suffix}"] = table.information()
        means = {name: value_L.mean() for name, value_L in by_pass.items()}
        return found | means | {f"{name}_L": value_L for name, value_L in by_pass.items()}
