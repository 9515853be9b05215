"""What is recorded of routing and of views, by the names of the specification.

Shapes: B batch, T time, V vocabulary, E views, L passes, P positions of a parameter.
"""

import math
from collections.abc import Sequence

import torch

from prismatic.models import Transformer
from prismatic.routers import PrismaticRouter, Routing

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

    def compute(self) -> dict[str, float]:
        mean_LE, entropy_L = self.total_LE / self.count, self.entropy_L / self.count
        # Within a pass: blocks that differ from one another do not make routing depend on input.
        dependence = float((entropy(mean_LE) - entropy_L).mean())
        measured = routing_measures(mean_LE.mean(0), dependence)
        if len(mean_LE) > 1:
            for t, mean_E in enumerate(mean_LE.tolist()):
                measured |= {f"routing/pass_{t}/expert_{i}_weight": w for i, w in enumerate(mean_E)}
        return measured


def routing_measures(weight_E: torch.Tensor, dependence: float) -> dict[str, float]:
    """Entropy, concentration, variance and input dependence of mean routing weights.

    `dependence` is H(mean r) - mean H(r) over the inputs, in nats.
    """
    num_views = len(weight_E)
    unit = math.log(num_views) if num_views > 1 else math.inf
    spread = float(entropy(weight_E))
    return {
        **{f"routing/expert_{i}_weight": float(w) for i, w in enumerate(weight_E)},
        "routing/entropy": spread / unit,
        "routing/concentration": float(weight_E.max()) if num_views > 1 else 0.0,
        "routing/variance": float(weight_E.var(correction=0)),
        "routing/input_dependence": max(0.0, dependence) / unit,
    }


def energies(weight: torch.Tensor, f_EP: torch.Tensor, weight_E: torch.Tensor) -> torch.Tensor:
    """Squared norms of the change by each view, of the change by their merge, and of the weight."""
    f_FP = torch.cat([f_EP, weight_E[None] @ f_EP, torch.ones_like(f_EP[:1])])
    return (f_FP * weight.flatten()).square().sum(1)


@torch.no_grad()
def view_measures(model: Transformer, weight_E: torch.Tensor | None = None) -> dict[str, float]:
    """How strong each view is over all wrapped parameters, and the merge at mean routing weights.

    `views/share_moved` is the share of weights that the strongest view moves by more than MOVED.
    Empty for models without views of one base (dense, smear) or with one view.
    """
    routers = [r for r in model.routers if isinstance(r, PrismaticRouter) and r.num_experts > 1]
    if not routers:
        return {}
    num_views = routers[0].num_experts
    if weight_E is None:
        weight_E = torch.full((num_views,), 1 / num_views)
    moved_E = torch.zeros(num_views, dtype=torch.float64)
    every = torch.zeros(num_views + 2, dtype=torch.float64)
    matrices, size, largest = torch.zeros_like(every), 0, 0.0
    for router in routers:
        for name, parameter in router.expert.named_parameters():
            f_EP = router.change(name, parameter).dense(parameter.numel()).double().cpu()
            energy = energies(parameter.double().cpu(), f_EP, weight_E.double().cpu())
            every += energy
            matrices += energy * (parameter.ndim > 1)
            moved_E += (f_EP.abs() > MOVED).sum(1)
            size += parameter.numel()
            largest = max(largest, float(f_EP.abs().max()))
    relative = (every[:-1] / every[-1].clamp(min=1e-300)).sqrt().tolist()
    of_matrices = (matrices[1:num_views].max() / matrices[-1].clamp(min=1e-300)).sqrt()
    return {
        **{f"views/{i}/relative_norm": relative[i] for i in range(1, num_views)},
        "views/relative_norm": max(relative[1:num_views]),
        "views/relative_norm_matrices": float(of_matrices),
        "views/max_change": largest,
        "views/share_moved": float(moved_E.max()) / size,
        "routing/merged_relative_norm": relative[num_views],
    }
