"""What is recorded of routing and of views, by the names of the specification.

Shapes: B batch, T time, V vocabulary, E views, L passes, P positions of a parameter.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from prismatic.models import Transformer
from prismatic.perturb import modulation
from prismatic.routers import PrismaticRouter, Routing

from .sharding import whole

MOVED = 0.01  # a weight counts as moved when a view changes it by more than this share


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """-sum p ln p over the last dimension, in nats, with 0 ln 0 = 0."""
    return torch.special.entr(probs).sum(-1)


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
        mean_LE, entropy_L = self.total_LE / self.count, self.entropy_L / self.count
        # Within a pass: blocks that differ from one another do not make routing depend on input.
        dependence_L = entropy(mean_LE) - entropy_L
        measured: dict[str, float] = {}
        for group, passes in groups.items():
            mean_E, dependence = mean_LE[passes].mean(0), float(dependence_L[passes].mean())
            measured |= routing_measures(mean_E, dependence, group)
        return measured


def routing_measures(
    weight_E: torch.Tensor, dependence: float, group: str = ""
) -> dict[str, float]:
    """Entropy, concentration, variance and input dependence of mean routing weights.

    `dependence` is H(mean r) - mean H(r) over the inputs, in nats; `group` is part of the names.
    """
    num_views = len(weight_E)
    unit = math.log(num_views) if num_views > 1 else math.inf
    spread = float(entropy(weight_E))
    return {
        **{f"routing/{group}expert_{i}_weight": float(w) for i, w in enumerate(weight_E)},
        f"routing/{group}entropy": spread / unit,
        f"routing/{group}concentration": float(weight_E.max()) if num_views > 1 else 0.0,
        f"routing/{group}variance": float(weight_E.var(correction=0)),
        f"routing/{group}input_dependence": max(0.0, dependence) / unit,
    }


class Change(NamedTuple):
    """A wrapped parameter and the relative change that each view makes of it, in float64."""

    router: PrismaticRouter
    name: str
    weight: torch.Tensor  # of the parameter's shape
    f_EP: torch.Tensor

    def advertised(self) -> torch.Tensor:
        """Squared norm, summed over views, of what is changed in the direction of the mode.

        A change is role * direction * modulation: it turns where the modulation is negative.
        """
        num_views, numel = self.f_EP.shape
        view_K, position_K = self.f_EP.nonzero(as_tuple=True)
        focal = self.router.focal
        shape_K = modulation(position_K.double(), numel, view_K, num_views, focal)
        changed_K = self.f_EP[view_K, position_K] * self.weight.flatten()[position_K]
        return changed_K[shape_K > 0].square().sum()


def changes(model: Transformer) -> Iterator[Change]:
    """What views of one base change; nothing for other models, and for one view."""
    for router in model.routers:
        if isinstance(router, PrismaticRouter) and router.num_experts > 1:
            for name, share in router.expert.named_parameters():
                parameter = whole(share)
                f_EP = router.change(name, parameter).dense(parameter.numel())
                path = f"{router.name}.{name}"
                yield Change(router, path, parameter.detach().double().cpu(), f_EP.double().cpu())


def energies(weight: torch.Tensor, f_EP: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
    """Squared norms of the change by each view, of the change by their merge, and of the weight."""
    f_FP = torch.cat([f_EP, weight_E[None] @ f_EP, torch.ones_like(f_EP[:1])])
    return (f_FP * weight.flatten()).square().sum(1)


@torch.no_grad()
def view_measures(model: Transformer, weight_E: torch.Tensor | None = None) -> dict[str, float]:
    """How strong each view is over all wrapped parameters, and the merge at mean routing weights.

    `views/share_moved` is the share of weights that the strongest view moves by more than MOVED.
    `views/advertised_share` is the share of all change, in squared norm, that has the direction
    which the mode is named for; noise has none. Empty for models without views of one base (dense,
    smear) or with one view.
    """
    router = model.routers[0]
    if not isinstance(router, PrismaticRouter) or router.num_experts == 1:
        return {}
    num_views, is_drawn = router.num_experts, router.perturbation.mode == "noise"
    if weight_E is None:
        weight_E = torch.full((num_views,), 1 / num_views)
    moved_E = torch.zeros(num_views, dtype=torch.float64)
    every = torch.zeros(num_views + 2, dtype=torch.float64)
    matrices, size, largest = torch.zeros_like(every), 0, 0.0
    advertised = torch.zeros((), dtype=torch.float64)
    for change in changes(model):
        energy = energies(change.weight, change.f_EP, weight_E.double().cpu())
        every += energy
        matrices += energy * (change.weight.ndim > 1)
        moved_E += (change.f_EP.abs() > MOVED).sum(1)
        size += change.weight.numel()
        largest = max(largest, float(change.f_EP.abs().max()))
        advertised += 0 if is_drawn else change.advertised()
    relative = (every[:-1] / every[-1].clamp(min=1e-300)).sqrt().tolist()
    of_matrices = (matrices[1:num_views].max() / matrices[-1].clamp(min=1e-300)).sqrt()
    changed = float(every[1:num_views].sum())
    is_directed = changed and not is_drawn
    return {
        **({"views/advertised_share": float(advertised) / changed} if is_directed else {}),
        **{f"views/{i}/relative_norm": relative[i] for i in range(1, num_views)},
        "views/relative_norm": max(relative[1:num_views]),
        "views/relative_norm_matrices": float(of_matrices),
        "views/max_change": largest,
        "views/share_moved": float(moved_E.max()) / size,
        "routing/merged_relative_norm": relative[num_views],
    }
