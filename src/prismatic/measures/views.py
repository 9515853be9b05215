"""What is recorded of routing and of views, by the names of the specification.

Shapes: B batch, T time, V vocabulary, E views, L passes, P positions of a parameter.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from prismatic.models import Transformer, full_tensor
from prismatic.perturb import modulation
from prismatic.routers import PrismaticRouter, Routing

TINY = 1e-300  # stands for a norm of 0 in a quotient
MOVED = 0.01  # a weight counts as moved when a view changes it by more than this share


def entropy(probs: torch.Tensor) -> torch.Tensor:
    """-sum p ln p over the last dimension, in nats, with 0 ln 0 = 0."""
    return torch.special.entr(probs).sum(-1)


def most_entropy(num_views: int) -> float:
    """ln N, by which entropies of routing are divided; infinite for one view, which has none."""
    return math.log(num_views) if num_views > 1 else math.inf


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
    unit = most_entropy(num_views)
    spread = float(entropy(weight_E))
    return {
        **{f"routing/{group}expert_{i}_weight": float(w) for i, w in enumerate(weight_E)},
        f"routing/{group}entropy": spread / unit,
        f"routing/{group}concentration": float(weight_E.max()) if num_views > 1 else 0.0,
        f"routing/{group}variance": float(weight_E.var(correction=0)),
        f"routing/{group}input_dependence": dependence / unit,
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
                parameter = full_tensor(share)
                f_EP = router.change(name, parameter).dense(parameter.numel())
                path = f"{router.name}.{name}"
                yield Change(router, path, parameter.detach().double().cpu(), f_EP.double().cpu())


class Strength(NamedTuple):
    """How much the views change one parameter."""

    router: PrismaticRouter
    is_matrix: bool
    gram_EE: torch.Tensor  # inner products of the views' changes
    energy: float  # squared norm of the weight
    moved_E: torch.Tensor  # how many weights each view moves by more than MOVED
    size: int
    largest: float
    advertised: float


def strength_of(change: Change) -> Strength:
    """What is needed of a change, but not the change itself."""
    changed_EP = change.f_EP * change.weight.flatten()
    return Strength(
        change.router,
        change.weight.ndim > 1,
        changed_EP @ changed_EP.T,
        float(change.weight.square().sum()),
        (change.f_EP.abs() > MOVED).sum(1),
        change.weight.numel(),
        float(change.f_EP.abs().max()),
        float(change.advertised()),
    )


def relative_norms(found: Sequence[Strength], weight_KE: torch.Tensor) -> torch.Tensor:
    """(K,) norms of the change by a merge at each row of routing weights, over the weights' norm.

    The squared norm of sum_i r_i W f_i is r G r, where G holds the changes' inner products.
    """
    gram_EE = torch.stack([one.gram_EE for one in found]).sum(0)
    energy_K = torch.einsum("ke,ef,kf->k", weight_KE, gram_EE, weight_KE).clamp(min=0)
    return (energy_K / max(sum(one.energy for one in found), TINY)).sqrt()


@torch.no_grad()
def view_measures(model: Transformer, weight_LE: torch.Tensor | None = None) -> dict[str, float]:
    """How strong each view is over all wrapped parameters, and the merge at mean routing weights.

    `views/share_moved` is the share of weights that the strongest view moves by more than MOVED.
    `views/advertised_share` is the share of all change, in squared norm, that has the direction
    which the mode is named for; noise has none. `weight_LE` are each pass's mean routing weights,
    by default uniform. Empty for models without views of one base (dense, smear) or with one view.
    """
    found = [strength_of(change) for change in changes(model)]
    if not found:
        return {}
    num_views = len(found[0].gram_EE)
    every_EE = torch.eye(num_views, dtype=torch.float64)
    norm_E = relative_norms(found, every_EE)
    matrices = [one for one in found if one.is_matrix]
    changed = sum(float(one.gram_EE.trace()) for one in found)
    is_directed = changed > 0 and found[0].router.perturbation.mode != "noise"
    advertised = sum(one.advertised for one in found)
    moved_E = torch.stack([one.moved_E for one in found]).sum(0)
    if weight_LE is None:
        weight_LE = torch.full((model.depth, num_views), 1 / num_views)
    return {
        **({"views/advertised_share": advertised / changed} if is_directed else {}),
        **{f"views/{i}/relative_norm": float(norm_E[i]) for i in range(1, num_views)},
        "views/relative_norm": float(norm_E.max()),
        "views/relative_norm_matrices": float(relative_norms(matrices, every_EE).max()),
        "views/max_change": max(one.largest for one in found),
        "views/share_moved": float(moved_E.max()) / sum(one.size for one in found),
        **merged_norms(model, found, weight_LE.double().cpu()),
    }


def merged_norms(
    model: Transformer, found: Sequence[Strength], weight_LE: torch.Tensor
) -> dict[str, float]:
    """Relative norms of the merge at the mean routing weights of all passes and, for the weights
    of its router, of each pass and, where blocks recur, of each router.
    """
    name, routers, passes = "merged_relative_norm", model.routers, model.passes()
    merged = {f"routing/{name}": float(relative_norms(found, weight_LE.mean(0)[None]))}
    for k, router in enumerate(routers if len(passes) > 1 else []):
        own = [one for one in found if one.router is router]
        weight_KE = weight_LE[k :: len(routers)]
        norm_K = relative_norms(own, torch.cat([weight_KE.mean(0)[None], weight_KE])).tolist()
        if len(routers) < len(passes):
            merged[f"routing/router_{k}/{name}"] = norm_K[0]
        for j, norm in enumerate(norm_K[1:]):
            merged[f"routing/pass_{k + j * len(routers)}/{name}"] = norm
    return merged
